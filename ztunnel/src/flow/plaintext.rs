//! A plaintext connection to the pod: handed to its application.

use std::rc::Rc;

use tokio::net::TcpStream;

use super::{
    PodContext, Refusal, deliver,
    gate::Visit,
    judge::judge,
    leg::Leg,
    record::{Facts, Recorded},
    splice,
    table::DeliveryEntry,
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

/// Decides, delivers, copies and records. Whatever goes wrong, the client gets a reset.
pub async fn serve(pod: Rc<PodContext>, accepted: Accepted) {
    let Accepted { stream, peer, dst, permit } = accepted;
    let flow = Flow { direction: Direction::Inbound, peer, dst };
    // Declared before the legs: the record and its entry leave last, when the sockets are closed.
    let mut record = Recorded::open(Rc::clone(&pod), flow);
    let client = Leg::new(stream);
    match open(&pod, &flow, &mut record).await {
        Ok(Opened { server, entry, visit }) => {
            record.connected();
            splice(&pod, record, client, Leg::new(server), Some(visit), entry).await;
        }
        Err(refusal) => {
            drop(client);
            record.end(refusal.reason, refusal.detail);
        }
    }
    drop(permit);
}

/// The application's side of a connection that may be.
struct Opened {
    server: TcpStream,
    entry: DeliveryEntry,
    visit: Visit,
}

async fn open(pod: &PodContext, flow: &Flow, record: &mut Recorded) -> Result<Opened, Refusal> {
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
    let mut visit = pod.gate.enter(Connection { source: None, source_ip: flow.peer.ip(), destination: route.to });
    let judged = judge(pod, flow, &visit)?;
    if judged.probe {
        record.live().count_apart();
    }
    let (server, entry) = tokio::select! {
        opened = deliver::to_application(pod, &judged.permit, flow.peer.ip(), route.to) => opened?,
        denial = visit.stopped() => return Err(Refusal::of_change(&denial)),
    };
    Ok(Opened { server, entry, visit })
}
