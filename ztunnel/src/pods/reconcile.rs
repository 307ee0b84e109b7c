//! Finds the steps after which the pods of this node match the mesh and the local source. Pure.

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use crate::{
    model::{
        identity::SpiffeId,
        local::{ConnectMode, Exclusions, LocalPod, LocalPods, Sandbox},
        netns::NetnsFile,
        workload::{Membership, NamespacedName, RefuseReason, Workload},
    },
    store::snapshot::Snapshot,
};

/// The desired state of a labelled pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// Its identity.
    pub identity: SpiffeId,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its network namespace.
    pub netns: NetnsFile,
    /// Its traffic that is not captured.
    pub exclusions: Exclusions,
    /// When its connects succeed. `None`: as the node is set.
    pub connect: Option<ConnectMode>,
    /// The ports of its probes.
    pub probe_ports: Vec<u16>,
    /// The mesh does not know its addresses yet. `addresses` has those of its sandbox.
    pub awaits_mesh: bool,
}

impl Desired {
    /// The local facts for the decisions of its enforcement point.
    #[must_use]
    pub fn local(&self) -> LocalPod {
        LocalPod {
            netns: Some(self.netns.clone()),
            exclusions: self.exclusions.clone(),
            connect: self.connect,
            probe_ports: self.probe_ports.clone(),
            sandbox: self.awaits_mesh.then(|| Sandbox {
                identity: self.identity.clone(),
                addresses: self.addresses.clone(),
                is_ahead_of_status: true,
            }),
            ..LocalPod::default()
        }
    }
}

/// Why a labelled pod of this node can't be enrolled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CannotEnrol {
    /// No node could enrol it.
    Membership(RefuseReason),
    /// The local source does not know the pod's network namespace; with the source's explanation. The pod is in the
    /// mesh nevertheless.
    NoNetns(String),
    /// The pod's containers have a network stack of their own, by its runtime class.
    OwnNetworkStack(Arc<str>),
    /// The local source has another service account than the mesh: it may be another pod.
    OtherAccount {
        /// The service account in the mesh.
        mesh: Arc<str>,
        /// The service account of the local source.
        local: Arc<str>,
    },
    /// The pod has the label by the local source, but it is not in the mesh.
    NotInMesh,
}

impl CannotEnrol {
    /// Whether the reason needs action. A pod without an address gets one later, or the container runtime reports why not.
    #[must_use]
    pub const fn is_fault(&self) -> bool {
        !matches!(self, Self::Membership(RefuseReason::Finished | RefuseReason::NoAddress | RefuseReason::Sidecar(_)))
    }

    /// Whether the pod must be treated as if there were no mesh: it is released if it was captured before.
    #[must_use]
    pub const fn leaves_alone(&self) -> bool {
        matches!(self, Self::Membership(reason) if reason.leaves_alone())
    }
}

impl fmt::Display for CannotEnrol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Membership(reason) => reason.fmt(f),
            Self::NoNetns(reason) => f.write_str(reason),
            Self::OwnNetworkStack(class) => write!(
                f,
                "the pod's runtime class is {class}: its containers have a network stack of their own, whose connections cannot be \
                 captured; run the pod with another runtime class, or label it istio.io/dataplane-mode: none"
            ),
            Self::OtherAccount { mesh, local } => write!(
                f,
                "the pod has service account {mesh} in the mesh and {local} in its spec; the daemon enrols \
                 the pod when both agree; this takes a moment after a pod was replaced by another pod of the \
                 same name"
            ),
            Self::NotInMesh => f.write_str(
                "the pod or its Namespace has the label istio.io/dataplane-mode: ambient, but the mesh does \
                 not have the pod: the daemon enrols the pod when the control plane has sent it; if this \
                 takes longer than a few seconds, check the control plane",
            ),
        }
    }
}

