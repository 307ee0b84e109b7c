//! One daemon on one node: it can be started, queried, killed and restarted, and its remains can be removed.

use std::cell::RefCell;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::admin::{self, ConfigDump, PodState};
use crate::logs::{Access, Direction, LogFile};
use crate::mesh::Mesh;
use crate::metrics::Metrics;
use crate::netns::Netns;
use crate::process::{Finished, Launch, Process};
use crate::topology::Topology;
use crate::wait;

mod former;
mod options;

pub use former::Former;
pub use options::{DaemonOptions, Issuer, Remote};

/// A node's daemon. Dropping it kills it and removes its pins.
#[derive(Debug)]
pub struct Daemon {
    /// The node's name.
    pub node: String,
    options: DaemonOptions,
    netns: Netns,
    mesh: PathBuf,
    state: PathBuf,
    pins: PathBuf,
    ca: PathBuf,
    output: PathBuf,
    log: RefCell<LogFile>,
    process: Process,
    kept: bool,
    /// How many daemons this one came after, by handover.
    generation: u32,
}

/// Resources of a daemon. If they differ before and after a load, the daemon leaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holdings {
    /// Open files of the process.
    pub files: usize,
    /// Tasks.
    pub tasks: u64,
    /// Use of each BPF map.
    pub maps: Vec<String>,
    /// Connections that it lists.
    pub connections: usize,
}

impl Daemon {
    /// Starts a node's daemon and waits until it is ready.
    ///
    /// # Errors
    /// When it ends or does not become ready; the message has the end of its log.
    pub fn start(topology: &Topology, node: &str, mesh: &Mesh, options: DaemonOptions) -> Result<Self> {
        let netns = Netns::existing(topology.node(node)?.netns.name());
        let (mesh, state) = (mesh.folder().to_owned(), topology.folder.join(format!("state-{node}")));
        let (pins, output) = (topology.prefix.pins(node), topology.folder.join(format!("daemon-{node}.log")));
        fs::create_dir_all(&state).with_context(|| format!("cannot make {}", state.display()))?;
        let ca = ca_folder(topology);
        let paths = Paths { mesh: &mesh, state: &state, pins: &pins, ca: &ca, output: &output };
        let process = launch(&options, node, &netns, &paths)?;
        let log = RefCell::new(LogFile::new(&output));
        let mut daemon = Self {
            node: node.to_owned(),
            options,
            netns,
            mesh,
            state,
            pins,
            ca,
            output,
            log,
            process,
            kept: false,
            generation: 0,
        };
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// The daemon's process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Keeps it running when this value is dropped.
    pub fn keep(&mut self) {
        self.kept = true;
        self.process.keep();
    }

    /// The file of its log; standard error is in a file next to it.
    #[must_use]
    pub fn output(&self) -> &Path {
        &self.output
    }

    /// The folder of its state.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The folder in which it pins its BPF objects.
    #[must_use]
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// Kills it with SIGKILL.
    ///
    /// # Errors
    /// When it can't be waited for.
    pub fn kill9(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Sends SIGTERM, and waits until it has ended with exit code 0.
    ///
    /// # Errors
    /// When it does not end, or with another code.
    pub fn terminate(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGTERM)?;
        self.exited(wait::PATIENCE)
    }

    /// Waits until it has ended, with exit code 0.
    ///
    /// # Errors
    /// When it does not end in time, or with another code.
    pub fn exited(&mut self, patience: Duration) -> Result<()> {
        let status = self.process.ended_within(patience).with_context(|| self.tail())?;
        ensure!(status.success(), "{} ended with {status}\n{}", self.node, self.tail());
        Ok(())
    }

    /// Its resident memory, in bytes.
    ///
    /// # Errors
    /// When it is gone.
    pub fn memory(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    }

    /// Its metrics, from the port for Prometheus.
    ///
    /// # Errors
    /// When it does not answer, or the answer is not OpenMetrics text.
    pub fn metrics(&self) -> Result<Metrics> {
        let answer = admin::get_from(&self.netns, admin::METRICS, "/metrics").with_context(|| self.tail())?;
        ensure!(answer.status == 200, "/metrics answered {}: {}", answer.status, answer.body);
        Metrics::parse(&answer.body)
    }

    /// Waits until it has a valid certificate of an identity; returns the serial number of the leaf.
    ///
    /// # Errors
    /// When it has none in time.
    pub fn certified(&self, identity: &str) -> Result<String> {
        let what = format!("a certificate of {identity}");
        self.wait_dump(&what, wait::PATIENCE, |dump| {
            dump.certificate(identity).is_some_and(|found| found.available())
        })?;
        Ok(self.dump()?.certificate(identity).map(|found| found.serial().to_owned()).unwrap_or_default())
    }

    /// All lines of its log so far that contain all of these words, ignoring case.
    ///
    /// # Errors
    /// When the log can't be read.
    pub fn lines_with(&self, words: &[&str]) -> Result<Vec<String>> {
        let log = fs::read_to_string(&self.output)?;
        let fits = |line: &&str| {
            let lower = line.to_lowercase();
            words.iter().all(|word| lower.contains(&word.to_lowercase()))
        };
        Ok(log.lines().filter(fits).map(ToOwned::to_owned).collect())
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Waits for its end, however it ends.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn ended_within(&mut self, patience: Duration) -> Result<()> {
        self.process.ended_within(patience).map(|_| ()).with_context(|| self.tail())
    }

    /// Sets the further arguments of the next [`Daemon::restart`].
    pub fn set_arguments(&mut self, arguments: &[&str]) {
        self.options.arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    }

    /// Starts it again on the remains of the last one, and waits until it is ready.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn restart(&mut self) -> Result<()> {
        let (mesh, state, pins) = (&self.mesh, &self.state, &self.pins);
        let paths = Paths { mesh, state, pins, ca: &self.ca, output: &self.output };
        self.process = launch(&self.options, &self.node, &self.netns, &paths)?;
        self.wait_ready()
    }

    /// Starts a daemon beside this one, which takes over from it, and waits until it has. This value is the new one then.
    ///
    /// # Errors
    /// When the new one does not take over; then it is killed, and this value is the old one still.
    pub fn succeed(&mut self) -> Result<Former> {
        let mut successor = self.successor()?;
        successor.took_over()?;
        self.generation += 1;
        let process = std::mem::replace(&mut self.process, successor.process);
        let output = std::mem::replace(&mut self.output, successor.output);
        self.log = RefCell::new(LogFile::new(&self.output));
        self.wait_ready()?;
        Ok(Former { process, output })
    }

    /// Its successor has taken over, and is gone: this value has no process until a [`Self::restart`].
    ///
    /// # Errors
    /// When it can't be said how the one that ran here goes on.
    pub fn replaced_by_nobody(&mut self) -> Result<Former> {
        let gone = Launch::new("true").inside(&self.netns).start()?;
        let process = std::mem::replace(&mut self.process, gone);
        Ok(Former { process, output: self.output.clone() })
    }

    /// Starts a daemon beside this one, and does not wait for anything.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn successor(&self) -> Result<Former> {
        let mut number = self.generation + 1;
        let output = loop {
            let output = self.state.with_extension(format!("{number}.log"));
            if !output.exists() {
                break output;
            }
            number += 1;
        };
        let (mesh, state, pins) = (&self.mesh, &self.state, &self.pins);
        let paths = Paths { mesh, state, pins, ca: &self.ca, output: &output };
        Ok(Former { process: launch(&self.options, &self.node, &self.netns, &paths)?, output })
    }

