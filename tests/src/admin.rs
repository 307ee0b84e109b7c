//! The daemon's admin endpoint: a few bytes of HTTP/1.1 sent from inside the node's namespace.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::netns::Netns;

/// The address of the daemon's admin endpoint, in the node's namespace.
pub const ADDRESS: &str = "127.0.0.1:15000";

/// The address of its metrics.
pub const METRICS: &str = "127.0.0.1:15020";

/// The address of its readiness probe.
pub const READINESS: &str = "127.0.0.1:15021";

const DEADLINE: Duration = Duration::from_secs(5);

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: String,
}

/// Sends a GET to the admin endpoint.
///
/// # Errors
/// When nobody listens or the answer is not HTTP.
pub fn get(netns: &Netns, path: &str) -> Result<Answer> {
    get_from(netns, ADDRESS, path)
}

/// Sends a GET to an address, from inside a namespace.
///
/// # Errors
/// When nobody listens or the answer is not HTTP.
pub fn get_from(netns: &Netns, address: &str, path: &str) -> Result<Answer> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let address: SocketAddr = address.parse()?;
    let answer = netns.run(|| -> Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&address, DEADLINE)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    })?;
    parse(&String::from_utf8_lossy(&answer.with_context(|| format!("GET {path} failed"))?))
}

fn parse(text: &str) -> Result<Answer> {
    let (head, body) = text.split_once("\r\n\r\n").context("an answer without an end of head")?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).context("an answer without a status")?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Ok(Answer { status, body: if chunked { unchunk(body)? } else { body.to_owned() } })
}

fn unchunk(mut rest: &str) -> Result<String> {
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n").context("a chunk without a size")?;
        let size = usize::from_str_radix(size.trim(), 16)?;
        if size == 0 {
            return Ok(body);
        }
        let Some((chunk, after)) = after.split_at_checked(size) else { bail!("a chunk cut short") };
        body.push_str(chunk);
        rest = after.strip_prefix("\r\n").context("a chunk without an end")?;
    }
}

/// The content of `/config_dump`.
#[derive(Debug, Clone)]
pub struct ConfigDump(Value);

impl ConfigDump {
    /// Fetches the dump.
    ///
    /// # Errors
    /// When the daemon does not answer, or with another status than 200.
    pub fn fetch(netns: &Netns) -> Result<Self> {
        let answer = get(netns, "/config_dump")?;
        if answer.status != 200 {
            bail!("/config_dump answered {}: {}", answer.status, answer.body);
        }
        Ok(Self(serde_json::from_str(&answer.body).with_context(|| format!("no JSON: {}", answer.body))?))
    }

    /// The whole dump.
    #[must_use]
    pub fn value(&self) -> &Value {
        &self.0
    }

    /// All pods it knows.
    pub fn pods(&self) -> impl Iterator<Item = PodState<'_>> {
        self.list("pods").map(PodState)
    }

    /// A pod by name.
    #[must_use]
    pub fn pod(&self, name: &str) -> Option<PodState<'_>> {
        self.pods().find(|pod| pod.name() == name)
    }

    /// How many pods are enrolled.
    #[must_use]
    pub fn enrolled(&self) -> usize {
        self.pods().filter(|pod| pod.state() == "enrolled").count()
    }

    /// The use of each map, as `NAME=used`, in the order of names.
    #[must_use]
    pub fn maps(&self) -> Vec<String> {
        let entry = |map: &Value| format!("{}={}", text(map, "name"), map.get("used").unwrap_or(&Value::Null));
        let mut maps: Vec<String> = self.list("maps").map(entry).collect();
        maps.sort();
        maps
    }

    /// How many tasks the daemon has.
    #[must_use]
    pub fn tasks(&self) -> u64 {
        self.0.get("tasks").and_then(Value::as_u64).unwrap_or(0)
    }

    /// Increases with every change of the mesh, and of the local facts of the node's pods.
    #[must_use]
    pub fn version(&self) -> u64 {
        let number = |of: &str| self.0.pointer(of).and_then(Value::as_u64).unwrap_or(0);
        number("/snapshot/version") + number("/snapshot/localFacts")
    }

    /// Whether pods do not yet match this version of the mesh.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.list("pending").next().is_some()
    }

    /// The problems in the manifests.
    #[must_use]
    pub fn problems(&self) -> Vec<&Value> {
        self.list("problems").collect()
    }

    /// The certificate of an identity.
    #[must_use]
    pub fn certificate(&self, identity: &str) -> Option<CertificateState<'_>> {
        self.list("certificates").map(CertificateState).find(|found| text(found.0, "identity") == identity)
    }

    fn list(&self, key: &str) -> impl Iterator<Item = &Value> {
        self.0.get(key).and_then(Value::as_array).into_iter().flatten()
    }
}

