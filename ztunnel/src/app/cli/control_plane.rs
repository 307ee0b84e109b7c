//! `ztunnel control-plane`: serves a mesh to nodes.

use crate::{
    app::{control_plane, log, process},
    config::ControlPlaneArgs,
};

/// Runs a control plane.
///
/// # Errors
/// If the control plane can't start.
pub fn control_plane(args: ControlPlaneArgs) -> anyhow::Result<()> {
    let log = log::start(&args.log, args.log_format, false)?;
    process::raise_open_files();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().thread_name("ztunnel-blocking").build()?;
    let result = runtime.block_on(control_plane::run(args, log.lost()));
    // A read of a mesh file that hangs must not delay the end of the process.
    runtime.shutdown_background();
    result
}
