//! Sources of certificates without a CA that all nodes share, and the key log.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use ztunnel_tests::apps::client::exchange_once;
use ztunnel_tests::apps::server::Server;
use ztunnel_tests::ca;
use ztunnel_tests::daemon::{Issuer, ca_folder};
use ztunnel_tests::mesh::NAMESPACE;
use ztunnel_tests::process::{Finished, Launch};
use ztunnel_tests::proof;
use ztunnel_tests::settings;
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, ONE_NODE, Pod, TWO_NODES};
use ztunnel_tests::wait;

const PORT: u16 = 7000;
const NODES: [&str; 2] = ["node-a", "node-b"];

/// Runs `ztunnel ca`.
fn ca_command(arguments: &[&str]) -> Result<Finished> {
    let done = Launch::new(&settings::daemon_binary()?.display().to_string()).args(["ca"]).args(arguments).finish()?;
    ensure!(done.success, "ztunnel ca {arguments:?}: {}", done.stderr);
    Ok(done)
}

/// Issues a certificate of a pod into the folder that `--cert-dir` reads.
fn issue(ca_folder: &Path, certificates: &Path, pod: &str) -> Result<()> {
    let (ca_folder, out) = (ca_folder.display().to_string(), certificates.join(NAMESPACE).join(pod));
    fs::create_dir_all(&out)?;
    let (identity, out) = (ca::identity(pod), out.display().to_string());
    ca_command(&["issue", "--ca-dir", &ca_folder, "--identity", &identity, "--out", &out, "--force"])?;
    Ok(())
}

fn mode(path: &Path) -> Result<u32> {
    Ok(fs::metadata(path).with_context(|| path.display().to_string())?.permissions().mode() & 0o777)
}

#[test]
fn ready_certificates_are_used_missed_and_renewed() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    let (ca_folder, certificates) = (bed.topology.folder.join("issuer"), bed.topology.folder.join("certificates"));
    ca_command(&["init", "--ca-dir", &ca_folder.display().to_string()])?;
    for pod in ["client-a", "web-a", "web-b"] {
        issue(&ca_folder, &certificates, pod)?;
    }
    for node in NODES {
        bed.start_with(node, |options| options.certificates = Issuer::Files(certificates.clone()))?;
    }
    bed.enrol()?;
    let web = bed.pod("web-b")?;
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    proof::tunnelled(&bed, ("client-a", "web-b"), &echo, Pod::connect)?;
    // This pod has no certificate: it can't reach any pod of the mesh, and the reason names the pod and the folder.
    let missing = bed.pod("client-b")?;
    let seen = echo.accepted();
    ensure!(exchange_once(missing, echo.address()).is_err() && echo.accepted() == seen, "no certificate was needed");
    let line = bed.daemon("node-b")?.wait_access("the refusal", |line| line.src.ip() == missing.v4)?;
    let error = line.error.as_deref().unwrap_or_default();
    ensure!(error.contains("client-b") && error.contains(&certificates.display().to_string()), "{}", line.line);
    issue(&ca_folder, &certificates, "client-b")?;
    wait::until("the certificate that came later", wait::PATIENCE, || {
        Ok(proof::tunnelled(&bed, ("client-b", "web-b"), &echo, Pod::connect).ok())
    })?;
    let (identity, daemon) = (ca::identity("web-b"), bed.daemon("node-b")?);
    let before = daemon.certified(&identity)?;
    issue(&ca_folder, &certificates, "web-b")?;
    daemon.wait_dump("the renewed certificate", wait::PATIENCE, |dump| {
        dump.certificate(&identity).is_some_and(|found| found.available() && found.serial() != before)
    })?;
    proof::tunnelled(&bed, ("client-a", "web-b"), &echo, Pod::connect)?;
    Ok(())
}

