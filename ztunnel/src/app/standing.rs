//! Whether the daemon of a node works, and the first thing to do if it does not: `/status`, and `ztunnel status`.
//!
//! The findings are those of the readiness endpoint and of the alerts; each has the name of its alert, under which `docs/runbook.md` has
//! more. Their order is that of causes: what is first may be the reason for the others.

use serde::{Deserialize, Serialize};

use crate::{
    model::problem::{Problem, Severity as ProblemSeverity},
    pods::{describe::MapInfo, status::PodStatus},
};

/// The part of a limit from which on a finding warns, as the alerts do.
const MEMORY_WARNS: f64 = 0.9;
const MAPS_WARN: f64 = 0.8;
const FILES_WARN: f64 = 0.8;
/// The age of the manager's report from which on the manager counts as blocked, in seconds, as in the alert.
const STALE: f64 = 60.0;
/// How long failed handshakes with certificates that are not valid at this time make the clock suspicious, in seconds.
const CLOCK_DOUBT: u64 = 600;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Connections fail, or soon will.
    Critical,
    /// Something does not work as it should.
    Warning,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The name of the alert, a heading of the runbook.
    pub code: String,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, with its object.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

/// The answer of `/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Standing {
    /// The node.
    pub node: String,
    /// The version of the daemon.
    pub version: String,
    /// Whether nothing is wrong.
    pub healthy: bool,
    /// Whether the readiness endpoint says that the daemon is ready.
    pub ready: bool,
    /// What is missing until the daemon is ready.
    pub pending: Option<String>,
    /// What is wrong; the first to act on comes first.
    pub findings: Vec<Finding>,
    /// Numbers about the daemon.
    pub numbers: Numbers,
}

/// Numbers about the daemon.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Numbers {
    /// The version of the mesh; 0: none has been read.
    pub mesh_version: u64,
    /// Workloads of the mesh.
    pub workloads: usize,
    /// Services of the mesh.
    pub services: usize,
    /// Enrolled pods of this node.
    pub pods_enrolled: usize,
    /// Refused pods of this node.
    pub pods_refused: usize,
    /// Open connections.
    pub connections: u64,
    /// Valid certificates, and all that are wanted.
    pub certificates_valid: usize,
    /// See above.
    pub certificates: usize,
    /// The first expiry of a valid certificate, as RFC 3339.
    pub first_expiry: Option<String>,
    /// Bytes of the memory budget in use, and the budget.
    pub memory_used: usize,
    /// See above.
    pub memory_budget: usize,
    /// Open file descriptors, and their limit.
    pub open_files: u64,
    /// See above.
    pub open_files_limit: u64,
    /// Whether the control plane is reached; `None`: there is none.
    pub control_plane: Option<bool>,
}

/// A certificate that cannot be used, or was not renewed.
#[derive(Clone, Debug, Default)]
pub struct CertificateFault {
    /// The identity.
    pub identity: String,
    /// What is wrong.
    pub reason: String,
    /// It is valid, but its renewal failed.
    pub is_valid: bool,
    /// It is not valid at this time: its validity has not begun, or is over.
    pub is_untimely: bool,
}

/// The facts from which the findings follow.
#[derive(Debug, Default)]
pub struct Facts<'a> {
    /// What is missing until the daemon is ready.
    pub pending: Option<&'a str>,
    /// The fault of the node's name.
    pub unknown_node: Option<String>,
    /// Why the local facts of the pods may be outdated.
    pub local_problem: Option<String>,
    /// Why pods may start before they are enrolled.
    pub start_window: Option<String>,
    /// The problems of the mesh's sources.
    pub problems: &'a [Problem],
    /// The manager's last report.
    pub pods: &'a [PodStatus],
    /// See above.
    pub maps: &'a [MapInfo],
    /// The age of that report in seconds.
    pub report_age: f64,
    /// Certificates with faults.
    pub certificates: Vec<CertificateFault>,
    /// Seconds since a handshake failed because a certificate was not valid at this time.
    pub clock_doubt: Option<u64>,
    /// Requests for memory that were refused since the daemon started.
    pub memory_refused: u64,
    /// Log lines that were lost since the daemon started.
    pub lost_lines: u64,
    /// The numbers.
    pub numbers: Numbers,
}

