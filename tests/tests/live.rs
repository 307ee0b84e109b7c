//! The commands that ask a running daemon, on a real mesh: what they show is what happens.

use std::io::Read as _;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use ztunnel_tests::admin;
use ztunnel_tests::apps::client::exchange;
use ztunnel_tests::apps::server::{Server, is_reset};
use ztunnel_tests::ca;
use ztunnel_tests::daemon;
use ztunnel_tests::mesh::{NAMESPACE, PodManifest};
use ztunnel_tests::process::{Capability, Finished, Launch};
use ztunnel_tests::proof;
use ztunnel_tests::settings;
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, Pod, TWO_NODES};
use ztunnel_tests::wait;

const PORT: u16 = 7000;

const DENY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {namespace: demo, name: deny-client}
spec: {action: DENY, rules: [{from: [{source: {principals: ['*/sa/client-a']}}]}]}
";

fn run(bed: &Testbed, node: &str, arguments: &[&str]) -> Result<Finished> {
    daemon::command(&settings::daemon_binary()?, &bed.topology.node(node)?.netns, arguments)
}

/// The JSON of a command, which must succeed.
fn json(bed: &Testbed, node: &str, arguments: &[&str]) -> Result<Value> {
    let done = run(bed, node, &[arguments, &["-o", "json"]].concat())?;
    ensure!(done.success, "{arguments:?}: {done:?}");
    let value: Value = serde_json::from_str(&done.stdout).with_context(|| done.stdout.clone())?;
    ensure!(value.get("schemaVersion") == Some(&1.into()), "{value}");
    Ok(value)
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

#[test]
fn a_healthy_mesh_is_shown_by_every_command() -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    let (client, web) = (bed.pod("client-a")?, bed.pod("web-b")?);
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    let mut stream = client.connect(echo.address())?;
    exchange(&mut stream, b"hello")?;
    bed.daemon("node-b")?.certified(&ca::identity("web-b"))?;
    let standing = json(&bed, "node-b", &["status"])?;
    ensure!(standing.get("healthy") == Some(&true.into()) && list(&standing, "findings").is_empty(), "{standing}");
    let status = run(&bed, "node-b", &["status"])?;
    ensure!(status.success && status.stdout.starts_with("Node node-b: healthy; ready\n"), "{status:?}");
    let pods = json(&bed, "node-b", &["pods"])?;
    let enrolled = list(&pods, "pods").iter().filter(|pod| text(pod, "state") == "enrolled").count();
    ensure!(enrolled == bed.topology.pods().iter().filter(|pod| pod.node == "node-b").count(), "{pods}");
    let certificates = json(&bed, "node-b", &["certs"])?;
    ensure!(list(&certificates, "certificates").iter().all(|one| text(one, "state") == "Available"), "{certificates}");
    let connections = json(&bed, "node-b", &["connections", "web-b"])?;
    let [one] = list(&connections, "connections") else { anyhow::bail!("not one connection: {connections}") };
    ensure!(text(one, "peer") == format!("{NAMESPACE}/client-a") && text(one, "protocol") == "HBONE", "{one}");
    ensure!(text(one, "peerIdentity") == ca::identity("client-a"), "{one}");
    ensure!(text(one, "allowedBy") == "no ALLOW policy applies", "{one}");
    let edges = json(&bed, "node-a", &["edges", "--interval", "0s"])?;
    let edge = list(&edges, "edges").iter().find(|edge| text(edge, "destination") == format!("{NAMESPACE}/web-b"));
    ensure!(
        edge.is_some_and(|edge| text(edge, "security") == "mTLS" && edge.get("open") == Some(&1.0.into())),
        "{edges}"
    );
    let nobody = run(&bed, "node-b", &["who-is-plaintext", "--interval", "0s"])?;
    ensure!(nobody.success && nobody.stdout.starts_with("nobody: "), "{nobody:?}");
    for command in ["services", "policies", "stat"] {
        let done = run(&bed, "node-a", &[command])?;
        ensure!(done.success && !done.stdout.is_empty() && done.stderr.is_empty(), "{command}: {done:?}");
    }
    Ok(())
}

#[test]
fn a_refused_connection_is_observed_with_the_policy_that_refused_it() -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    let (client, web) = (bed.pod("client-a")?, bed.pod("web-b")?);
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    bed.change(|mesh| mesh.policy("deny", DENY))?;
    let node = &bed.topology.node("node-b")?.netns;
    let program = settings::daemon_binary()?.display().to_string();
    let arguments = ["observe", "--denied", "--to", &format!("{NAMESPACE}/web-b"), "--for", "5s", "-o", "json"];
    let observing = std::thread::scope(|scope| -> Result<Finished> {
        let observed = scope.spawn(|| Launch::new(&program).args(arguments).inside(node).finish());
        // Each attempt is refused; the first ones may come before the command reads.
        while !observed.is_finished() {
            let mut stream = client.connect(echo.address())?;
            let end = stream.read(&mut [0; 1]);
            ensure!(end.as_ref().is_err_and(is_reset), "a reset should come, not {end:?}");
        }
        observed.join().map_err(|_| anyhow::anyhow!("the command cannot be run"))?
    })?;
    ensure!(observing.success, "{observing:?}");
    let event = observing.stdout.lines().find(|line| line.contains("\"type\":\"connection\"")).context("no event")?;
    let event: Value = serde_json::from_str(event)?;
    ensure!(text(&event, "event") == "refused" && text(&event, "reason") == "denied", "{event}");
    ensure!(text(&event, "error").contains("deny-client"), "{event}");
    ensure!(event.pointer("/source/identity").and_then(Value::as_str) == Some(&*ca::identity("client-a")), "{event}");
    Ok(())
}

