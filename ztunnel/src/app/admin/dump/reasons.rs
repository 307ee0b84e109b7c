//! Why each connection to a pod is allowed, by the policies in force.

use std::net::SocketAddr;

use crate::{
    model::{
        local::{LocalPod, LocalPods},
        workload::NamespacedName,
    },
    pods::describe::{ConnectionInfo, Description},
    policy::{Connection, PodPolicies, Principal},
};

/// Adds the reason to each connection that has none yet. Policies are looked up once for each pod, and rules by their index.
pub(super) fn add(description: &mut Description, local: &LocalPods) {
    let mesh = description.policies.mesh().clone();
    for pod in description.pods.iter_mut().filter(|pod| !pod.connections.is_empty()) {
        let name = NamespacedName::new(pod.namespace.as_str(), pod.name.as_str());
        let Some(workload) = mesh.workload(&name) else { continue };
        let facts = local.get(&name).cloned().unwrap_or_else(LocalPod::default);
        let policies = PodPolicies::of(&mesh, workload, &facts);
        let inbound = pod.connections.iter_mut().filter(|connection| connection.direction == "inbound");
        for connection in inbound.filter(|connection| connection.allowed_by.is_none()) {
            connection.allowed_by = facts_of(connection).map(|facts| reason(&policies, &facts));
        }
    }
}

/// The facts on which policy decided. `None`: the connection has no destination yet.
fn facts_of(connection: &ConnectionInfo) -> Option<Connection> {
    let socket = |text: &str| text.parse::<SocketAddr>().ok();
    let destination = socket(connection.actual_dst.as_deref()?)?;
    let source = match &connection.peer_identity {
        Some(identity) => Some(Principal::new(identity.parse().ok()?)),
        None => None,
    };
    let destination = SocketAddr::new(destination.ip().to_canonical(), destination.port());
    Some(Connection { source, source_ip: socket(&connection.src)?.ip().to_canonical(), destination })
}

fn reason(policies: &PodPolicies, connection: &Connection) -> String {
    if policies.judge(connection).is_err() {
        return "denied by the policies in force now: the connection is being cut".to_owned();
    }
    match policies.allowing_rule(connection) {
        Some((policy, rule)) => format!("AuthorizationPolicy {policy} rules[{rule}]"),
        None => "no ALLOW policy applies".to_owned(),
    }
}
