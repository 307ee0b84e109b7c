//! A topology, its mesh and its daemons: the start of a test.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use crate::ca::Authority;
use crate::control_plane::ControlPlane;
use crate::daemon::{self, Daemon, DaemonOptions};
use crate::mesh::{Mesh, PodManifest};
use crate::settings;
use crate::topology::{ONE_NODE, Pod, Shape, TWO_NODES, Topology};

/// Everything one test uses, removed in the order of the fields.
#[derive(Debug)]
pub struct Testbed {
    daemons: BTreeMap<String, Daemon>,
    /// The control plane, in a testbed in which it has the manifests and the CA instead of the daemons.
    plane: Option<ControlPlane>,
    /// The manifests: an unlabelled namespace and all pods. Pods of nodes without a daemon are opted out, since the
    /// others would otherwise try HBONE to them.
    pub mesh: Mesh,
    /// The CA that all daemons share.
    pub authority: Authority,
    /// Nodes and pods.
    pub topology: Topology,
}

impl Testbed {
    /// Nodes and pods of a shape, manifests for all of them, no label, no daemon yet.
    ///
    /// # Errors
    /// When a part of it can't be made.
    pub fn new(shape: &Shape<'_>) -> Result<Self> {
        let topology = Topology::new(shape)?;
        let mesh = Mesh::new(&topology.folder.join("mesh"))?;
        for pod in topology.pods() {
            mesh.pod(&plain(pod))?;
        }
        let authority = Authority::create(&daemon::ca_folder(&topology))?;
        Ok(Self { daemons: BTreeMap::new(), plane: None, mesh, authority, topology })
    }

    /// Two nodes with two pods each; a daemon on each, everything enrolled.
    ///
    /// # Errors
    /// When a part of it can't be made.
    pub fn both_enrolled() -> Result<Self> {
        let mut bed = Self::new(TWO_NODES)?;
        bed.start("node-a")?;
        bed.start("node-b")?;
        bed.enrol()?;
        Ok(bed)
    }

    /// The same with a control plane on the first node: the daemons have only the manifests of their own pods, and no
    /// CA.
    ///
    /// # Errors
    /// When a part of it can't be made.
    pub fn both_enrolled_by_control_plane() -> Result<Self> {
        let mut bed = Self::new(TWO_NODES)?;
        bed.start_control_plane("node-a")?;
        bed.start("node-a")?;
        bed.start("node-b")?;
        bed.enrol()?;
        Ok(bed)
    }