impl Facts<'_> {
    /// What is wrong, the first to act on first.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        let all = [
            self.stopping(),
            self.unhooked(),
            self.clock(),
            self.unknown_node(),
            self.no_mesh(),
            self.control_plane(),
            self.certificates(),
            self.blocked(),
            self.maps(),
            self.memory(),
            self.files(),
            self.pods(),
            self.other_pending(),
            self.local_facts(),
            self.mesh_problems(),
            self.renewals(),
            self.start_window(),
            self.log(),
        ];
        let mut findings: Vec<Finding> = all.into_iter().flatten().collect();
        // Stable: among equally bad ones, causes stay before their effects.
        findings.sort_by_key(|finding| finding.severity);
        findings
    }

    fn stopping(&self) -> Option<Finding> {
        self.pending.filter(|pending| *pending == "shutdown")?;
        let remedy = "if no new daemon is starting on this node, start one: captured pods are closed until then";
        Some(critical("ZtunnelNotReady", "the daemon is stopping".to_owned(), remedy))
    }

    fn unhooked(&self) -> Option<Finding> {
        let pending = self.pending.filter(|pending| pending.starts_with("BPF links"))?;
        let remedy = "restart the daemon: it attaches its programs again; then look for the program on this node that removes BPF links or \
                      pins, and stop it";
        Some(critical("ZtunnelBpfLinksRemoved", pending.to_owned(), remedy))
    }

    fn clock(&self) -> Option<Finding> {
        let untimely = self.certificates.iter().find(|fault| fault.is_untimely && !fault.is_valid);
        let failed = self.clock_doubt.filter(|seconds| *seconds <= CLOCK_DOUBT);
        let what = match (untimely, failed) {
            (Some(fault), _) => {
                format!("the certificate of {} is not valid at this time: {}", fault.identity, fault.reason)
            }
            (None, Some(seconds)) => {
                format!("{seconds} s ago a TLS handshake failed because a certificate was not valid at that time")
            }
            (None, None) => return None,
        };
        let remedy = "compare the clock of this node (date -u) and of the nodes of its peers with a time server, and correct the one that \
                      is wrong; certificates are then issued anew by themselves";
        Some(critical("ZtunnelClockWrong", what, remedy))
    }

    fn unknown_node(&self) -> Option<Finding> {
        let what = self.unknown_node.clone()?;
        let remedy = "start the daemon with the --node that pods have in spec.nodeName";
        Some(critical("ZtunnelNodeUnknown", what, remedy))
    }

    fn no_mesh(&self) -> Option<Finding> {
        if self.numbers.mesh_version > 0 || self.pending == Some("shutdown") {
            return None;
        }
        // The control plane has its own finding, which says why there is no mesh.
        if self.numbers.control_plane == Some(false) {
            return None;
        }
        let first = self.problems.first().map(|problem| format!(": {problem}")).unwrap_or_default();
        let remedy =
            "correct the first problem; until the mesh was read once, pods that an earlier daemon captured are closed";
        Some(critical("ZtunnelNotReady", format!("no mesh has been read yet{first}"), remedy))
    }

    fn control_plane(&self) -> Option<Finding> {
        if self.numbers.control_plane != Some(false) {
            return None;
        }
        let has_mesh = self.numbers.mesh_version > 0;
        let why = self.problems.first().map(|problem| format!(": {problem}")).unwrap_or_default();
        let effect = if has_mesh { "the last mesh stays in force" } else { "there is no mesh yet" };
        let remedy = "look at the control plane: do its pods run and are they ready, and does its Service have endpoints? Certificates are \
                      not renewed until it is back";
        let what = format!("the control plane cannot be used, {effect}{why}");
        let code = "ZtunnelControlPlaneLost";
        Some(if has_mesh { warning(code, what, remedy) } else { critical(code, what, remedy) })
    }

    fn certificates(&self) -> Option<Finding> {
        let failed: Vec<_> = self.certificates.iter().filter(|fault| !fault.is_valid && !fault.is_untimely).collect();
        let first = failed.first()?;
        let what = match failed.len() {
            1 => format!("{} has no certificate: {}", first.identity, first.reason),
            count => {
                format!("{count} identities have no certificate, the first is {}: {}", first.identity, first.reason)
            }
        };
        let remedy = "repair the certificate authority (its directory, --cert-dir, or the control plane); the daemon tries again by itself, \
                      and connections of these pods fail until then";
        Some(critical("ZtunnelCertificateExpiring", what, remedy))
    }

    fn blocked(&self) -> Option<Finding> {
        if self.report_age <= STALE {
            return None;
        }
        let what =
            format!("the manager of the pods has not reported for {:.0} s: it is busy or blocked", self.report_age);
        let remedy = "look at the last line of the log with a field pod, and at that pod's network namespace; if the age still grows, restart \
                      the daemon";
        Some(critical("ZtunnelPodsReportStale", what, remedy))
    }

    fn maps(&self) -> Option<Finding> {
        let part = |map: &MapInfo| map.used as f64 / f64::from(map.capacity.max(1));
        let fullest = self.maps.iter().max_by(|one, other| part(one).total_cmp(&part(other)))?;
        if part(fullest) <= MAPS_WARN {
            return None;
        }
        let what = format!("the BPF map {} has {} of {} entries", fullest.name, fullest.used, fullest.capacity);
        let remedy = "restart the daemon with a larger --max-pods, or --entries-per-pod if few pods have many addresses or exclusions";
        let is_full = fullest.used >= usize::try_from(fullest.capacity).unwrap_or(usize::MAX);
        let code = "ZtunnelBpfMapNearlyFull";
        Some(if is_full { critical(code, what, remedy) } else { warning(code, what, remedy) })
    }

    fn memory(&self) -> Option<Finding> {
        let Numbers { memory_used, memory_budget, .. } = self.numbers;
        if memory_used as f64 <= MEMORY_WARNS * memory_budget as f64 {
            return None;
        }
        let refused = match self.memory_refused {
            0 => String::new(),
            count => format!("; {count} requests were refused since the daemon started"),
        };
        let what = format!("{memory_used} of {memory_budget} bytes of the memory budget are used{refused}");
        let remedy = "raise --memory-budget, and the memory limit of the daemon with it; `ztunnel connections` shows which pods have many \
                      connections";
        let code = if self.memory_refused > 0 { "ZtunnelMemoryRefused" } else { "ZtunnelMemoryBudgetNearlyUsed" };
        Some(if self.memory_refused > 0 { critical(code, what, remedy) } else { warning(code, what, remedy) })
    }

    fn files(&self) -> Option<Finding> {
        let Numbers { open_files, open_files_limit, .. } = self.numbers;
        if open_files_limit == 0 || open_files as f64 <= FILES_WARN * open_files_limit as f64 {
            return None;
        }
        let what = format!("{open_files} of {open_files_limit} file descriptors are open");
        let remedy = "raise the limit of open files (LimitNOFILE of the unit) and restart the daemon";
        Some(warning("ZtunnelFileDescriptorsNearlyUsed", what, remedy))
    }

    fn pods(&self) -> Option<Finding> {
        let refused: Vec<_> = self.pods.iter().filter_map(|pod| Some((&pod.name, pod.reason.as_ref()?))).collect();
        let (name, reason) = refused.first()?;
        let what = match refused.len() {
            1 => format!("Pod {name} is refused: {reason}"),
            count => format!("{count} pods are refused, the first is {name}: {reason}"),
        };
        let remedy = "do what the reason says; `ztunnel pods` shows every refused pod with its reason";
        Some(warning("ZtunnelPodsRefused", what, remedy))
    }

    /// What is missing until the daemon is ready, if no other finding is about it.
    fn other_pending(&self) -> Option<Finding> {
        let pending = self.pending.filter(|pending| *pending != "shutdown" && !pending.starts_with("BPF links"))?;
        if self.numbers.mesh_version == 0 {
            return None;
        }
        let remedy = "wait some seconds; if it stays so, the log of the daemon says what it waits for";
        Some(warning("ZtunnelNotReady", format!("not ready, pending: {pending}"), remedy))
    }

    fn local_facts(&self) -> Option<Finding> {
        let what = self.local_problem.clone()?;
        let remedy = "restore the connection to the source of the node's pods (the Kubernetes API, or the folder); what was known stays in \
                      force until then";
        Some(warning("ZtunnelLocalFactsStale", what, remedy))
    }

    fn mesh_problems(&self) -> Option<Finding> {
        let counted: Vec<_> =
            self.problems.iter().filter(|problem| problem.severity != ProblemSeverity::Info).collect();
        let first = counted.first()?;
        // Other findings are about these.
        if self.numbers.mesh_version == 0 || self.numbers.control_plane == Some(false) {
            return None;
        }
        let what = format!("{} problem(s) with the mesh, the first: {first}", counted.len());
        let remedy = "correct the object; the last valid version of it stays in force until then";
        Some(warning("ZtunnelMeshProblems", what, remedy))
    }

    fn renewals(&self) -> Option<Finding> {
        let first = self.certificates.iter().find(|fault| fault.is_valid)?;
        let what = format!("the certificate of {} is valid, but was not renewed: {}", first.identity, first.reason);
        let remedy =
            "repair the certificate authority before the certificate expires; the daemon tries again by itself";
        Some(warning("ZtunnelCertificateNotRenewed", what, remedy))
    }

    fn start_window(&self) -> Option<Finding> {
        let what = self.start_window.clone()?;
        let remedy =
            "install the CNI plugin (--cni-install, or cni.install of the chart); the log says why it is not in place";
        Some(warning("ZtunnelStartWindow", what, remedy))
    }

    fn log(&self) -> Option<Finding> {
        if self.lost_lines == 0 {
            return None;
        }
        let what = format!("{} log lines were lost since the daemon started", self.lost_lines);
        let remedy = "give the reader of standard output more time or resources, or log less (`ztunnel log-level warn,access=info`)";
        Some(warning("ZtunnelLogLinesLost", what, remedy))
    }
}

fn critical(code: &str, message: String, remedy: &str) -> Finding {
    Finding { code: code.to_owned(), severity: Severity::Critical, message, remedy: remedy.to_owned() }
}

fn warning(code: &str, message: String, remedy: &str) -> Finding {
    Finding { severity: Severity::Warning, ..critical(code, message, remedy) }
}

#[cfg(test)]
mod tests;
