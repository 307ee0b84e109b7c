//! The mesh on a cluster, installed by its chart.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Cluster, chart, node};
use crate::process::Finished;
use crate::{admin, wait};

/// The address is fixed, because there is no cluster DNS.
const CONTROL_PLANE: &str = "10.96.0.12";

/// Lists the daemon's objects in the kernel of a node: pins, and for each network namespace the routing rules and the
/// sysctl that capture needs.
const IN_KERNEL: &str = "ls -d /sys/fs/bpf/ztunnel 2>/dev/null; \
     for process in /proc/[0-9]*; do nsenter -t ${process#/proc/} -n sh -c \
       'ip rule; ip -6 rule; sed s/^/tcp_fwmark_accept:/ /proc/sys/net/ipv4/tcp_fwmark_accept' 2>/dev/null; \
     done | grep -E 'fwmark 0x[12]0000000|tcp_fwmark_accept:1'; true";

/// The node daemons and the control plane.
#[derive(Debug)]
pub struct Mesh<'a> {
    cluster: &'a Cluster,
}

/// A pod of a test.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its first address.
    pub address: String,
    /// Its node.
    pub node: String,
}

impl<'a> Mesh<'a> {
    /// Loads the image onto the nodes, installs the chart with more values, and waits until everything is ready.
    ///
    /// # Errors
    /// When the image can't be imported, Helm fails, or a pod does not become ready.
    pub fn install(cluster: &'a Cluster, image: &Path, set: &[&str]) -> Result<Self> {
        cluster.load_image(image)?;
        let mesh = Self { cluster };
        mesh.helm(&["install", "--create-namespace"], set)?;
        mesh.is_ready()?;
        Ok(mesh)
    }

    /// The mesh that is installed on a cluster.
    #[must_use]
    pub fn of(cluster: &'a Cluster) -> Self {
        Self { cluster }
    }

    /// Upgrades the chart with other values, and waits until the rollout is complete.
    ///
    /// # Errors
    /// As [`Mesh::install`].
    pub fn upgrade(&self, set: &[&str]) -> Result<()> {
        self.helm(&["upgrade"], set)?;
        self.is_ready()
    }

    /// Uninstalls the chart, and waits until all its pods are gone.
    ///
    /// # Errors
    /// When Helm fails, or a pod is not gone in time.
    pub fn uninstall(self) -> Result<()> {
        let api = self.cluster.api();
        api.helm(["uninstall", chart::RELEASE, "--namespace", chart::NAMESPACE, "--wait", "--timeout", "60s"])?;
        wait::until_true("the pods of the mesh are gone", wait::PATIENCE * 4, || {
            Ok(api.kubectl(["get", "pods", "-n", chart::NAMESPACE, "-o", "name"])?.is_empty())
        })
    }

    fn helm(&self, command: &[&str], set: &[&str]) -> Result<()> {
        let (folder, address) =
            (chart::folder().display().to_string(), format!("controlPlane.clusterIP={CONTROL_PLANE}"));
        let (programs, configuration) =
            (format!("cni.binDir={}", node::CNI_PROGRAMS), format!("cni.confDir={}", node::CNI_CONFIGURATION));
        let own = [&*address, &*programs, &*configuration];
        let sets = own.into_iter().chain(set.iter().copied()).flat_map(|value| ["--set", value]);
        let place = [chart::RELEASE, &folder, "--namespace", chart::NAMESPACE];
        self.cluster.api().helm(command.iter().copied().chain(place).chain(sets)).map(drop)
    }

    fn is_ready(&self) -> Result<()> {
        self.cluster.rolled_out(chart::NAMESPACE, "deployment/ztunnel-control-plane")?;
        self.cluster.rolled_out(chart::NAMESPACE, "daemonset/ztunnel")
    }