/// A labelled pod of this node: its desired state, or the reason why it can't be enrolled.
pub type Wanted = Result<Desired, CannotEnrol>;

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Release the pod: it left the mesh.
    Release(NamespacedName),
    /// The pod is the same, with other facts: change it in place, so that its connections stay open.
    Update(NamespacedName, Desired),
    /// Enrol the pod. If it is enrolled in another way, close it first.
    Enrol(NamespacedName, Desired),
    /// Report why the pod can't be enrolled. If it is enrolled, close it and do not open it, because it is in the mesh.
    /// Release it if it must be [left alone](CannotEnrol::leaves_alone).
    Refuse(NamespacedName, CannotEnrol),
}

/// The labelled pods of a node, without those that have finished. `missing` explains why the network namespace of a pod
/// is not known.
#[must_use]
pub fn wanted(
    snapshot: &Snapshot,
    node: &str,
    local: &LocalPods,
    missing: impl Fn(&NamespacedName) -> String,
) -> BTreeMap<NamespacedName, Wanted> {
    let pods = snapshot.pods_on(node).filter(|pod| !pod.finished);
    let mut wanted: BTreeMap<_, _> =
        pods.filter_map(|pod| Some((pod.name.clone(), want(pod, local.get(&pod.name), &missing)?))).collect();
    for (name, pod) in local.iter().filter(|(_, pod)| pod.is_labelled || pod.sandbox.is_some()) {
        let workload = snapshot.workload(name);
        let is_outdated =
            |workload: &Arc<Workload>| workload.finished || workload.node.as_deref().is_none_or(|other| other != node);
        if workload.is_none_or(is_outdated)
            && let Some(desired) = from_sandbox(pod)
        {
            wanted.entry(name.clone()).or_insert(Ok(desired));
            continue;
        }
        let is_outside =
            |workload: &Arc<Workload>| workload.membership == Membership::NotLabelled && !workload.native_tunnel;
        if pod.is_labelled && workload.is_none_or(is_outside) {
            wanted.entry(name.clone()).or_insert(Err(CannotEnrol::NotInMesh));
        }
    }
    wanted
}

fn want(pod: &Workload, local: Option<&LocalPod>, missing: impl Fn(&NamespacedName) -> String) -> Option<Wanted> {
    match pod.membership {
        _ if pod.native_tunnel => None,
        Membership::NotLabelled | Membership::OptedOut | Membership::Refused(RefuseReason::Finished) => None,
        Membership::Refused(reason) if reason != RefuseReason::NoAddress || !has_sandbox(local) => {
            Some(Err(CannotEnrol::Membership(reason)))
        }
        Membership::Refused(_) | Membership::InMesh => {
            let no_netns = || CannotEnrol::NoNetns(missing(&pod.name));
            Some(local.ok_or_else(no_netns).and_then(|local| {
                if let Some(class) = local.own_network_stack() {
                    return Err(CannotEnrol::OwnNetworkStack(Arc::clone(class)));
                }
                let mesh = &pod.identity.service_account;
                if let Some(account) = local.service_account.as_ref().filter(|account| **account != *mesh) {
                    return Err(CannotEnrol::OtherAccount { mesh: Arc::clone(mesh), local: Arc::clone(account) });
                }
                let is_outdated = |sandbox: &&Sandbox| pod.addresses.is_empty() || sandbox.is_ahead_of_status;
                let sandbox = local.sandbox.as_ref().filter(is_outdated);
                Ok(Desired {
                    identity: pod.identity.clone(),
                    addresses: sandbox.map_or(&pod.addresses, |sandbox| &sandbox.addresses).clone(),
                    netns: local.netns.clone().ok_or_else(no_netns)?,
                    exclusions: local.exclusions.clone(),
                    connect: local.connect,
                    probe_ports: local.probe_ports.clone(),
                    awaits_mesh: sandbox.is_some(),
                })
            }))
        }
    }
}

fn has_sandbox(local: Option<&LocalPod>) -> bool {
    local.is_some_and(|local| local.sandbox.is_some())
}

