//! `ztunnel explain` agrees with the data path, both from the manifests and from a running daemon, and `ztunnel analyze` has no
//! finding about the demo.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use ztunnel_tests::admin;
use ztunnel_tests::apps::nginx::{Nginx, curl, curl_in};
use ztunnel_tests::ca;
use ztunnel_tests::daemon;
use ztunnel_tests::mesh::{GROUP_LABEL, PodManifest};
use ztunnel_tests::policy::{authentication, authorization};
use ztunnel_tests::process::Finished;
use ztunnel_tests::settings;
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, ONE_NODE};

const PORT: u16 = 8080;
const OTHER_PORT: u16 = 8081;
const PROBE: u16 = 8082;
const VIPS: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const GUEST: &str = "guest";

/// The exit codes of `explain`.
const ALLOWED: i32 = 0;
const DENIED: i32 = 3;
const FAILED: i32 = 2;

fn run(bed: &Testbed, node: &str, arguments: &[&str]) -> Result<Finished> {
    daemon::command(&settings::daemon_binary()?, &bed.topology.node(node)?.netns, arguments)
}

/// Runs `explain` on the manifests and on the daemon of each node. The answers agree; returns the first one.
fn explained(bed: &Testbed, from: &str, to: &str, port: u16) -> Result<(i32, String)> {
    explained_by(bed, &["node-a", "node-b"], (from, to, port))
}

/// The same, with the daemons of these nodes.
fn explained_by(bed: &Testbed, nodes: &[&str], (from, to, port): (&str, &str, u16)) -> Result<(i32, String)> {
    let (mesh, port) = (bed.mesh.folder().display().to_string(), port.to_string());
    let question = ["--from", from, "--to", to, "--port", &port];
    let daemons = nodes.iter().map(|node| (*node, ["--admin", admin::ADDRESS]));
    let mut first = None;
    for (node, source) in [("node-a", ["--mesh", &mesh])].into_iter().chain(daemons) {
        let done = run(bed, node, &[&["explain"], &source[..], &question].concat())?;
        let code = done.status.code().with_context(|| format!("{source:?}: {}", done.status))?;
        let json = run(bed, node, &[&["explain", "-o", "json"], &source[..], &question].concat())?;
        ensure!(json.status.code() == Some(code), "{source:?}: text ends with {code}, JSON with {}", json.status);
        if code != FAILED {
            serde_json::from_str::<Value>(&json.stdout).with_context(|| format!("no JSON: {}", json.stdout))?;
            ensure!(!done.stdout.trim().is_empty(), "{source:?} said nothing: {}", done.stderr);
        }
        let (code_before, _) = first.get_or_insert((code, done.stdout.clone() + &done.stderr));
        ensure!(*code_before == code, "{source:?} ends with {code}, not {code_before}: {}{}", done.stdout, done.stderr);
    }
    first.context("no daemon and no folder was asked")
}

/// All pods are enrolled. nginx runs at all three ports of both webs, with policies of all kinds, a probe at the last port, and
/// a guest.
fn bed() -> Result<(Vec<Nginx>, Testbed)> {
    let mut bed = Testbed::both_enrolled()?;
    bed.topology.grow("node-a", GUEST)?;
    let probe = json!({ "tcpSocket": { "port": PROBE } });
    for (web, node) in [("web-a", "node-a"), ("web-b", "node-b")] {
        let manifest = PodManifest::of(bed.pod(web)?).on(bed.topology.node(node)?).label(GROUP_LABEL, "web");
        bed.mesh.pod(&manifest.probe("livenessProbe", &probe))?;
    }
    let ports = format!("{{action: DENY, rules: [{{to: [{{operation: {{ports: ['{OTHER_PORT}']}}}}]}}]}}");
    let policies = authorization("allow", "{rules: [{from: [{source: {serviceAccounts: [client-a]}}]}]}")
        + &authorization("deny", &ports)
        + &authentication("web-b", "{selector: {matchLabels: {app: web-b}}, mtls: {mode: STRICT}}");
    bed.mesh.service("web", &VIPS, 80, &json!(PORT))?;
    bed.change(|mesh| mesh.policy("case", &policies))?;
    let nginx =
        |(web, port): (&str, u16)| Nginx::start_named(&bed.topology, bed.pod(web)?, port, &format!("{web}-{port}"));
    let nginxes = webs().map(nginx).collect::<Result<Vec<_>>>()?;
    Ok((nginxes, bed))
}

