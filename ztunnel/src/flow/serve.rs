//! Serves one accepted connection to its end.

use std::{io, rc::Rc};

use tokio::net::TcpStream;

use super::{
    PodContext,
    leg::Leg,
    record::Recorded,
    table::{DeliveryEntry, UpstreamEntry},
};
use crate::{
    model::{
        addr::canonical,
        close::CloseReason,
        flow::{Direction, Flow},
    },
    net::{
        copy::{self, CopyError, Side},
        dial::DialError,
        listen::Accepted,
        socket,
    },
    route::decide::{self, Route},
};

/// How often another source port is tried for a delivery before it is given up.
const DELIVERY_TRIES: u32 = 16;

/// What leaves the tables when the server side is closed.
#[expect(dead_code, reason = "held for their drop")]
enum Held {
    Upstream(UpstreamEntry),
    Delivery(DeliveryEntry),
}

/// Decides, dials, copies and records. Whatever goes wrong, the client gets a reset.
pub async fn serve(pod: Rc<PodContext>, direction: Direction, accepted: Accepted) {
    let Accepted { stream, peer, dst, permit } = accepted;
    let flow = Flow { direction, peer, dst };
    // Declared before the legs: the record and its entry leave last, when the sockets are closed.
    let mut record = Recorded::open(Rc::clone(&pod), flow);
    let mut client = Leg::new(stream);
    let (server, held) = match open(&pod, &flow, &mut record, client.stream()).await {
        Ok(opened) => opened,
        Err((reason, detail)) => return refuse(client, record, reason, detail),
    };
    let mut server = Leg::new(server);
    let result = copy::both(client.stream(), server.stream(), &pod.buffers, &record.bytes).await;
    match result {
        Ok(()) => {
            client.finish();
            server.finish();
            drop(held);
            record.end(CloseReason::Complete, None);
        }
        Err(error) => {
            drop((client, server, held));
            record.end(reason_of(&error), Some(error.to_string()));
        }
    }
    drop(permit);
}

fn refuse(client: Leg, record: Recorded, reason: CloseReason, detail: Option<String>) {
    drop(client);
    record.end(reason, detail);
}

type Refusal = (CloseReason, Option<String>);

async fn open(
    pod: &PodContext,
    flow: &Flow,
    record: &mut Recorded,
    client: &TcpStream,
) -> Result<(TcpStream, Held), Refusal> {
    let looped = match flow.direction {
        Direction::Outbound => pod.upstreams.contains(flow.peer, flow.dst),
        Direction::Inbound => pod.table.is_own_delivery(flow.peer, flow.dst),
    };
    if looped {
        return Err((CloseReason::Recursive, None));
    }
    let route = decide::decide(&pod.mesh.load(), flow).map_err(|reason| (reason, None))?;
    record.routed(route.clone());
    socket::set_data_options(client, pod.keepalive).map_err(|error| match error.raw_os_error() {
        // The client is gone already.
        Some(nix::libc::EINVAL | nix::libc::ECONNRESET) => (CloseReason::ClientReset, None),
        _ => (CloseReason::LocalFault, Some(error.to_string())),
    })?;
    match flow.direction {
        Direction::Outbound => connect_upstream(pod, flow, &route).await,
        Direction::Inbound => deliver(pod, flow, &route).await,
    }
}

async fn connect_upstream(pod: &PodContext, flow: &Flow, route: &Route) -> Result<(TcpStream, Held), Refusal> {
    // The capture route gives unbound sockets the pod's first address of the family; any other is a choice to be kept.
    let source = flow.peer.ip();
    let first = pod.addresses.iter().find(|ip| ip.is_ipv4() == source.is_ipv4());
    let chosen = (first != Some(&source)).then_some(source);
    let begun = |local| pod.upstreams.register(canonical(local), route.to);
    let opened = pod.dialer.upstream(route.to, chosen, begun).await;
    opened.map(|(stream, entry)| (stream, Held::Upstream(entry))).map_err(|error| refusal(&error))
}

async fn deliver(pod: &PodContext, flow: &Flow, route: &Route) -> Result<(TcpStream, Held), Refusal> {
    let mut last = None;
    let mut refused_before = false;
    for _ in 0..DELIVERY_TRIES {
        let Some((from, entry)) = pod.table.register_delivery(flow.peer.ip(), flow.dst) else {
            break;
        };
        match pod.dialer.deliver(route.to, from).await {
            Ok(stream) => return Ok((stream, Held::Delivery(entry))),
            // The port is taken by something that is not in the table: a time-wait, or a socket of the pod's own.
            Err(error @ DialError::Source { .. }) => last = Some(error),
            // A stranger's connection with this tuple answers a connect with a reset. Once may be that, twice is the
            // application: nobody listens.
            Err(error) if is_refusal(&error) && !refused_before => {
                refused_before = true;
                last = Some(error);
            }
            Err(error) => return Err(refusal(&error)),
        }
    }
    match last {
        Some(error) => Err(refusal(&error)),
        None => Err((CloseReason::LocalFault, Some(format!("every delivery port of {} is in use", flow.peer.ip())))),
    }
}

fn is_refusal(error: &DialError) -> bool {
    matches!(error, DialError::Connect { source, .. }
        if matches!(source.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset))
}

fn refusal(error: &DialError) -> Refusal {
    let reason = match error {
        DialError::TimedOut { .. } => CloseReason::ConnectTimedOut,
        DialError::Connect { source, .. } => match source.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => CloseReason::ConnectRefused,
            io::ErrorKind::TimedOut => CloseReason::ConnectTimedOut,
            _ => CloseReason::Unreachable,
        },
        DialError::Netns(_) | DialError::Socket { .. } | DialError::Source { .. } => CloseReason::LocalFault,
    };
    (reason, Some(error.to_string()))
}

fn reason_of(error: &CopyError) -> CloseReason {
    match (error.is_reset(), error.side) {
        (true, Side::Client) => CloseReason::ClientReset,
        (true, Side::Server) => CloseReason::ServerReset,
        (false, _) => CloseReason::PeerLost,
    }
}
