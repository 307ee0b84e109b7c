//! Unreadable policy files: the last valid content stays in force, and without one the pods that the file may protect are
//! closed.

use anyhow::{Context, Result, ensure};
use ztunnel_tests::apps::server::Server;
use ztunnel_tests::apps::transfer::Pump;
use ztunnel_tests::mesh::{PodManifest, policy_file};
use ztunnel_tests::policy::{DECISIONS, admitted, authorization, denied, denied_plaintext};
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, Shape, TWO_NODES};
use ztunnel_tests::wait;

const PORT: u16 = 7000;
const FILE: &str = "case";

/// Allows `client-a`; in block style, so that each field has its own line.
const GOOD: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: case
  namespace: demo
spec:
  rules:
    - from:
        - source:
            serviceAccounts: [client-a]
";

/// A name, the valid text, the invalid text, its line, and a word that names the field.
const BREAKAGES: [(&str, &str, &str, u64, &str); 5] = [
    ("a misspelt field", "  rules:", "  rulez:", 7, "rulez"),
    ("a misspelt source", "            serviceAccounts:", "            serviceAccount:", 10, "serviceAccount"),
    ("an unknown action", "spec:\n", "spec:\n  action: PERMIT\n", 7, "action"),
    ("a bad address", "serviceAccounts: [client-a]", "ipBlocks: [10.0.0.300]", 10, "ipBlocks"),
    ("no YAML", "    - from:", "    - from: [", 8, ""),
];

#[test]
fn a_file_that_breaks_leaves_in_force_what_it_said_last() -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    let web = bed.pod("web-b")?;
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    bed.change(|mesh| mesh.policy(FILE, GOOD))?;
    let live = Pump::start(bed.pod("client-a")?.connect(echo.address())?, 1)?;
    for (what, from, to, line, field) in BREAKAGES {
        let broken = GOOD.replacen(from, to, 1);
        ensure!(broken != GOOD, "{what}: nothing is broken");
        bed.mesh.policy(FILE, &broken)?;
        for node in ["node-a", "node-b"] {
            bed.daemon(node)?
                .wait_dump(&format!("{what} to be told"), wait::PATIENCE, |dump| {
                    dump.problems().iter().any(|problem| {
                        let message = problem.get("message").and_then(serde_json::Value::as_str).unwrap_or_default();
                        let at = problem.get("line").and_then(serde_json::Value::as_u64);
                        problem.get("file").and_then(serde_json::Value::as_str) == Some(&policy_file(FILE))
                            && message.contains(field)
                            // Invalid YAML is reported at the position where the parser stops.
                            && (at == Some(line) || (field.is_empty() && at.is_some()))
                    })
                })
                .with_context(|| format!("{what} at line {line}"))?;
        }
        admitted(bed.pod("client-a")?, echo.address()).context(what)?;
        let told = denied(&bed, ("client-b", "web-b"), echo.address()).context(what)?;
        ensure!(told == "no ALLOW policy matched: demo/case", "{what}: {told}");
        live.more(5).context(what)?;
        bed.mesh.policy(FILE, GOOD)?;
        bed.daemon("node-b")?
            .wait_dump("the repair to be read", wait::PATIENCE, |dump| dump.problems().is_empty())
            .context(what)?;
    }
    live.finish()?;
    // With the file, the policy is removed.
    bed.change(|mesh| mesh.remove_policy(FILE))?;
    admitted(bed.pod("client-b")?, echo.address())?;
    Ok(())
}

const NODES: &Shape<'static> = &[("node-a", &["client-a", "other-a"]), ("node-b", &["client-b", "web-b"])];

