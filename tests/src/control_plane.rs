//! A control plane on one node: started, asked, killed, restarted.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::admin;
use crate::daemon::{Remote, ca_folder};
use crate::mesh::{Mesh, PodManifest};
use crate::netns::Netns;
use crate::process::{Launch, Process};
use crate::topology::{Pod, Topology};
use crate::wait;

/// The port to which nodes connect.
const PORT: u16 = 15012;
/// The address of its admin endpoints, in the node's namespace.
const ADMIN: &str = "127.0.0.1:15013";
/// The address of its readiness probe.
const READINESS: &str = "127.0.0.1:15022";

/// A control plane. It has the manifests and the key of the CA that all daemons of the topology trust. Dropping it
/// kills it.
#[derive(Debug)]
pub struct ControlPlane {
    binary: PathBuf,
    netns: Netns,
    address: SocketAddr,
    mesh: PathBuf,
    ca: PathBuf,
    tokens: PathBuf,
    output: PathBuf,
    detached: bool,
    process: Process,
}

impl ControlPlane {
    /// Starts it on a node, with a token for each node, and waits until it is ready. A detached control plane can be
    /// left running.
    ///
    /// # Errors
    /// When it ends or does not become ready; the message has its log.
    pub fn start(topology: &Topology, node: &str, mesh: &Mesh, binary: &Path, detached: bool) -> Result<Self> {
        let node = topology.node(node)?;
        let netns = Netns::existing(node.netns.name());
        let (tokens, output) = (topology.folder.join("tokens"), topology.folder.join("control-plane.log"));
        fs::create_dir_all(&tokens).with_context(|| format!("cannot make {}", tokens.display()))?;
        for node in topology.nodes() {
            let path = tokens.join(&node.name);
            fs::write(&path, format!("token-of-{}-{:0>32}\n", node.name, std::process::id()))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        }
        let (address, ca) = (SocketAddr::new(node.v4().into(), PORT), ca_folder(topology));
        let (binary, mesh) = (binary.to_owned(), mesh.folder().to_owned());
        let process = launch(&binary, &netns, address, [&mesh, &ca, &tokens], &output, detached)?;
        let mut started = Self { binary, netns, address, mesh, ca, tokens, output, detached, process };
        started.wait_ready()?;
        Ok(started)
    }

