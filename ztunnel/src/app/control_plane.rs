//! Builds a control plane from its settings and runs it until its end.

mod admin;
pub(super) mod exposition;

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tracing::{Span, info};

pub(super) use self::admin::NODES;
use self::admin::PlaneAdmin;
use super::{
    admin::{Endpoints, bind, serve},
    log::LostLines,
    process,
};
use crate::{
    config::{ControlPlaneArgs, defaults},
    control::{
        file::MeshFolder,
        kubernetes::{
            Cluster,
            mesh::{Followed, KubernetesMesh},
        },
    },
    identity::local_ca::{CaSettings, LocalCa},
    lifecycle::{
        drain,
        tasks::{TaskCount, TaskSet},
    },
    plane::{
        callers::Callers,
        certificates::Certificates,
        describe::Streams,
        metrics::PlaneMetrics,
        nodes::NodeTokens,
        pod_events::PodEvents,
        policy_status::PolicyStatus,
        publish::{self, Resources},
        reviewed::{NodeAccounts, ReviewedNodes},
        roots::Roots,
        secret_ca::{SecretCa, SecretCaSettings},
        serve::{self, Server},
        serving::Keeper,
        translate::Translator,
    },
    store::publish::{Publisher, Reader, channel},
};

/// The source of the mesh.
enum Source {
    Folder(Box<MeshFolder>),
    Kubernetes(Cluster, Box<KubernetesMesh>),
}

impl Source {
    async fn open(args: &ControlPlaneArgs) -> anyhow::Result<Self> {
        if let Some(access) = args.access() {
            let cluster = Cluster::connect(&access).await?;
            let mesh = KubernetesMesh::new(&cluster, args.trust_domain.clone(), &args.namespace);
            return Ok(Self::Kubernetes(cluster, Box::new(mesh)));
        }
        let dir = args.mesh.as_ref().context("neither --mesh nor --kubernetes is given")?;
        let folder = MeshFolder::open(dir, args.trust_domain.clone())?;
        Ok(Self::Folder(Box::new(match &args.state {
            Some(state) => folder.with_kept(state.join("mesh")),
            None => folder,
        })))
    }

    /// How each type of objects of the Kubernetes API is followed.
    fn followed(&self) -> Option<Followed> {
        match self {
            Self::Folder(_) => None,
            Self::Kubernetes(_, mesh) => Some(mesh.followed()),
        }
    }

    /// The API server.
    fn cluster(&self) -> Option<&Cluster> {
        match self {
            Self::Folder(_) => None,
            Self::Kubernetes(cluster, _) => Some(cluster),
        }
    }

    /// The name of the source, for the log.
    fn place(&self, args: &ControlPlaneArgs) -> String {
        match self {
            Self::Folder(_) => args.mesh.as_ref().map(|dir| dir.display().to_string()).unwrap_or_default(),
            Self::Kubernetes(cluster, _) => cluster.server().to_owned(),
        }
    }

    /// Publishes the mesh; never returns.
    async fn feed(self, publisher: Publisher, mesh: Reader, translator: Translator, resources: Resources) {
        let never = std::future::pending();
        match self {
            Self::Folder(folder) => publish::feed(*folder, publisher, mesh, translator, resources, never).await,
            Self::Kubernetes(_, source) => publish::feed(*source, publisher, mesh, translator, resources, never).await,
        }
    }
}

