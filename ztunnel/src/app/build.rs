//! Builds the daemon from its settings and runs it until its end.

use std::{future::pending, io, os::fd::AsFd as _, sync::Arc};

use anyhow::{Context as _, bail};
use prometheus_client::registry::Registry;
use tokio::time::Instant;
use tracing::{Span, info, warn};

use super::{
    admin::{self, Admin, Endpoints, dump::ConfigInfo},
    cni,
    handover::{
        ask,
        prepare::{Before, adopt, prepare},
        serve::{self, Handover},
    },
    issuer, left,
    log::LogGuard,
    memory, process,
    sources::{Reports, Source, standing},
};
use crate::{
    config::{RunArgs, args::ExpiredPeers, defaults, remote::PlaneMode, units::Bytes},
    control::{
        kubernetes::Installation,
        remote::{RemoteAuthority, report_pods},
    },
    flow::{enforcement::EnforcementPoints, events::Events, failures::NodeLines, table::WorkerId},
    identity::{
        cache::{self, CacheSettings, Certificates},
        files::CertFiles,
        local_ca::{CaSettings, LocalCa},
        source::CertSource,
    },
    lifecycle::{
        drain::{self, DrainTrigger},
        keeps::Keeps,
        tasks::{TaskCount, TaskSet},
    },
    metrics::{fetches::Fetches, traffic::Traffic},
    net::{memory::Budget, netns::Netns, node::NodeConnections, open::Resources},
    pods::{
        handover::TakenOver,
        kernel::Linux,
        manager::{Manager, ManagerParts},
        worker::{WorkerHandle, WorkerSettings},
    },
    redirect::{Controller, NodeSockets, controller, pins::PinDir, record::Records},
    store::{
        demand::Demand,
        publish::{self, Reader},
    },
    tls::{self, KeyLog},
};

