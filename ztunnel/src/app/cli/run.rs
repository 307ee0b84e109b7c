//! `ztunnel run`: the daemon of a node.

use crate::{
    app::{build, log, process},
    config::RunArgs,
};

/// Runs the daemon.
///
/// # Errors
/// If the daemon can't start.
pub fn run(args: RunArgs) -> anyhow::Result<()> {
    let log = log::start(&args.log, args.log_format, args.bpf_log)?;
    process::require_capabilities()?;
    process::raise_open_files();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().thread_name("ztunnel-blocking").build()?;
    let result = runtime.block_on(build::daemon(args, &log));
    // A read of a mesh file that hangs must not delay the end of the process.
    runtime.shutdown_background();
    result
}
