use super::{Outbound, inbound, outbound};
use crate::{
    model::{
        addr::{OrigDst, PeerAddr},
        flow::{Direction, Flow},
        workload::NamespacedName,
    },
    store::snapshot::Snapshot,
};

/// Decides without a mesh. Tests with a mesh are in `control::manifests::tests::routing`.
fn check(direction: Direction, peer: &str, dst: &str, expected: &str) {
    let flow = Flow { direction, peer: PeerAddr::new(peer.parse().unwrap()), dst: OrigDst::new(dst.parse().unwrap()) };
    let (snapshot, pod) = (Snapshot::default(), NamespacedName::new("demo", "own"));
    let got = match direction {
        Direction::Outbound => {
            outbound(&snapshot, &flow, &pod, 0).map(|Outbound { candidates, .. }| candidates[0].target)
        }
        Direction::Inbound => inbound(&snapshot, &flow, &pod).map(|inbound| inbound.to),
    };
    let got = got.map_or_else(|refusal| refusal.reason.label().to_owned(), |to| format!("to {to}"));
    assert_eq!(got, expected, "{direction:?} {peer} -> {dst}");
}

#[test]
fn without_a_mesh_nothing_goes_out_and_what_can_be_carried_comes_in() {
    use Direction::{Inbound, Outbound};
    check(Outbound, "10.0.0.1:4000", "10.0.0.2:80", "local_fault");
    check(Outbound, "127.0.0.1:4000", "127.0.0.1:15001", "recursive");
    check(Outbound, "[fe80::1]:4000", "[fe80::2]:80", "recursive");
    check(Inbound, "10.0.0.2:4000", "10.0.0.1:80", "to 10.0.0.1:80");
    check(Inbound, "[::ffff:10.0.0.2]:4000", "[::ffff:10.0.0.1]:80", "to 10.0.0.1:80");
    check(Inbound, "127.0.0.1:4000", "10.0.0.1:80", "recursive");
    check(Inbound, "[fe80::1]:4000", "[fd00::1]:80", "link_local_source");
    check(Inbound, "10.0.0.2:4000", "127.0.0.1:80", "not_this_pod");
}
