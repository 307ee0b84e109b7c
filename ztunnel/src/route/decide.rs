//! The decision, both ways. There are no tunnels yet: what may go on goes on to where it wanted.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crate::{
    model::{
        addr::{is_link_local_v6, is_listener},
        close::CloseReason,
        flow::{Direction, Flow},
        service::Service,
        workload::Workload,
    },
    store::snapshot::Snapshot,
};

/// Where a connection goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The address to connect to.
    pub to: SocketAddr,
    /// The service whose address the client asked for.
    pub service: Option<Arc<Service>>,
    /// Who connects, as far as its address tells. Not an identity: addresses can be forged.
    pub source: Option<Arc<Workload>>,
    /// Who is connected to, as far as the address tells.
    pub destination: Option<Arc<Workload>>,
}

/// Decides about one connection of a pod.
///
/// # Errors
/// The reason to refuse it.
pub fn decide(snapshot: &Snapshot, flow: &Flow) -> Result<Route, CloseReason> {
    let (peer, dst) = (flow.peer.ip(), flow.dst.ip());
    match flow.direction {
        // Nothing of the kind is ever captured: it can only have been made to reach the listener itself.
        Direction::Outbound if !is_carried(dst) => return Err(CloseReason::Recursive),
        Direction::Outbound => {}
        Direction::Inbound if !is_carried(dst) => return Err(CloseReason::NotThisPod),
        Direction::Inbound if is_link_local_v6(peer) => return Err(CloseReason::LinkLocalSource),
        Direction::Inbound if !is_carried(peer) => return Err(CloseReason::Recursive),
        Direction::Inbound => {}
    }
    Ok(Route {
        to: flow.dst.socket(),
        service: snapshot.service_at(dst).cloned(),
        source: snapshot.workload_at(peer).cloned(),
        destination: snapshot.workload_at(dst).cloned(),
    })
}

/// Whether TCP to or from the address can cross from one socket to another here.
fn is_carried(ip: IpAddr) -> bool {
    !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast() && !is_link_local_v6(ip) && !is_listener(ip)
}

#[cfg(test)]
mod tests {
    use super::decide;
    use crate::{
        model::{
            addr::{OrigDst, PeerAddr},
            flow::{Direction, Flow},
        },
        store::snapshot::Snapshot,
    };

    fn check(direction: Direction, peer: &str, dst: &str, expected: &str) {
        let flow =
            Flow { direction, peer: PeerAddr::new(peer.parse().unwrap()), dst: OrigDst::new(dst.parse().unwrap()) };
        let got = match decide(&Snapshot::default(), &flow) {
            Ok(route) => format!("to {}", route.to),
            Err(reason) => reason.label().to_owned(),
        };
        assert_eq!(got, expected, "{direction:?} {peer} -> {dst}");
    }

    #[test]
    fn what_can_be_carried_goes_on_and_the_rest_is_refused() {
        use Direction::{Inbound, Outbound};
        check(Outbound, "10.0.0.1:4000", "10.0.0.2:80", "to 10.0.0.2:80");
        check(Outbound, "[fd00::1]:4000", "[fd00::2]:80", "to [fd00::2]:80");
        check(Outbound, "10.0.0.1:4000", "[::ffff:10.0.0.2]:80", "to 10.0.0.2:80");
        check(Outbound, "10.0.0.1:4000", "169.254.169.254:80", "to 169.254.169.254:80");
        check(Outbound, "127.0.0.1:4000", "127.0.0.1:15001", "recursive");
        check(Outbound, "[::1]:4000", "[::1]:15001", "recursive");
        check(Outbound, "10.0.0.1:4000", "0.0.0.0:80", "recursive");
        check(Outbound, "10.0.0.1:4000", "192.0.0.8:40000", "recursive");
        check(Outbound, "[fd00::1]:4000", "[100::1]:40000", "recursive");
        check(Outbound, "[fe80::1]:4000", "[fe80::2]:80", "recursive");
        check(Inbound, "10.0.0.2:4000", "10.0.0.1:80", "to 10.0.0.1:80");
        check(Inbound, "127.0.0.1:4000", "10.0.0.1:80", "recursive");
        check(Inbound, "[fe80::1]:4000", "[fd00::1]:80", "link_local_source");
        check(Inbound, "10.0.0.2:4000", "127.0.0.1:80", "not_this_pod");
    }
}