    /// Starts a control plane on a node. Daemons that are started later get everything from it.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_control_plane(&mut self, node: &str) -> Result<()> {
        let binary = settings::daemon_binary()?;
        self.plane = Some(ControlPlane::start(&self.topology, node, &self.mesh, &binary, false)?);
        Ok(())
    }

    /// Two nodes, with a daemon on the first only, whose pods are enrolled. The second node has no mesh.
    ///
    /// # Errors
    /// When a part of it can't be made.
    pub fn node_a_enrolled() -> Result<Self> {
        let mut bed = Self::new(TWO_NODES)?;
        bed.start("node-a")?;
        bed.enrol()?;
        Ok(bed)
    }

    /// One node with two pods and a daemon, nothing labelled.
    ///
    /// # Errors
    /// When a part of it can't be made.
    pub fn one_node() -> Result<Self> {
        let mut bed = Self::new(ONE_NODE)?;
        bed.start("node-a")?;
        Ok(bed)
    }

    /// Starts a node's daemon.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start(&mut self, node: &str) -> Result<()> {
        self.start_with(node, |_| ())
    }

    /// Starts a node's daemon with changed options.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_with(&mut self, node: &str, change: impl FnOnce(&mut DaemonOptions)) -> Result<()> {
        let mut options = DaemonOptions::new(settings::daemon_binary()?);
        if let Some(plane) = &self.plane {
            options.control_plane = Some(plane.remote(&self.topology, node, self.topology.pods().iter())?);
        }
        change(&mut options);
        for pod in self.topology.pods().iter().filter(|pod| pod.node == node) {
            // Only unchanged manifests: the test may have written a manifest of its own for the pod.
            if self.mesh.has_pod(&plain(pod)) {
                self.mesh.pod(&PodManifest::of(pod))?;
            }
        }
        let daemon = Daemon::start(&self.topology, node, &self.mesh, options)?;
        self.daemons.insert(node.to_owned(), daemon);
        Ok(())
    }

    /// The control plane.
    ///
    /// # Errors
    /// When there is none.
    pub fn plane(&self) -> Result<&ControlPlane> {
        self.plane.as_ref().context("no control plane")
    }

    /// The control plane, to be killed or restarted.
    ///
    /// # Errors
    /// When there is none.
    pub fn plane_mut(&mut self) -> Result<&mut ControlPlane> {
        self.plane.as_mut().context("no control plane")
    }

    /// A node's daemon.
    ///
    /// # Errors
    /// When none was started.
    pub fn daemon(&self, node: &str) -> Result<&Daemon> {
        self.daemons.get(node).with_context(|| format!("no daemon on {node}"))
    }

    /// A node's daemon, to be killed or restarted.
    ///
    /// # Errors
    /// When none was started.
    pub fn daemon_mut(&mut self, node: &str) -> Result<&mut Daemon> {
        self.daemons.get_mut(node).with_context(|| format!("no daemon on {node}"))
    }

    /// Changes the manifests, and waits until all daemons have read them again.
    ///
    /// # Errors
    /// When the change fails, or a daemon does not read it in time.
    pub fn change(&self, change: impl FnOnce(&Mesh) -> Result<()>) -> Result<()> {
        daemon::after_change(self.daemons.values(), || match &self.plane {
            None => change(&self.mesh),
            Some(plane) => {
                let nodes: Vec<&str> = self.daemons.keys().map(String::as_str).collect();
                plane.after_change(&nodes, || change(&self.mesh))
            }
        })
    }

    /// The same, for a change that may concern the pods of one node only: waits for that node's daemon.
    ///
    /// # Errors
    /// When the change fails, or the daemon does not read it in time.
    pub fn change_on(&self, node: &str, change: impl FnOnce(&Mesh) -> Result<()>) -> Result<()> {
        daemon::after_change([self.daemon(node)?].into_iter(), || change(&self.mesh))
    }

    /// A pod by name.
    ///
    /// # Errors
    /// When there is none.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        self.topology.pod(name)
    }

    /// Labels the namespace and waits until all pods of the started daemons are enrolled.
    ///
    /// # Errors
    /// When one is not in time.
    pub fn enrol(&self) -> Result<()> {
        self.mesh.label()?;
        self.each_local_pod(|daemon, pod| daemon.enrolled(&pod.name))
    }

    /// Removes the label and waits until no pod of the started daemons is enrolled.
    ///
    /// # Errors
    /// When one still is after a while.
    pub fn release(&self) -> Result<()> {
        self.mesh.unlabel()?;
        self.each_local_pod(|daemon, pod| daemon.released(&pod.name))
    }

    /// Labels the namespace of a testbed in which some pods are opted out, and waits for the given pods only.
    ///
    /// # Errors
    /// When one is not in time.
    pub fn enrol_only(&self, pods: &[&str]) -> Result<()> {
        self.mesh.label()?;
        pods.iter().try_for_each(|pod| self.daemon(&self.pod(pod)?.node)?.enrolled(pod))
    }

    fn each_local_pod(&self, act: impl Fn(&Daemon, &Pod) -> Result<()>) -> Result<()> {
        for daemon in self.daemons.values() {
            for pod in self.topology.pods().iter().filter(|pod| pod.node == daemon.node) {
                act(daemon, pod)?;
            }
        }
        Ok(())
    }
}

/// The manifest of a pod on a node without a daemon.
fn plain(pod: &Pod) -> PodManifest {
    PodManifest::of(pod).mode("none").annotation("example.org/because", "its node has no daemon")
}
