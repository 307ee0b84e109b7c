//! A plaintext connection to the pod: handed to its application.

use std::rc::Rc;

use super::{
    PodContext, Refusal, deliver,
    leg::Leg,
    record::{Facts, Recorded},
    splice,
};
use crate::{
    model::{
        close::CloseReason,
        flow::{Direction, Flow},
    },
    net::{listen::Accepted, socket},
    route::decide,
};

/// Decides, delivers, copies and records. Whatever goes wrong, the client gets a reset.
pub async fn serve(pod: Rc<PodContext>, accepted: Accepted) {
    let Accepted { stream, peer, dst, permit } = accepted;
    let flow = Flow { direction: Direction::Inbound, peer, dst };
    // Declared before the legs: the record and its entry leave last, when the sockets are closed.
    let mut record = Recorded::open(Rc::clone(&pod), flow);
    let mut client = Leg::new(stream);
    match open(&pod, &flow, &mut record, &mut client).await {
        Ok((server, entry)) => {
            record.connected();
            splice(&pod, record, client, Leg::new(server), entry).await;
        }
        Err(refusal) => {
            drop(client);
            record.end(refusal.reason, refusal.detail);
        }
    }
    drop(permit);
}

async fn open(
    pod: &PodContext,
    flow: &Flow,
    record: &mut Recorded,
    client: &mut Leg,
) -> Result<(tokio::net::TcpStream, super::table::DeliveryEntry), Refusal> {
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
    socket::set_data_options(client.stream(), pod.keepalive).map_err(|error| Refusal::of_client(&error))?;
    deliver::to_application(pod, flow.peer.ip(), route.to).await
}
