//! PeerAuthentications that accept plaintext, and PeerAuthentications without effect.

use std::collections::BTreeSet;

use super::authentication::Mode;
use super::code::Code;
use super::finding::{Report, Severity};
use super::index::Mesh;
use super::pod::Pod;
use crate::model::policy::{MtlsMode, PeerAuthentication, Scope};
use crate::model::workload::NamespacedName;

pub(super) fn check(mesh: &Mesh<'_>, report: &mut Report<'_>) {
    let mut beaten = BTreeSet::new();
    for (policy, by) in mesh.authentication.beaten() {
        beaten.insert(&policy.name);
        several(policy, by, report);
    }
    let policies = mesh.snapshot.policies().authentication();
    for policy in policies.iter().filter(|policy| !beaten.contains(&policy.name)) {
        permissive(mesh, policy, report);
    }
    no_strict(mesh, report);
}

fn several(policy: &PeerAuthentication, by: &PeerAuthentication, report: &mut Report<'_>) {
    let whom = match &policy.scope {
        Scope::Mesh => "the mesh".to_owned(),
        Scope::Namespace(namespace) => format!("namespace {namespace}"),
        Scope::Selector { .. } | Scope::Services(_) => "some of the pods that it selects".to_owned(),
    };
    let severity = if policy.scope == by.scope { Severity::Error } else { Severity::Warning };
    let why = if policy.created == by.created { "comes first by name" } else { "is older" };
    let message = format!("has no effect for {whom}: PeerAuthentication {} is for the same pods and {why}", by.name);
    report.add_as(severity, Code::SeveralPeerAuthentications, policy, message, "keep one of the two");
}

/// A policy that accepts plaintext although the next larger scope is STRICT.
fn permissive(mesh: &Mesh<'_>, policy: &PeerAuthentication, report: &mut Report<'_>) {
    let (above, whom) = match &policy.scope {
        Scope::Namespace(namespace) => (mesh.authentication.of_mesh(), format!("namespace {namespace}")),
        Scope::Selector { namespace: Some(namespace), .. } => {
            (mesh.authentication.of_namespace(namespace), "the pods that it selects".to_owned())
        }
        Scope::Mesh | Scope::Selector { .. } | Scope::Services(_) => return,
    };
    let own = policy.mode.map_or(above, |mode| Mode { mode, by: Some(policy) });
    if let (true, false, Some(by)) = (above.is_strict(), own.is_strict(), above.by) {
        left_over(policy, own.mode, &whom, &by.name, report);
    }
    let open = |mode: &Option<MtlsMode>| matches!(mode, Some(MtlsMode::Permissive | MtlsMode::Disable));
    let ports: Vec<String> =
        policy.ports.iter().filter(|(_, mode)| open(mode)).map(|(port, _)| port.to_string()).collect();
    if let (true, false, Some(by)) = (own.is_strict(), ports.is_empty(), own.by) {
        let whom = format!("port {} of {whom}", ports.join(", "));
        left_over(policy, MtlsMode::Permissive, &whom, &by.name, report);
    }
}

fn left_over(
    policy: &PeerAuthentication,
    mode: MtlsMode,
    whom: &str,
    strict: &NamespacedName,
    report: &mut Report<'_>,
) {
    let message = format!("{} accepts plaintext at {whom}, where PeerAuthentication {strict} sets STRICT", mode.name());
    report.add(Code::PermissiveLeftOver, policy, message, "remove it when no client needs plaintext any more");
}

fn no_strict(mesh: &Mesh<'_>, report: &mut Report<'_>) {
    let strict = |policy: &PeerAuthentication| {
        policy.mode == Some(MtlsMode::Strict) || policy.ports.values().any(|mode| *mode == Some(MtlsMode::Strict))
    };
    let policies = mesh.snapshot.policies().authentication();
    if mesh.pods().iter().any(Pod::is_inside) && !policies.iter().any(|policy| strict(policy)) {
        let message = "no PeerAuthentication sets mTLS mode STRICT: pods of the mesh accept plaintext, in which \
            clients have no identity";
        let remedy =
            "add a PeerAuthentication with mtls.mode STRICT to the root namespace when all clients are in the mesh";
        report.of_mesh(Code::NoStrict, message, remedy);
    }
}
