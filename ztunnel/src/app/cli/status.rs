//! `ztunnel status`: whether the daemon of this node works, on one screen, and the first thing to do if it does not.

use std::{io, path::Path, process::ExitCode};

use serde::Serialize;

use super::{
    ask,
    output::{Colour, Style, json, print, print_error},
    table::bytes,
};
use crate::{
    app::{
        admin::STATUS,
        standing::{Finding, Numbers, Severity, Standing},
    },
    config::live::{StatusArgs, View},
    explain::printable,
    redirect::probe::{self, Requirement, State, Uses},
};

/// The exit code for a daemon with findings.
const NOT_HEALTHY: u8 = 1;
/// The exit code if no daemon answers.
const NO_ANSWER: u8 = 2;

/// Prints the status. 0: nothing is wrong; 1: something is; 2: no daemon answers.
#[must_use]
pub(super) fn status(args: &StatusArgs) -> ExitCode {
    let (out, err) = (io::stdout(), io::stderr());
    ExitCode::from(answer(args, Style::of_stdout(), &mut out.lock(), &mut err.lock()))
}

fn answer(args: &StatusArgs, style: Style, out: &mut impl io::Write, err: &mut impl io::Write) -> u8 {
    let view = args.daemon.output;
    match ask::json::<Standing>(args.daemon.admin, STATUS) {
        Ok(standing) => {
            let text = match view {
                View::Json => json(&standing),
                View::Table | View::Wide => shown(&standing, view == View::Wide, style),
            };
            print(out, &text);
            if standing.healthy { 0 } else { NOT_HEALTHY }
        }
        Err(error) => {
            let error = format!("{error:#}");
            let remedy = remedy(&args.bpf_pin);
            match view {
                View::Json => print(out, &json(&Silent { error: &error, remedy: &remedy })),
                View::Table | View::Wide => {
                    print_error(view.output(), &error, out, err);
                    print(err, &format!("First: {remedy}\n"));
                }
            }
            NO_ANSWER
        }
    }
}

/// The result without a daemon.
#[derive(Serialize)]
struct Silent<'a> {
    error: &'a str,
    /// What to do first.
    remedy: &'a str,
}

/// What to do where no daemon answers, by what this machine lacks.
fn remedy(pins: &Path) -> String {
    without_daemon(&probe::missing_capabilities(Uses::default()), &probe::requirements(pins, Uses::default()))
}

fn without_daemon(capabilities: &[&str], requirements: &[Requirement]) -> String {
    if !capabilities.is_empty() {
        return format!(
            "this command runs without {}; if the daemon runs so as well, it cannot start: run it as root, or add them to \
             securityContext.capabilities.add; `ztunnel check` says what each is for",
            capabilities.join(", ")
        );
    }
    match requirements.iter().find(|requirement| requirement.state == State::Missing) {
        Some(missing) => format!(
            "the daemon cannot run on this machine without {}: {}; without it: {}",
            missing.name, missing.found, missing.cost
        ),
        None => "start the daemon (systemctl start ztunnel; on Kubernetes the pod of the DaemonSet ztunnel on this node): this machine \
                 has what it needs, so its log says why it ended; captured pods are closed until it runs"
            .to_owned(),
    }
}

fn shown(standing: &Standing, is_wide: bool, style: Style) -> String {
    let mut text = headline(standing, style);
    let mut findings = standing.findings.iter();
    if let Some(first) = findings.next() {
        text.push_str(&format!("\nFirst: {}", finding(first)));
        let rest: Vec<_> = findings.collect();
        let most = if is_wide { rest.len() } else { 3 };
        for other in rest.iter().take(most) {
            text.push_str(&format!("\nThen: {}", finding(other)));
        }
        if rest.len() > most {
            text.push_str(&format!("\n{} more with -o wide\n", rest.len() - most));
        }
        text.push('\n');
    }
    text + &numbers(&standing.numbers, &standing.version)
}

fn headline(standing: &Standing, style: Style) -> String {
    let worst = standing.findings.iter().map(|finding| finding.severity).min();
    let (colour, word) = match worst {
        None => (Colour::Green, "healthy"),
        Some(Severity::Warning) => (Colour::Yellow, "works, with warnings"),
        Some(Severity::Critical) => (Colour::Red, "NOT HEALTHY"),
    };
    let ready = match &standing.pending {
        None => "ready".to_owned(),
        Some(pending) => format!("not ready, pending: {}", printable(pending)),
    };
    format!("Node {}: {}; {ready}\n", printable(&standing.node), style.paint(colour, word))
}

fn finding(finding: &Finding) -> String {
    let severity = match finding.severity {
        Severity::Critical => "critical",
        Severity::Warning => "warning",
    };
    format!(
        "{} ({severity}, docs/runbook.md#{})\n  what: {}\n  do:   {}\n",
        printable(&finding.code),
        printable(&finding.code.to_lowercase()),
        printable(&finding.message),
        printable(&finding.remedy)
    )
}

fn numbers(numbers: &Numbers, version: &str) -> String {
    let expiry = numbers.first_expiry.as_deref().map(|at| format!(", the first expires {at}")).unwrap_or_default();
    let control_plane = match numbers.control_plane {
        None => "none: the mesh is read from a folder",
        Some(true) => "reached",
        Some(false) => "not reached",
    };
    let rows = [
        ("pods", format!("{} enrolled, {} refused", numbers.pods_enrolled, numbers.pods_refused)),
        ("connections", format!("{} open", numbers.connections)),
        ("certificates", format!("{} of {} valid{expiry}", numbers.certificates_valid, numbers.certificates)),
        (
            "mesh",
            format!("version {}: {} workloads, {} services", numbers.mesh_version, numbers.workloads, numbers.services),
        ),
        ("control plane", control_plane.to_owned()),
        ("memory budget", format!("{} of {} used", size(numbers.memory_used), size(numbers.memory_budget))),
        ("open files", format!("{} of {}", numbers.open_files, numbers.open_files_limit)),
        ("version", version.to_owned()),
    ];
    rows.iter().map(|(name, value)| format!("  {name:14} {}\n", printable(value))).collect()
}

