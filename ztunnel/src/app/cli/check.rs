//! `ztunnel check`: reports whether the daemon can run on this machine, and which functions would not work.

use std::{io, path::Path, process::ExitCode, time::Duration};

use comfy_table::{ContentArrangement, Table, presets::ASCII_BORDERS_ONLY_CONDENSED};

use serde::Serialize;
use tokio::time::timeout;

use super::output::{Style, json, print};
use crate::{
    cni::{Place, install},
    config::{
        commands::{CheckArgs, Output},
        remote::{PodsFrom, access},
    },
    control::{
        file,
        kubernetes::{Cluster, NodeWatch},
    },
    model::{cause::causes, identity::TrustDomain, node_pods::NodePods, workload::Membership},
    pods::{
        node_name::UnknownNode,
        proc::{Overview, overview},
    },
    redirect::probe::{self, Requirement, State, Uses},
};

/// How long the answer of the Kubernetes API may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// Checks the machine and prints the results. It fails if something is missing that the daemon needs in any case.
#[must_use]
pub fn check(args: &CheckArgs) -> ExitCode {
    let uses = Uses { processes: args.pods == Some(PodsFrom::Kubernetes), cni_plugin: false };
    let mut found = probe::requirements(&args.bpf_pin, uses);
    if let Some(mesh) = &args.mesh {
        found.push(mesh_folder(mesh, args.node.as_deref()));
    }
    if args.pods == Some(PodsFrom::Kubernetes) {
        found.push(processes(&args.proc));
        found.push(kubernetes(args));
        found.push(start_of_pods(&args.state));
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let (release, missing) = (release.trim(), probe::missing_capabilities(uses));
    let report = match args.output {
        Output::Text => report(release, &found, &missing, Style::of_stdout().width),
        Output::Json => json(&Checked::new(release, &found, &missing)),
    };
    print(&mut io::stdout().lock(), &report);
    if is_fit(&found) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The requirements of the daemon on this machine, as JSON.
pub(super) fn machine(bpf_pin: &Path) -> String {
    let found = probe::requirements(bpf_pin, Uses::default());
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    json(&Checked::new(release.trim(), &found, &probe::missing_capabilities(Uses::default())))
}

/// The results, for JSON output.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Checked<'a> {
    kernel: &'a str,
    architecture: &'static str,
    /// Whether the daemon can run on this machine.
    fit: bool,
    missing_capabilities: &'a [&'a str],
    requirements: Vec<RequirementInfo<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RequirementInfo<'a> {
    name: &'a str,
    /// `ok`, `lost` (the daemon runs without this requirement) or `missing` (the daemon can't run).
    state: &'static str,
    found: &'a str,
    /// What does not work, and the remedy. `None`: the requirement is met.
    lost: Option<&'a str>,
}

impl<'a> Checked<'a> {
    fn new(kernel: &'a str, found: &'a [Requirement], missing_capabilities: &'a [&'a str]) -> Self {
        let requirement = |one: &'a Requirement| {
            let (state, lost) = match one.state {
                State::Met => ("ok", None),
                State::Lost => ("lost", Some(one.cost)),
                State::Missing => ("missing", Some(one.cost)),
            };
            RequirementInfo { name: one.name, state, found: &one.found, lost }
        };
        let requirements = found.iter().map(requirement).collect();
        Self { kernel, architecture: std::env::consts::ARCH, fit: is_fit(found), missing_capabilities, requirements }
    }
}

