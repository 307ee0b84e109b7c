//! Judges a connection at the enforcement point of a pod, and counts and logs the result.

use std::io;

use tracing::{Level, event};

use super::{FlowRefusal, PodContext, enforcement::Enforcement};
use crate::{
    metrics::policy::would,
    model::{
        close::CloseReason,
        flow::{Direction, Flow},
    },
    net::node::Client,
    policy::{Connection, Permit, PodPolicies, UnenforcedMatch},
};

/// Judges a connection that was entered at the enforcement point.
///
/// # Errors
/// Why the connection is refused.
pub(super) fn judge(pod: &PodContext, flow: &Flow, enforcement: &Enforcement) -> Result<Permit, FlowRefusal> {
    let decisions = pod.meter.traffic().decisions();
    let denial = match enforcement.judge(|found| {
        decisions.unenforced(&found);
        tell(enforcement.connection(), &found);
    }) {
        Ok(permit) => return Ok(permit),
        Err(Some(denial)) => denial,
        Err(None) => {
            let detail = format!("the mesh has no Pod {}", pod.name);
            return Err(FlowRefusal::new(CloseReason::LocalFault, detail));
        }
    };
    let mut detail = format!("{}: {denial}", CloseReason::Denied);
    if denial.at_probe {
        let asked = pod.node.as_ref().ok_or(io::ErrorKind::Unsupported.into());
        match asked.and_then(|node| node.client(flow.peer.socket(), flow.dst.socket())) {
            Ok(Client::Kubelet) => {
                if let Some(permit) = PodPolicies::admit_probe(&denial) {
                    enforcement.is_probe();
                    decisions.probe();
                    return Ok(permit);
                }
            }
            Ok(Client::Elsewhere) => {}
            Ok(Client::Other { why }) => {
                detail.push_str(&format!("; the client is not recognised as the kubelet: {why}"));
            }
            Err(error) => {
                detail.push_str(&format!(
                    "; the daemon cannot determine whether the client is the kubelet: \
                     {error}"
                ));
            }
        }
    }
    decisions.denied(&denial, &pod.name.namespace);
    Err(FlowRefusal::new(CloseReason::Denied, detail))
}

/// Writes a log line about a match of a policy that is not enforced.
fn tell(connection: &Connection, found: &UnenforcedMatch<'_>) {
    event!(
        target: "access",
        parent: None,
        Level::INFO,
        src.addr = %connection.source_ip,
        src.identity = connection.source.as_ref().map(|source| source.identity().to_string()),
        dst.addr = %connection.destination,
        direction = Direction::Inbound.name(),
        policy = %found.policy,
        action = found.action.name(),
        rule = found.rule,
        decision = would(found),
        "policy"
    );
}
