//! Policies in the demo: first nobody may connect, then one service account may, then a policy in dry-run reports only,
//! and in the end the same policy is enforced and closes an open connection.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use serde_json::Value;

use super::{GUEST, MANIFESTS, WEB_PORT};
use crate::admin;
use crate::apps::nginx::curl;
use crate::daemon::{self, Daemon};
use crate::logs::{Access, Direction};
use crate::mesh::Mesh;
use crate::policy::{CHANGED, REJECTED, told};
use crate::process::Launch;
use crate::topology::{Family, Topology};
use crate::wait;

/// The clients and servers in each step: the service accounts `client` and `web`, and a client without one.
const REQUESTS: [(&str, &str); 3] = [("client-a", "web-b"), ("web-a", "web-b"), (GUEST, "web-a")];

/// The files that are added, and the requests that succeed then.
const STEPS: [(&str, [bool; 3]); 3] = [
    ("deny-all.yaml", [false, false, false]),
    ("allow-client.yaml", [true, false, false]),
    (DRY_RUN_FILE, [true, false, false]),
];

/// Client and server of the download that a policy closes.
const DOWNLOAD: (&str, &str) = ("client-a", "web-b");

const DRY_RUN_FILE: &str = "deny-client.yaml";

/// The policy that is in dry-run as long as its file has this line.
const DRY_RUN: (&str, &str) = ("demo/deny-client", "    istio.io/dry-run: \"true\"\n");

/// The file to download. The download is so slow that it is still under way.
const LARGE: &str = "large";

/// The time within which a connection that no policy allows any more must be closed.
const CUT_WITHIN: Duration = Duration::from_secs(2);

/// The parts of the demo that this needs.
pub(super) struct Scene<'a> {
    pub(super) ztunnel: &'a Path,
    pub(super) daemons: &'a [Daemon],
    pub(super) mesh: &'a Mesh,
    pub(super) topology: &'a Topology,
    /// The files that web-b serves.
    pub(super) files: &'a Path,
}

/// The results as text, and those that are not as expected.
#[derive(Debug, Default)]
pub(super) struct Shown {
    pub(super) text: String,
    pub(super) faults: Vec<String>,
}

/// The number of lines that a node's daemon logs about all this.
pub(super) fn lines_at(topology: &Topology, node: &str) -> Result<usize> {
    let mut count = 0;
    for (client, web) in REQUESTS.iter().cycle().take(REQUESTS.len() * STEPS.len()).chain([&DOWNLOAD]) {
        count += usize::from(*client != GUEST && topology.pod(client)?.node == node);
        count += usize::from(topology.pod(web)?.node == node);
    }
    Ok(count)
}

