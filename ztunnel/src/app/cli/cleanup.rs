//! `ztunnel cleanup`: releases all pods that a daemon has captured, after the daemon was removed for good.

use anyhow::Context as _;
use serde::Serialize;

use super::output::json;
use crate::{
    app::{lock::Lock, process},
    cni::{Place, install},
    config::commands::{CleanupArgs, Output},
    lifecycle::tasks::TaskCount,
    redirect::{controller, pins::PinDir, probe::Uses, record::Records},
};

/// The result.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CleanedUp {
    /// The number of captured pods that were released.
    released_pods: usize,
    bpf_pin: String,
    state: String,
}

/// Releases all pods, and returns the text of the result.
///
/// # Errors
/// If a daemon is running, or records or pins can't be read or removed.
pub fn cleanup(args: &CleanupArgs) -> anyhow::Result<String> {
    process::require_capabilities(Uses::default())?;
    let (state, bpf_pin) = (args.state.display().to_string(), args.bpf_pin.display().to_string());
    let told = |released_pods, text: String| match args.output {
        Output::Text => text,
        Output::Json => json(&CleanedUp { released_pods, bpf_pin: bpf_pin.clone(), state: state.clone() }),
    };
    if !args.state.is_dir() && !args.bpf_pin.exists() {
        return Ok(told(0, format!("nothing to clean up: neither {state} nor {bpf_pin} exists\n")));
    }
    let pins = PinDir::at(&args.bpf_pin);
    let lock = Lock::take(&args.state, &pins).context("a running daemon releases its pods itself; stop it first")?;
    install::remove(&Place::of(&args.state)).context("cannot remove the CNI plugin")?;
    let mut records = Records::open(&args.state)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let released = runtime.block_on(controller::clean_up(&pins, &mut records, &TaskCount::default()))?;
    drop(lock);
    Ok(told(released, format!("released {released} pod(s); nothing of {bpf_pin} is left\n")))
}