/// Runs the daemon until it gets a signal to stop and has drained, or until another daemon has taken over and no connection is left. If a
/// daemon runs already, this one takes over from it.
///
/// # Errors
/// If a part can't be started. The capture of pods by an earlier daemon is unchanged then.
pub async fn daemon(args: RunArgs, log: &LogGuard) -> anyhow::Result<()> {
    let pins = PinDir::at(&args.bpf_pin);
    let (lock, mut predecessor) = ask::start(&args.state, &pins, &args.node).await?;
    pins.prepare()?;
    require_lasting(&pins, args.bpf_pin_private)?;
    let has_predecessor = predecessor.is_some();
    let source = Source::open(&args).await?;
    let mut listeners = Vec::new();
    for (endpoints, at) in
        [(Endpoints::Admin, args.admin), (Endpoints::Metrics, args.metrics), (Endpoints::Readiness, args.readiness)]
    {
        let inherited = predecessor.as_mut().map(|predecessor| predecessor.listener(at)).transpose();
        let listener = match inherited.context("cannot use a listener of the running daemon")?.flatten() {
            Some(listener) => listener,
            None => admin::bind(endpoints, at).await?,
        };
        listeners.push((endpoints, at, listener));
    }
    let tasks = TaskCount::default();
    let mut services = TaskSet::new(tasks.clone());
    let records = Records::open(&args.state)?;
    let recorded = records.all().map(|record| (record.cookie, record.pod.clone())).collect();
    let mut registry = Registry::default();
    let fetches = Fetches::register(&mut registry);
    let certificates = certificates(&args, records.all().next().is_some(), fetches, (&mut services, &tasks))?;
    let tls = tls_settings(&args)?;
    let budget = memory::budget(args.memory_budget.map(Bytes::count));
    let traffic = Traffic::register(&mut registry, defaults::SERIES_KEPT, args.cluster_id.as_str().into());
    let (publisher, mesh) = publish::channel();
    let demand = (args.plane.mode == PlaneMode::OnDemand).then(Demand::default);
    let mesh = match &demand {
        Some(demand) => mesh.on_demand(demand.clone()),
        None => mesh,
    };
    let node = node_sockets(&args).map(|sockets| Arc::new(sockets) as Arc<dyn NodeConnections>);
    let enforcement_points = EnforcementPoints::of_node(node.clone());
    let events = Events::new(defaults::EVENTS_KEPT, defaults::EVENT_READERS);
    let workers = start_workers(&args, node, &mesh, (&traffic, &events), &tasks)?;
    let mut installation = source.installation(&args, &mut services)?;
    let startup_taint = source.startup_taint(&args)?;
    let control_plane = source.contact();
    let keeps = Keeps::new(has_predecessor);
    let (mut local, kubernetes) = source.start(&args, publisher, demand, recorded, &keeps, (&mut services, &tasks))?;
    let (reports, cni_parts) = kubernetes.unzip();
    services.spawn(Span::none(), memory::tend(mesh.clone()));
    services.spawn(Span::none(), enforcement_points.clone().follow(mesh.clone(), traffic.decisions().clone()));
    let before = match predecessor.take() {
        Some(mut predecessor) => {
            let before = prepare(&args.node, &mut predecessor, &mesh, local.as_mut(), &certificates).await?;
            before.map(|before| (predecessor, before))
        }
        None => None,
    };
    // A daemon that runs may have changed them until now.
    let records = Records::open(&args.state)?;
    let controller = Controller::start(
        pins,
        records,
        args.map_sizes(),
        u32::from(args.worker_count()),
        args.bpf_log,
        tasks.clone(),
    )?;
    let shown = (certificates.clone(), workers.iter().map(WorkerHandle::carried).collect());
    let (mut manager, handle) = Manager::new(ManagerParts {
        node: args.node.clone(),
        mesh: mesh.clone(),
        local,
        kernel: Linux { controller, keepalive: args.keepalive(), tasks: tasks.clone() },
        workers,
        host_cookie: Netns::current()?.cookie(),
        settings: args.pod_settings(tls, budget.clone(), resources(&args, &budget)),
        enforcement_points,
        certificates,
        tasks: tasks.clone(),
        drain_timeout: args.drain_timeout.duration(),
        linger: args.linger.duration(),
    });
    if let Some(taint) = startup_taint {
        let handle = handle.clone();
        services.spawn(Span::none(), taint.run(move || handle.pending().is_none()));
    }
    if let Some(Reports { plane, pods }) = reports {
        let handle = handle.clone();
        // After a handover the other daemon reports.
        let look = move || if handle.is_retired() { Vec::new() } else { standing(&handle.status(), &pods.borrow()) };
        services.spawn(Span::none(), report_pods(plane, look, tasks.clone()));
    }
    if let Some((predecessor, Before { pods, connections, sandboxes, .. })) = before {
        if let Some(cni::Parts { news, sandboxes: own, .. }) = &cni_parts {
            adopt(sandboxes, news.clone(), own).await;
        }
        let TakenOver { enrolled, refused } = manager.take_over(connections).await;
        info!(enrolled, refused, before = pods, "the pods of the old daemon are taken over");
        if enrolled == 0 && pods > 0 {
            bail!(
                "none of the {pods} pods of the running daemon can be enrolled; the log lines before this \
                 one have the reasons; the running daemon keeps its pods"
            );
        }
        predecessor.done().await?;
    }
    // Not before the other daemon has left: it answers until then.
    let mut until_left = TaskSet::new(tasks.clone());
    let sandboxes = cni_parts.as_ref().map(|parts| parts.sandboxes.clone());
    let plugin = cni::start(&args, cni_parts, handle.arrivals(), &mut until_left, &tasks)?;
    let (trigger, watch) = drain::channel();
    let admin = Arc::new(Admin {
        manager: handle.clone(),
        mesh,
        registry,
        certificates: shown.0,
        tasks: tasks.clone(),
        carried: shown.1,
        lost: log.lost(),
        budget,
        traffic,
        events,
        levels: log.levels(),
        config: Arc::new(ConfigInfo::of(&args)),
        dumping: admin::places_of_dumps(),
        explaining: admin::explain::places(),
        start_window: plugin.window.clone(),
        control_plane,
        state: Some(args.state.clone()),
    });
    let handover_socket = serve::listen(&args.state)
        .with_context(|| format!("cannot listen in {} for a handover to another daemon", args.state.display()))?;
    let (close_endpoints, endpoints_drain) = drain::channel();
    let mut left = endpoints_drain.clone();
    services.spawn(Span::none(), async move {
        left.started().await;
        drop(until_left);
    });
    let mut copies = Vec::new();
    for (endpoints, at, listener) in listeners {
        copies.push((at, std::net::TcpListener::from(listener.as_fd().try_clone_to_owned()?)));
        let served = admin::serve(listener, endpoints, Arc::clone(&admin), tasks.clone(), endpoints_drain.clone());
        services.spawn(Span::none(), served);
    }
    let node = args.node.clone();
    let handover =
        Handover { lock, endpoints: copies, close_endpoints, manager: handle.clone(), sandboxes, keeps, node };
    let (state, carried) = (args.state.clone(), Arc::clone(&admin));
    services.spawn(Span::none(), async move {
        handover.serve(handover_socket).await;
        left::serve(state, carried).await;
    });
    info!(
        node = args.node,
        mesh = args.mesh.as_deref().map(|dir| dir.display().to_string()),
        control_plane = args.plane.url.as_ref().map(ToString::to_string),
        admin = %args.admin,
        workers = args.worker_count(),
        version = env!("CARGO_PKG_VERSION"),
        "ztunnel is running"
    );
    let running = manager.run(watch);
    tokio::pin!(running);
    tokio::select! {
        signal = process::told_to_stop() => {
            let signal = signal.context("cannot install signal handlers")?;
            let mut is_removed = tokio::select! {
                is_removed = is_removed(installation.as_mut()) => is_removed,
                result = &mut running => return Ok(result?),
            };
            let mut plugin = Some(plugin);
            if handle.is_retired() {
                info!(signal, "another daemon has the pods; this daemon waits for its open connections to end");
            } else if is_removed {
                info!(signal, "the DaemonSet of this daemon has been deleted: all pods are released");
                release(&mut plugin, &trigger).await;
            } else {
                if installation.as_ref().is_some_and(Installation::surges) {
                    handle.await_successor();
                }
                info!(
                    signal,
                    "draining: new connections are accepted until the open connections have ended or the \
                     drain time is over; captured pods stay captured, and are closed when this daemon has \
                     ended"
                );
                trigger.start();
            }
            // A second signal ends the drain at once.
            loop {
                tokio::select! {
                    result = &mut running => break result?,
                    _ = process::told_to_stop() => break info!("not waiting for the remaining connections"),
                    () = removed(installation.as_mut()), if !is_removed => {
                        if handle.is_retired() {
                            break info!("the DaemonSet of this daemon has been deleted: the open connections are reset");
                        }
                        // No other daemon comes after this one.
                        info!("the DaemonSet of this daemon has been deleted meanwhile: all pods are released");
                        is_removed = true;
                        release(&mut plugin, &trigger).await;
                    }
                }
            }
            // The news may have come at the same time as the end of the last connection.
            is_removed |= installation.as_ref().is_some_and(Installation::is_known_to_be_removed);
            if is_removed && !handle.is_retired() {
                release(&mut plugin, &trigger).await;
                let released = clean_up(&args, &tasks).await?;
                info!(
                    released,
                    "all programs, pins, routes and rules of the daemon are removed from the kernel"
                );
            }
        }
        result = &mut running => {
            result?;
            if handle.is_retired() && installation.is_some() {
                info!("another daemon has the pods, and no connection is open here; this daemon waits until its pod is deleted");
                // Otherwise the kubelet would start its container again, and the pods would go back to this daemon.
                process::told_to_stop().await.context("cannot install signal handlers")?;
            }
        }
    }
    info!("ztunnel stops");
    Ok(())
}

