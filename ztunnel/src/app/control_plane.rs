//! Builds a control plane from its settings and runs it to its end.

mod admin;
pub(super) mod exposition;

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tracing::{Span, info};

use self::admin::PlaneAdmin;
use super::{
    admin::{Endpoints, bind, serve},
    log::LostLines,
    process,
};
use crate::{
    config::{ControlPlaneArgs, defaults},
    control::file::MeshFolder,
    identity::local_ca::{CaSettings, LocalCa},
    lifecycle::{
        drain,
        tasks::{TaskCount, TaskSet},
    },
    plane::{
        certificates::Certificates,
        describe::Streams,
        metrics::PlaneMetrics,
        nodes::NodeTokens,
        publish::{self, Resources},
        serve::{self, Server},
        serving::Keeper,
        translate::Translator,
    },
    store::publish::channel,
};

/// Runs a control plane until it is told to stop, and through its drain.
///
/// # Errors
/// When a part can't be started.
pub async fn run(args: ControlPlaneArgs, lost: LostLines) -> anyhow::Result<()> {
    let tasks = TaskCount::default();
    let mut services = TaskSet::new(tasks.clone());
    let mut folder = MeshFolder::open(&args.mesh, args.trust_domain.clone())?;
    if let Some(state) = &args.state {
        folder = folder.with_kept(state.join("mesh"));
    }
    let listener = listen(&args).await?;
    let listeners = [
        (Endpoints::Admin, bind(Endpoints::Admin, args.admin).await?),
        (Endpoints::Metrics, bind(Endpoints::Metrics, args.metrics).await?),
        (Endpoints::Readiness, bind(Endpoints::Readiness, args.readiness).await?),
    ];
    let ttl = args.cert_ttl.duration();
    let settings = CaSettings { dir: args.ca_dir.clone(), trust_domain: args.trust_domain.clone(), ttl };
    let ca = Arc::new(LocalCa::open(settings, tasks.clone())?);
    let deadline = Duration::from_secs(defaults::HANDSHAKE_TIMEOUT_SECONDS);
    let (keeper, tls, serving_until) = Keeper::start(Arc::clone(&ca), args.serving_name.clone(), deadline)?;
    services.spawn(Span::none(), keeper.run());
    let nodes = NodeTokens::open(args.node_tokens.clone(), tasks.clone())?;
    let (publisher, mesh) = channel();
    let resources = Resources::default();
    let translator = Translator::new(args.cluster_id.as_str());
    let feeding = publish::feed(folder, publisher, mesh.clone(), translator, resources.clone(), std::future::pending());
    services.spawn(Span::none(), feeding);
    let mut registry = Registry::default();
    let metrics = PlaneMetrics::register(&mut registry);
    let limits = args.signing_limits();
    let certificates =
        Certificates::new(Arc::clone(&ca), mesh.clone(), args.trust_domain.clone(), ttl, limits, metrics.clone());
    let streams = Streams::default();
    let (trigger, watch) = drain::channel();
    let admin = Arc::new(PlaneAdmin {
        mesh,
        resources: resources.clone(),
        streams: streams.clone(),
        nodes: nodes.clone(),
        ca,
        serving_until,
        registry,
        lost,
        stopping: watch.clone(),
    });
    for (endpoints, listener) in listeners {
        services.spawn(Span::none(), serve(listener, endpoints, Arc::clone(&admin), tasks.clone()));
    }
    info!(
        mesh = %args.mesh.display(),
        listen = %args.listen,
        names = args.serving_name.join(","),
        admin = %args.admin,
        version = env!("CARGO_PKG_VERSION"),
        "the control plane is running"
    );
    let server = Server { resources, nodes, certificates, streams, tls, metrics, limits: args.limits() };
    let serving = serve::serve(listener, server, watch, tasks);
    tokio::pin!(serving);
    tokio::select! {
        signal = process::told_to_stop() => {
            let signal = signal.context("cannot install signal handlers")?;
            info!(signal, seconds = args.drain_timeout.0, "stopping; the streams of nodes are ended one after another");
            trigger.start();
            // A second signal means now.
            tokio::select! {
                () = &mut serving => {}
                _ = process::told_to_stop() => info!("not waiting for the rest of the streams"),
            }
        }
        () = &mut serving => {}
    }
    info!("the control plane stops");
    Ok(())
}

async fn listen(args: &ControlPlaneArgs) -> anyhow::Result<TcpListener> {
    bind(Endpoints::Nodes, args.listen).await
}
