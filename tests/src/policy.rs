//! Policies as text, and the evidence of both ends and both daemons about a refused connection.

use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::apps::client::exchange;
use crate::apps::server::is_reset;
use crate::daemon::Daemon;
use crate::logs::{Access, Direction};
use crate::mesh::NAMESPACE;
use crate::process::Launch;
use crate::testbed::Testbed;
use crate::topology::{Family, Pod, SOCKET_DEADLINE};
use crate::wait;

/// The counter of policy decisions.
pub const DECISIONS: &str = "ztunnel_policy_decisions_total";

/// The counter of kubelet probes that were allowed.
pub const PROBES: &str = "ztunnel_probe_connections_total";

/// The prefix of the error in the destination's line about a refused connection.
pub const REJECTED: &str = "connection closed due to policy rejection: ";

/// The prefix of the error in its line about a connection that was closed later.
pub const CHANGED: &str = "connection closed due to policy change: ";

/// A refusal needs no waiting.
const AT_ONCE: Duration = Duration::from_secs(2);

/// An AuthorizationPolicy of [`NAMESPACE`]; `spec` is YAML in one line, such as `{action: DENY, rules: [{}]}`.
#[must_use]
pub fn authorization(name: &str, spec: &str) -> String {
    document("AuthorizationPolicy", NAMESPACE, name, spec)
}

/// The same policy in dry-run: its decisions are only reported.
#[must_use]
pub fn dry_run(name: &str, spec: &str) -> String {
    authorization(name, spec).replace("metadata: {", "metadata: {annotations: {istio.io/dry-run: \"true\"}, ")
}

/// A PeerAuthentication of [`NAMESPACE`].
#[must_use]
pub fn authentication(name: &str, spec: &str) -> String {
    document("PeerAuthentication", NAMESPACE, name, spec)
}

/// A policy of any namespace, as a document with an end, so that several make a file.
#[must_use]
pub fn document(kind: &str, namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {spec}\n---\n"
    )
}

/// A connection that is allowed; the target echoes. Returns the client's own address.
///
/// # Errors
/// When it is not allowed.
pub fn admitted(pod: &Pod, target: SocketAddr) -> Result<SocketAddr> {
    let mut stream = pod.connect(target)?;
    exchange(&mut stream, b"hello").with_context(|| format!("{} to {target} is not let in", pod.name))?;
    Ok(stream.local_addr()?)
}

/// A connection that is reset at once, as the client sees it. Returns the client's own address.
///
/// # Errors
/// When it ends in another way, or not at once.
pub fn refused(pod: &Pod, target: SocketAddr) -> Result<SocketAddr> {
    refused_at(pod.connect(target)?).with_context(|| format!("{} to {target}", pod.name))
}

/// The same for an existing connection.
///
/// # Errors
/// As [`refused`].
pub fn refused_at(mut stream: TcpStream) -> Result<SocketAddr> {
    let (own, begin) = (stream.local_addr()?, Instant::now());
    stream.set_read_timeout(Some(SOCKET_DEADLINE))?;
    let end = stream.read(&mut [0; 1]);
    ensure!(end.as_ref().is_err_and(is_reset), "a reset should come, not {end:?}");
    ensure!(begin.elapsed() < AT_ONCE, "the reset took {:?}", begin.elapsed());
    Ok(own)
}

/// A connection between two pods of the mesh that policy denies: the client gets a reset, and both daemons log the same
/// reason. Returns the reason.
///
/// # Errors
/// Says which witness disagrees.
pub fn denied(bed: &Testbed, (client, pod): (&str, &str), target: SocketAddr) -> Result<String> {
    let (near, far) = (bed.daemon(&bed.pod(client)?.node)?, bed.daemon(&bed.pod(pod)?.node)?);
    let seen = far.access()?.len();
    let own = refused(bed.pod(client)?, target)?;
    let reason = rejection(&inbound(far, seen, own, target)?)?;
    let out = near.wait_connection(Direction::Outbound, own, target)?;
    ensure!(out.field("reason") == "denied" && out.sent == 0 && out.received == 0, "{}", out.line);
    ensure!(out.error.as_deref().is_some_and(|error| error.contains(&reason)), "not {reason:?}: {}", out.line);
    Ok(reason)
}

/// A plaintext connection that policy denies: the client gets a reset, and the destination's daemon logs the reason.
/// Returns the reason.
///
/// # Errors
/// Says which witness disagrees.
pub fn denied_plaintext(bed: &Testbed, client: &Pod, pod: &str, target: SocketAddr) -> Result<String> {
    denied_stream(bed, client.connect(target)?, pod, target).with_context(|| format!("{} to {target}", client.name))
}

