//! Each fault by itself: the first thing that the status says to do.

use std::{collections::BTreeSet, fs, path::Path};

use super::{CertificateFault, Facts, Finding, Numbers, Severity};
use crate::{
    model::{
        origin::Origin,
        problem::{Problem, Severity as ProblemSeverity},
        workload::NamespacedName,
    },
    pods::{
        describe::{MapInfo, PodState},
        status::PodStatus,
    },
};

/// A daemon with a mesh, without faults.
fn numbers() -> Numbers {
    Numbers {
        mesh_version: 3,
        memory_used: 10,
        memory_budget: 100,
        open_files: 5,
        open_files_limit: 100,
        ..Numbers::default()
    }
}

fn healthy() -> Facts<'static> {
    Facts { numbers: numbers(), ..Facts::default() }
}

fn refused(reason: &str) -> PodStatus {
    PodStatus {
        name: NamespacedName::new("demo", "web"),
        state: PodState::Refused,
        reason: Some(reason.into()),
        connections_before_enrolment: 0,
        verdicts: Vec::new(),
    }
}

fn fault(is_valid: bool, is_untimely: bool) -> CertificateFault {
    CertificateFault {
        identity: "spiffe://x/ns/demo/sa/web".to_owned(),
        reason: "why".to_owned(),
        is_valid,
        is_untimely,
    }
}

fn problem() -> Problem {
    let message = "spec.ports: not a number".to_owned();
    Problem { origin: Origin::file("web.yaml"), object: None, message, severity: ProblemSeverity::Error }
}

fn first(facts: &Facts<'_>) -> Finding {
    facts.findings().into_iter().next().unwrap()
}

#[test]
fn a_daemon_without_faults_has_no_findings() {
    assert_eq!(healthy().findings(), []);
}

#[test]
fn each_fault_is_found_and_says_what_to_do() {
    let full = [MapInfo { name: "PODS", used: 8, capacity: 8 }];
    let nearly = [MapInfo { name: "PODS", used: 7, capacity: 8 }];
    let (pods, problems) = ([refused("hostNetwork")], [problem()]);
    let unhooked = "BPF links: another process removed them, and the daemon cannot attach them again";
    let with = |change: fn(&mut Numbers)| {
        let mut numbers = numbers();
        change(&mut numbers);
        numbers
    };
    use Severity::{Critical, Warning};
    let table = [
        (Facts { pending: Some("shutdown"), ..healthy() }, "ZtunnelNotReady", Critical, "start one"),
        (Facts { pending: Some(unhooked), ..healthy() }, "ZtunnelBpfLinksRemoved", Critical, "restart the daemon"),
        (Facts { certificates: vec![fault(false, true)], ..healthy() }, "ZtunnelClockWrong", Critical, "date -u"),
        (Facts { clock_doubt: Some(30), ..healthy() }, "ZtunnelClockWrong", Critical, "date -u"),
        (Facts { unknown_node: Some("no Node".to_owned()), ..healthy() }, "ZtunnelNodeUnknown", Critical, "--node"),
        (
            Facts { numbers: with(|n| n.mesh_version = 0), problems: &problems, ..healthy() },
            "ZtunnelNotReady",
            Critical,
            "first problem",
        ),
        (
            Facts { numbers: with(|n| n.control_plane = Some(false)), ..healthy() },
            "ZtunnelControlPlaneLost",
            Warning,
            "control plane",
        ),
        (
            Facts { certificates: vec![fault(false, false)], ..healthy() },
            "ZtunnelCertificateExpiring",
            Critical,
            "authority",
        ),
        (
            Facts { certificates: vec![fault(true, false)], ..healthy() },
            "ZtunnelCertificateNotRenewed",
            Warning,
            "before",
        ),
        (Facts { report_age: 61.0, ..healthy() }, "ZtunnelPodsReportStale", Critical, "field pod"),
        (Facts { maps: &full, ..healthy() }, "ZtunnelBpfMapNearlyFull", Critical, "--max-pods"),
        (Facts { maps: &nearly, ..healthy() }, "ZtunnelBpfMapNearlyFull", Warning, "--max-pods"),
        (
            Facts { numbers: with(|n| n.memory_used = 95), ..healthy() },
            "ZtunnelMemoryBudgetNearlyUsed",
            Warning,
            "--memory-budget",
        ),
        (
            Facts { numbers: with(|n| n.memory_used = 95), memory_refused: 4, ..healthy() },
            "ZtunnelMemoryRefused",
            Critical,
            "--memory-budget",
        ),
        (
            Facts { numbers: with(|n| n.open_files = 90), ..healthy() },
            "ZtunnelFileDescriptorsNearlyUsed",
            Warning,
            "LimitNOFILE",
        ),
        (Facts { pods: &pods, ..healthy() }, "ZtunnelPodsRefused", Warning, "reason"),
        (Facts { pending: Some("mesh"), ..healthy() }, "ZtunnelNotReady", Warning, "log"),
        (
            Facts { local_problem: Some("no answer".to_owned()), ..healthy() },
            "ZtunnelLocalFactsStale",
            Warning,
            "Kubernetes API",
        ),
        (Facts { problems: &problems, ..healthy() }, "ZtunnelMeshProblems", Warning, "correct the object"),
        (
            Facts { start_window: Some("not installed".to_owned()), ..healthy() },
            "ZtunnelStartWindow",
            Warning,
            "--cni-install",
        ),
        (Facts { lost_lines: 9, ..healthy() }, "ZtunnelLogLinesLost", Warning, "log-level"),
    ];
    for (facts, code, severity, remedy) in table {
        let findings = facts.findings();
        let [found] = &findings[..] else { panic!("{code}: {findings:?}") };
        assert_eq!((&*found.code, found.severity), (code, severity), "{found:?}");
        assert!(found.remedy.contains(remedy), "{found:?}");
    }
}

#[test]
fn a_cause_comes_before_its_effects_and_the_worst_first() {
    let (pods, problems) = ([refused("the BPF map PODS is full")], [problem()]);
    let maps = [MapInfo { name: "PODS", used: 8, capacity: 8 }];
    assert_eq!(first(&Facts { pods: &pods, maps: &maps, ..healthy() }).code, "ZtunnelBpfMapNearlyFull");
    let clock = Facts { certificates: vec![fault(false, false), fault(false, true)], problems: &problems, ..healthy() };
    assert_eq!(first(&clock).code, "ZtunnelClockWrong");
    let lost = Numbers { control_plane: Some(false), mesh_version: 0, ..numbers() };
    let lost = Facts { numbers: lost, pending: Some("mesh"), problems: &problems, ..healthy() };
    assert_eq!((first(&lost).code.as_str(), lost.findings().len()), ("ZtunnelControlPlaneLost", 1));
    let old = Facts { clock_doubt: Some(601), ..healthy() };
    assert_eq!(old.findings(), [], "handshakes that failed long ago say nothing about now");
}

#[test]
fn every_finding_has_a_heading_in_the_runbook() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"));
    let runbook = fs::read_to_string(source.join("../docs/runbook.md")).unwrap();
    let code = fs::read_to_string(source.join("src/app/standing.rs")).unwrap();
    let codes: BTreeSet<&str> = code.split('"').filter(|text| text.starts_with("Ztunnel")).collect();
    assert!(codes.len() > 12, "{codes:?}");
    for code in codes {
        assert!(runbook.contains(&format!("\n### {code}\n")), "{code} is no heading of the runbook");
    }
}