    /// Runs `ztunnel cleanup` for the remains of a dead daemon.
    ///
    /// # Errors
    /// When it fails.
    pub fn cleanup(&self) -> Result<()> {
        let done = Launch::new(&self.options.binary.display().to_string())
            .args(["cleanup".as_ref(), "--bpf-pin".as_ref(), self.pins.as_os_str()])
            .args(["--state".as_ref(), self.state.as_os_str()])
            .inside(&self.netns)
            .finish()?;
        ensure!(done.success, "`ztunnel cleanup` ended with {}: {}{}", done.status, done.stdout, done.stderr);
        Ok(())
    }

    /// Fetches `/config_dump`.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn dump(&self) -> Result<ConfigDump> {
        ConfigDump::fetch(&self.netns).with_context(|| self.tail())
    }

    /// Fetches an admin path.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn get(&self, path: &str) -> Result<admin::Answer> {
        admin::get(&self.netns, path).with_context(|| self.tail())
    }

    /// How often BPF programs returned this verdict for a pod.
    ///
    /// # Errors
    /// When the daemon does not answer, or does not know the pod.
    pub fn verdict(&self, pod: &str, name: &str) -> Result<u64> {
        let dump = self.dump()?;
        let state = dump.pod(pod).with_context(|| format!("{} does not know {pod}", self.node))?;
        Ok(state.verdict(name))
    }

    /// Waits until the content of `/config_dump` satisfies `holds`.
    ///
    /// # Errors
    /// When it does not in time; the message has the last dump.
    pub fn wait_dump(&self, what: &str, patience: Duration, holds: impl Fn(&ConfigDump) -> bool) -> Result<()> {
        let mut last = None;
        let met = wait::until_true(what, patience, || {
            let dump = self.dump()?;
            let met = holds(&dump);
            last = Some(dump);
            Ok(met)
        });
        met.with_context(|| {
            format!("{}: {:#}\n{}", self.node, last.map(|dump| dump.value().clone()).unwrap_or_default(), self.tail())
        })
    }

    /// Waits until a pod is enrolled.
    ///
    /// # Errors
    /// When it is not in time, or is refused.
    pub fn enrolled(&self, pod: &str) -> Result<()> {
        let state_is = |dump: &ConfigDump, state: &str| dump.pod(pod).is_some_and(|pod| pod.state() == state);
        let what = format!("{pod} to be enrolled");
        self.wait_dump(&what, wait::PATIENCE, |dump| state_is(dump, "enrolled"))
    }

    /// Waits until a pod is not enrolled.
    ///
    /// # Errors
    /// When it still is after a while.
    pub fn released(&self, pod: &str) -> Result<()> {
        let what = format!("{pod} to be released");
        self.wait_dump(&what, wait::PATIENCE, |dump| dump.pod(pod).is_none_or(|pod| pod.state() != "enrolled"))
    }

    /// Waits until a pod is refused, and returns the reason.
    ///
    /// # Errors
    /// When it is not in time.
    pub fn refused(&self, pod: &str) -> Result<String> {
        let what = format!("{pod} to be refused");
        self.wait_dump(&what, wait::PATIENCE, |dump| dump.pod(pod).is_some_and(|pod| pod.state() == "refused"))?;
        Ok(self.dump()?.pod(pod).map(|pod| pod.reason().to_owned()).unwrap_or_default())
    }

    /// Waits until a pod is refused and captured, which means closed.
    ///
    /// # Errors
    /// When it is not in time.
    pub fn shut(&self, pod: &str) -> Result<()> {
        let what = format!("{pod} to be refused and captured");
        let shut = |pod: PodState<'_>| pod.state() == "refused" && pod.captured();
        self.wait_dump(&what, wait::PATIENCE, |dump| dump.pod(pod).is_some_and(shut))
    }

    /// All lines about connections so far.
    ///
    /// # Errors
    /// When the log can't be read.
    pub fn access(&self) -> Result<Vec<Access>> {
        let mut log = self.log.borrow_mut();
        log.refresh()?;
        Ok(log.access().to_vec())
    }

    /// Waits for a line about a connection.
    ///
    /// # Errors
    /// When none comes in time; the message has the end of the log.
    pub fn wait_access(&self, what: &str, wanted: impl Fn(&Access) -> bool) -> Result<Access> {
        self.wait_access_after(0, what, wanted)
    }

    /// Waits for a line about a connection after the first `seen` such lines.
    ///
    /// # Errors
    /// As [`Self::wait_access`].
    pub fn wait_access_after(&self, seen: usize, what: &str, wanted: impl Fn(&Access) -> bool) -> Result<Access> {
        let found = wait::until(what, wait::PATIENCE, || {
            let mut log = self.log.borrow_mut();
            log.refresh()?;
            Ok(log.access().iter().skip(seen).rev().find(|access| wanted(access)).cloned())
        });
        found.with_context(|| self.tail())
    }

    /// Waits for the line of the connection from `src` to `dst`.
    ///
    /// # Errors
    /// When none comes in time.
    pub fn wait_connection(&self, direction: Direction, src: SocketAddr, dst: SocketAddr) -> Result<Access> {
        self.wait_connection_after(0, direction, src, dst)
    }

    /// The same, but not among the first `seen` lines: after thousands of connections, ports occur again.
    ///
    /// # Errors
    /// When none comes in time.
    pub fn wait_connection_after(
        &self,
        seen: usize,
        direction: Direction,
        src: SocketAddr,
        dst: SocketAddr,
    ) -> Result<Access> {
        let what = format!("a line at {} about {direction:?} {src} -> {dst}", self.node);
        self.wait_access_after(seen, &what, |line| {
            line.direction == direction && line.src == src && line.asked() == dst
        })
    }

    /// The present resources of the daemon.
    ///
    /// # Errors
    /// When it is gone.
    pub fn holdings(&self) -> Result<Holdings> {
        let folder = format!("/proc/{}/fd", self.id());
        let dump = self.dump()?;
        let files = fs::read_dir(&folder).with_context(|| format!("cannot read {folder}"))?.count();
        let connections = dump.pods().map(|pod| pod.connections()).sum();
        Ok(Holdings { files, tasks: dump.tasks(), maps: dump.maps(), connections })
    }

    /// The resources once they are the same several times in a row: for a later comparison.
    ///
    /// # Errors
    /// When they do not settle.
    pub fn settled_holdings(&self) -> Result<Holdings> {
        let mut last = self.holdings()?;
        let mut looks = 0;
        wait::until("the daemon to come to rest", wait::PATIENCE, || {
            let now = self.holdings()?;
            looks = if now == last { looks + 1 } else { 0 };
            last = now;
            Ok((looks >= 10).then(|| last.clone()))
        })
    }

    /// Waits until the daemon's resources are the same as before.
    ///
    /// # Errors
    /// When they are not; the message has both.
    pub fn wait_holdings(&self, before: &Holdings) -> Result<()> {
        let mut now = self.holdings()?;
        let met = wait::until_true("the daemon to hold what it held before", wait::PATIENCE, || {
            now = self.holdings()?;
            Ok(now == *before)
        });
        met.with_context(|| format!("{}: before {before:?}, now {now:?}", self.node))
    }

    /// The end of its log and of its standard error, for messages.
    #[must_use]
    pub fn tail(&self) -> String {
        let log = last_lines(&self.output, 30);
        let errors = last_lines(&self.output.with_added_extension("err"), 30);
        format!("--- the end of the log of {} ---\n{log}\n--- its standard error ---\n{errors}", self.node)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let netns = Netns::existing(self.netns.name());
        let ready = wait::until("the daemon to be ready", self.options.patience, || {
            if let Some(status) = self.process.ended()? {
                bail!("it ended with {status}");
            }
            Ok(admin::get(&netns, "/healthz/ready").ok().filter(|answer| answer.status == 200))
        });
        ready.map(|_| ()).with_context(|| self.tail())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.kept {
            let _ = self.process.kill();
            let _ = fs::remove_dir_all(&self.pins);
        }
    }
}