/// Each port of each web.
fn webs() -> impl Iterator<Item = (&'static str, u16)> {
    ["web-a", "web-b"].into_iter().flat_map(|web| [PORT, OTHER_PORT, PROBE].map(|port| (web, port)))
}

#[test]
fn explain_says_what_the_data_path_does() -> Result<()> {
    let (_nginxes, bed) = bed()?;
    for (web, port) in webs() {
        for client in ["client-a", "client-b", GUEST] {
            for family in Family::BOTH {
                let (from, target) = (bed.pod(client)?, bed.pod(web)?.at(family, port));
                let got = curl(from, target, &[]);
                ensure!(got.is_ok() == (client == "client-a" && port != OTHER_PORT), "{client} to {target}: {got:?}");
                // The guest has no manifest.
                let name = if client == GUEST { from.ip(family).to_string() } else { format!("demo/{client}") };
                agree(&bed, &name, &target.ip().to_string(), target, got.is_ok())?;
                if client != GUEST {
                    agree(&bed, &ca::identity(client), &format!("demo/{web}"), target, got.is_ok())?;
                }
            }
        }
    }
    Ok(())
}

/// Tested from the pod's own node and from the other node.
#[test]
fn explain_knows_the_ports_of_probes() -> Result<()> {
    let (_nginxes, bed) = bed()?;
    for (web, port) in webs() {
        for (node, family) in
            ["node-a", "node-b"].into_iter().flat_map(|node| Family::BOTH.map(|family| (node, family)))
        {
            let (pod, node) = (bed.pod(web)?, bed.topology.node(node)?);
            let (target, is_own) = (pod.at(family, port), pod.node == node.name);
            let got = curl_in(&node.netns, target, &[]);
            ensure!(got.is_ok() == (is_own && port == PROBE), "{target} from {}: {got:?}", node.name);
            let (from, to) = (node.ip(family).to_string(), format!("demo/{web}"));
            let (code, text) = explained_by(&bed, &[&pod.node], (&from, &to, port))?;
            let wanted = if got.is_ok() { ALLOWED } else { DENIED };
            ensure!(code == wanted, "{from} to {to} ({target}): {got:?}, but `explain` ends with {code}:\n{text}");
            // Only the pod's own node knows the ports of probes; `explain` on the other node says so.
            let other = if pod.node == "node-a" { "node-b" } else { "node-a" };
            let asked =
                ["explain", "--admin", admin::ADDRESS, "--from", &from, "--to", &to, "--port", &port.to_string()];
            let told = run(&bed, other, &asked)?.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
            ensure!(told.contains(&format!("is known on node {} only", pod.node)), "{other}: {told}");
        }
    }
    Ok(())
}

fn agree(bed: &Testbed, from: &str, to: &str, target: SocketAddr, works: bool) -> Result<()> {
    let (code, text) = explained(bed, from, to, target.port())?;
    let wanted = if works { ALLOWED } else { DENIED };
    ensure!(code == wanted, "{from} to {to} ({target}) works: {works}, but `explain` ends with {code}:\n{text}");
    Ok(())
}