#[test]
fn a_node_that_is_told_of_no_ca_makes_its_own_and_warns() -> Result<()> {
    let mut bed = Testbed::new(ONE_NODE)?;
    bed.start_with("node-a", |options| options.certificates = Issuer::Unnamed)?;
    bed.enrol()?;
    let web = bed.pod("web-a")?;
    let echo = Server::echo(web, web.at(Family::V6, PORT))?;
    proof::tunnelled(&bed, ("client-a", "web-a"), &echo, Pod::connect)?;
    let folder = bed.daemon("node-a")?.state().join("ca");
    let warned = bed.daemon("node-a")?.lines_with(&["\"warn\"", &folder.display().to_string(), "--ca-dir"])?;
    ensure!(warned.len() == 1, "{warned:?}\n{}", bed.daemon("node-a")?.tail());
    ensure!(mode(&folder.join("ca-key.pem"))? == 0o600, "the key has mode {:o}", mode(&folder.join("ca-key.pem"))?);
    let root = fs::read(folder.join("root-cert.pem"))?;
    bed.daemon_mut("node-a")?.kill9()?;
    bed.daemon_mut("node-a")?.restart()?;
    bed.daemon("node-a")?.enrolled("client-a")?;
    ensure!(fs::read(folder.join("root-cert.pem"))? == root, "a restart made another CA");
    proof::tunnelled(&bed, ("client-a", "web-a"), &echo, Pod::connect)?;
    Ok(())
}

/// The lines of a key log: label, client random, secret.
fn secrets(path: &Path) -> Result<BTreeSet<String>> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let hex = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [label, random, secret] = words.as_slice() else { anyhow::bail!("not three words: {line}") };
        let known = ["CLIENT_", "SERVER_", "EXPORTER_SECRET"].iter().any(|begin| label.starts_with(begin));
        ensure!(known && random.len() == 64 && hex(random) && secret.len() >= 64 && hex(secret), "{line}");
    }
    Ok(text.lines().map(ToOwned::to_owned).collect())
}

#[test]
fn the_key_log_has_the_secrets_of_both_ends_for_its_owner_only() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    let paths = NODES.map(|node| bed.topology.folder.join(format!("{node}.keys")));
    let [near, far] = &paths;
    // The mode of an existing file is restricted as well.
    fs::write(near, "")?;
    fs::set_permissions(near, fs::Permissions::from_mode(0o644))?;
    for (node, path) in NODES.iter().zip(&paths) {
        let arguments = vec!["--tls-key-log".to_owned(), path.display().to_string()];
        bed.start_with(node, |options| options.arguments = arguments)?;
        ensure!(mode(path)? == 0o600, "{} has mode {:o}", path.display(), mode(path)?);
        let warned = bed.daemon(node)?.lines_with(&["\"warn\"", "secrets", &path.display().to_string()])?;
        ensure!(warned.len() == 1, "{}", bed.daemon(node)?.tail());
    }
    bed.enrol()?;
    let web = bed.pod("web-b")?;
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    proof::tunnelled(&bed, ("client-a", "web-b"), &echo, Pod::connect)?;
    let both = secrets(near)?.intersection(&secrets(far)?).cloned().collect::<Vec<_>>();
    for label in ["CLIENT_TRAFFIC_SECRET_0 ", "SERVER_TRAFFIC_SECRET_0 ", "CLIENT_HANDSHAKE_TRAFFIC_SECRET "] {
        ensure!(both.iter().any(|line| line.starts_with(label)), "no {label}that both ends have: {both:?}");
    }
    Ok(())
}

/// If the volume of the authority is not mounted, no new authority is made, because no other node would trust it.
#[test]
fn be_ready_with_a_new_authority_in_place_of_one_that_is_gone() -> Result<()> {
    let mut bed = Testbed::node_a_enrolled()?;
    let (ca, away) = (ca_folder(&bed.topology), bed.topology.folder.join("ca-away"));
    bed.daemon_mut("node-a")?.terminate()?;
    fs::rename(&ca, &away)?;
    let refused = bed.daemon_mut("node-a")?.restart().err().context("the daemon is ready")?;
    let (refused, remedy) = (format!("{refused:#}"), format!("ztunnel ca init --ca-dir {}", ca.display()));
    ensure!(refused.contains("there is no CA in") && refused.contains(&remedy), "{refused}");
    ensure!(!ca.exists(), "a CA was made");
    fs::rename(&away, &ca)?;
    bed.daemon_mut("node-a")?.restart()?;
    bed.daemon("node-a")?.enrolled("web-a")
}