fn size(count: usize) -> String {
    bytes(count as f64)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use serde_json::Value;

    use super::{NO_ANSWER, NOT_HEALTHY, Style, answer, without_daemon};
    use crate::{
        app::{
            cli::ask::tests::{answering, http},
            standing::{Finding, Numbers, Severity, Standing},
        },
        config::{
            defaults,
            live::{DaemonArgs, StatusArgs, View},
        },
        redirect::probe::{Requirement, State},
    };

    fn standing(findings: Vec<Finding>) -> Standing {
        Standing {
            node: "node-a".to_owned(),
            version: "0.1.0".to_owned(),
            healthy: findings.is_empty(),
            ready: findings.is_empty(),
            pending: (!findings.is_empty()).then(|| "mesh".to_owned()),
            findings,
            numbers: Numbers {
                mesh_version: 3,
                pods_enrolled: 2,
                certificates: 2,
                certificates_valid: 1,
                first_expiry: Some("2026-12-01T00:00:00Z".to_owned()),
                memory_used: 1536,
                memory_budget: 1 << 30,
                ..Numbers::default()
            },
        }
    }

    fn finding(code: &str, severity: Severity) -> Finding {
        let message = format!("what {code}\u{1b}[2J");
        Finding { code: code.to_owned(), severity, message, remedy: format!("do {code}") }
    }

    fn run(standing: &Standing, output: View) -> (u8, String) {
        let body = serde_json::to_string(standing).unwrap();
        let admin = answering(move |request| {
            assert_eq!(request, "GET /status HTTP/1.1");
            http("200 OK", &body)
        });
        let args = StatusArgs { daemon: DaemonArgs { admin, output }, bpf_pin: defaults::BPF_PIN.into() };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = answer(&args, Style::default(), &mut out, &mut err);
        assert_eq!(String::from_utf8(err).unwrap(), "");
        (code, String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_healthy_daemon_fits_on_a_screen() {
        let (code, text) = run(&standing(Vec::new()), View::Table);
        assert_eq!(code, 0);
        assert!(text.starts_with("Node node-a: healthy; ready\n"), "{text}");
        for line in [
            "  pods           2 enrolled, 0 refused",
            "  certificates   1 of 2 valid, the first expires 2026-12-01T00:00:00Z",
            "  control plane  none: the mesh is read from a folder",
            "  memory budget  1.5 KiB of 1.0 GiB used",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }

    #[test]
    fn the_first_thing_to_do_comes_first() {
        let findings: Vec<_> = ["ZtunnelClockWrong", "B", "C", "D", "E"]
            .into_iter()
            .map(|code| finding(code, if code == "E" { Severity::Warning } else { Severity::Critical }))
            .collect();
        let (code, text) = run(&standing(findings.clone()), View::Table);
        assert_eq!(code, NOT_HEALTHY);
        let start = "Node node-a: NOT HEALTHY; not ready, pending: mesh\n\nFirst: ZtunnelClockWrong (critical, \
                     docs/runbook.md#ztunnelclockwrong)\n  what: what ZtunnelClockWrong\\u{1b}[2J\n  do:   do ZtunnelClockWrong\n\nThen: B";
        assert!(text.starts_with(start) && text.contains("\n1 more with -o wide\n"), "{text}");
        let (_, text) = run(&standing(findings.clone()), View::Wide);
        assert!(text.contains("Then: E (warning") && text.lines().count() < 32, "{text}");
        let (_, text) = run(&standing(findings), View::Json);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&value["schemaVersion"], &value["healthy"]), (&1.into(), &false.into()));
        assert_eq!(value["findings"][0]["code"], "ZtunnelClockWrong");
        let (_, text) = run(&standing(vec![finding("X", Severity::Warning)]), View::Table);
        assert!(text.starts_with("Node node-a: works, with warnings;"), "{text}");
    }

    #[test]
    fn without_a_daemon_it_says_what_this_machine_lacks() {
        let requirement =
            |name, state| Requirement { name, state, found: "no".to_owned(), cost: "nothing works; mount it" };
        let met = [requirement("a", State::Met)];
        let missing = [requirement("a", State::Lost), requirement("cgroup v2", State::Missing)];
        assert!(without_daemon(&["CAP_BPF"], &missing).contains("without CAP_BPF"));
        assert!(without_daemon(&[], &missing).contains("without cgroup v2: no; without it: nothing works; mount it"));
        assert!(without_daemon(&[], &met).starts_with("start the daemon"));
        let admin = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        for output in [View::Table, View::Json] {
            let args = StatusArgs { daemon: DaemonArgs { admin, output }, bpf_pin: defaults::BPF_PIN.into() };
            let (mut out, mut err) = (Vec::new(), Vec::new());
            assert_eq!(answer(&args, Style::default(), &mut out, &mut err), NO_ANSWER);
            let text = String::from_utf8(if output == View::Json { out } else { err }).unwrap();
            assert!(text.contains("cannot ask a daemon") && text.contains(&admin.to_string()), "{text}");
            assert!(text.contains("First: ") || text.contains("\"remedy\": "), "{text}");
        }
    }
}
