//! The sources of the daemon: the mesh, and the pods of this node.

use std::{collections::HashMap, future::pending, path::Path, sync::Arc};

use anyhow::{Context as _, bail};
use tokio::sync::watch;
use tracing::{Span, info};

use super::cni;
use crate::{
    config::{
        RunArgs,
        remote::{PodsFrom, access},
    },
    control::{
        file::{Local, MeshFolder},
        kubernetes::{Cluster, Installation, InstallationWatch, NodeWatch, StartupTaint},
        remote::{Contact, ControlPlane, PodStanding, RemoteMesh},
        source::{MeshSource as _, feed},
    },
    lifecycle::{
        keeps::Keeps,
        tasks::{TaskCount, TaskSet},
    },
    model::node_pods::NodePods,
    net::netns::Netns,
    pods::{
        kubernetes::Follower,
        local::{Annotated, LocalSource},
        proc::{self, Finder, overview},
        status::Status,
    },
    store::{
        demand::Demand,
        local::{self, LocalReader},
        publish::Publisher,
    },
};

/// The source of the mesh, and the source of the facts that only this node has.
pub(super) enum Source {
    Folder(Box<MeshFolder>),
    ControlPlane {
        plane: Box<ControlPlane>,
        /// Whether it can be used.
        contact: Contact,
        /// The source of this node's pods.
        pods: OwnPods,
    },
}

/// The source of the facts of this node's pods.
pub(super) enum OwnPods {
    /// Pod manifests.
    Folder(Box<MeshFolder>),
    Kubernetes(Cluster),
}

impl Source {
    pub(super) async fn open(args: &RunArgs) -> anyhow::Result<Self> {
        let folder = |dir: &Path| MeshFolder::open(dir, args.trust_domain.clone());
        match (&args.mesh, args.control_plane(), &args.plane.pods) {
            (Some(dir), None, _) => Ok(Self::Folder(Box::new(folder(dir)?.with_kept(args.state.join("mesh"))))),
            (None, Some(plane), Some(pods)) => {
                let pods = match pods {
                    PodsFrom::Folder(dir) => OwnPods::Folder(Box::new(folder(dir).context("cannot use --pods")?)),
                    PodsFrom::Kubernetes => {
                        let seen = overview(&args.plane.proc).context("cannot use --pods kubernetes")?;
                        info!(proc = %args.plane.proc.display(), processes = seen.processes, pods = seen.pods, "pods are found by their processes");
                        let cluster = Cluster::connect(&access(args.plane.kubeconfig.as_ref())).await;
                        OwnPods::Kubernetes(cluster.context("cannot use --pods kubernetes")?)
                    }
                };
                Ok(Self::ControlPlane { plane: Box::new(plane), contact: Contact::default(), pods })
            }
            _ => bail!("give either --mesh, or --control-plane with --pods"),
        }
    }

    /// Follows the DaemonSet of the daemon, to learn whether it is deleted. `None`: no DaemonSet is given.
    pub(super) fn installation(&self, args: &RunArgs, services: &mut TaskSet) -> anyhow::Result<Option<Installation>> {
        let Some(name) = &args.plane.daemon_set else { return Ok(None) };
        let Self::ControlPlane { pods: OwnPods::Kubernetes(cluster), .. } = self else {
            bail!("--daemon-set needs --pods kubernetes");
        };
        let (watch, installation) = InstallationWatch::new(cluster, name.clone());
        services.spawn(Span::none(), watch.run());
        Ok(Some(installation))
    }

    /// The taint that the daemon takes off its node. `None`: no taint is given.
    pub(super) fn startup_taint(&self, args: &RunArgs) -> anyhow::Result<Option<StartupTaint>> {
        let Some(key) = &args.plane.startup_taint else { return Ok(None) };
        let Self::ControlPlane { pods: OwnPods::Kubernetes(cluster), .. } = self else {
            bail!("--startup-taint needs --pods kubernetes");
        };
        Ok(Some(StartupTaint::new(cluster, &args.node, key)))
    }

    /// Whether the control plane can be used; `None`: the mesh does not come from a control plane.
    pub(super) fn contact(&self) -> Option<Contact> {
        match self {
            Self::Folder(_) => None,
            Self::ControlPlane { contact, .. } => Some(contact.clone()),
        }
    }