/// Whether no other daemon takes over after this one.
async fn is_removed(installation: Option<&mut Installation>) -> bool {
    match installation {
        Some(installation) => installation.is_removed().await,
        None => false,
    }
}

/// Waits until the DaemonSet is deleted.
async fn removed(installation: Option<&mut Installation>) {
    match installation {
        Some(installation) => installation.removed().await,
        None => pending().await,
    }
}

/// Releases all pods of a daemon after which no other comes. First of all the CNI plugin is removed: no pod is to wait for a daemon any more.
async fn release(plugin: &mut Option<cni::Started>, trigger: &DrainTrigger) {
    if let Some(plugin) = plugin.take() {
        cni::remove(plugin).await;
    }
    trigger.start_for_good();
}

/// Removes the remains of a daemon whose pods are released: its pins, and the pods on record that it could not serve.
async fn clean_up(args: &RunArgs, tasks: &TaskCount) -> anyhow::Result<usize> {
    let mut records = Records::open(&args.state)?;
    let released = controller::clean_up(&PinDir::at(&args.bpf_pin), &mut records, tasks).await;
    released.context(
        "cannot remove the programs, pins, routes and rules of the daemon from the kernel; run \
         `ztunnel cleanup`",
    )
}

/// Makes sure that the capture outlives the daemon, unless the user has accepted that it does not.
fn require_lasting(pins: &PinDir, accepted: bool) -> anyhow::Result<()> {
    match pins.survive() {
        Err(error) if accepted => warn!(%error, "accepted: captured pods are open when this daemon ends"),
        survive => survive?,
    }
    Ok(())
}