/// The same for an existing connection.
///
/// # Errors
/// As [`denied_plaintext`].
pub fn denied_stream(bed: &Testbed, stream: TcpStream, pod: &str, target: SocketAddr) -> Result<String> {
    let daemon = bed.daemon(&bed.pod(pod)?.node)?;
    let own = refused_at(stream)?;
    let line = daemon.wait_connection(Direction::Inbound, own, target)?;
    ensure!(!line.is_tunnelled(), "{}", line.line);
    rejection(&line)
}

/// The line of a refused stream. Its source port in the line is the HBONE connection's, so the line is searched among
/// those after the first `seen` lines.
fn inbound(daemon: &Daemon, seen: usize, own: SocketAddr, target: SocketAddr) -> Result<Access> {
    let is = |line: &&Access| {
        line.direction == Direction::Inbound
            && line.asked() == target
            && line.src.ip() == own.ip()
            && line.field("reason") == "denied"
    };
    let what = format!("a line at {} that {target} was denied to {}", daemon.node, own.ip());
    wait::until(&what, wait::PATIENCE, || Ok(daemon.access()?.iter().skip(seen).find(is).cloned()))
        .with_context(|| daemon.tail())
}

/// The reason in the destination's line about a refused connection.
fn rejection(line: &Access) -> Result<String> {
    ensure!(line.field("reason") == "denied", "{}", line.line);
    ensure!(["error", "warn"].contains(&line.field("level")), "the level: {}", line.line);
    ensure!(line.sent == 0 && line.received == 0, "bytes of a refused connection: {}", line.line);
    let reason = line.error.as_deref().and_then(|error| error.strip_prefix(REJECTED));
    Ok(reason.with_context(|| line.line.to_string())?.to_owned())
}

/// The lines with the decisions that a policy in dry-run would make, for this policy and action.
///
/// # Errors
/// When the log can't be read.
pub fn told(daemon: &Daemon, policy: &str, action: &str) -> Result<Vec<Value>> {
    let lines = daemon.lines_with(&[policy])?;
    let parsed = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let field = |line: &Value, name: &str, wanted: &str| line.get(name).and_then(Value::as_str) == Some(wanted);
    let is = |line: &Value| {
        field(line, "message", "policy") && field(line, "policy", policy) && field(line, "action", action)
    };
    Ok(parsed.filter(is).collect())
}

/// How often policies made a decision at a daemon. Labels besides `decision`: `kind`, `policy_namespace`, `policy`.
///
/// # Errors
/// When the daemon does not answer.
pub fn decisions(daemon: &Daemon, kind: &str, policy: &str, decision: &str) -> Result<f64> {
    let labels = [("kind", kind), ("policy", policy), ("decision", decision)];
    Ok(daemon.metrics()?.sum(DECISIONS, &labels))
}

/// Makes `liar` use the address of another pod on its bridge, and `victim` believe it, as forged ARP and neighbour
/// messages do. The real owner of the address can no longer communicate with the victim.
///
/// # Errors
/// When the kernel refuses.
pub fn impersonate(liar: &Pod, victim: &Pod, family: Family, address: IpAddr) -> Result<()> {
    let (length, option) = if family == Family::V4 { (32, "") } else { (128, " nodad") };
    liar.netns.ip(&format!("addr add {address}/{length} dev eth0{option}\n"))?;
    let card = hardware_address(liar)?;
    victim.netns.ip(&format!("neigh replace {address} lladdr {card} nud permanent dev eth0\n"))
}

/// The address of a pod's `eth0` on its bridge.
///
/// # Errors
/// When `ip` fails.
pub fn hardware_address(pod: &Pod) -> Result<String> {
    let done = Launch::new("ip").args(["-n", pod.netns.name(), "-j", "link", "show", "dev", "eth0"]).finish()?;
    ensure!(done.success, "{}", done.stderr);
    let links: Value = serde_json::from_str(&done.stdout)?;
    let address = links.pointer("/0/address").and_then(Value::as_str);
    Ok(address.with_context(|| format!("ip said {}", done.stdout))?.to_owned())
}

/// Connects from a pod with a source address of its choice.
///
/// # Errors
/// When it does not connect.
pub fn connect_as(pod: &Pod, source: IpAddr, target: SocketAddr) -> Result<TcpStream> {
    let socket = pod.socket(Family::of(target))?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    socket.connect(&target.into()).with_context(|| format!("{} as {source} to {target}", pod.name))?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_make_a_file() {
        let file = authorization("a", "{}") + &dry_run("b", "{action: DENY}");
        assert_eq!(file.matches("---\n").count(), 2);
        assert!(file.contains("metadata: {annotations: {istio.io/dry-run: \"true\"}, name: b, namespace: demo}"));
    }
}
