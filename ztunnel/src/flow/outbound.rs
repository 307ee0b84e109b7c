//! A connection of the pod's application: through HBONE, or in plaintext to a destination outside the mesh.

use std::{future::Future, rc::Rc};

use futures_util::future::LocalBoxFuture;

use super::{
    PodContext,
    established::{Established, TcpEnds, TunnelEnds},
    held::{HeldConnects, Prepared},
    in_two_parts,
    record::Recorded,
    reset_on_drop::ResetOnDrop,
    upstream::{self, Server},
};
use crate::{
    hbone::pool::Opened,
    model::{
        close::CloseReason,
        flow::{Direction, Flow},
    },
    net::{
        copy::{Side, error_of},
        dial::Dialled,
        listen::Accepted,
    },
};

/// Decides, connects, copies and records. After any error the client gets a reset. The destination of a connect that was held
/// is reached already.
pub fn serve(pod: Rc<PodContext>, held: Rc<HeldConnects>, accepted: Accepted) -> impl Future<Output = ()> {
    in_two_parts(begin(pod, held, accepted))
}

async fn begin(pod: Rc<PodContext>, held: Rc<HeldConnects>, accepted: Accepted) -> Option<LocalBoxFuture<'static, ()>> {
    let Accepted { stream, peer, dst, place } = accepted;
    pod.open.fit(&stream);
    let (mut record, opened);
    let client;
    match held.take(peer, dst) {
        Some(prepared) => {
            Prepared { record, result: opened } = prepared;
            client = ResetOnDrop::new(stream);
        }
        None => {
            let flow = Flow { direction: Direction::Outbound, peer, dst };
            record = Recorded::open(Rc::clone(&pod), flow);
            client = ResetOnDrop::new(stream);
            let live = Rc::clone(record.live());
            opened = tokio::select! {
                opened = upstream::open(&pod, &flow, &mut record) => opened,
                // The client has reset the connection.
                _ = error_of(client.socket()) => Err(CloseReason::ClientReset.into()),
                reason = live.until_cut() => Err(reason.into()),
            };
        }
    }
    match opened {
        Ok(Server::Plain(Dialled { stream: server, held })) => {
            record.connected();
            let ends = TcpEnds { client, server: ResetOnDrop::new(server) };
            Some(Box::pin(Established { ends, held, enforcement: None, record, place }.copy()))
        }
        Ok(Server::Tunnel(opened)) => {
            let Opened { tunnel, identity, .. } = *opened;
            record.proved(identity);
            record.connected();
            let ends = TunnelEnds { application: client, tunnel, tunnel_side: Side::Server };
            Some(Box::pin(Established { ends, held: (), enforcement: None, record, place }.copy()))
        }
        Err(refusal) => {
            drop(client);
            record.end(refusal.reason, refusal.detail);
            None
        }
    }
}
