//! The resources that a control plane sent to its nodes, and a check that the nodes have no key on their disks.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::control_plane::ControlPlane;
use crate::daemon::Daemon;

/// The report, with one line for each node.
///
/// # Errors
/// When a node has not acknowledged everything, or has a key on its disk.
pub(super) fn told(plane: &ControlPlane, daemons: &[Daemon]) -> Result<String> {
    let mut text = String::from("What the control plane says of its nodes (/debug/nodes):");
    for daemon in daemons {
        plane.served(&daemon.node)?;
        let nodes = plane.nodes()?;
        let streams = nodes.get("streams").and_then(Value::as_array).context("no streams")?;
        let stream = streams.iter().find(|stream| stream["node"] == *daemon.node).context("its stream is gone")?;
        text.push_str(&format!("\n  {}:", daemon.node));
        for (name, it) in stream["types"].as_object().context("no types")? {
            let short = name.rsplit('.').next().unwrap_or(name);
            text.push_str(&format!(" {short} sent={} answered={}", it["sent"], it["answered"]));
        }
        keeps_no_key(daemon.state()).with_context(|| daemon.node.clone())?;
        text.push_str("; no manifest of the mesh, and no key on its disk");
    }
    Ok(text)
}

fn keeps_no_key(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            keeps_no_key(&path)?;
            continue;
        }
        // A socket keeps nothing.
        if !path.is_file() {
            continue;
        }
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let has_key = text.windows(11).any(|window| window == b"PRIVATE KEY");
        ensure!(!has_key, "{} has a private key", path.display());
    }
    Ok(())
}