/// The daemons have never read a valid version of the file: only the pods that it may protect are closed.
#[test]
fn a_file_that_was_never_read_closes_its_namespace() -> Result<()> {
    let mut bed = Testbed::new(NODES)?;
    bed.mesh.labelled_namespace("other")?;
    bed.mesh.pod(&PodManifest::of(bed.pod("other-a")?).namespace("other"))?;
    bed.mesh.policy(FILE, &GOOD.replace("rules:", "rulez:"))?;
    bed.start("node-a")?;
    bed.start("node-b")?;
    bed.enrol()?;
    bed.topology.grow("node-b", "guest")?;
    let (web, other) = (bed.pod("web-b")?, bed.pod("other-a")?);
    let reason = format!("policies of {} are not known: it has never been readable", policy_file(FILE));
    for family in Family::BOTH {
        let echo = Server::echo(web, web.at(family, PORT))?;
        for client in ["client-a", "client-b", "other-a"] {
            let told = denied(&bed, (client, "web-b"), echo.address())?;
            ensure!(told == reason, "{client}: {told}");
        }
        let told = denied_plaintext(&bed, bed.pod("guest")?, "web-b", echo.address())?;
        ensure!(told == reason, "{told}");
        ensure!(echo.accepted() == 0, "the server accepted connections from {:?}", echo.peers());
        let open = Server::echo(other, other.at(family, PORT))?;
        admitted(bed.pod("client-b")?, open.address()).context("another namespace")?;
    }
    let counted =
        bed.daemon("node-b")?.metrics()?.sum(DECISIONS, &[("decision", "denied"), ("policy_namespace", "demo")]);
    ensure!(counted == 8.0, "{counted} refusals were counted");
    bed.change(|mesh| mesh.policy(FILE, GOOD))?;
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    admitted(bed.pod("client-a")?, echo.address()).context("after the repair")?;
    let told = denied(&bed, ("client-b", "web-b"), echo.address())?;
    ensure!(told == "no ALLOW policy matched: demo/case", "{told}");
    Ok(())
}

/// The namespace of the policy can't be determined.
#[test]
fn a_file_without_any_sense_that_speaks_of_policy_closes_everyone() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    bed.mesh.policy(FILE, "kind: [AuthorizationPolicy\n")?;
    bed.start("node-a")?;
    bed.start("node-b")?;
    bed.enrol()?;
    let reason = format!("policies of {} are not known: it has never been readable", policy_file(FILE));
    for (client, web) in [("client-a", "web-b"), ("client-b", "web-a"), ("client-a", "web-a")] {
        let echo = Server::echo(bed.pod(web)?, bed.pod(web)?.at(Family::V4, PORT))?;
        let told = denied(&bed, (client, web), echo.address())?;
        ensure!(told == reason && echo.accepted() == 0, "{told}");
    }
    bed.change(|mesh| mesh.remove_policy(FILE))?;
    let echo = Server::echo(bed.pod("web-b")?, bed.pod("web-b")?.at(Family::V4, PORT))?;
    admitted(bed.pod("client-a")?, echo.address())?;
    Ok(())
}

/// After a restart, the policy of a broken file is unknown, so all pods that it may protect are closed.
#[test]
fn a_daemon_that_starts_over_a_broken_file_lets_nobody_in() -> Result<()> {
    let mut bed = Testbed::both_enrolled()?;
    bed.change(|mesh| mesh.policy(FILE, &authorization("case", "{}")))?;
    bed.daemon_mut("node-b")?.terminate()?;
    bed.mesh.policy(FILE, &GOOD.replace("from:", "form:"))?;
    // The kept last valid version is removed as well.
    std::fs::remove_dir_all(bed.daemon("node-b")?.state().join("mesh"))?;
    bed.daemon_mut("node-b")?.restart()?;
    bed.daemon("node-b")?.enrolled("web-b")?;
    let web = bed.pod("web-b")?;
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    let told = wait::until("the tunnels to come back", wait::PATIENCE, || {
        Ok(denied(&bed, ("client-a", "web-b"), echo.address()).ok())
    })?;
    ensure!(told == format!("policies of {} are not known: it has never been readable", policy_file(FILE)), "{told}");
    ensure!(echo.accepted() == 0, "the server accepted a connection");
    Ok(())
}
