//! A plaintext connection to the pod, which is passed to the pod's application.

use std::{future::Future, rc::Rc};

use futures_util::future::LocalBoxFuture;

use super::{
    FlowRefusal, PodContext,
    deliver::{self, Delivered},
    enforcement::Enforcement,
    established::{Established, TcpEnds},
    in_two_parts,
    judge::judge,
    record::{Facts, Recorded},
    reset_on_drop::ResetOnDrop,
};
use crate::{
    model::{
        close::CloseReason,
        flow::{Direction, Flow},
    },
    net::listen::Accepted,
    policy::Connection,
    route::decide,
};

/// Decides, delivers, copies and records. After any error the client gets a reset.
pub fn serve(pod: Rc<PodContext>, accepted: Accepted) -> impl Future<Output = ()> {
    in_two_parts(begin(pod, accepted))
}

async fn begin(pod: Rc<PodContext>, accepted: Accepted) -> Option<LocalBoxFuture<'static, ()>> {
    let Accepted { stream, peer, dst, place } = accepted;
    let flow = Flow { direction: Direction::Inbound, peer, dst };
    // Declared before the sockets, so that the record and its table entry are dropped after the sockets are closed.
    let mut record = Recorded::open(Rc::clone(&pod), flow);
    pod.open.fit(&stream);
    let (client, live) = (ResetOnDrop::new(stream), Rc::clone(record.live()));
    let opened = tokio::select! {
        opened = open(&pod, &flow, &mut record) => opened,
        reason = live.until_cut() => Err(reason.into()),
    };
    match opened {
        Ok(Opened { server, enforcement }) => {
            let Delivered { application, held } = server;
            record.connected();
            let ends = TcpEnds { client, server: ResetOnDrop::new(application) };
            Some(Box::pin(Established { ends, held, enforcement: Some(enforcement), record, place }.copy()))
        }
        Err(refusal) => {
            drop(client);
            record.end(refusal.reason, refusal.detail);
            None
        }
    }
}

/// The application's side of an allowed connection.
struct Opened {
    server: Delivered,
    enforcement: Enforcement,
}

async fn open(pod: &PodContext, flow: &Flow, record: &mut Recorded) -> Result<Opened, FlowRefusal> {
    if pod.table.is_own_delivery(flow.peer, flow.dst) {
        return Err(CloseReason::Recursive.into());
    }
    let route = decide::inbound(&pod.mesh.load(), flow, &pod.name)?;
    record.facts(Facts {
        source: route.source,
        destination: route.destination,
        service: route.service,
        ..Facts::of(flow)
    });
    let connection = Connection { source: None, source_ip: flow.peer.ip(), destination: route.to };
    let mut enforcement = pod.enforcement_point.enter_in_plaintext(connection, flow.peer.port());
    let permit = judge(pod, flow, &enforcement)?;
    record.live().permit(permit.basis());
    let server = tokio::select! {
        opened = deliver::to_application(pod, &permit, flow.peer.ip(), route.to) => opened?,
        denial = enforcement.stopped() => return Err(FlowRefusal::of_change(&denial)),
    };
    Ok(Opened { server, enforcement })
}
