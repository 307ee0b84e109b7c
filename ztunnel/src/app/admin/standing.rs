//! The facts for `/status`. None of them waits for the manager: a status is most important while a part of the daemon is stuck.

use std::time::SystemTime;

use crate::{
    app::standing::{CertificateFault, Facts, Numbers, Standing},
    control::remote::Contact,
    identity::{cache::CertStanding, certificate::rfc3339},
    metrics::{process, traffic::Traffic},
    net::memory::Budget,
    pods::{describe::PodState, manager::ManagerHandle},
    store::snapshot::Snapshot,
};

/// The end of the text of a certificate that is not valid yet.
const NOT_YET_VALID: &str = "is the clock right?";

/// The parts of the daemon that know the facts.
pub(super) struct Sources<'a> {
    pub(super) node: &'a str,
    pub(super) manager: &'a ManagerHandle,
    pub(super) mesh: &'a Snapshot,
    pub(super) certificates: Vec<CertStanding>,
    pub(super) traffic: &'a Traffic,
    pub(super) budget: &'a Budget,
    pub(super) control_plane: Option<&'a Contact>,
    pub(super) start_window: Option<String>,
    pub(super) lost_lines: u64,
}

/// The standing of the daemon now.
pub(super) fn of(sources: &Sources<'_>) -> Standing {
    let Sources { node, manager, mesh, certificates, traffic, budget, control_plane, start_window, lost_lines } =
        sources;
    let status = manager.status();
    let (counts, pending) = (mesh.counts(), manager.pending());
    let count = |state| status.pods.iter().filter(|pod| pod.state == state).count();
    let valid = certificates.iter().filter_map(|one| one.valid_until);
    let numbers = Numbers {
        mesh_version: mesh.version(),
        workloads: counts.workloads,
        services: counts.services,
        pods_enrolled: count(PodState::Enrolled),
        pods_refused: count(PodState::Refused),
        connections: traffic.open(),
        certificates_valid: valid.clone().count(),
        certificates: certificates.len(),
        first_expiry: valid.min().map(rfc3339),
        memory_used: budget.used(),
        memory_budget: budget.limit(),
        open_files: process::open_files().unwrap_or_default(),
        open_files_limit: process::max_files().unwrap_or_default(),
        control_plane: control_plane.map(|contact| !contact.is_lost()),
    };
    let facts = Facts {
        pending,
        unknown_node: manager.unknown_node().map(|unknown| unknown.to_string()),
        local_problem: manager.local_problem().map(|problem| problem.to_string()),
        start_window: start_window.clone(),
        problems: mesh.problems(),
        pods: &status.pods,
        maps: &status.maps,
        report_age: status.at.elapsed().as_secs_f64(),
        certificates: certificates.iter().cloned().filter_map(fault).collect(),
        clock_doubt: traffic.clock_doubt().map(|since| since.as_secs()),
        memory_refused: budget.refused(),
        lost_lines: *lost_lines,
        numbers,
    };
    let findings = facts.findings();
    Standing {
        node: (*node).to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        healthy: findings.is_empty(),
        ready: pending.is_none(),
        pending: pending.map(str::to_owned),
        findings,
        numbers: facts.numbers,
    }
}

/// The fault of a certificate. A certificate that is being fetched for the first time has none yet.
fn fault(one: CertStanding) -> Option<CertificateFault> {
    let is_valid = one.valid_until.is_some();
    let now = SystemTime::now();
    // A certificate that has expired while its renewals failed says nothing about the clock.
    let is_untimely = match (one.untimely, &one.failure) {
        (Some((from, _)), failure) => now < from || failure.is_none(),
        (None, failure) => failure.as_deref().is_some_and(|failure| failure.contains(NOT_YET_VALID)),
    };
    let reason = match (one.untimely, one.failure) {
        (Some((from, until)), failure) => {
            let now = rfc3339(now);
            let failure = failure.map(|failure| format!("; {failure}")).unwrap_or_default();
            format!(
                "it is valid from {} to {}, and the clock of this node says {now}{failure}",
                rfc3339(from),
                rfc3339(until)
            )
        }
        (None, failure) => failure?,
    };
    Some(CertificateFault { identity: one.identity.to_string(), reason, is_valid, is_untimely })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::{CertStanding, NOT_YET_VALID, fault};
    use crate::identity::certificate::Flaw;

    const HOUR: Duration = Duration::from_secs(3600);

    fn standing(untimely: Option<(SystemTime, SystemTime)>, failure: Option<&str>) -> CertStanding {
        let identity = "spiffe://cluster.local/ns/demo/sa/web".parse().unwrap();
        CertStanding { identity, valid_until: None, untimely, failure: failure.map(str::to_owned) }
    }

    #[test]
    fn the_clock_is_suspected_where_it_may_be_the_cause_and_only_there() {
        let now = SystemTime::now();
        let (future, past) = (Some((now + HOUR, now + 2 * HOUR)), Some((now - 2 * HOUR, now - HOUR)));
        let early = Flaw::NotYetValid(now + HOUR).to_string();
        assert!(early.ends_with(NOT_YET_VALID), "{early}");
        for (one, is_untimely) in [
            (standing(future, None), true),
            (standing(future, Some("no answer")), true),
            (standing(past, None), true),
            (standing(past, Some("no answer")), false),
            (standing(None, Some(&early)), true),
            (standing(None, Some("no answer")), false),
        ] {
            let text = format!("{one:?}");
            assert_eq!(fault(one).unwrap().is_untimely, is_untimely, "{text}");
        }
        assert!(fault(standing(None, None)).is_none(), "it is being fetched for the first time");
    }
}