#[test]
fn explain_names_what_decided() -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    bed.mesh.pod(&PodManifest::of(bed.pod("web-b")?).label(GROUP_LABEL, "web"))?;
    bed.mesh.service("web", &VIPS, 80, &json!(PORT))?;
    let policies = authorization("allow", "{rules: [{from: [{source: {serviceAccounts: [client-a]}}]}]}")
        + &authorization("deny", "{action: DENY, rules: [{to: [{operation: {ports: ['9']}}]}]}");
    bed.change(|mesh| mesh.policy("case", &policies))?;
    let cases: [(&str, &str, u16, i32, &[&str]); 6] = [
        ("demo/client-a", "demo/web-b", PORT, ALLOWED, &["demo/allow"]),
        ("demo/client-b", "demo/web-b", PORT, DENIED, &["no ALLOW policy matched: demo/allow"]),
        (
            "demo/client-a",
            "demo/web-b",
            9,
            DENIED,
            &["AuthorizationPolicy demo/deny (DENY), rules[0]: to[0].operation.ports 9"],
        ),
        ("demo/client-a", "service:demo/web", 80, ALLOWED, &["web-b", "demo/allow"]),
        ("demo/client-b", "demo/web", 80, DENIED, &["no ALLOW policy matched: demo/allow"]),
        ("demo/nobody", "demo/web-b", PORT, FAILED, &["nobody"]),
    ];
    for (from, to, port, wanted, words) in cases {
        let (code, text) = explained(&bed, from, to, port)?;
        ensure!(code == wanted, "{from} to {to}: {code}, not {wanted}:\n{text}");
        for word in words {
            ensure!(text.contains(word), "{from} to {to}: no {word:?} in\n{text}");
        }
    }
    Ok(())
}

#[test]
fn explain_without_a_mesh_to_ask_says_so() -> Result<()> {
    let bed = Testbed::new(ONE_NODE)?;
    let question = ["--from", "demo/client-a", "--to", "demo/web-a", "--port", "80"];
    for source in [["--admin", "127.0.0.1:9"], ["--mesh", "/nowhere/at/all"]] {
        let done = run(&bed, "node-a", &[&["explain"], &source[..], &question].concat())?;
        ensure!(done.status.code() == Some(FAILED), "{source:?}: {done:?}");
        ensure!(done.stderr.contains(source.last().copied().unwrap_or_default()), "{source:?}: {done:?}");
    }
    Ok(())
}

/// The demo's manifests, which users copy.
const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/demo");

#[test]
fn analyze_has_nothing_against_the_demo() -> Result<()> {
    let bed = Testbed::new(ONE_NODE)?;
    let done = run(&bed, "node-a", &["analyze", "--mesh", DEMO])?;
    ensure!(done.status.code() == Some(0), "{done:?}");
    let done = run(&bed, "node-a", &["analyze", "--mesh", DEMO, "-o", "json"])?;
    ensure!(done.status.code() == Some(0), "{done:?}");
    serde_json::from_str::<Value>(&done.stdout).with_context(|| done.stdout.clone())?;
    // The result is the same with the demo's policies beside its other manifests.
    let folder = bed.topology.folder.join("demo");
    let mesh = ztunnel_tests::mesh::Mesh::copy_of(DEMO.as_ref(), &folder)?;
    for entry in std::fs::read_dir(format!("{DEMO}/policies"))? {
        let path = entry?.path();
        let name = path.file_name().and_then(std::ffi::OsStr::to_str).context("no name")?;
        mesh.write(name, &std::fs::read_to_string(&path)?)?;
    }
    let done = run(&bed, "node-a", &["analyze", "--mesh", &folder.display().to_string()])?;
    ensure!(done.status.code() == Some(0), "{done:?}");
    Ok(())
}

#[test]
fn analyze_finds_what_is_wrong() -> Result<()> {
    let bed = Testbed::new(ONE_NODE)?;
    let folder = bed.mesh.folder().display().to_string();
    let scheme = "{rules: [{from: [{source: {principals: ['spiffe://cluster.local/ns/demo/sa/client-a']}}]}]}";
    bed.mesh.policy("scheme", &authorization("scheme", scheme))?;
    let done = run(&bed, "node-a", &["analyze", "--mesh", &folder])?;
    ensure!(done.status.code() == Some(1), "{done:?}");
    ensure!(done.stdout.contains("policy-scheme.yaml") && done.stdout.contains("spiffe://"), "{done:?}");
    bed.mesh.policy("scheme", "kind: [\n")?;
    let done = run(&bed, "node-a", &["analyze", "--mesh", &folder])?;
    ensure!(done.status.code() == Some(1) && done.stdout.contains("policy-scheme.yaml"), "{done:?}");
    let done = run(&bed, "node-a", &["analyze", "--mesh", "/nowhere/at/all"])?;
    ensure!(done.status.code() == Some(2) && done.stderr.contains("/nowhere/at/all"), "{done:?}");
    Ok(())
}
