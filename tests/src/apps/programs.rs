//! Other real programs: iperf3 and redis.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::process::{Launch, Process};
use crate::topology::{Pod, Topology};
use crate::wait;

/// Starts an iperf3 server on all addresses.
///
/// # Errors
/// When it can't be started or does not listen.
pub fn iperf3_server(pod: &Pod, port: u16) -> Result<Process> {
    let process = Launch::new("iperf3").args(["-s", "-p", &port.to_string()]).inside(&pod.netns).start()?;
    wait_listening(pod, port)?;
    Ok(process)
}

/// Runs an iperf3 client and returns the bits per second that arrived.
///
/// # Errors
/// When it fails.
pub fn iperf3(pod: &Pod, target: SocketAddr, seconds: u32, arguments: &[&str]) -> Result<f64> {
    let report = wait::until("iperf3's server to be free", wait::PATIENCE, || {
        let done = Launch::new("iperf3")
            .args(["-J", "-c", &target.ip().to_string(), "-p", &target.port().to_string(), "-t", &seconds.to_string()])
            .args(arguments)
            .inside(&pod.netns)
            .patience(wait::PATIENCE + std::time::Duration::from_secs(u64::from(seconds)))
            .finish()?;
        let report: Value = serde_json::from_str(&done.stdout)
            .with_context(|| format!("iperf3 wrote no JSON: {}{}", done.stdout, done.stderr))?;
        // The server serves one client at a time. It refuses a client that comes before the previous one has ended:
        // with a message, or with a reset if it had not read everything by then.
        let error = report.get("error").and_then(Value::as_str).unwrap_or_default();
        let is_busy = error.contains("server is busy") || error.contains("control message: Connection reset by peer");
        ensure!(is_busy || done.success, "iperf3 failed: {}{}", done.stdout, done.stderr);
        Ok((!is_busy).then_some(report))
    })?;
    let sum = report.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64);
    sum.with_context(|| format!("iperf3 wrote no sum: {report}"))
}

/// Starts a redis server on all addresses, without a disk.
///
/// # Errors
/// When it can't be started or does not listen.
pub fn redis_server(topology: &Topology, pod: &Pod, port: u16) -> Result<Process> {
    let process = Launch::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "*", "-::*", "--protected-mode", "no", "--save", ""])
        .args(["--dir".as_ref(), topology.folder.as_os_str()])
        .inside(&pod.netns)
        .start()?;
    wait_listening(pod, port)?;
    Ok(process)
}

/// Runs a redis command and returns its answer.
///
/// # Errors
/// When it fails.
pub fn redis(pod: &Pod, target: SocketAddr, command: &[&str]) -> Result<String> {
    let done = Launch::new("redis-cli")
        .args(["-h", &target.ip().to_string(), "-p", &target.port().to_string()])
        .args(command)
        .inside(&pod.netns)
        .finish()?;
    ensure!(done.success, "redis-cli failed: {}{}", done.stdout, done.stderr);
    Ok(done.stdout.trim().to_owned())
}

fn wait_listening(pod: &Pod, port: u16) -> Result<()> {
    let filter = format!("sport = :{port}");
    wait::until_true(&format!("a listener on port {port} in {}", pod.name), wait::PATIENCE, || {
        let done = Launch::new("ss").args(["-Htnl", &filter]).inside(&pod.netns).finish()?;
        Ok(!done.stdout.trim().is_empty())
    })
}
