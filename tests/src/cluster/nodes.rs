//! A cluster: an API server, its controllers and scheduler, and nodes.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::api::{ApiServer, MAX_NODES, Options};
use super::images;
use super::node::Node;
use crate::names::Prefix;
use crate::wait;

/// A loaded machine needs this time until the nodes are ready. Other machines need much less.
const READY: Duration = Duration::from_secs(120);

/// A cluster; everything is removed when this is dropped, also on a panic.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    api: ApiServer,
}

impl Cluster {
    /// Starts a cluster for this caller only, with nodes `node-1`, `node-2` …, and waits until they are ready.
    ///
    /// # Errors
    /// When the programs or root are missing (`NOT RUN`), or a node does not become ready.
    pub fn start(nodes: u8) -> Result<Self> {
        Self::start_with(Prefix::unique(), nodes, false)
    }

    /// Starts a cluster with a prefix of its names. A detached cluster stays when this process ends; see also
    /// [`Cluster::keep`].
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn start_with(prefix: Prefix, nodes: u8, detached: bool) -> Result<Self> {
        ensure!((1..=MAX_NODES).contains(&nodes), "a cluster has 1 to {MAX_NODES} nodes");
        let api = ApiServer::start_with(Options { prefix, detached, controllers: true, scheduler: true })?;
        let mut cluster = Self { nodes: Vec::new(), api };
        let images = images::write(cluster.api.folder(), cluster.api.programs())?;
        for number in 1..=nodes {
            let mut node = Node::start(&cluster.api, number, detached)?;
            for image in &images {
                node.load_image(image)?;
            }
            node.start_kubelet()?;
            cluster.nodes.push(node);
        }
        cluster.wait_ready()?;
        Ok(cluster)
    }

    /// Its API server.
    #[must_use]
    pub fn api(&self) -> &ApiServer {
        &self.api
    }

    /// Its nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node that something happens to, and the API server.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn node_mut(&mut self, name: &str) -> Result<(&mut Node, &ApiServer)> {
        let node = self.nodes.iter_mut().find(|node| node.name == name).with_context(|| format!("no node {name}"))?;
        Ok((node, &self.api))
    }

    /// Its API server, to be stopped.
    pub fn api_mut(&mut self) -> &mut ApiServer {
        &mut self.api
    }

    /// A node by name.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|node| node.name == name).with_context(|| format!("no node {name}"))
    }

    /// Imports an image on all nodes.
    ///
    /// # Errors
    /// With what the container runtime says.
    pub fn load_image(&self, image: &Path) -> Result<()> {
        self.nodes.iter().try_for_each(|node| node.load_image(image))
    }

    /// Waits until a workload, for example `deployment/web`, has all its pods.
    ///
    /// # Errors
    /// When pods are missing after the deadline: the message has the pods and events from Kubernetes.
    pub fn rolled_out(&self, namespace: &str, workload: &str) -> Result<()> {
        let done = self.api.try_kubectl(["rollout", "status", workload, "-n", namespace, "--timeout=55s"])?;
        if done.success {
            return Ok(());
        }
        let pods = self.api.try_kubectl(["get", "pods", "-n", namespace, "-o", "wide"])?.stdout;
        let events = self.api.try_kubectl(["get", "events", "-n", namespace])?.stdout;
        anyhow::bail!("{namespace} {workload} is not rolled out: {}{}\n{pods}\n{events}", done.stderr, done.stdout)
    }

    /// Runs a command in a container of a pod; the result is its standard output, without blanks at its ends.
    ///
    /// # Errors
    /// When it fails: the message has its standard error.
    pub fn exec(&self, namespace: &str, pod: &str, command: &[&str]) -> Result<String> {
        self.api.kubectl(["exec", "-n", namespace, pod, "--"].iter().chain(command))
    }

    /// Leaves everything in place when this is dropped.
    pub fn keep(&mut self) {
        self.api.keep();
        self.nodes.iter_mut().for_each(Node::keep);
    }

    fn wait_ready(&self) -> Result<()> {
        let condition = r#"{range .items[*]}{.status.conditions[?(@.type=="Ready")].status} {end}"#;
        let ready = wait::until_true("all nodes are ready", READY, || {
            let states = self.api.try_kubectl(["get", "nodes", "-o", &format!("jsonpath={condition}")])?.stdout;
            let ready = states.split_whitespace().filter(|state| *state == "True").count();
            Ok(ready == self.nodes.len())
        });
        ready.with_context(|| {
            let logs = self.nodes.iter().map(|node| node.kubelet_log().display().to_string()).collect::<Vec<_>>();
            format!("see {}", logs.join(", "))
        })
    }
}
