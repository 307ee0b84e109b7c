//! The packets between the nodes while one pod fetches a page from another: what a listener on the wire sees.

use std::fs;

use anyhow::{Context, Result, ensure};
use ebpf_common::HBONE_PORT;

use super::WEB_PORT;
use crate::apps::nginx::{Nginx, curl};
use crate::capture::Capture;
use crate::topology::{Family, Topology};

/// A line of the page. No part of it may be readable on the wire.
const PAGE: &str = "this page is for client-a alone\n";

/// The name of the page, which must not be readable either.
const NAME: &str = "private-page";

/// How often [`PAGE`] is repeated.
const LINES: usize = 100;

/// The observations on the wire while the page was fetched.
#[derive(Debug)]
pub(super) struct Sight {
    packets: usize,
    to_tunnels: usize,
    lines_of_the_page: usize,
    requests: usize,
}

/// Puts the page into the folder of nginx.
pub(super) fn publish(nginx: &Nginx) -> Result<()> {
    fs::write(nginx.files().join(NAME), PAGE.repeat(LINES)).context("cannot write the page")
}

/// Fetches the page from `client-a` while everything between the nodes is recorded.
pub(super) fn watch(topology: &Topology, name: &str) -> Result<Sight> {
    let (client, web) = (topology.pod("client-a")?, topology.pod("web-b")?);
    let capture = Capture::start(topology, "node-a", "node-b", name)?;
    let target = web.at(Family::V4, WEB_PORT);
    let url = format!("http://{target}/files/{NAME}");
    // curl fetches two pages in one run, over one connection: the private page, and the page with the client's address.
    let page = curl(client, target, &[&url])?;
    ensure!(page.status == 200 && page.body.contains(PAGE.trim()), "the page did not come: {page:?}");
    let seen = capture.finish()?;
    Ok(Sight {
        packets: seen.packets("tcp")?,
        to_tunnels: seen.packets(&format!("tcp port {HBONE_PORT}"))?,
        lines_of_the_page: seen.count(PAGE.trim().as_bytes()),
        requests: seen.count(NAME.as_bytes()),
    })
}

impl Sight {
    /// The observations as text.
    pub(super) fn told(&self) -> String {
        let Self { packets, to_tunnels, lines_of_the_page, requests } = self;
        match (lines_of_the_page, requests) {
            (0, 0) => {
                format!("{packets} packets, {to_tunnels} of them of tunnels; no byte of the page, nor of its name")
            }
            _ => format!("{packets} packets; {lines_of_the_page} lines of the page, and its name, in plaintext"),
        }
    }

    /// The observations that are not as expected.
    pub(super) fn faults(&self, labelled: bool) -> Vec<String> {
        let readable = self.lines_of_the_page > 0 || self.requests > 0;
        let whole = self.lines_of_the_page >= LINES && self.requests > 0 && self.to_tunnels == 0;
        let secret = !readable && self.packets > 0 && self.to_tunnels == self.packets;
        match (labelled, secret, whole) {
            (true, true, _) | (false, _, true) => Vec::new(),
            (true, ..) => vec![format!("with the label, the wire showed: {self:?}")],
            (false, ..) => vec![format!(
                "without the label, the wire did not show the page, so its absence proves nothing: {self:?}"
            )],
        }
    }
}