/// Runs a control plane until it gets a signal to stop and has drained.
///
/// # Errors
/// If a part can't be started.
pub async fn run(args: ControlPlaneArgs, lost: LostLines) -> anyhow::Result<()> {
    let tasks = TaskCount::default();
    let mut services = TaskSet::new(tasks.clone());
    let source = Source::open(&args).await?;
    let listener = listen(&args).await?;
    let listeners = [
        (Endpoints::Admin, bind(Endpoints::Admin, args.admin).await?),
        (Endpoints::Metrics, bind(Endpoints::Metrics, args.metrics).await?),
        (Endpoints::Readiness, bind(Endpoints::Readiness, args.readiness).await?),
    ];
    let ttl = args.cert_ttl.duration();
    let (publisher, mesh) = channel();
    let ca = match (&args.ca_dir, source.cluster()) {
        (Some(dir), _) => {
            let settings = CaSettings { dir: dir.clone(), trust_domain: args.trust_domain.clone(), ttl };
            Arc::new(LocalCa::open(settings, tasks.clone())?)
        }
        (None, Some(cluster)) => secret_ca(&args, cluster, &mesh, &mut services).await?,
        (None, None) => bail!("neither --ca-dir nor --kubernetes is given"),
    };
    let deadline = Duration::from_secs(defaults::HANDSHAKE_TIMEOUT_SECONDS);
    let (keeper, tls, serving_until) = Keeper::start(Arc::clone(&ca), args.serving_name.clone(), deadline)?;
    services.spawn(Span::none(), keeper.run());
    let nodes = match (&args.node_tokens, source.cluster()) {
        (Some(dir), _) => Callers::Tokens(NodeTokens::open(dir.clone(), tasks.clone())?),
        (None, Some(cluster)) => {
            let accounts =
                NodeAccounts { account: args.node_service_account.clone(), audiences: args.token_audience.clone() };
            Callers::Reviewed(ReviewedNodes::new(cluster.clone(), accounts, mesh.clone(), tasks.clone()))
        }
        (None, None) => bail!("neither --node-tokens nor --kubernetes is given"),
    };
    let resources = Resources::default();
    let translator = Translator::new(args.cluster_id.as_str());
    let (followed, place) = (source.followed(), source.place(&args));
    let mut registry = Registry::default();
    let metrics = PlaneMetrics::register(&mut registry);
    let mut pod_events = None;
    if let Some(cluster) = source.cluster() {
        services.spawn(Span::none(), PolicyStatus::new(cluster.clone()).write());
        let events = pod_events.insert(PodEvents::new(cluster.clone(), mesh.clone(), metrics.clone()));
        services.spawn(Span::none(), events.clone().write());
    }
    services.spawn(Span::none(), source.feed(publisher, mesh.clone(), translator, resources.clone()));
    let limits = args.signing_limits();
    let certificates =
        Certificates::new(Arc::clone(&ca), mesh.clone(), args.trust_domain.clone(), ttl, limits, metrics.clone());
    let streams = Streams::default();
    let (trigger, watch) = drain::channel();
    let admin = Arc::new(PlaneAdmin {
        mesh,
        resources: resources.clone(),
        followed,
        streams: streams.clone(),
        nodes: nodes.clone(),
        ca,
        serving_until,
        registry,
        lost,
        stopping: watch.clone(),
    });
    // Open to the end.
    let (_open, opened) = drain::channel();
    for (endpoints, listener) in listeners {
        services.spawn(Span::none(), serve(listener, endpoints, Arc::clone(&admin), tasks.clone(), opened.clone()));
    }
    info!(
        mesh = place,
        listen = %args.listen,
        names = args.serving_name.join(","),
        admin = %args.admin,
        version = env!("CARGO_PKG_VERSION"),
        "the control plane is running"
    );
    let server = Server { resources, nodes, certificates, pod_events, streams, tls, metrics, limits: args.limits() };
    let serving = serve::serve(listener, server, watch, tasks);
    tokio::pin!(serving);
    tokio::select! {
        signal = process::told_to_stop() => {
            let signal = signal.context("cannot install signal handlers")?;
            info!(signal, seconds = args.drain_timeout.0, "stopping; the streams of nodes are ended one after another");
            trigger.start();
            // A second signal ends the drain at once.
            tokio::select! {
                () = &mut serving => {}
                _ = process::told_to_stop() => info!("not waiting for the remaining streams"),
            }
        }
        () = &mut serving => {}
    }
    info!("the control plane stops");
    Ok(())
}

/// Opens the authority in a Secret, follows the Secret, and publishes the roots.
async fn secret_ca(
    args: &ControlPlaneArgs,
    cluster: &Cluster,
    mesh: &Reader,
    services: &mut TaskSet,
) -> anyhow::Result<Arc<LocalCa>> {
    let (namespace, name): (Arc<str>, Arc<str>) =
        (args.namespace.as_str().into(), args.root_config_map.as_str().into());
    let settings = SecretCaSettings {
        namespace: Arc::clone(&namespace),
        roots: Arc::clone(&name),
        trust_domain: args.trust_domain.clone(),
        ttl: args.cert_ttl.duration(),
    };
    let authority = SecretCa::open(cluster.clone(), &settings).await?;
    let ca = Arc::clone(&authority.ca);
    services.spawn(Span::none(), authority.follow());
    let always = vec![namespace, Arc::clone(&args.node_service_account.namespace)];
    let roots = Roots { cluster: cluster.clone(), ca: Arc::clone(&ca), mesh: mesh.clone(), name, always };
    services.spawn(Span::none(), roots.publish());
    Ok(ca)
}

async fn listen(args: &ControlPlaneArgs) -> anyhow::Result<TcpListener> {
    bind(Endpoints::Nodes, args.listen).await
}
