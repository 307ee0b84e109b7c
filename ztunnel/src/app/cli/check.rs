//! `ztunnel check`: says whether the daemon can run on this machine, and what it would have to do without.

use std::{
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use comfy_table::{ContentArrangement, Table, presets::ASCII_BORDERS_ONLY_CONDENSED};

use crate::{
    config::args::CheckArgs,
    control::file,
    model::{cause::causes, identity::TrustDomain},
    pods::node_name::UnknownNode,
    redirect::probe::{self, Requirement, State},
};

/// Columns of the table: what a log viewer or a split terminal still shows without breaking lines.
const WIDTH: u16 = 120;

/// Probes the machine and prints what it found. Success unless something is missing that the daemon can't do without.
#[must_use]
pub fn check(args: &CheckArgs) -> ExitCode {
    let mut found = probe::requirements(&args.bpf_pin);
    if let Some(mesh) = &args.mesh {
        found.push(mesh_folder(mesh, args.node.as_deref()));
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let report = report(release.trim(), &found, &probe::missing_capabilities());
    // A reader that went away (`| head`) has seen what it wanted; the exit code still tells.
    let _reader_gone = io::stdout().lock().write_all(report.as_bytes());
    if is_fit(&found) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether the folder can be read, and knows the node.
fn mesh_folder(dir: &Path, node: Option<&str>) -> Requirement {
    const COST: &str =
        "no pod of this node is captured; correct --mesh, or --node to the name that pods have in spec.nodeName";
    let (name, cost) = ("mesh folder (--mesh), node (--node)", COST);
    let requirement = |state, found| Requirement { name, state, found, cost };
    // Whose trust domain it is makes no difference here.
    let mesh = match file::read_once(dir, TrustDomain::default()) {
        Ok((mesh, _)) if mesh.version() > 0 => mesh,
        Ok((mesh, _)) => {
            let first = mesh.problems().first().map(|problem| format!(": {problem}")).unwrap_or_default();
            return requirement(State::Missing, format!("nothing in {} makes sense{first}", dir.display()));
        }
        Err(error) => return requirement(State::Missing, causes(&error)),
    };
    let pods = node.map(|node| (node, mesh.pods_on(node).len()));
    match (pods, node.and_then(|node| UnknownNode::in_mesh(&mesh, node))) {
        (_, Some(unknown)) => requirement(State::Lost, unknown.to_string()),
        (Some((node, pods)), None) => requirement(State::Met, format!("{pods} pods on {node}")),
        (None, None) => requirement(State::Met, format!("{} pods", mesh.counts().workloads)),
    }
}

fn is_fit(found: &[Requirement]) -> bool {
    found.iter().all(|requirement| requirement.state != State::Missing)
}

fn report(release: &str, found: &[Requirement], missing_capabilities: &[&str]) -> String {
    let table = table(found).trim_fmt();
    format!("Linux {release} on {}\n\n{table}\n\n{}\n", std::env::consts::ARCH, verdict(found, missing_capabilities))
}

fn table(found: &[Requirement]) -> Table {
    let mut table = Table::new();
    table
        .load_style(ASCII_BORDERS_ONLY_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(WIDTH);
    table.set_header(["requirement", "state", "found", "lost without it, and the remedy"]);
    for requirement in found {
        let (state, cost) = match requirement.state {
            State::Met => ("ok", ""),
            State::Lost => ("LOST", requirement.cost),
            State::Missing => ("MISSING", requirement.cost),
        };
        table.add_row([requirement.name, state, &requirement.found, cost]);
    }
    table
}

fn verdict(found: &[Requirement], missing_capabilities: &[&str]) -> String {
    if !missing_capabilities.is_empty() {
        let names = missing_capabilities.join(", ");
        return format!("The daemon can't run without {names}; what else is missing shows once these are given.");
    }
    let names = |state| {
        let names: Vec<_> = found.iter().filter(|one| one.state == state).map(|one| one.name).collect();
        names.join("; ")
    };
    let (missing, lost) = (names(State::Missing), names(State::Lost));
    match (missing.is_empty(), lost.is_empty()) {
        (false, _) => format!("The daemon can't run here. Missing: {missing}."),
        (true, false) => format!("The daemon runs here, with losses: {lost}."),
        (true, true) => "The daemon runs here, with nothing lost.".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{is_fit, mesh_folder, report, verdict};
    use crate::redirect::probe::{Requirement, State};

    fn requirement(name: &'static str, state: State) -> Requirement {
        Requirement { name, state, found: format!("found {name}"), cost: "something; do something" }
    }

    #[test]
    fn only_what_is_missing_makes_the_check_fail() {
        let (met, lost, missing) =
            (requirement("a", State::Met), requirement("b", State::Lost), requirement("c", State::Missing));
        let cases = [
            (vec![met.clone()], true, "The daemon runs here, with nothing lost."),
            (vec![met.clone(), lost.clone()], true, "The daemon runs here, with losses: b."),
            (vec![met, lost, missing], false, "The daemon can't run here. Missing: c."),
        ];
        for (found, fit, said) in cases {
            assert_eq!((is_fit(&found), verdict(&found, &[]).as_str()), (fit, said));
        }
    }

    #[test]
    fn a_node_that_the_mesh_does_not_know_is_told_before_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let checked = |node: &str| mesh_folder(dir.path(), Some(node));
        std::fs::write(dir.path().join("bad.yaml"), "{").unwrap();
        assert_eq!(checked("node-a").state, State::Missing);
        std::fs::write(dir.path().join("good.yaml"), "{apiVersion: v1, kind: Node, metadata: {name: node-a}}").unwrap();
        assert_eq!(checked("node-a").state, State::Met);
        let unknown = checked("node-a.internal");
        assert_eq!(unknown.state, State::Lost);
        assert!(unknown.found.contains("the closest known name is \"node-a\""), "{}", unknown.found);
        let missing = mesh_folder(&dir.path().join("missing"), None);
        assert_eq!(missing.state, State::Missing);
        assert!(missing.found.contains("--mesh"), "{}", missing.found);
    }

    #[test]
    fn the_report_is_ascii_and_narrow_whatever_was_found() {
        let mut found = vec![requirement("a rather long name of a requirement", State::Missing); 2];
        found.push(requirement("met", State::Met));
        found.push(Requirement { found: "long words ".repeat(40), ..requirement("b", State::Lost) });
        let text = report("6.1.0", &found, &["CAP_BPF", "CAP_NET_ADMIN"]);
        assert!(text.is_ascii(), "{text}");
        assert!(text.lines().all(|line| line.len() <= 120), "{text}");
        assert!(text.starts_with("Linux 6.1.0 on "), "{text}");
        assert!(text.contains("without CAP_BPF, CAP_NET_ADMIN;"), "{text}");
        assert_eq!(text.matches("do something").count(), 3, "no cost where all is well: {text}");
    }
}