/// Runs a command of the daemon's program to its end, in a namespace.
///
/// # Errors
/// When it can't be started or does not end.
pub fn command(binary: &Path, netns: &Netns, args: &[&str]) -> Result<Finished> {
    Launch::new(&binary.display().to_string()).args(args).inside(netns).finish()
}

/// Changes the manifests, and waits until these daemons have read them again and their pods match the manifests.
///
/// # Errors
/// When the change fails, or a daemon does not read it in time.
pub fn after_change<'a>(
    daemons: impl Iterator<Item = &'a Daemon> + Clone,
    change: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let before = daemons.clone().map(|daemon| Ok(daemon.dump()?.version())).collect::<Result<Vec<_>>>()?;
    change()?;
    daemons.zip(before).try_for_each(|(daemon, before)| {
        let done = |dump: &ConfigDump| dump.version() > before && !dump.is_pending();
        daemon.wait_dump("the changed manifests to be read", wait::PATIENCE, done)
    })
}

struct Paths<'a> {
    mesh: &'a Path,
    state: &'a Path,
    pins: &'a Path,
    ca: &'a Path,
    output: &'a Path,
}

/// The folder of the CA that all daemons of a topology share, as nodes of one cluster do.
#[must_use]
pub fn ca_folder(topology: &Topology) -> PathBuf {
    topology.folder.join("ca")
}