/// The desired state of a pod of this node that the mesh does not know yet. Its identity and addresses are those of its
/// sandbox.
fn from_sandbox(local: &LocalPod) -> Option<Desired> {
    let sandbox = local.sandbox.as_ref()?;
    Some(Desired {
        identity: sandbox.identity.clone(),
        addresses: sandbox.addresses.clone(),
        netns: local.netns.clone()?,
        exclusions: local.exclusions.clone(),
        connect: local.connect,
        probe_ports: local.probe_ports.clone(),
        awaits_mesh: true,
    })
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
            (Some(Ok(have)), Ok(want)) if have.identity == want.identity => {
                rest.push(Action::Update(name.clone(), want.clone()));
            }
            (_, Ok(want)) => rest.push(Action::Enrol(name.clone(), want.clone())),
            (_, Err(reason)) => rest.push(Action::Refuse(name.clone(), reason.clone())),
        }
    }
    releases.extend(rest);
    releases
}

#[cfg(test)]
mod tests {
    use super::{Action, CannotEnrol, Desired, Wanted, plan, wanted};
    use crate::{
        model::{
            identity::{SpiffeId, TrustDomain},
            local::{ConnectMode, Exclusions, LocalPod, LocalPods, Sandbox},
            workload::{Membership, NamespacedName, RefuseReason, Workload},
        },
        store::snapshot::Snapshot,
    };
    use std::collections::BTreeMap;

    fn name(name: &str) -> NamespacedName {
        NamespacedName::new("ns", name)
    }

    fn identity(account: &str) -> SpiffeId {
        SpiffeId::new(TrustDomain::default(), "ns", account)
    }

    fn desired(address: &str, netns: &str, ports: &str) -> Desired {
        let exclusions = Exclusions { outbound_ports: ports.parse().unwrap_or_default(), ..Exclusions::default() };
        let addresses = vec![address.parse().unwrap()];
        Desired {
            identity: identity("default"),
            addresses,
            netns: netns.into(),
            exclusions,
            connect: None,
            probe_ports: Vec::new(),
            awaits_mesh: false,
        }
    }

    fn pod(address: &str, netns: &str, ports: &str) -> Wanted {
        Ok(desired(address, netns, ports))
    }

    fn of_account(account: &str) -> Wanted {
        pod("10.0.0.1", "/n/a", "").map(|desired| Desired { identity: identity(account), ..desired })
    }

    fn pods(list: &[(&str, Wanted)]) -> BTreeMap<NamespacedName, Wanted> {
        list.iter().map(|(pod, want)| (name(pod), want.clone())).collect()
    }