#[test]
fn plaintext_clients_are_named_before_strict_refuses_them() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    bed.mesh.pod(&PodManifest::of(bed.pod("client-b")?).mode("none"))?;
    bed.start("node-a")?;
    bed.start("node-b")?;
    bed.enrol_only(&["client-a", "web-a", "web-b"])?;
    let web = bed.pod("web-a")?;
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    let mut stream = bed.pod("client-b")?.connect(echo.address())?;
    exchange(&mut stream, b"hello")?;
    let own = stream.local_addr()?;
    let shown = json(&bed, "node-a", &["who-is-plaintext", "--interval", "0s"])?;
    let [row] = list(&shown, "accepted") else { anyhow::bail!("not one row: {shown}") };
    ensure!(text(row, "destination") == format!("{NAMESPACE}/web-a"), "{row}");
    ensure!(text(row, "source") == format!("{NAMESPACE}/client-b"), "{row}");
    let [open] = list(&shown, "open") else { anyhow::bail!("not one open connection: {shown}") };
    ensure!(text(open, "client") == own.to_string(), "{open}");
    Ok(())
}

#[test]
fn the_log_changes_its_levels_without_a_restart() -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    let web = bed.pod("web-b")?;
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    let changed = json(&bed, "node-a", &["log-level", "access=debug"])?;
    ensure!(text(&changed, "levels").ends_with("access=debug"), "{changed}");
    proof::tunnelled(&bed, ("client-a", "web-b"), &echo, Pod::connect)?;
    let daemon = bed.daemon("node-a")?;
    wait::until("the line of the level debug", wait::PATIENCE, || {
        Ok(daemon.lines_with(&["connection opened"])?.into_iter().next())
    })?;
    let wrong = run(&bed, "node-a", &["log-level", "loud"])?;
    ensure!(!wrong.success && wrong.stderr.contains("\"loud\" is no level"), "{wrong:?}");
    let reset = json(&bed, "node-a", &["log-level", "--reset"])?;
    ensure!(!text(&reset, "levels").contains("access=debug"), "{reset}");
    Ok(())
}

#[test]
fn the_status_names_the_fault_and_what_heals_it() -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    let first = |wanted: &str| -> Result<Value> {
        wait::until(wanted, wait::PATIENCE, || {
            let done = run(&bed, "node-a", &["status", "-o", "json"])?;
            let standing: Value = serde_json::from_str(&done.stdout)?;
            let code = standing.pointer("/findings/0/code").and_then(Value::as_str).unwrap_or("healthy").to_owned();
            ensure!(done.success == (code == "healthy"), "{done:?}");
            Ok((code == wanted).then_some(standing))
        })
    };
    first("healthy")?;
    // A pod that its node cannot enrol.
    let other = bed.pod("web-a")?;
    bed.mesh.pod(&PodManifest::of(other).host_network())?;
    let standing = first("ZtunnelPodsRefused")?;
    ensure!(standing.to_string().contains("hostNetwork"), "{standing}");
    bed.mesh.pod(&PodManifest::of(other))?;
    first("healthy")?;
    // A manifest that cannot be read.
    bed.mesh.write("broken.yaml", "{")?;
    let standing = first("ZtunnelMeshProblems")?;
    ensure!(standing.to_string().contains("broken.yaml"), "{standing}");
    bed.mesh.remove("broken.yaml")?;
    first("healthy")?;
    Ok(())
}

#[test]
fn where_no_daemon_runs_the_status_says_what_is_missing() -> Result<()> {
    let bed = Testbed::new(TWO_NODES)?;
    let node = &bed.topology.node("node-a")?.netns;
    let silent = run(&bed, "node-a", &["status"])?;
    ensure!(silent.status.code() == Some(2) && silent.stderr.contains("cannot ask a daemon"), "{silent:?}");
    ensure!(silent.stderr.contains("First: start the daemon"), "{silent:?}");
    let program = settings::daemon_binary()?.display().to_string();
    let lacking = Launch::new(&program).args(["status"]).inside(node).without(&[Capability::NetAdmin]).finish()?;
    ensure!(lacking.stderr.contains("without CAP_NET_ADMIN"), "{lacking:?}");
    Ok(())
}

#[test]
fn a_bug_report_has_no_key_of_the_authority() -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    let out = bed.topology.folder.join("report.tar");
    let path = out.display().to_string();
    let log = bed.daemon("node-a")?.output().display().to_string();
    let done = run(&bed, "node-a", &["bug-report", "--out", &path, "--log", &log])?;
    ensure!(done.success && !done.stdout.contains("not read"), "{done:?}");
    let archive = String::from_utf8_lossy(&std::fs::read(&out)?).into_owned();
    for part in ["config_dump.json", "\"policyDetails\"", "ztunnel_ready 1", "check.json", "ztunnel is running"] {
        ensure!(archive.contains(part), "{part} is missing");
    }
    ensure!(!archive.contains("PRIVATE KEY"), "a key is in the archive");
    Ok(())
}

#[test]
fn the_streams_and_levels_are_for_this_node_only() -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    let node = &bed.topology.node("node-a")?.netns;
    for path in ["/events", "/logging", "/status"] {
        for address in [admin::METRICS, admin::READINESS] {
            let answer = admin::get_from(node, address, path)?;
            ensure!(answer.status == 404, "{address}{path}: {answer:?}");
        }
    }
    Ok(())
}