/// A pod, as the daemon sees it.
#[derive(Debug, Clone, Copy)]
pub struct PodState<'a>(&'a Value);

impl PodState<'_> {
    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        text(self.0, "namespace")
    }

    /// `enrolled` or `refused`.
    #[must_use]
    pub fn state(&self) -> &str {
        text(self.0, "state")
    }

    /// `early` or `held`; empty if it is not enrolled.
    #[must_use]
    pub fn connect(&self) -> &str {
        text(self.0, "connect")
    }

    /// Why it is not enrolled.
    #[must_use]
    pub fn reason(&self) -> &str {
        text(self.0, "reason")
    }

    /// Whether its connects are captured. For a refused pod: whether it is closed.
    #[must_use]
    pub fn captured(&self) -> bool {
        self.0.get("captured").and_then(Value::as_bool).unwrap_or(false)
    }

    /// How often BPF programs returned this verdict.
    #[must_use]
    pub fn verdict(&self, name: &str) -> u64 {
        self.0.get("verdicts").and_then(|verdicts| verdicts.get(name)).and_then(Value::as_u64).unwrap_or(0)
    }

    /// Connections from before the pod was enrolled.
    #[must_use]
    pub fn connections_before(&self) -> u64 {
        self.0.get("connectionsBeforeEnrolment").and_then(Value::as_u64).unwrap_or(0)
    }

    /// How many connections are open.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.0.get("connections").and_then(Value::as_array).map_or(0, Vec::len)
    }

    /// The number of its connections with this protocol, `TCP` or `HBONE`.
    #[must_use]
    pub fn connections_over(&self, protocol: &str) -> usize {
        let all = self.0.get("connections").and_then(Value::as_array).into_iter().flatten();
        all.filter(|connection| text(connection, "protocol") == protocol).count()
    }

    /// Its connections.
    pub fn each_connection(&self) -> impl Iterator<Item = &Value> {
        self.0.get("connections").and_then(Value::as_array).into_iter().flatten()
    }

    /// The pod's name.
    #[must_use]
    pub fn name(&self) -> &str {
        text(self.0, "name")
    }
}

/// A certificate, as the daemon sees it.
#[derive(Debug, Clone, Copy)]
pub struct CertificateState<'a>(&'a Value);

impl<'a> CertificateState<'a> {
    /// Whether it can be used.
    #[must_use]
    pub fn available(&self) -> bool {
        self.state() == "Available"
    }

    /// `Available`, or the reason why it is not.
    #[must_use]
    pub fn state(&self) -> &'a str {
        text(self.0, "state")
    }

    /// The serial number of the leaf.
    #[must_use]
    pub fn serial(&self) -> &'a str {
        let leaf = self.0.get("certChain").and_then(Value::as_array).and_then(|chain| chain.first());
        leaf.map_or("", |leaf| text(leaf, "serialNumber"))
    }

    /// The trusted roots, as the dump has them; for comparison.
    #[must_use]
    pub fn trusted(&self) -> String {
        self.0.get("rootCerts").map(ToString::to_string).unwrap_or_default()
    }

    /// The number of trusted roots.
    #[must_use]
    pub fn roots(&self) -> usize {
        self.0.get("rootCerts").and_then(Value::as_array).map_or(0, Vec::len)
    }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_and_chunked_answers() -> Result<()> {
        let plain = parse("HTTP/1.1 503 No\r\ncontent-length: 2\r\n\r\nhi")?;
        assert_eq!((plain.status, plain.body.as_str()), (503, "hi"));
        let chunked = parse("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n")?;
        assert_eq!(chunked.body, "abcd");
        assert!(parse("nothing").is_err());
        Ok(())
    }

    #[test]
    fn dump_is_read_leniently() {
        let dump = ConfigDump(serde_json::json!({
            "pods": [{ "name": "web", "state": "enrolled", "verdicts": { "inbound": 2 } }],
            "maps": [{ "name": "PODS", "used": 1, "capacity": 8 }],
        }));
        assert_eq!((dump.enrolled(), dump.tasks(), dump.maps()), (1, 0, vec!["PODS=1".to_owned()]));
        let pod = dump.pod("web").expect("there is one");
        assert_eq!((pod.verdict("inbound"), pod.verdict("outbound"), pod.connections()), (2, 0, 0));
        assert!(dump.pod("other").is_none());
    }
}