    fn check(wanted: &[(&str, Wanted)], actual: &[(&str, Wanted)], expected: &[&str]) {
        let steps: Vec<_> = plan(&pods(wanted), &pods(actual))
            .iter()
            .map(|step| match step {
                Action::Release(name) => format!("release {}", name.name),
                Action::Update(name, _) => format!("update {}", name.name),
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
        check(&[("a", pod("10.0.0.1", "/n/a", "80"))], &[("a", a())], &["update a"]);
        let probed = a().map(|desired| Desired { probe_ports: vec![80], ..desired });
        check(&[("a", probed)], &[("a", a())], &["update a"]);
        let held = a().map(|desired| Desired { connect: Some(ConnectMode::Held), ..desired });
        check(&[("a", held)], &[("a", a())], &["update a"]);
        check(&[("a", pod("10.0.0.2", "/n/a", ""))], &[("a", a())], &["update a"]);
        check(&[("a", pod("10.0.0.1", "/n/b", ""))], &[("a", a())], &["update a"]);
        // The identity can't change while connections are open.
        check(&[("a", of_account("other"))], &[("a", a())], &["enrol a"]);
        let refused = || Err(CannotEnrol::Membership(RefuseReason::HostNetwork));
        check(&[("a", refused())], &[("a", a())], &["refuse a"]);
        check(&[("a", refused())], &[("a", refused())], &[]);
        check(&[("a", a()), ("b", refused())], &[("b", a()), ("c", a())], &["release c", "enrol a", "refuse b"]);
    }

    /// The wanted pods, of a pod `a` of this node with this membership and a pod `b` of another node.
    fn wanted_of(membership: Membership, local: &LocalPods) -> BTreeMap<NamespacedName, Wanted> {
        let pod = |pod, node: &str, membership| Workload {
            node: Some(node.into()),
            addresses: vec!["10.0.0.1".parse().unwrap()],
            membership,
            ..Workload::new(name(pod), identity("default"))
        };
        let pods = vec![pod("a", "here", membership), pod("b", "there", Membership::InMesh)];
        let mesh = Snapshot::build(1, pods, vec![], vec![]);
        wanted(&mesh, "here", local, |pod| format!("nobody knows the namespace of {pod}"))
    }

    #[test]
    fn a_pod_of_the_mesh_without_a_known_namespace_is_refused_and_not_left_alone() {
        let with = |local: LocalPod| LocalPods::from([(name("a"), local)]);
        let refused = pods(&[("a", Err(CannotEnrol::NoNetns("nobody knows the namespace of ns/a".to_owned())))]);
        assert_eq!(wanted_of(Membership::InMesh, &LocalPods::new()), refused);
        let no_netns = LocalPod { probe_ports: vec![80], ..LocalPod::default() };
        assert_eq!(wanted_of(Membership::InMesh, &with(no_netns)), refused);

        let local = LocalPod { netns: Some("/n/a".into()), ..LocalPod::default() };
        assert_eq!(wanted_of(Membership::InMesh, &with(local.clone())), pods(&[("a", pod("10.0.0.1", "/n/a", ""))]));
        // Whatever the local source knows, only the mesh decides that the pod is wanted.
        assert_eq!(wanted_of(Membership::NotLabelled, &with(local.clone())), BTreeMap::new());
        assert_eq!(wanted_of(Membership::OptedOut, &with(local.clone())), BTreeMap::new());
        let on_the_host = Membership::Refused(RefuseReason::HostNetwork);
        let refused = pods(&[("a", Err(CannotEnrol::Membership(RefuseReason::HostNetwork)))]);
        assert_eq!(wanted_of(on_the_host, &with(local)), refused);
    }

    #[test]
    fn mesh_and_local_source_must_agree_on_the_pod() {
        let with = |local: LocalPod| LocalPods::from([(name("a"), local)]);
        let local = LocalPod { netns: Some("/n/a".into()), is_labelled: true, ..LocalPod::default() };
        let refused = |reason: CannotEnrol| pods(&[("a", Err(reason))]);
        let own = LocalPod { service_account: Some("default".into()), ..local.clone() };
        assert_eq!(wanted_of(Membership::InMesh, &with(own)), pods(&[("a", pod("10.0.0.1", "/n/a", ""))]));
        let other = LocalPod { service_account: Some("other".into()), ..local.clone() };
        let disagree = CannotEnrol::OtherAccount { mesh: "default".into(), local: "other".into() };
        assert_eq!(wanted_of(Membership::InMesh, &with(other)), refused(disagree));
        for class in ["kata-qemu", "gvisor"] {
            let sandboxed = LocalPod { runtime_class: Some(class.into()), ..local.clone() };
            assert_eq!(
                wanted_of(Membership::InMesh, &with(sandboxed)),
                refused(CannotEnrol::OwnNetworkStack(class.into()))
            );
        }
        let native = LocalPod { runtime_class: Some("runc".into()), ..local.clone() };
        assert_eq!(wanted_of(Membership::InMesh, &with(native)), pods(&[("a", pod("10.0.0.1", "/n/a", ""))]));
        // The pod has the label and is not in the mesh yet. It is not opened if it was captured before.
        assert_eq!(wanted_of(Membership::NotLabelled, &with(local.clone())), refused(CannotEnrol::NotInMesh));
        let unknown = wanted(&Snapshot::default(), "here", &with(local.clone()), ToString::to_string);
        assert_eq!(unknown, refused(CannotEnrol::NotInMesh));
        assert_eq!(wanted_of(Membership::OptedOut, &with(local)), BTreeMap::new());
        assert!(!CannotEnrol::NotInMesh.leaves_alone());
    }

    #[test]
    fn a_sandbox_counts_until_the_mesh_knows_the_addresses_of_the_pod() {
        let sandbox = |address: &str, is_ahead_of_status| LocalPod {
            netns: Some("/n/a".into()),
            is_labelled: true,
            sandbox: Some(Sandbox {
                identity: identity("default"),
                addresses: vec![address.parse().unwrap()],
                is_ahead_of_status,
            }),
            ..LocalPod::default()
        };
        let of = |pod: Option<(&str, Membership, &str)>, local: LocalPod| {
            let pod = pod.map(|(node, membership, address)| Workload {
                node: Some(node.into()),
                addresses: address.parse().into_iter().collect(),
                membership,
                finished: membership == Membership::Refused(RefuseReason::Finished),
                ..Workload::new(name("a"), identity("default"))
            });
            let mesh = Snapshot::build(1, pod.into_iter().collect(), vec![], vec![]);
            wanted(&mesh, "here", &LocalPods::from([(name("a"), local)]), ToString::to_string)
        };
        let enrolled = |address: &str, awaits_mesh| {
            pods(&[("a", pod(address, "/n/a", "").map(|desired| Desired { awaits_mesh, ..desired }))])
        };
        let waiting = Membership::Refused(RefuseReason::NoAddress);
        let finished = Membership::Refused(RefuseReason::Finished);
        for (mesh, is_ahead, expected) in [
            (None, true, enrolled("10.0.0.2", true)),
            (Some(("here", waiting, "")), true, enrolled("10.0.0.2", true)),
            (Some(("here", waiting, "")), false, enrolled("10.0.0.2", true)),
            // The mesh has the addresses of an earlier sandbox, or an earlier pod of the name.
            (Some(("here", Membership::InMesh, "10.0.0.1")), true, enrolled("10.0.0.2", true)),
            (Some(("there", Membership::InMesh, "10.0.0.1")), true, enrolled("10.0.0.2", true)),
            (Some(("here", finished, "10.0.0.1")), true, enrolled("10.0.0.2", true)),
            // The mesh has newer facts than the sandbox.
            (Some(("here", Membership::InMesh, "10.0.0.2")), false, enrolled("10.0.0.2", false)),
            (Some(("here", Membership::InMesh, "10.0.0.1")), false, enrolled("10.0.0.1", false)),
            (Some(("here", Membership::NotLabelled, "")), true, pods(&[("a", Err(CannotEnrol::NotInMesh))])),
            (Some(("here", Membership::OptedOut, "")), true, BTreeMap::new()),
            (
                Some(("here", Membership::Refused(RefuseReason::HostNetwork), "")),
                true,
                pods(&[("a", Err(CannotEnrol::Membership(RefuseReason::HostNetwork)))]),
            ),
        ] {
            assert_eq!(of(mesh, sandbox("10.0.0.2", is_ahead)), expected, "{mesh:?} {is_ahead}");
        }
        // While the Kubernetes API cannot be asked, a pod that the mesh does not have yet is not given up.
        let unasked = || LocalPod { is_labelled: false, ..sandbox("10.0.0.2", true) };
        assert_eq!(of(None, unasked()), enrolled("10.0.0.2", true));
        assert_eq!(of(Some(("here", Membership::NotLabelled, "")), unasked()), BTreeMap::new());
        let other = LocalPod { service_account: Some("other".into()), ..sandbox("10.0.0.2", true) };
        let before = of(Some(("here", Membership::InMesh, "10.0.0.1")), other);
        assert!(matches!(before.values().next(), Some(Err(CannotEnrol::OtherAccount { .. }))), "{before:?}");
    }
}