    /// The URL to which nodes connect.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The settings for the daemon of a node. Facts that only the node needs of its pods are in manifests in a folder
    /// of their own.
    ///
    /// # Errors
    /// When that folder can't be written.
    pub fn remote<'a>(&self, topology: &Topology, node: &str, pods: impl Iterator<Item = &'a Pod>) -> Result<Remote> {
        let own = Mesh::new(&topology.folder.join(format!("pods-{node}")))?;
        for pod in pods.filter(|pod| pod.node == node) {
            own.pod(&PodManifest::of(pod))?;
        }
        let pods = own.folder().to_owned();
        Ok(Remote { url: self.url(), roots: self.roots(), token: self.token(node), pods })
    }

    /// Its process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Keeps it running when this value is dropped.
    pub fn keep(&mut self) {
        self.process.keep();
    }

    /// The file of its log.
    #[must_use]
    pub fn output(&self) -> &Path {
        &self.output
    }

    /// The address of its admin endpoints, in the namespace of its node.
    #[must_use]
    pub fn admin(&self) -> &'static str {
        ADMIN
    }

    /// The file of a node's token.
    #[must_use]
    pub fn token(&self, node: &str) -> PathBuf {
        self.tokens.join(node)
    }

    /// The file of the roots of its certificate.
    #[must_use]
    pub fn roots(&self) -> PathBuf {
        self.ca.join("root-cert.pem")
    }

    /// The content of `/debug/nodes`.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn nodes(&self) -> Result<Value> {
        let answer = admin::get_from(&self.netns, ADMIN, "/debug/nodes").with_context(|| self.log())?;
        ensure!(answer.status == 200, "/debug/nodes answered {}: {}", answer.status, answer.body);
        Ok(serde_json::from_str(&answer.body)?)
    }

    /// Waits until a node has acknowledged the current resources of each type.
    ///
    /// # Errors
    /// When it has not in time; the message has the content of `/debug/nodes`.
    pub fn served(&self, node: &str) -> Result<()> {
        let mut last = Value::Null;
        let met = wait::until_true(&format!("{node} to have everything"), wait::PATIENCE, || {
            last = self.nodes()?;
            let streams = last.get("streams").and_then(Value::as_array).cloned().unwrap_or_default();
            Ok(streams.iter().filter(|stream| stream["node"] == *node).any(|stream| {
                let types = stream["types"].as_object().cloned().unwrap_or_default();
                types.len() == 4 && types.values().all(|it| it["answered"] == it["sent"] && it["rejected"].is_null())
            }))
        });
        met.with_context(|| format!("{last:#}\n{}", self.log()))
    }

    /// Makes a change of the served resources, and waits until these nodes have acknowledged it.
    ///
    /// # Errors
    /// When they have not in time; the message has the content of `/debug/nodes`.
    pub fn after_change(&self, nodes: &[&str], change: impl FnOnce() -> Result<()>) -> Result<()> {
        let version_of = |shown: &Value| shown.get("version").and_then(Value::as_u64).unwrap_or_default();
        let before = version_of(&self.nodes()?);
        change()?;
        let mut last = Value::Null;
        let met = wait::until_true("the nodes to have the change", wait::PATIENCE, || {
            last = self.nodes()?;
            let version = version_of(&last);
            let streams = last.get("streams").and_then(Value::as_array).cloned().unwrap_or_default();
            let has_it = |node: &&str| {
                streams.iter().filter(|stream| stream["node"] == **node).any(|stream| {
                    let types = stream["types"].as_object().cloned().unwrap_or_default();
                    types.values().all(|it| it["answered"] == it["sent"])
                        && types.values().any(|it| it["answered"].as_u64() == Some(version))
                })
            };
            Ok(version > before && nodes.iter().all(has_it))
        });
        met.with_context(|| format!("{last:#}\n{}", self.log()))
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
        let status = self.process.ended_within(wait::PATIENCE).with_context(|| self.log())?;
        ensure!(status.success(), "the control plane ended with {status}\n{}", self.log());
        Ok(())
    }

    /// Starts it again, and waits until it is ready.
    ///
    /// # Errors
    /// As [`ControlPlane::start`].
    pub fn restart(&mut self) -> Result<()> {
        let folders = [&self.mesh, &self.ca, &self.tokens];
        self.process = launch(&self.binary, &self.netns, self.address, folders, &self.output, self.detached)?;
        self.wait_ready()
    }

    /// Its log, for messages.
    #[must_use]
    pub fn log(&self) -> String {
        let read = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        let errors = read(&self.output.with_added_extension("err"));
        format!("--- the log of the control plane ---\n{}\n--- its standard error ---\n{errors}", read(&self.output))
    }

    fn wait_ready(&mut self) -> Result<()> {
        let netns = Netns::existing(self.netns.name());
        let ready = wait::until("the control plane to be ready", wait::PATIENCE, || {
            if let Some(status) = self.process.ended()? {
                bail!("it ended with {status}");
            }
            let answer = admin::get_from(&netns, READINESS, "/healthz/ready").ok();
            Ok(answer.filter(|answer| answer.status == 200))
        });
        ready.map(|_| ()).with_context(|| self.log())
    }
}

fn launch(
    binary: &Path,
    netns: &Netns,
    address: SocketAddr,
    [mesh, ca, tokens]: [&PathBuf; 3],
    output: &Path,
    detached: bool,
) -> Result<Process> {
    let (listen, name) = (address.to_string(), address.ip().to_string());
    Launch::new(&binary.display().to_string())
        .args(["control-plane", "--listen", &listen, "--serving-name", &name, "--drain-timeout", "0"])
        .args(["--mesh".as_ref(), mesh.as_os_str(), "--ca-dir".as_ref(), ca.as_os_str()])
        .args(["--node-tokens".as_ref(), tokens.as_os_str()])
        .variable("ZTUNNEL_LOG_FORMAT", "json")
        .variable("RUST_BACKTRACE", "1")
        .inside(netns)
        .detached(detached)
        .log_to(output)
        .start()
}
