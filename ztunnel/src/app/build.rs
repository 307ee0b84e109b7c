//! Builds the daemon from its settings and runs it to its end.

use std::time::Duration;

use anyhow::Context as _;
use prometheus_client::registry::Registry;
use tracing::{Span, info};
use tracing_appender::non_blocking::ErrorCounter;

use super::{
    admin::{self, Admin},
    process::{self, Lock},
};
use crate::{
    config::{RunArgs, defaults},
    control::file::MeshFolder,
    flow::table::WorkerId,
    lifecycle::{
        drain,
        tasks::{TaskCount, TaskSet},
    },
    metrics::traffic::Traffic,
    net::netns::Netns,
    pods::{
        manager::{Manager, ManagerParts},
        worker::{WorkerHandle, WorkerSettings},
    },
    redirect::{Controller, pins::PinDir, record::Records},
    store::publish::{self, Reader},
};

/// Runs the daemon until it is told to stop, and through its drain.
///
/// # Errors
/// When a part can't be started; nothing that was captured before has changed then.
pub async fn daemon(args: RunArgs, lost: ErrorCounter) -> anyhow::Result<()> {
    let pins = PinDir::at(&args.bpf_pin);
    let _lock = Lock::take(&args.state, &pins)?;
    let folder = MeshFolder::open(&args.mesh)?;
    let listener = admin::bind(args.admin).await?;
    let tasks = TaskCount::default();
    let mut registry = Registry::default();
    let traffic = Traffic::register(&mut registry);
    let (publisher, mesh) = publish::channel();
    let workers = start_workers(&args, &mesh, &traffic, &tasks)?;
    let controller = Controller::start(
        pins,
        Records::open(&args.state)?,
        args.map_sizes(),
        u32::from(args.worker_count()),
        args.bpf_log,
        tasks.clone(),
    )?;
    let (manager, handle) = Manager::new(ManagerParts {
        node: args.node.clone(),
        mesh,
        controller,
        workers,
        host_cookie: Netns::current()?.cookie(),
        settings: args.pod_settings(),
        tasks: tasks.clone(),
        drain_timeout: Duration::from_secs(args.drain_timeout),
    });
    let (trigger, watch) = drain::channel();
    let mut mesh_drain = watch.clone();
    let mut services = TaskSet::new(tasks.clone());
    services.spawn(Span::none(), folder.run(publisher, async move { mesh_drain.started().await }));
    services.spawn(Span::none(), admin::serve(listener, Admin { manager: handle, registry, lost }, tasks));
    info!(
        node = args.node,
        mesh = %args.mesh.display(),
        admin = %args.admin,
        workers = args.worker_count(),
        version = env!("CARGO_PKG_VERSION"),
        "ztunnel is running"
    );
    let running = manager.run(watch);
    tokio::pin!(running);
    tokio::select! {
        signal = process::told_to_stop() => {
            info!(signal = signal.context("cannot install signal handlers")?, "draining; captured pods stay captured, and closed");
            trigger.start();
            // A second signal means now.
            tokio::select! {
                result = &mut running => result?,
                _ = process::told_to_stop() => info!("not waiting for the rest of the connections"),
            }
        }
        result = &mut running => result?,
    }
    info!("ztunnel stops");
    Ok(())
}

fn start_workers(
    args: &RunArgs,
    mesh: &Reader,
    traffic: &Traffic,
    tasks: &TaskCount,
) -> anyhow::Result<Vec<WorkerHandle>> {
    let settings = WorkerSettings {
        keepalive: args.keepalive(),
        buffer_size: args.buffer_bytes.max(1 << 10),
        buffers_kept: defaults::BUFFERS_KEPT,
        mesh: mesh.clone(),
        traffic: traffic.clone(),
        tasks: tasks.clone(),
    };
    let of = u32::from(args.worker_count());
    (0..of)
        .map(|index| {
            WorkerHandle::start(WorkerId { index, of }, settings.clone()).context("cannot start a data worker")
        })
        .collect()
}
