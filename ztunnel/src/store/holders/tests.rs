use proptest::prelude::{Strategy, any, prop, proptest};
use proptest::sample::Index;

use super::*;
use crate::model::identity::{SpiffeId, TrustDomain};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn address(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

/// A state of a pod: which of three addresses it has, and its other properties. `None`: it is gone.
fn any_state() -> impl Strategy<Value = Option<Workload>> {
    let addresses = prop::sample::subsequence(vec![1u8, 2, 3], 0..=3);
    prop::option::weighted(0.8, (0..NAMES.len(), addresses, 0u8..6)).prop_map(|state| {
        let (name, addresses, standing) = state?;
        let name = NamespacedName::new("ns", NAMES[name]);
        let identity = SpiffeId::new(TrustDomain::default(), "ns", "default");
        Some(Workload {
            addresses: addresses.into_iter().map(address).collect(),
            leaving: matches!(standing, 2 | 3),
            finished: standing == 4,
            host_network: standing == 5,
            ..Workload::new(name, identity)
        })
    })
}

/// The rule again: the only claimant that stays, or else the only one that leaves.
fn expected(pods: &[Workload], address: IpAddr) -> (Option<String>, Vec<String>) {
    let claims = |pod: &&Workload| !pod.finished && !pod.host_network && pod.addresses.contains(&address);
    let mut names = [Vec::new(), Vec::new()];
    for pod in pods.iter().filter(claims) {
        names[usize::from(pod.leaving)].push(pod.name.name.to_string());
    }
    let [staying, leaving] = names;
    let mut first = if staying.is_empty() { leaving } else { staying };
    first.sort();
    match &first[..] {
        [] => (None, vec![]),
        [one] => (Some(one.clone()), vec![]),
        _ => (None, first),
    }
}

fn seen(holders: &Holders, address: IpAddr) -> (Option<String>, Vec<String>) {
    let owner = holders.owner(address).map(|owner| owner.name.name.to_string());
    let contested = holders.contested(address).unwrap_or_default();
    (owner, contested.iter().map(|name| name.name.to_string()).collect())
}

proptest! {
    /// The result depends neither on earlier states of the pods nor on the order of the changes.
    #[test]
    fn whose_an_address_is_follows_from_the_pods_and_not_from_their_order(
        states in prop::collection::vec((0..NAMES.len(), any_state(), any::<bool>()), 0..24), swaps in prop::collection::vec(any::<(Index, Index)>(), 0..12)
    ) {
        let mut last: Vec<Option<Arc<Workload>>> = vec![None; NAMES.len()];
        let mut followed = Holders::default();
        for (pod, state, together) in states {
            let name = NamespacedName::new("ns", NAMES[pod]);
            let state = state.map(|state| Arc::new(Workload { name, ..state }));
            followed.note(last[pod].as_deref(), state.as_ref());
            if !together {
                followed.settle();
            }
            last[pod] = state;
        }
        followed.settle();
        let pods: Vec<Arc<Workload>> = last.into_iter().flatten().collect();
        let mut shuffled = pods.clone();
        for (one, other) in swaps.iter().filter(|_| !pods.is_empty()) {
            shuffled.swap(one.index(pods.len()), other.index(pods.len()));
        }
        let mut anew = Holders::default();
        for pod in &shuffled {
            anew.note(None, Some(pod));
        }
        anew.settle();
        let plain: Vec<Workload> = pods.iter().map(|pod| Workload::clone(pod)).collect();
        for address in [1, 2, 3, 4].map(address) {
            let expected = expected(&plain, address);
            assert_eq!(seen(&followed, address), expected, "followed, {plain:#?}");
            assert_eq!(seen(&anew, address), expected, "in another order, {plain:#?}");
            let claims = |pod: &&Arc<Workload>| anew.has_claim(address, &pod.name);
            let claimants: Vec<_> = pods.iter().filter(claims).map(|pod| pod.name.clone()).collect();
            let mut all: Vec<_> = anew.all(address).iter().map(|pod| pod.name.clone()).collect();
            all.sort();
            assert_eq!(claimants, all);
        }
    }
}
