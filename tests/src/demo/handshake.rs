//! The HBONE port of a pod as `openssl s_client` sees it, with a certificate of `ztunnel ca issue` and without one.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use ebpf_common::HBONE_PORT;

use crate::ca;
use crate::daemon;
use crate::process::{Finished, Launch};
use crate::topology::{Family, Pod, Topology};

/// Makes the CA that both daemons share.
pub(super) fn make_ca(ztunnel: &Path, topology: &Topology) -> Result<()> {
    let folder = daemon::ca_folder(topology);
    run(ztunnel, [OsStr::new("ca"), "init".as_ref(), "--ca-dir".as_ref(), folder.as_os_str()])
}

/// Makes a TLS handshake with a pod's HBONE port from another pod; returns the negotiated parameters and the identity
/// of the server, as text.
pub(super) fn told(ztunnel: &Path, topology: &Topology, from: &Pod, to: &Pod) -> Result<String> {
    let (ca_folder, issued) = (daemon::ca_folder(topology), topology.folder.join("issued"));
    let identity = ca::identity("client");
    let issue = ["ca", "issue", "--ca-dir"].map(OsStr::new).into_iter().chain([ca_folder.as_os_str()]);
    let rest = [OsStr::new("--identity"), identity.as_ref(), "--out".as_ref(), issued.as_os_str()];
    run(ztunnel, issue.chain(rest))?;
    let (chain, key) = files(&issued)?;
    let root = ca_folder.join("root-cert.pem");
    let target = to.at(Family::V4, HBONE_PORT).to_string();
    let with = [OsStr::new("-cert"), chain.as_os_str(), "-cert_chain".as_ref(), chain.as_os_str()];
    let with = with.into_iter().chain([OsStr::new("-key"), key.as_os_str(), "-CAfile".as_ref(), root.as_os_str()]);
    let done = s_client(from, &target, with)?;
    ensure!(
        done.stdout.contains("Verify return code: 0 (ok)"),
        "openssl does not trust {}: {}{}",
        to.name,
        done.stdout,
        done.stderr
    );
    let after = |begin: &str| done.stdout.lines().find_map(|line| line.trim().strip_prefix(begin));
    let agreed = after("New, ").context("openssl told no cipher")?.replace("Cipher is ", "");
    let group =
        after("Server Temp Key: ").or_else(|| after("Negotiated TLS1.3 group: ")).unwrap_or("a group it does not name");
    ensure!(agreed.starts_with("TLSv1.3"), "{agreed}");
    let name = name(&done.stdout)?;
    ensure!(name == ca::identity("web"), "{} calls itself {name}", to.name);
    let refused = s_client(from, &target, ["-ign_eof"])?;
    let alert = refused.stderr.lines().find_map(|line| line.split(':').find(|part| part.contains("alert")));
    let alert = alert.with_context(|| format!("without a certificate: {}{}", refused.stdout, refused.stderr))?;
    Ok(format!(
        "`openssl s_client` from {} to {target}:\n  \
         with a certificate of `ztunnel ca issue`: {agreed}, {group}; it is {name}\n  \
         without one: {alert}",
        from.name
    ))
}

fn run<A: AsRef<OsStr>>(ztunnel: &Path, arguments: impl IntoIterator<Item = A>) -> Result<()> {
    let done = Launch::new(&ztunnel.display().to_string()).args(arguments).finish()?;
    ensure!(done.success, "`ztunnel ca` ended with {}: {}{}", done.status, done.stdout, done.stderr);
    Ok(())
}

/// The files with the certificate and the key in a folder, recognised by their content.
fn files(folder: &Path) -> Result<(PathBuf, PathBuf)> {
    let (mut chain, mut key) = (None, None);
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let text = fs::read_to_string(&path)?;
        let is_root = path.file_name().is_some_and(|name| name.to_string_lossy().contains("root"));
        if text.contains("PRIVATE KEY") {
            key = Some(path);
        } else if text.contains("BEGIN CERTIFICATE") && !is_root {
            chain = Some(path);
        }
    }
    Ok((chain.context("`ztunnel ca issue` wrote no certificate")?, key.context("`ztunnel ca issue` wrote no key")?))
}

fn s_client<A: AsRef<OsStr>>(from: &Pod, target: &str, arguments: impl IntoIterator<Item = A>) -> Result<Finished> {
    Launch::new("openssl")
        .args(["s_client", "-connect", target, "-tls1_3", "-alpn", "h2"])
        .args(arguments)
        .inside(&from.netns)
        .finish()
}

/// The SPIFFE ID in the first certificate that openssl printed.
fn name(output: &str) -> Result<String> {
    let done = Launch::new("openssl").args(["x509", "-noout", "-ext", "subjectAltName"]).input(output).finish()?;
    let name = done.stdout.lines().find_map(|line| line.trim().strip_prefix("URI:"));
    Ok(name.with_context(|| format!("no name: {}{}", done.stdout, done.stderr))?.trim().to_owned())
}