/// Whether the folder can be read, and its manifests contain the node.
fn mesh_folder(dir: &Path, node: Option<&str>) -> Requirement {
    const COST: &str =
        "no pod of this node is captured; correct --mesh, or --node to the name that pods have in spec.nodeName";
    let (name, cost) = ("mesh folder (--mesh), node (--node)", COST);
    let requirement = |state, found| Requirement { name, state, found, cost };
    // The trust domain makes no difference here.
    let mesh = match file::read_once(dir, TrustDomain::default()) {
        Ok((mesh, _)) if mesh.version() > 0 => mesh,
        Ok((mesh, _)) => {
            let first = mesh.problems().first().map(|problem| format!(": {problem}")).unwrap_or_default();
            return requirement(State::Missing, format!("no manifest in {} is valid{first}", dir.display()));
        }
        Err(error) => return requirement(State::Missing, causes(&error)),
    };
    let pods = node.map(|node| (node, mesh.pods_on(node).len()));
    match (pods, node.and_then(|node| UnknownNode::in_mesh(&mesh, node))) {
        (_, Some(unknown)) => requirement(State::Lost, unknown.to_string()),
        (Some((node, 0)), None) if !mesh.knows_node(node) => {
            let found = format!("no pod of the manifests is on node {node} (spec.nodeName)");
            requirement(State::Lost, found)
        }
        (Some((node, pods)), None) => requirement(State::Met, format!("{pods} pods on {node}")),
        (None, None) => requirement(State::Met, format!("{} pods", mesh.counts().workloads)),
    }
}

/// Whether the pods can be found by their processes.
fn processes(proc: &Path) -> Requirement {
    const COST: &str = "no pod of this node is enrolled: their network namespaces are not known; mount the /proc of the node, set --proc \
                        to where it is, and add CAP_SYS_PTRACE";
    let (name, cost) = ("processes of pods (--proc)", COST);
    match overview(proc) {
        Ok(Overview { processes, pods: 0 }) => {
            let found = format!("none of the {processes} processes in {} is in a cgroup of a pod", proc.display());
            Requirement { name, state: State::Lost, found, cost }
        }
        Ok(Overview { processes, pods }) => {
            let found = format!("{processes} processes, some of them of {pods} pods");
            Requirement { name, state: State::Met, found, cost }
        }
        Err(error) => Requirement { name, state: State::Missing, found: causes(&error), cost },
    }
}

/// Whether the Kubernetes API can list the pods of this node.
fn kubernetes(args: &CheckArgs) -> Requirement {
    const COST: &str = "no pod of this node is enrolled; correct --node, --kubeconfig or the rules of RBAC: list and watch of pods, \
                        namespaces and nodes";
    let (name, cost) = ("Kubernetes API (--pods kubernetes), node (--node)", COST);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let asked = runtime.map_err(|error| error.to_string()).and_then(|runtime| runtime.block_on(ask(args)));
    match asked {
        Ok(NodePods { pods: Some(pods), problem: None, .. }) => {
            let in_mesh = pods.values().filter(|pod| pod.workload.membership == Membership::InMesh).count();
            let found = format!("{} pods on this node, {in_mesh} of them in the mesh by their labels", pods.len());
            Requirement { name, state: State::Met, found, cost }
        }
        Ok(NodePods { pods: Some(_), problem: Some(problem), .. }) => {
            Requirement { name, state: State::Lost, found: problem.to_string(), cost }
        }
        Ok(NodePods { pods: None, problem, .. }) => {
            let found = problem.map_or_else(|| "no answer".to_owned(), |problem| problem.to_string());
            Requirement { name, state: State::Missing, found, cost }
        }
        Err(found) => Requirement { name, state: State::Missing, found, cost },
    }
}

/// Whether pods of the mesh are enrolled before their first container starts.
fn start_of_pods(state: &Path) -> Requirement {
    const COST: &str = "pods of the mesh are enrolled after their first container has started: connections that it opens before are \
                        outside of the mesh; run the daemon with --cni-install (cni.install in the chart)";
    let (name, cost) = ("CNI plugin (--cni-install)", COST);
    let (state, found) = match install::installed(&Place::of(state)) {
        Some(Some(path)) => (State::Met, format!("ztunnel-cni is in {}", path.display())),
        Some(None) => (
            State::Lost,
            "ztunnel-cni is in no file of the CNI configuration: the log of the daemon says why".to_owned(),
        ),
        None => (State::Lost, format!("no daemon with the state directory {} has installed it", state.display())),
    };
    Requirement { name, state, found, cost }
}