    /// Follows all sources until the end of the daemon: during the drain, open connections are evaluated by the newest policies.
    pub(super) fn start(
        self,
        args: &RunArgs,
        publisher: Publisher,
        demand: Option<Demand>,
        recorded: HashMap<u64, String>,
        keeps: &Keeps,
        (services, tasks): (&mut TaskSet, &TaskCount),
    ) -> anyhow::Result<(Box<dyn LocalSource>, Option<KubernetesParts>)> {
        let (local, manifests) = local::channel();
        let own = manifests.clone();
        let local = Local { node: args.node.as_str().into(), publisher: local };
        let annotated = Box::new(Annotated::new(manifests));
        let (plane, contact, pods) = match self {
            Self::Folder(folder) => {
                services
                    .spawn(Span::none(), feed(folder.with_local(local).kept_by(keeps.clone()), publisher, pending()));
                return Ok((annotated, None));
            }
            Self::ControlPlane { plane, contact, pods } => (Arc::<ControlPlane>::from(plane), contact, pods),
        };
        let mut mesh = RemoteMesh::new(Arc::clone(&plane), args.state.join("control-plane.mesh"), tasks.clone());
        mesh = mesh.kept_by(keeps.clone()).shown_in(contact);
        if let Some(demand) = &demand {
            info!("addresses are requested from the control plane on demand");
            mesh = mesh.on_demand(demand.clone());
        }
        services.spawn(Span::none(), feed(mesh, publisher, pending()));
        Ok(match pods {
            OwnPods::Folder(pods) => {
                let mut pods = pods.with_local(local);
                // Only the local facts of the folder are used: the control plane decides which pods are in the mesh.
                services.spawn(Span::none(), async move { while pods.next().await.is_some() {} });
                if let Some(demand) = demand {
                    services.spawn(Span::none(), request_annotated(demand, own));
                }
                (annotated, None)
            }
            OwnPods::Kubernetes(cluster) => {
                let (watch, news) = NodeWatch::new(&cluster, &args.node);
                if let Some(demand) = demand {
                    services.spawn(Span::none(), request_pods(demand, news.clone()));
                }
                let inspect =
                    proc::Linux { host: Netns::current()?.id(), tasks: tasks.clone(), recorded: Arc::new(recorded) };
                let reports = Reports { plane, pods: news.clone() };
                let finder = Finder::new(&args.plane.proc, inspect);
                let trust_domain = args.trust_domain.clone();
                let (follower, pods, sandboxes) = Follower::new(&args.node, trust_domain, news.clone(), finder.clone());
                services.spawn(Span::none(), watch.run());
                services.spawn(Span::none(), follower.run());
                (Box::new(pods), Some((reports, cni::Parts { news, sandboxes, finder })))
            }
        })
    }
}

/// What only a node has whose pods are in the Kubernetes API.
pub(super) type KubernetesParts = (Reports, cni::Parts);

/// The control plane that gets reports of refused pods, and the pods of this node in the Kubernetes API.
pub(super) struct Reports {
    pub(super) plane: Arc<ControlPlane>,
    pub(super) pods: watch::Receiver<NodePods>,
}

/// The states of the pods of this node, for reports.
pub(super) fn standing(status: &Status, pods: &NodePods) -> Vec<PodStanding> {
    let uid = |name| pods.pods.as_ref()?.get(name).map(|pod| Arc::clone(&pod.workload.uid));
    let standing = status.pods.iter().map(|pod| PodStanding {
        name: pod.name.clone(),
        uid: uid(&pod.name).unwrap_or_default(),
        refusal: pod.reason.clone(),
    });
    standing.collect()
}

/// Requests from the control plane the workloads of the pods that the manifests of a folder place on this node.
async fn request_annotated(demand: Demand, mut pods: LocalReader) {
    loop {
        if let Some(pods) = pods.load() {
            demand.set_own(pods.keys().cloned().collect());
        }
        if !pods.changed().await {
            return;
        }
    }
}

/// Requests from the control plane the workloads of the pods that the Kubernetes API places on this node.
async fn request_pods(demand: Demand, mut news: watch::Receiver<NodePods>) {
    loop {
        let names = news.borrow_and_update().pods.as_ref().map(|pods| pods.keys().cloned().collect());
        if let Some(names) = names {
            demand.set_own(names);
        }
        if news.changed().await.is_err() {
            return;
        }
    }
}