    /// Waits until the node's daemon reports a state of the pod: `enrolled`, `refused` or `absent`.
    ///
    /// # Errors
    /// When the daemon does not report the state in time: the message has its last report.
    pub fn wait_for(&self, pod: &Pod, state: &str) -> Result<()> {
        let netns = &self.cluster.node(&pod.node)?.netns;
        let name = format!("{}/{}", pod.namespace, pod.name);
        let is_so = wait::until_true("the state of the pod", wait::PATIENCE, || {
            let Ok(dump) = admin::ConfigDump::fetch(netns) else { return Ok(false) };
            let is_so = match find(&dump, pod) {
                Some(pod) => pod.state() == state,
                None => state == "absent",
            };
            Ok(is_so && !dump.is_pending())
        });
        is_so.with_context(|| match admin::ConfigDump::fetch(netns) {
            Ok(dump) => format!("{name} is not {state}: {} has {}", pod.node, dump.value()["pods"]),
            Err(error) => format!("{name} is not {state}: {}: {error:#}", pod.node),
        })
    }

    /// The log lines of a node's newest daemon about connections to an address, in order.
    ///
    /// # Errors
    /// When there is no log.
    pub fn access(&self, node: &str, address: &str) -> Result<Vec<Value>> {
        let api = self.cluster.api();
        let selected = format!("spec.nodeName={node}");
        let names =
            ["get", "pods", "-n", chart::NAMESPACE, "-l", "app=ztunnel", "-o", "jsonpath={.items[-1:].metadata.name}"];
        let sorted = ["--field-selector", &selected, "--sort-by=.metadata.creationTimestamp"];
        let daemon = api.kubectl(names.into_iter().chain(sorted))?;
        let log = api.kubectl(["logs", "-n", chart::NAMESPACE, &daemon])?;
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let is_of = |line: &Value| {
            let starts = |key: &str| line[key].as_str().is_some_and(|text| text.starts_with(&format!("{address}:")));
            line["scope"] == "access" && (starts("dst.addr") || starts("dst.hbone_addr"))
        };
        Ok(lines.filter(is_of).collect())
    }

    /// Waits for a log line of a node's daemon about a connection to an address.
    ///
    /// # Errors
    /// When there is no such line in time: the message has all lines about connections to the address.
    pub fn logged(&self, node: &str, address: &str, is_it: impl Fn(&Value) -> bool) -> Result<Value> {
        let found = wait::until("the connection is in the log", wait::PATIENCE, || {
            Ok(self.access(node, address)?.into_iter().find(|line| is_it(line)))
        });
        found.with_context(|| format!("{node} has logged {:?}", self.access(node, address)))
    }
}

fn find<'a>(dump: &'a admin::ConfigDump, pod: &Pod) -> Option<admin::PodState<'a>> {
    dump.pods().find(|found| found.name() == pod.name && found.namespace() == pod.namespace)
}

impl Cluster {
    /// The pods of a namespace with a label, such as `app=web`, in order of their names.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn pods(&self, namespace: &str, label: &str) -> Result<Vec<Pod>> {
        let lines = "jsonpath={range .items[*]}{.metadata.name} {.status.podIP} {.spec.nodeName}\n{end}";
        let pods = self.api().kubectl(["get", "pods", "-n", namespace, "-l", label, "-o", lines])?;
        let pod = |line: &str| {
            let mut words = line.split(' ').map(str::to_owned);
            let (name, address, node) = (words.next()?, words.next()?, words.next()?);
            Some(Pod { namespace: namespace.to_owned(), name, address, node })
        };
        Ok(pods.lines().filter_map(pod).collect())
    }

    /// Fetches a page from within a pod. The inner `Err` is the standard error of the client.
    ///
    /// # Errors
    /// When kubectl can't be run.
    pub fn fetch(&self, client: &Pod, url: &str) -> Result<Result<String, String>> {
        let command = ["exec", "-n", &client.namespace, &client.name, "--", "timeout", "5", "wget", "-qO-", url];
        let Finished { success, stdout, stderr, .. } = self.api().try_kubectl(command)?;
        Ok(if success { Ok(stdout.trim().to_owned()) } else { Err(stderr) })
    }

    /// The daemon's objects in the kernel of a node: pins, routing rules and sysctls. When there are none, no pod is
    /// captured.
    ///
    /// # Errors
    /// When the node can't be examined.
    pub fn in_kernel(&self, node: &str) -> Result<Vec<String>> {
        let done = self.node(node)?.launch("sh").args(["-c", IN_KERNEL]).finish()?;
        ensure!(done.success, "{done:?}");
        Ok(done.stdout.lines().map(str::to_owned).collect())
    }
}
