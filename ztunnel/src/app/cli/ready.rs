//! `ztunnel ready`: tells whether the daemon of this container serves the node. While one daemon takes over from another, both run on
//! the node and share the ports of the HTTP endpoints, so a probe over HTTP cannot tell.

use std::fs;

use anyhow::{Context as _, bail};

use crate::{app::handover, config::commands::ReadyArgs};

/// Compares the mount namespace of the daemon that serves the node with that of this command.
///
/// # Errors
/// When no daemon serves the node, or when it is another container's.
pub fn ready(args: &ReadyArgs) -> anyhow::Result<String> {
    let state = args.state.display();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let daemon = runtime.block_on(handover::in_charge(&args.state));
    let daemon = daemon.with_context(|| format!("no daemon answers in {state}"))?;
    let namespace = |process: &str| {
        let link = format!("/proc/{process}/ns/mnt");
        fs::read_link(&link).with_context(|| format!("cannot read {link}"))
    };
    if namespace(&daemon.to_string())? != namespace("self")? {
        bail!("process {daemon}, which is not of this container, serves the node");
    }
    Ok(format!("process {daemon} of this container serves the node\n"))
}
