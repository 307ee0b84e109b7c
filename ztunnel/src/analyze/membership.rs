//! Pods, or ports of pods, that policies select and for which nothing is enforced.

use std::collections::{BTreeMap, BTreeSet};

use super::code::Code;
use super::finding::Report;
use super::index::{Mesh, list};
use super::pod::{Outside, Pod};
use crate::model::policy::{Action, Scope};
use crate::model::workload::{Membership, RefuseReason};

/// The label that decides on membership of the mesh; the pod's takes precedence over the namespace's.
const MODE_LABEL: &str = "istio.io/dataplane-mode";

pub(super) fn check(mesh: &Mesh<'_>, report: &mut Report<'_>) {
    if !mesh.pods().is_empty() && !mesh.pods().iter().any(Pod::is_inside) {
        empty(mesh, report);
    }
    unenforced_policies(mesh, report);
    unknown_modes(mesh, report);
    let guarded = guarded_namespaces(mesh);
    let mut unlabelled_namespaces = Vec::new();
    for (namespace, pods) in mesh.by_namespace() {
        let is_of_mesh = pods.iter().any(Pod::is_inside);
        if !is_of_mesh && !has_own_strict(mesh, pods) {
            let strict = |pod: &&Pod<'_>| mesh.authentication.of(pod).strict().is_some();
            let live = pods.iter().filter(strict).any(|pod| pod.outside().is_some());
            unlabelled_namespaces.extend(live.then_some(namespace));
            let with_sidecar: Vec<_> = pods.iter().filter(|pod| pod.outside() == Some(Outside::Sidecar)).collect();
            sidecars(&with_sidecar, report);
            continue;
        }
        unenforced_pods(mesh, (namespace, pods), guarded.contains(namespace), report);
        refused_pods(pods, report);
        excluded_ports(mesh, pods, report);
        probes(mesh, namespace, pods, report);
    }
    if !unlabelled_namespaces.is_empty() {
        let message = format!(
            "the mesh has mTLS mode STRICT, which is not enforced for pods of namespaces outside of the mesh: {}",
            unlabelled_namespaces.join(", ")
        );
        report.of_mesh(Code::NamespacesOutsideMesh, message, Outside::NotLabelled.remedy());
    }
}

fn empty(mesh: &Mesh<'_>, report: &mut Report<'_>) {
    let unknown: BTreeSet<&str> =
        mesh.by_namespace().map(|(name, _)| name).filter(|name| !mesh.describes(name)).collect();
    if mesh.is_repository() && !unknown.is_empty() {
        let message = format!(
            "no pod is known to be in the mesh, since no Namespace object of {} is among the manifests: checks that \
             depend on the label are left out",
            list(unknown.into_iter())
        );
        report.of_mesh(Code::EmptyMesh, message, "add the manifests of the namespaces, with their labels");
        return;
    }
    let message = "no pod is in the mesh: nothing is enforced, and nothing is encrypted";
    let is_labelled = |pod: &Pod<'_>| pod.membership == Membership::Refused(RefuseReason::NoAddress);
    let remedy = match mesh.pods().iter().any(is_labelled) {
        true => "give the labelled pods their addresses: status.podIPs, which kubectl get -o yaml shows",
        false => Outside::NotLabelled.remedy(),
    };
    report.of_mesh(Code::EmptyMesh, message, remedy);
}

/// Namespaces that an enforced AuthorizationPolicy selects as a whole.
fn guarded_namespaces<'m>(mesh: &Mesh<'m>) -> BTreeSet<&'m str> {
    let policies = mesh.snapshot.policies().authorization().iter();
    let enforced = policies.filter(|policy| !policy.dry_run && policy.action != Action::Audit);
    let namespaces = enforced.filter_map(|policy| match &policy.scope {
        Scope::Namespace(namespace) => Some(&**namespace),
        Scope::Mesh | Scope::Selector { .. } | Scope::Services(_) => None,
    });
    namespaces.collect()
}