/// The resources that the connections of one pod may use.
fn resources(args: &RunArgs, budget: &Budget) -> Resources {
    // The memory of sockets counts for the cgroup as well. The kernel gets as much of the cgroup's memory as the buffers do.
    let sockets = memory::of_sockets().min(budget.limit()) / defaults::SOCKET_MEMORY_PART;
    let resources = Resources::within(args.max_connections_per_pod, process::open_files(), sockets);
    if resources.connections < args.max_connections_per_pod {
        let (wanted, connections) = (args.max_connections_per_pod, resources.connections);
        warn!(wanted, connections, "a pod may have fewer connections open than wanted; raise RLIMIT_NOFILE");
    }
    resources
}

/// Starts the cache of certificates. Handles to certificates come from the returned value.
fn certificates(
    args: &RunArgs,
    has_pods: bool,
    fetches: Fetches,
    (services, tasks): (&mut TaskSet, &TaskCount),
) -> anyhow::Result<Certificates> {
    let plane = args.control_plane().filter(|_| args.ca_dir.is_none());
    let mut settings = CacheSettings { fetches, ..CacheSettings::default() };
    let source: Arc<dyn CertSource> = match (&args.cert_dir, plane) {
        (Some(dir), _) => Arc::new(CertFiles::open(dir.clone(), tasks.clone())),
        (None, Some(plane)) => {
            settings.at_once = defaults::CONTROL_PLANE_REQUESTS;
            Arc::new(RemoteAuthority::open(Arc::new(plane), args.cert_ttl.duration(), tasks.clone()))
        }
        (None, None) => {
            let settings = ca_settings(args);
            issuer::check(&args.state, &settings.dir, has_pods)?;
            Arc::new(LocalCa::open(settings, tasks.clone())?)
        }
    };
    let own = || args.plane.url.is_none().then(|| args.state.join("ca"));
    let ca_dir = if args.cert_dir.is_some() { None } else { args.ca_dir.clone().or_else(own) };
    issuer::remember(&args.state, ca_dir.as_deref())?;
    let (cache, certificates) = cache::channel(source, settings, tasks.clone());
    services.spawn(Span::none(), cache.run());
    Ok(certificates)
}

fn ca_settings(args: &RunArgs) -> CaSettings {
    let own = || {
        let dir = args.state.join("ca");
        warn!(
            dir = %dir.display(),
            "this node uses its own certificate authority, which other nodes do not trust; set --ca-dir"
        );
        dir
    };
    CaSettings {
        dir: args.ca_dir.clone().unwrap_or_else(own),
        trust_domain: args.trust_domain.clone(),
        ttl: args.cert_ttl.duration(),
    }
}

fn tls_settings(args: &RunArgs) -> anyhow::Result<tls::Settings> {
    let open = |path| KeyLog::open(path).with_context(|| format!("cannot open the key log {}", path.display()));
    let key_log = args.tls_key_log.as_deref().map(open).transpose()?;
    Ok(tls::Settings {
        deadline: args.handshake_timeout.duration(),
        key_log,
        cut_expired: args.expired_peers == ExpiredPeers::Cut,
    })
}

/// Identifies connections of the kubelet. A kernel without support is no reason not to start: then no connection counts as the
/// kubelet's.
fn node_sockets(args: &RunArgs) -> Option<NodeSockets> {
    let warn = |error: &io::Error| {
        warn!(
            %error,
            "the daemon cannot recognise the kubelet, so policy applies to its probes as well; see `ztunnel check`"
        );
    };
    let kubelet = args.kubelet_cgroup.clone().unwrap_or_default();
    NodeSockets::open(kubelet).inspect_err(warn).ok()
}

fn start_workers(
    args: &RunArgs,
    node: Option<Arc<dyn NodeConnections>>,
    mesh: &Reader,
    (traffic, events): (&Traffic, &Events),
    tasks: &TaskCount,
) -> anyhow::Result<Vec<WorkerHandle>> {
    let settings = WorkerSettings {
        buffer_size: args.buffer_bytes.count(),
        buffers_kept: defaults::BUFFERS_KEPT,
        hbone: args.hbone_settings(),
        cluster: args.cluster_id.as_str().into(),
        mesh: mesh.clone(),
        node,
        traffic: traffic.clone(),
        tasks: tasks.clone(),
        lines: NodeLines::new(Instant::now()),
        events: events.clone(),
    };
    let of = u32::from(args.worker_count());
    (0..of)
        .map(|index| {
            WorkerHandle::start(WorkerId { index, of }, settings.clone()).context("cannot start a data worker")
        })
        .collect()
}