fn launch(options: &DaemonOptions, node: &str, netns: &Netns, paths: &Paths<'_>) -> Result<Process> {
    let mut launch = Launch::new(&options.binary.display().to_string())
        .args(["run", "--node", node, "--admin", admin::ADDRESS, "--log", "info"])
        .args(["--state".as_ref(), paths.state.as_os_str(), "--bpf-pin".as_ref(), paths.pins.as_os_str()])
        .args(&options.arguments)
        // An argument may override the variable.
        .variable("ZTUNNEL_LOG_FORMAT", "json")
        .variable("RUST_BACKTRACE", "1")
        .inside(netns)
        .detached(options.detached)
        .in_group(options.group.as_deref())
        .open_files(options.open_files)
        .log_to(paths.output);
    launch = match &options.control_plane {
        None => launch.args(["--mesh".as_ref(), paths.mesh.as_os_str()]),
        Some(remote) => launch
            .args(["--control-plane", &remote.url])
            .args(["--control-plane-root".as_ref(), remote.roots.as_os_str()])
            .args(["--control-plane-token".as_ref(), remote.token.as_os_str()])
            .args(["--pods".as_ref(), remote.pods.as_os_str()]),
    };
    launch = match &options.certificates {
        _ if options.control_plane.is_some() => launch,
        Issuer::Shared => launch.args(["--ca-dir".as_ref(), paths.ca.as_os_str()]),
        Issuer::Ca(folder) => launch.args(["--ca-dir".as_ref(), folder.as_os_str()]),
        Issuer::Files(folder) => launch.args(["--cert-dir".as_ref(), folder.as_os_str()]),
        Issuer::Unnamed => launch,
    };
    if !options.capabilities.is_empty() {
        launch = launch.with_only(&options.capabilities);
    }
    launch.start()
}

fn last_lines(path: &Path, count: usize) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let begin = lines.len().saturating_sub(count);
    lines.get(begin..).unwrap_or_default().join("\n")
}
