//! What has to happen so that the pods of this node are as the mesh says. Pure.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use crate::{
    model::{
        identity::SpiffeId,
        workload::{Exclusions, Membership, NamespacedName, RefuseReason, Workload},
    },
    store::snapshot::Snapshot,
};

/// A labelled pod of this node, as the mesh wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// Who it is.
    pub identity: SpiffeId,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its network namespace.
    pub netns: PathBuf,
    /// What is not captured.
    pub exclusions: Exclusions,
}

/// A labelled pod of this node: as it is to be enrolled, or why it can't be.
pub type Wanted = Result<Desired, RefuseReason>;

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Release the pod: it left the mesh.
    Release(NamespacedName),
    /// Only what is not captured has changed.
    Exclude(NamespacedName, Exclusions),
    /// Enrol the pod; if it is enrolled otherwise, close it first.
    Enrol(NamespacedName, Desired),
    /// Say why the pod can't be enrolled; if it is, close it. It is in the mesh, so it is not opened.
    Refuse(NamespacedName, RefuseReason),
}

/// The labelled pods of a node. Pods that have finished are no pods any more.
#[must_use]
pub fn wanted(snapshot: &Snapshot, node: &str) -> BTreeMap<NamespacedName, Wanted> {
    let pods = snapshot.pods_on(node).filter(|pod| !pod.finished);
    pods.filter_map(|pod| Some((pod.name.clone(), want(pod)?))).collect()
}

fn want(pod: &Workload) -> Option<Wanted> {
    match (&pod.membership, &pod.netns) {
        (Membership::NotLabelled | Membership::OptedOut | Membership::Refused(RefuseReason::Finished), _) => None,
        (Membership::Refused(reason), _) => Some(Err(*reason)),
        (Membership::InMesh, None) => Some(Err(RefuseReason::NoNetns)),
        (Membership::InMesh, Some(netns)) => Some(Ok(Desired {
            identity: pod.identity.clone(),
            addresses: pod.addresses.clone(),
            netns: netns.clone(),
            exclusions: pod.exclusions.clone(),
        })),
    }
}

/// The steps from `actual` to `wanted`: releases first, because they make room.
#[must_use]
pub fn plan(wanted: &BTreeMap<NamespacedName, Wanted>, actual: &BTreeMap<NamespacedName, Wanted>) -> Vec<Action> {
    let (mut releases, mut rest) = (Vec::new(), Vec::new());
    for name in actual.keys().filter(|name| !wanted.contains_key(name)) {
        releases.push(Action::Release(name.clone()));
    }
    for (name, want) in wanted {
        let have = actual.get(name);
        match (have, want) {
            (Some(have), want) if have == want => {}
            (Some(Ok(have)), Ok(want))
                if *have == (Desired { exclusions: have.exclusions.clone(), ..want.clone() }) =>
            {
                rest.push(Action::Exclude(name.clone(), want.exclusions.clone()));
            }
            (_, Ok(want)) => rest.push(Action::Enrol(name.clone(), want.clone())),
            (_, Err(reason)) => rest.push(Action::Refuse(name.clone(), *reason)),
        }
    }
    releases.extend(rest);
    releases
}

#[cfg(test)]
mod tests {
    use super::{Action, Desired, Wanted, plan};
    use crate::model::{
        identity::{SpiffeId, TrustDomain},
        workload::{Exclusions, NamespacedName, RefuseReason},
    };
    use std::collections::BTreeMap;

    fn pod(address: &str, netns: &str, ports: &str) -> Wanted {
        let exclusions = Exclusions { outbound_ports: ports.parse().unwrap_or_default(), ..Exclusions::default() };
        let identity = SpiffeId::new(TrustDomain::default(), "ns", "default");
        Ok(Desired { identity, addresses: vec![address.parse().unwrap()], netns: netns.into(), exclusions })
    }

    fn of_account(account: &str) -> Wanted {
        let identity = SpiffeId::new(TrustDomain::default(), "ns", account);
        pod("10.0.0.1", "/n/a", "").map(|desired| Desired { identity, ..desired })
    }

    fn pods(list: &[(&str, Wanted)]) -> BTreeMap<NamespacedName, Wanted> {
        list.iter().map(|(name, want)| (NamespacedName::new("ns", *name), want.clone())).collect()
    }

    fn check(wanted: &[(&str, Wanted)], actual: &[(&str, Wanted)], expected: &[&str]) {
        let steps: Vec<_> = plan(&pods(wanted), &pods(actual))
            .iter()
            .map(|step| match step {
                Action::Release(name) => format!("release {}", name.name),
                Action::Exclude(name, _) => format!("exclude {}", name.name),
                Action::Enrol(name, _) => format!("enrol {}", name.name),
                Action::Refuse(name, _) => format!("refuse {}", name.name),
            })
            .collect();
        assert_eq!(steps, expected);
    }

    #[test]
    fn only_what_differs_is_touched_and_releases_come_first() {
        let a = || pod("10.0.0.1", "/n/a", "");
        check(&[("a", a())], &[("a", a())], &[]);
        check(&[("a", a())], &[], &["enrol a"]);
        check(&[], &[("a", a())], &["release a"]);
        check(&[("a", pod("10.0.0.1", "/n/a", "80"))], &[("a", a())], &["exclude a"]);
        check(&[("a", pod("10.0.0.2", "/n/a", ""))], &[("a", a())], &["enrol a"]);
        check(&[("a", pod("10.0.0.1", "/n/b", ""))], &[("a", a())], &["enrol a"]);
        check(&[("a", of_account("other"))], &[("a", a())], &["enrol a"]);
        let refused = || Err(RefuseReason::HostNetwork);
        check(&[("a", refused())], &[("a", a())], &["refuse a"]);
        check(&[("a", refused())], &[("a", refused())], &[]);
        check(&[("a", a()), ("b", refused())], &[("b", a()), ("c", a())], &["release c", "enrol a", "refuse b"]);
    }
}