/// Whether a policy of the namespace, or of pods in it, sets STRICT, and not only a policy of the whole mesh.
fn has_own_strict(mesh: &Mesh<'_>, pods: &[Pod<'_>]) -> bool {
    pods.iter().any(|pod| {
        let by = mesh.authentication.of(pod).strict();
        by.is_some_and(|by| by.scope != Scope::Mesh)
    })
}

/// AuthorizationPolicies that select no pod of the mesh.
fn unenforced_policies(mesh: &Mesh<'_>, report: &mut Report<'_>) {
    let namespaces_inside: BTreeSet<&str> = mesh
        .by_namespace()
        .filter(|(_, pods)| pods.iter().any(Pod::is_inside))
        .map(|(namespace, _)| namespace)
        .collect();
    for policy in mesh.snapshot.policies().authorization() {
        let is_enforced = match &policy.scope {
            Scope::Mesh => true,
            Scope::Namespace(namespace) => namespaces_inside.contains(&**namespace),
            Scope::Selector { .. } | Scope::Services(_) => mesh.protected(policy).any(|pod| pod.is_inside()),
        };
        if is_enforced {
            continue;
        }
        let mut outside = mesh.protected(policy).filter_map(|pod| Some((pod, pod.outside()?)));
        if let Some((pod, why)) = outside.next() {
            let (name, why_not) = (&pod.name, why.why());
            let message = format!(
                "it is not enforced: all pods that it selects are outside of the mesh, for example {name} ({why_not})"
            );
            report.add(Code::UnenforcedPolicy, &**policy, message, why.remedy());
        }
    }
}

/// Pods outside the mesh in a namespace that also has pods in it, or for which a policy sets STRICT.
fn unenforced_pods(mesh: &Mesh<'_>, (namespace, pods): (&str, &[Pod<'_>]), is_guarded: bool, report: &mut Report<'_>) {
    let strict_inside = pods.iter().any(|pod| pod.is_inside() && mesh.authentication.of(pod).strict().is_some());
    let mut groups: BTreeMap<(Outside, Option<String>), Vec<&Pod<'_>>> = BTreeMap::new();
    for pod in pods {
        let Some(why) = pod.outside() else { continue };
        let by = mesh.authentication.of(pod).strict();
        let wanted = by.map(|by| format!("mTLS mode STRICT of PeerAuthentication {}", by.name));
        let wanted =
            wanted.or_else(|| is_guarded.then(|| format!("policy of namespace {namespace} (AuthorizationPolicy)")));
        groups.entry((why, wanted)).or_default().push(pod);
    }
    for ((why, wanted), pods) in groups {
        let Some(first) = pods.first() else { continue };
        let others = match pods.len() {
            1 => "is".to_owned(),
            _ => format!("and {} are", list(pods.iter().skip(1).map(|pod| &pod.name))),
        };
        let refused =
            if strict_inside { "; pods of this namespace with mode STRICT refuse their connections" } else { "" };
        match wanted {
            Some(wanted) => {
                let message =
                    format!("{others} outside of the mesh ({}): {wanted} is not enforced there{refused}", why.why());
                report.add(Code::PodOutsideMesh, *first, message, why.remedy());
            }
            None if strict_inside => {
                let message = format!("{others} outside of the mesh ({}){refused}", why.why());
                report.add(Code::UnlabelledClient, *first, message, why.remedy());
            }
            None if why == Outside::Sidecar => sidecars(&pods, report),
            None => {}
        }
    }
}

