//! `ztunnel cleanup`: gives every pod back that a daemon captured, when that daemon is gone for good.

use anyhow::Context as _;

use crate::{
    app::{lock::Lock, process},
    config::args::CleanupArgs,
    lifecycle::tasks::TaskCount,
    redirect::{controller, pins::PinDir, record::Records},
};

/// Releases everything.
///
/// # Errors
/// When a daemon is running, or records or pins can't be read or removed.
pub fn cleanup(args: &CleanupArgs) -> anyhow::Result<()> {
    process::require_capabilities()?;
    if !args.state.is_dir() && !args.bpf_pin.exists() {
        println!("nothing to clean up: neither {} nor {} exists", args.state.display(), args.bpf_pin.display());
        return Ok(());
    }
    let pins = PinDir::at(&args.bpf_pin);
    let lock = Lock::take(&args.state, &pins).context("a running daemon releases its pods itself; stop it first")?;
    let mut records = Records::open(&args.state)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let released = runtime.block_on(controller::clean_up(&pins, &mut records, &TaskCount::default()))?;
    drop(lock);
    println!("released {released} pod(s); nothing of {} is left", args.bpf_pin.display());
    Ok(())
}