impl Scene<'_> {
    /// Shows all steps, and removes the policies again.
    pub(super) fn play(&self) -> Result<Shown> {
        let (mut shown, mut columns, mut reasons) = (Shown::default(), Vec::new(), String::new());
        let mut explained = String::new();
        for (file, works) in STEPS {
            self.apply(|mesh| mesh.write(file, &manifest(file)?))?;
            let mut column = Vec::new();
            for ((client, web), works) in REQUESTS.into_iter().zip(works) {
                let (result, reason) = self.request(client, web)?;
                if (result == "200") != works {
                    shown.faults.push(format!("with {file}, {client} -> {web} is {result}"));
                }
                if let Some(reason) = reason {
                    reasons.push_str(&format!("\n  {file:<17} {client} -> {web}: {reason}"));
                }
                column.push(result);
            }
            columns.push(column);
            if file == "allow-client.yaml" {
                explained = self.explained(&mut shown.faults)?;
            }
        }
        let dry_run = self.told(&mut shown.faults)?;
        let cut = self.cut(&mut shown.faults)?;
        self.apply(|mesh| STEPS.iter().try_for_each(|(file, _)| mesh.remove(file)))?;
        shown.text = format!(
            "Policy: each step adds a file of deploy/demo/policies to the manifests\n{}\n\
             Why, as the destination's node logged it (and, of tunnels, the client's node, too):{reasons}\n\
             What the policy in dry-run would do:\n  {dry_run}\n{explained}\n{cut}",
            table(&columns)
        );
        Ok(shown)
    }

    /// Changes the manifests, and waits until all daemons have read them.
    fn apply(&self, change: impl FnOnce(&Mesh) -> Result<()>) -> Result<()> {
        daemon::after_change(self.daemons.iter(), || change(self.mesh))
    }

    /// The result of curl, and the reason of a failure.
    fn request(&self, client: &str, web: &str) -> Result<(String, Option<String>)> {
        let target = self.topology.pod(web)?.at(Family::V4, WEB_PORT);
        let seen = self.seen()?;
        let page = curl(self.topology.pod(client)?, target, &[]);
        let line = self.line(web, &seen, |line| line.direction == Direction::Inbound && line.asked() == target)?;
        if client != GUEST {
            // The line of the client's node: it has the same reason, or there is no line and this fails.
            let reason = reason(&line, REJECTED).unwrap_or_default();
            self.line(client, &seen, |line| {
                let agrees = line.error.as_deref().unwrap_or_default().contains(&reason);
                line.direction == Direction::Outbound && line.asked() == target && agrees
            })?;
        }
        match page {
            Ok(page) => Ok((page.status.to_string(), None)),
            Err(error) => match reason(&line, REJECTED) {
                Some(reason) => Ok(("refused".to_owned(), Some(reason))),
                None => Ok((format!("{error:#}"), None)),
            },
        }
    }

    /// The number of lines that each daemon has logged so far.
    fn seen(&self) -> Result<Vec<usize>> {
        self.daemons.iter().map(|daemon| Ok(daemon.access()?.len())).collect()
    }

    /// Waits for a new line at a pod's node.
    fn line(&self, pod: &str, seen: &[usize], wanted: impl Fn(&Access) -> bool) -> Result<Access> {
        let node = &self.topology.pod(pod)?.node;
        let all = self.daemons.iter().zip(seen);
        let (daemon, seen) = all.into_iter().find(|(daemon, _)| daemon.node == *node).context("no such daemon")?;
        let what = format!("a line at {node} about {pod}");
        wait::until(&what, wait::PATIENCE, || Ok(daemon.access()?.into_iter().skip(*seen).find(&wanted)))
            .with_context(|| daemon.tail())
    }

    fn daemon_of(&self, pod: &str) -> Result<&Daemon> {
        let node = &self.topology.pod(pod)?.node;
        self.daemons.iter().find(|daemon| daemon.node == *node).context("no such daemon")
    }

    /// The output of `ztunnel explain` for a connection that is allowed, and for one that is denied.
    fn explained(&self, faults: &mut Vec<String>) -> Result<String> {
        let mut text = String::new();
        for (from, to, code) in [("demo/client-a", "demo/web-b", 0), ("demo/web-a", "demo/web-b", 3)] {
            let (node, port) = (&self.topology.node("node-b")?.netns, WEB_PORT.to_string());
            let arguments = ["explain", "--admin", admin::ADDRESS, "--from", from, "--to", to, "--port", port.as_str()];
            let done = daemon::command(self.ztunnel, node, &arguments)?;
            let ended = done.status.code();
            text.push_str(&format!("\n$ ztunnel {}\n", arguments.join(" ")));
            text.push_str(&indented(&format!("{}{}", done.stdout, done.stderr)));
            text.push_str(&format!("  (exit code {})\n", ended.unwrap_or(-1)));
            if ended != Some(code) {
                faults.push(format!("`ztunnel {}` ended with {}", arguments.join(" "), done.status));
            }
        }
        Ok(text)
    }

    /// The reports of the policy in dry-run.
    fn told(&self, faults: &mut Vec<String>) -> Result<String> {
        let (policy, _) = DRY_RUN;
        let lines = told(self.daemon_of("web-b")?, policy, "DENY")?;
        // One request of `client` was made while the policy was there.
        if lines.len() != 1 {
            faults.push(format!("{policy} told {} times what it would do, not once: {lines:?}", lines.len()));
        }
        let text = |line: &Value| {
            let fields = ["src.addr", "policy", "action", "rule", "decision"];
            let field = |name: &&str| Some(format!("{name}={}", line.get(*name)?).replace('"', ""));
            fields.iter().filter_map(field).collect::<Vec<_>>().join(" ")
        };
        Ok(lines.first().map(|line| format!("node-b: {}", text(line))).unwrap_or_default())
    }

    /// A slow download that the policy closes once it is enforced.
    fn cut(&self, faults: &mut Vec<String>) -> Result<String> {
        let (client, web) = DOWNLOAD;
        let target = self.topology.pod(web)?.at(Family::V4, WEB_PORT);
        // A sparse file of one gigabyte.
        fs::File::create(self.files.join(LARGE))?.set_len(1 << 30).context("cannot make the large file")?;
        let (seen, output) = (self.seen()?, self.topology.folder.join("download.log"));
        let mut download = Launch::new("curl")
            .args(["-sS", "--noproxy", "*", "--limit-rate", "8M", "-o", "/dev/null"])
            .args([&format!("http://{target}/files/{LARGE}")])
            .inside(&self.topology.pod(client)?.netns)
            .log_to(&output)
            .start()?;
        self.daemon_of(web)?.wait_dump("the download to be under way", wait::PATIENCE, |dump| {
            let is_carrying =
                |connection: &Value| connection.get("bytesSent").and_then(Value::as_u64).is_some_and(|bytes| bytes > 0);
            dump.pod(web).is_some_and(|pod| pod.each_connection().any(is_carrying))
        })?;
        let begin = Instant::now();
        self.mesh
            .write(DRY_RUN_FILE, &manifest(DRY_RUN_FILE)?.replace(DRY_RUN.1, "").replace("  annotations:\n", ""))?;
        let inbound = self.line(web, &seen, |line| line.direction == Direction::Inbound && line.asked() == target)?;
        let took = begin.elapsed();
        // curl notices at its next read, which comes late since it reads slowly.
        let status = download.ended_within(wait::PATIENCE)?;
        let said = fs::read_to_string(output.with_added_extension("err")).unwrap_or_default();
        let out = self.line(client, &seen, |line| line.direction == Direction::Outbound && line.asked() == target)?;
        if status.success() || !said.contains("reset") || took > CUT_WITHIN {
            faults.push(format!("the download ended after {took:?} with {status}: {said}"));
        }
        if inbound.field("reason") != "policy_changed" || reason(&inbound, CHANGED).is_none() {
            faults.push(format!("the download that was cut is logged so: {}", inbound.line));
        }
        Ok(format!(
            "A slow download of client-a from web-b, when deny-client.yaml loses its annotation:\n  \
             cut {} ms after the file was written; {}\n  node-b: {}\n  node-a: {}\n",
            took.as_millis(),
            said.trim(),
            fields(&inbound),
            fields(&out)
        ))
    }
}

fn manifest(file: &str) -> Result<String> {
    let path = format!("{MANIFESTS}/policies/{file}");
    fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
}

/// The text of a line's error after the usual prefix.
fn reason(line: &Access, usual: &str) -> Option<String> {
    line.error.as_deref()?.strip_prefix(usual).map(ToOwned::to_owned)
}

fn fields(line: &Access) -> String {
    let field = |name: &&str| Some(format!("{name}={}", line.line.get(*name)?));
    ["src.identity", "bytes_sent", "bytes_recv", "reason", "error"]
        .iter()
        .filter_map(field)
        .collect::<Vec<_>>()
        .join(" ")
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}").trim_end().to_owned() + "\n").collect()
}

fn table(columns: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    let steps = ["deny-all.yaml", "+ allow-client.yaml", "+ deny-client.yaml (dry-run)"];
    table.set_header(["HTTP request"].into_iter().chain(steps));
    for (index, (client, web)) in REQUESTS.iter().enumerate() {
        let row = columns.iter().filter_map(|column| column.get(index)).cloned();
        table.add_row([format!("{client} -> {web}")].into_iter().chain(row));
    }
    table.to_string()
}