/// Labelled pods with a sidecar proxy of their own, to which no policy applies.
fn sidecars(pods: &[&Pod<'_>], report: &mut Report<'_>) {
    let Some(first) = pods.first() else { return };
    let others = match pods.len() {
        1 => "is labelled and has a sidecar proxy of its own: it is".to_owned(),
        _ => format!(
            "and {} are labelled and have sidecar proxies of their own: they are",
            list(pods.iter().skip(1).map(|pod| &pod.name))
        ),
    };
    let message = format!("{others} not enrolled, and pods of the mesh connect to the proxy in plaintext");
    report.add(Code::PodWithSidecar, *first, message, Outside::Sidecar.remedy());
}

/// Pods of the mesh that their node cannot enrol.
fn refused_pods(pods: &[Pod<'_>], report: &mut Report<'_>) {
    let has_no_netns = |pod: &Pod<'_>| pod.local.is_some_and(|local| local.netns.is_none());
    // A pod without a node is not enrolled anywhere, whatever its annotations are.
    let is_refused = |pod: &&Pod<'_>| pod.is_inside() && pod.node.is_some() && has_no_netns(pod);
    let refused: Vec<_> = pods.iter().filter(is_refused).collect();
    if let Some(first) = refused.first() {
        let what = match refused.len() {
            1 => "is".to_owned(),
            _ => format!("and {} are", list(refused.iter().skip(1).map(|pod| &pod.name))),
        };
        let message = format!(
            "{what} labelled, and cannot be enrolled by the node (the annotation ambient.mesh/netns is missing): connections from the \
             mesh fail, and no policy is enforced there"
        );
        let remedy = "set the annotation ambient.mesh/netns to the absolute path of the pod's network namespace";
        report.add(Code::PodRefused, *first, message, remedy);
    }
}

/// Labels with another value than `ambient` or `none`: they have no effect.
fn unknown_modes(mesh: &Mesh<'_>, report: &mut Report<'_>) {
    for pod in mesh.pods().iter().filter(|pod| !pod.finished) {
        let Some(mode) = pod.labels.get(MODE_LABEL).filter(|mode| !matches!(&***mode, "ambient" | "none")) else {
            continue;
        };
        let message = format!("the label {MODE_LABEL}: {mode} is not known, and has no effect");
        report.add(Code::UnknownMode, pod, message, "write ambient or none, or remove the label");
    }
}

fn excluded_ports(mesh: &Mesh<'_>, pods: &[Pod<'_>], report: &mut Report<'_>) {
    let excluding = pods.iter().filter(|pod| pod.is_inside()).filter_map(|pod| {
        let ports = &pod.local?.exclusions.inbound_ports;
        (!ports.is_empty()).then_some((pod, ports))
    });
    for (pod, ports) in excluding {
        if let Some(by) = mesh.authentication.of(pod).strict() {
            let message = format!(
                "port {ports} is excluded from capture: mTLS mode STRICT of PeerAuthentication {} is not enforced \
                 there",
                by.name
            );
            let remedy =
                "remove the annotation traffic.ambient.mesh/exclude-inbound-ports, or protect the port by other means";
            report.add(Code::ExcludedPort, pod, message, remedy);
        }
    }
}

/// Probes of STRICT pods for which the addresses of the node are not known.
fn probes(mesh: &Mesh<'_>, namespace: &str, pods: &[Pod<'_>], report: &mut Report<'_>) {
    let is_probed = |pod: &Pod<'_>| pod.local.is_some_and(|local| !local.probe_ports.is_empty());
    let runs = |pod: &Pod<'_>| pod.is_inside() && !pod.is_planned();
    let unknown = |pod: &&Pod<'_>| runs(pod) && is_probed(pod) && pod.node_addresses.is_empty();
    let strict: Vec<_> =
        pods.iter().filter(unknown).filter(|pod| mesh.authentication.of(pod).strict().is_some()).collect();
    if let Some(first) = strict.first() {
        let names = list(strict.iter().map(|pod| &pod.name));
        let message = format!(
            "pods of namespace {namespace} with mTLS mode STRICT have probes and no status.hostIPs ({names}): their \
             node accepts the probes, but `explain` does not know the address of the kubelet"
        );
        report.add(Code::ProbeWithoutNodeAddress, *first, message, "fill in status.hostIPs");
    }
}