/// The node's pods from the Kubernetes API.
async fn ask(args: &CheckArgs) -> Result<NodePods, String> {
    let node = args.node.as_deref().ok_or("the name of the node is not known: give --node")?;
    let cluster = Cluster::connect(&access(args.kubeconfig.as_ref())).await.map_err(|error| causes(&error))?;
    let (watch, mut news) = NodeWatch::new(&cluster, node);
    let is_told = |news: &NodePods| news.pods.is_some() || news.problem.is_some();
    let told = tokio::select! {
        () = watch.run() => None,
        told = timeout(ANSWER_WITHIN, news.wait_for(is_told)) => told.ok().and_then(|told| Some(told.ok()?.clone())),
    };
    told.ok_or_else(|| format!("no answer from {} within {} s", cluster.server(), ANSWER_WITHIN.as_secs()))
}

fn is_fit(found: &[Requirement]) -> bool {
    found.iter().all(|requirement| requirement.state != State::Missing)
}

fn report(release: &str, found: &[Requirement], missing_capabilities: &[&str], width: Option<usize>) -> String {
    let table = table(found, width).trim_fmt();
    format!("Linux {release} on {}\n\n{table}\n\n{}\n", std::env::consts::ARCH, verdict(found, missing_capabilities))
}

fn table(found: &[Requirement], width: Option<usize>) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_BORDERS_ONLY_CONDENSED);
    // Without a terminal each row is one line, so that programs can search it.
    if let Some(width) = width.and_then(|width| u16::try_from(width).ok()) {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    }
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
        return format!(
            "The daemon can't run without {names}. Further requirements can be checked when it \
             has these."
        );
    }
    let names = |state| {
        let names: Vec<_> = found.iter().filter(|one| one.state == state).map(|one| one.name).collect();
        names.join("; ")
    };
    let (missing, lost) = (names(State::Missing), names(State::Lost));
    match (missing.is_empty(), lost.is_empty()) {
        (false, _) => format!("The daemon can't run here. Missing: {missing}."),
        (true, false) => format!("The daemon can run here with reduced function: {lost}."),
        (true, true) => "The daemon can run here.".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Checked, is_fit, mesh_folder, report, verdict};
    use crate::app::cli::output::json;
    use crate::redirect::probe::{Requirement, State};

    fn requirement(name: &'static str, state: State) -> Requirement {
        Requirement { name, state, found: format!("found {name}"), cost: "something; do something" }
    }

    #[test]
    fn only_what_is_missing_makes_the_check_fail() {
        let (met, lost, missing) =
            (requirement("a", State::Met), requirement("b", State::Lost), requirement("c", State::Missing));
        let cases = [
            (vec![met.clone()], true, "The daemon can run here."),
            (vec![met.clone(), lost.clone()], true, "The daemon can run here with reduced function: b."),
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
    fn programs_get_every_requirement() {
        let found = [requirement("a", State::Met), requirement("b", State::Lost)];
        let text = json(&Checked::new("6.1.0", &found, &["CAP_BPF"]));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&value["schemaVersion"], &value["fit"]), (&1.into(), &true.into()));
        assert_eq!(value["requirements"][1]["state"], "lost");
        assert_eq!(value["requirements"][0]["lost"], serde_json::Value::Null);
    }

    #[test]
    fn the_report_is_ascii_and_as_wide_as_the_terminal() {
        let mut found = vec![requirement("a rather long name of a requirement", State::Missing); 2];
        found.push(requirement("met", State::Met));
        found.push(Requirement { found: "long words ".repeat(40), ..requirement("b", State::Lost) });
        let text = report("6.1.0", &found, &["CAP_BPF", "CAP_NET_ADMIN"], Some(120));
        assert!(text.is_ascii(), "{text}");
        assert!(text.lines().all(|line| line.len() <= 120), "{text}");
        assert!(text.starts_with("Linux 6.1.0 on "), "{text}");
        assert!(text.contains("without CAP_BPF, CAP_NET_ADMIN."), "{text}");
        assert_eq!(text.matches("do something").count(), 3, "no cost where all is well: {text}");
        let whole = report("6.1.0", &found, &[], None);
        assert!(whole.lines().any(|line| line.matches("long words").count() == 40), "{whole}");
    }
}
