//! One request of the demo, and the observations of all parties.

use std::net::SocketAddr;

use anyhow::{Context, Result};

use super::{GUEST, WEB_PORT};
use crate::apps::nginx::curl;
use crate::daemon::Daemon;
use crate::logs::{Access, Direction};
use crate::topology::{Family, Pod, Topology};
use crate::wait;

/// Client, server and IP family of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Path {
    pub(super) client: &'static str,
    pub(super) web: &'static str,
    pub(super) family: Family,
}

/// Client, its node, server, its node. No daemon has a line about the guest's side.
const PAIRS: [(&str, &str, &str, &str); 4] = [
    ("client-a", "node-a", "web-b", "node-b"),
    ("client-b", "node-b", "web-a", "node-a"),
    ("client-a", "node-a", "web-a", "node-a"),
    (GUEST, "", "web-a", "node-a"),
];

/// Requests from `client-a` to `web-b` in addition to those of the table: the page that is searched for on the wire.
const PAGES: usize = 1;

/// All rows of the table.
pub(super) fn paths() -> Vec<Path> {
    let both = |(client, _, web, _)| Family::BOTH.map(|family| Path { client, web, family });
    PAIRS.into_iter().flat_map(both).collect()
}

/// The number of connections that a node's daemon has to log in the whole demo: outbound and inbound, in the labelled
/// phase only.
pub(super) fn lines_at(node: &str) -> usize {
    let ends = PAIRS.iter().flat_map(|(_, from, _, to)| [from, to]);
    ends.filter(|end| **end == node).count() * Family::BOTH.len() + PAGES
}

/// The observations of all parties of one request.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    name: String,
    /// The HTTP status, or curl's message.
    pub(super) result: String,
    /// The client's address as nginx saw it.
    pub(super) seen: String,
    /// The daemons that logged it.
    pub(super) captured: Vec<String>,
    expected_seen: String,
    expected_captured: Vec<String>,
}

impl Cell {
    /// Makes the request.
    pub(super) fn fill(path: &Path, topology: &Topology, daemons: &[Daemon], labelled: bool) -> Result<Self> {
        let (client, web) = (topology.pod(path.client)?, topology.pod(path.web)?);
        let target = web.at(path.family, WEB_PORT);
        let before = counts(daemons)?;
        let (result, seen, source) = match curl(client, target, &[]) {
            Ok(page) => {
                (page.status.to_string(), page.body, Some(SocketAddr::new(client.ip(path.family), page.local_port)))
            }
            Err(error) => (format!("{error:#}"), String::from("nothing"), None),
        };
        let (out, inbound) = (format!("out {}", client.node), format!("in {}", web.node));
        let expected_captured = match (labelled, path.client == GUEST) {
            (false, _) => Vec::new(),
            (true, false) => vec![out, inbound, "mTLS".to_owned()],
            (true, true) => vec![inbound, "plaintext".to_owned()],
        };
        if let (true, Some(source)) = (labelled, source) {
            // Missing lines are a fault that the table shows; the other requests are still useful.
            let _ = await_lines(daemons, client, web, source, target, &before);
        }
        Ok(Self {
            name: format!("{} -> {} {}", path.client, path.web, if labelled { "labelled" } else { "unlabelled" }),
            result,
            seen,
            captured: captured(daemons, &before)?,
            expected_seen: client.ip(path.family).to_string(),
            expected_captured,
        })
    }

    /// The observations that are not as expected.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut check = |what: &str, is: &str, wanted: &str| {
            if is != wanted {
                faults.push(format!("{}: {what} is {is:?}, wanted {wanted:?}", self.name));
            }
        };
        check("the HTTP result", &self.result, "200");
        check("what nginx saw", &self.seen, &self.expected_seen);
        check("who captured it", &self.captured.join(", "), &self.expected_captured.join(", "));
        faults
    }
}

/// Waits for the lines of one request; lines are written when the connection has closed.
fn await_lines(
    daemons: &[Daemon],
    client: &Pod,
    web: &Pod,
    source: SocketAddr,
    target: SocketAddr,
    before: &[usize],
) -> Result<()> {
    let at = |node: &str| {
        let found = daemons.iter().zip(before).find(|(daemon, _)| daemon.node == node);
        found.with_context(|| format!("no daemon on {node}"))
    };
    if client.name != GUEST {
        at(&client.node)?.0.wait_connection(Direction::Outbound, source, target)?;
    }
    let (daemon, seen) = at(&web.node)?;
    // Not by its source: the first daemon's own connection has a port that only the kernel knew before.
    wait::until_true(&format!("a line at {} about {target}", web.node), wait::PATIENCE, || {
        let lines = daemon.access()?;
        let inbound = |line: &Access| line.direction == Direction::Inbound && line.asked() == target;
        Ok(lines.iter().skip(*seen).any(inbound))
    })
}

fn counts(daemons: &[Daemon]) -> Result<Vec<usize>> {
    daemons.iter().map(|daemon| Ok(daemon.access()?.len())).collect()
}

/// The lines that came since `before`.
fn captured(daemons: &[Daemon], before: &[usize]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for (daemon, before) in daemons.iter().zip(before) {
        for line in daemon.access()?.iter().skip(*before) {
            found.push((line.direction, daemon.node.clone(), line.is_tunnelled()));
        }
    }
    found.sort_by_key(|(direction, ..)| *direction == Direction::Inbound);
    let word = |direction: &Direction| if *direction == Direction::Outbound { "out" } else { "in" };
    let mut words: Vec<String> =
        found.iter().map(|(direction, node, _)| format!("{} {node}", word(direction))).collect();
    let tunnelled = found.iter().filter(|(.., tunnelled)| *tunnelled).count();
    match tunnelled {
        _ if found.is_empty() => (),
        0 => words.push("plaintext".to_owned()),
        all if all == found.len() => words.push("mTLS".to_owned()),
        _ => words.push("in part through a tunnel".to_owned()),
    }
    Ok(words)
}
