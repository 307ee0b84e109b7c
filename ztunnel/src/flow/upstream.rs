//! The way to the destination of a connection that the pod's application opens: through HBONE, or in plaintext out of the mesh.

use std::net::{IpAddr, SocketAddr};

use tokio::time::Instant;

use super::{
    FlowRefusal, PodContext,
    record::{Facts, Recorded},
    table::UpstreamEntry,
};
use crate::{
    hbone::pool::{Key, Opened},
    model::{addr::canonical, close::CloseReason, flow::Flow},
    net::dial::Dialled,
    route::decide::{self, Candidate, Hop, Outbound},
    wire::{
        baggage::Baggage,
        connect::{Authority, ConnectRequest},
        forwarded::Forwarded,
        trace::TraceParent,
    },
};

/// The destination's side of the connection.
pub(super) enum Server {
    Plain(Dialled<UpstreamEntry>),
    Tunnel(Box<Opened>),
}

/// Decides, and connects. The endpoints of a service are tried in their order.
pub(super) async fn open(pod: &PodContext, flow: &Flow, record: &mut Recorded) -> Result<Server, FlowRefusal> {
    if pod.upstreams.contains(flow.peer, flow.dst) {
        return Err(CloseReason::Recursive.into());
    }
    let mesh = pod.mesh.resolve(flow.dst.ip(), Instant::now()).await?;
    let draw = fastrand::u64(..);
    let route = match mesh.workload(&pod.name) {
        None if pod.enforcement_point.is_new() => decide::outbound_of_new(&mesh, flow, &pod.name, draw)?,
        _ => decide::outbound(&mesh, flow, &pod.name, draw)?,
    };
    drop(mesh);
    let mut refusal = None;
    for candidate in &route.candidates {
        record.facts(facts(pod, flow, &route, candidate));
        match connect(pod, flow, &route, candidate).await {
            Ok(server) => return Ok(server),
            // No byte has been sent, so another endpoint may be tried.
            Err(failed) if is_of_the_endpoint(failed.reason) => refusal = Some(failed),
            Err(failed) => return Err(failed),
        }
    }
    Err(refusal.unwrap_or_else(|| CloseReason::NoHealthyUpstream.into()))
}

async fn connect(
    pod: &PodContext,
    flow: &Flow,
    route: &Outbound,
    candidate: &Candidate,
) -> Result<Server, FlowRefusal> {
    match &candidate.hop {
        Hop::Plain => {
            let begun = |local| pod.upstreams.register(canonical(local), candidate.target);
            let opened = pod.dialer.upstream(candidate.target, source(pod, flow, candidate.target)?, begun).await;
            Ok(Server::Plain(opened.map_err(|error| FlowRefusal::of_upstream(&error))?))
        }
        Hop::Tunnel { to, expected } => {
            let key = Key { to: *to, expected: expected.clone(), from: source(pod, flow, *to)? };
            let request = request(pod, flow, route, candidate);
            pod.pool
                .open(&key, &request)
                .await
                .map(|opened| Server::Tunnel(Box::new(opened)))
                .map_err(|error| FlowRefusal::of_tunnel(&error))
        }
    }
}

/// The source address of the connection: the address of the application's socket, or the pod's first address where the
/// destination is of the other family. The kernel is not asked to choose: a pod with CAP_NET_ADMIN may add an address, or
/// change a route, so that the kernel prefers an address that the mesh does not know for the pod.
///
/// If the network namespace does not have the address, the connect fails. So the kernel checks an address that the mesh does not
/// know. `None`: the mesh knows no address of this family for the pod, which may have one for egress all the same.
fn source(pod: &PodContext, flow: &Flow, to: SocketAddr) -> Result<Option<IpAddr>, FlowRefusal> {
    let source = flow.peer.ip();
    if source.is_ipv4() == to.is_ipv4() {
        return Ok(Some(source));
    }
    if pod.addresses.contains(source) {
        return Ok(pod.first_address(to.ip()));
    }
    let detail =
        format!("{source} is not known as an address of Pod {}, and {to} is of the other address family", pod.name);
    Err(FlowRefusal::new(CloseReason::ForeignSource, detail))
}

fn request(pod: &PodContext, flow: &Flow, route: &Outbound, candidate: &Candidate) -> ConnectRequest {
    ConnectRequest {
        authority: Authority::Address(candidate.target),
        baggage: route.source.as_deref().map(|source| Baggage::of(source, &pod.cluster)).unwrap_or_default(),
        forwarded: Some(Forwarded::new(
            flow.peer.socket(),
            route.service.as_deref().map(|service| service.hostname.to_string()),
        )),
        traceparent: Some(TraceParent::new(fastrand::u128(1..), fastrand::u64(1..))),
        network: None,
    }
}

fn facts(pod: &PodContext, flow: &Flow, route: &Outbound, candidate: &Candidate) -> Facts {
    let common = Facts {
        source: route.source.clone(),
        service: route.service.clone(),
        destination: candidate.workload.clone(),
        dst_addr: candidate.target,
        ..Facts::of(flow)
    };
    match &candidate.hop {
        Hop::Plain => common,
        Hop::Tunnel { to, expected: _ } => Facts {
            dst_addr: *to,
            hbone_addr: Some(candidate.target.to_string()),
            source_identity: Some(pod.tls.identity().clone()),
            destination_identity: candidate.workload.as_deref().map(|workload| workload.identity.clone()),
            ..common
        },
    }
}

/// Whether the failure concerns this endpoint only, so that another endpoint may be tried.
fn is_of_the_endpoint(reason: CloseReason) -> bool {
    matches!(
        reason,
        CloseReason::ConnectRefused
            | CloseReason::ConnectTimedOut
            | CloseReason::Unreachable
            | CloseReason::TlsFailed
            | CloseReason::TunnelFailed
            | CloseReason::TunnelTimedOut
            | CloseReason::TunnelRefused
            | CloseReason::TooMany
            | CloseReason::NotThisPod
    )
}
