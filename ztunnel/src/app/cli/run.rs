//! `ztunnel run`: the daemon of a node.

use crate::{
    app::{build, log, process},
    config::{RunArgs, remote::PodsFrom},
    redirect::probe::Uses,
};

/// Runs the daemon.
///
/// # Errors
/// If the daemon can't start.
pub fn run(args: RunArgs) -> anyhow::Result<()> {
    let log = log::start(&args.log, args.log_format, args.bpf_log)?;
    let processes = args.plane.pods == Some(PodsFrom::Kubernetes);
    process::require_capabilities(Uses { processes, cni_plugin: args.cni.install })?;
    process::raise_open_files();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().thread_name("ztunnel-blocking").build()?;
    let result = runtime.block_on(build::daemon(args, &log));
    // A read of a mesh file that hangs must not delay the end of the process.
    runtime.shutdown_background();
    result
}
