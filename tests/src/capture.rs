//! The packets on the wire between two nodes, recorded by tcpdump.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::netns::Netns;
use crate::process::{Launch, Process};
use crate::topology::Topology;
use crate::wait;

/// The content of the last packet of a capture.
const LAST_WORDS: &[u8] = b"the capture ends with this packet";

/// A running capture; stopped when dropped.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    file: PathBuf,
    netns: Netns,
    far_end: SocketAddr,
}

/// A finished capture.
#[derive(Debug)]
pub struct Recording {
    file: PathBuf,
    bytes: Vec<u8>,
}

impl Capture {
    /// Records everything on a node's wire to another. When this returns, tcpdump is listening.
    ///
    /// # Errors
    /// When tcpdump can't be started or does not begin.
    pub fn start(topology: &Topology, node: &str, far: &str, name: &str) -> Result<Self> {
        let (node, far) = (topology.node(node)?, topology.node(far)?);
        let (file, output) =
            (topology.folder.join(format!("{name}.pcap")), topology.folder.join(format!("{name}.log")));
        let mut process = Launch::new("tcpdump")
            .args(["-i", &far.wire(), "-n", "-s", "0", "-U", "--immediate-mode", "-B", "65536", "-Z", "root"])
            .args(["-w".as_ref(), file.as_os_str()])
            .inside(&node.netns)
            .log_to(&output)
            .start()?;
        let errors = output.with_added_extension("err");
        wait::until_true("tcpdump to listen", wait::PATIENCE, || {
            let said = fs::read_to_string(&errors).unwrap_or_default();
            if let Some(status) = process.ended()? {
                bail!("tcpdump ended with {status}: {said}");
            }
            Ok(said.contains("listening on"))
        })?;
        let far_end = SocketAddr::new(far.v4().into(), 9);
        Ok(Self { process, file, netns: Netns::existing(node.netns.name()), far_end })
    }

    /// Ends the capture; everything that was sent before this call is in it.
    ///
    /// # Errors
    /// When tcpdump does not record the last packet, or does not end.
    pub fn finish(mut self) -> Result<Recording> {
        let (netns, far_end) = (&self.netns, self.far_end);
        netns.run(|| UdpSocket::bind("0.0.0.0:0")?.send_to(LAST_WORDS, far_end))?.context("the last packet")?;
        wait::until_true("the last packet in the capture", wait::PATIENCE, || {
            Ok(count(&fs::read(&self.file).unwrap_or_default(), LAST_WORDS) > 0)
        })?;
        self.process.signal(Signal::SIGINT)?;
        self.process.ended_within(wait::PATIENCE)?;
        let bytes = fs::read(&self.file).with_context(|| format!("cannot read {}", self.file.display()))?;
        Ok(Recording { file: self.file.clone(), bytes })
    }
}

impl Recording {
    /// How often the bytes were on the wire, each time within one packet.
    #[must_use]
    pub fn count(&self, wanted: &[u8]) -> usize {
        count(&self.bytes, wanted)
    }

    /// The number of packets that match a filter of tcpdump.
    ///
    /// # Errors
    /// When tcpdump refuses the filter.
    pub fn packets(&self, filter: &str) -> Result<usize> {
        let done = Launch::new("tcpdump")
            .args(["-n", "-t", "-Z", "root", "-r"])
            .args([self.file.as_os_str(), filter.as_ref()])
            .finish()?;
        ensure!(done.success, "tcpdump -r: {}", done.stderr);
        Ok(done.stdout.lines().count())
    }
}

fn count(haystack: &[u8], wanted: &[u8]) -> usize {
    let (Some(first), true) = (wanted.first(), wanted.len() <= haystack.len()) else { return 0 };
    let begins = haystack.iter().enumerate().filter(|(_, byte)| *byte == first);
    begins.filter(|(at, _)| haystack.get(*at..).is_some_and(|rest| rest.starts_with(wanted))).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn occurrences_are_counted() {
        assert_eq!(count(b"abcabca", b"abc"), 2);
        assert_eq!(count(b"ab", b"abc"), 0);
        assert_eq!(count(b"aaa", b"aa"), 2);
    }
}
