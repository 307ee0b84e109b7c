//! The HTTP endpoints of the daemon: readiness, metrics, and the state of the daemon as JSON. There are three listeners with
//! one service: the admin listener has all endpoints, and the listeners for Prometheus and the kubelet have only their own
//! endpoint.

mod connection;
pub mod dump;
pub(super) mod explain;
pub(super) mod logging;
mod reply;
mod standing;
pub(super) mod stream;

use std::{
    convert::Infallible,
    fmt, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use futures_util::future::join_all;
use hyper::{Method, Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::spawn_blocking,
    time::timeout,
};
use tracing::{Span, debug};

pub(super) use self::reply::{Body, TEXT, json, response};
use self::{
    connection::Connection,
    dump::{ConfigInfo, Dump, Sections},
    explain::ExplainError,
    reply::JSON,
};
use super::{
    exposition, left,
    log::{LogLevels, LostLines},
};
use crate::{
    control::remote::Contact,
    explain::QueryError,
    flow::{
        admission::{Admission, Client, Limits},
        events::Events,
    },
    identity::cache::Certificates,
    lifecycle::{
        drain::DrainWatch,
        tasks::{TaskCount, TaskSet},
    },
    metrics::{text::prometheus, traffic::Traffic},
    net::{
        listen::{Accepted, Acceptor},
        memory::Budget,
        open::OpenLimit,
    },
    pods::{manager::ManagerHandle, worker::ByteCount},
    store::publish::Reader,
};

/// The deadline for the headers of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a scrape waits until the data workers have counted the bytes of their live connections.
const COUNTING_TIMEOUT: Duration = Duration::from_secs(1);
/// The number of dumps that are written at once: one of a large mesh takes memory, and a CPU that the data path needs.
const DUMPS_AT_ONCE: usize = 2;
/// How long a request waits until other dumps are written.
const DUMP_WAITS: Duration = Duration::from_secs(5);
/// The limits of open connections. If there are more, the oldest connection of the client with the most connections is closed.
/// So silent connections can't block a scrape, or the kubelet, for which the daemon would not be ready then.
const LIMITS: Limits = Limits { connections: 64, connections_per_peer: 16, handshakes: 64, handshakes_per_peer: 16 };

/// The path of the endpoint that explains a connection.
pub(super) const EXPLAIN: &str = "/explain";
/// The state of the daemon.
pub(super) const CONFIG_DUMP: &str = "/config_dump";
/// Whether the daemon works.
pub(super) const STATUS: &str = "/status";
/// The connections, while they open and end.
pub(super) const EVENTS: &str = "/events";
/// The levels of the log.
pub(super) const LOGGING: &str = "/logging";
/// The metrics.
pub(super) const METRICS: &str = "/metrics";

/// The endpoints of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoints {
    /// All of them.
    Admin,
    /// The metrics.
    Metrics,
    /// Readiness.
    Readiness,
    /// A control plane's listener for nodes, which has none of these endpoints.
    Nodes,
}

impl Endpoints {
    fn paths(self) -> &'static [&'static str] {
        const ISTIOS_METRICS: &str = "/stats/prometheus";
        match self {
            Self::Admin => &["/healthz/ready", METRICS, ISTIOS_METRICS, STATUS, CONFIG_DUMP, EXPLAIN, EVENTS, LOGGING],
            Self::Metrics => &[METRICS, ISTIOS_METRICS],
            Self::Readiness => &["/healthz/ready"],
            Self::Nodes => &[],
        }
    }

    fn flag(self) -> &'static str {
        match self {
            Self::Admin => "--admin",
            Self::Metrics => "--metrics",
            Self::Readiness => "--readiness",
            Self::Nodes => "--listen",
        }
    }
}

/// The state that the endpoints show.
pub struct Admin {
    /// The pods.
    pub manager: ManagerHandle,
    /// The mesh.
    pub mesh: Reader,
    /// The data path's counters.
    pub registry: Registry,
    /// The certificates of the pods.
    pub certificates: Certificates,
    /// The number of running tasks.
    pub tasks: TaskCount,
    /// The bytes that the data workers' live connections have carried.
    pub carried: Vec<ByteCount>,
    /// The count of dropped log lines.
    pub lost: LostLines,
    /// The memory of buffers and windows.
    pub budget: Budget,
    /// The counters of the data path, for the status.
    pub traffic: Traffic,
    /// Readers of connection events.
    pub events: Events,
    /// The levels of the log.
    pub levels: LogLevels,
    /// The settings that `/config_dump` shows.
    pub config: Arc<ConfigInfo>,
    /// The places for dumps in progress.
    pub dumping: Arc<Semaphore>,
    /// The places for explanations in progress.
    pub explaining: Arc<Semaphore>,
    /// Why new pods of the mesh may start before they are enrolled; nothing: they do not.
    pub start_window: watch::Receiver<Option<String>>,
    /// Whether the control plane can be used; `None`: the mesh does not come from a control plane.
    pub control_plane: Option<Contact>,
    /// The state directory, in which daemons that have handed over serve their metrics.
    pub state: Option<PathBuf>,
}

impl left::Metrics for Admin {
    async fn metrics(&self) -> String {
        let _too_late = timeout(COUNTING_TIMEOUT, join_all(self.carried.iter().map(ByteCount::count))).await;
        // What cannot be encoded is not shown.
        exposition::of_traffic(&self.registry).unwrap_or_default()
    }
}

/// The places for dumps.
pub(super) fn places_of_dumps() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(DUMPS_AT_ONCE))
}

/// Binds a listener. On a machine without IPv6, `[::]` stands for all IPv4 addresses.
///
/// # Errors
/// The error names the address and its flag.
pub async fn bind(endpoints: Endpoints, addr: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = match TcpListener::bind(addr).await {
        Err(error) if addr.ip() == Ipv6Addr::UNSPECIFIED && is_without_v6(&error) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, addr.port())).await
        }
        bound => bound,
    };
    listener.with_context(|| format!("cannot listen on {addr}; set {}", endpoints.flag()))
}

fn is_without_v6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(nix::libc::EAFNOSUPPORT | nix::libc::EADDRNOTAVAIL))
}

/// Answers requests.
pub(super) trait Answers: Send + Sync + 'static {
    /// Answers a request at one of the listeners.
    fn answer(&self, endpoints: Endpoints, request: &Request<Incoming>) -> impl Future<Output = Response<Body>> + Send;
}

/// Serves until the future is dropped. After the start of the drain it accepts no new connections, and ends with the last connection.
pub(super) async fn serve(
    listener: TcpListener,
    endpoints: Endpoints,
    admin: Arc<impl Answers>,
    count: TaskCount,
    mut drain: DrainWatch,
) {
    let mut acceptor = Acceptor::new(listener, OpenLimit::none());
    let admission = Admission::new(LIMITS);
    let mut connections = TaskSet::new(count);
    loop {
        tokio::select! {
            accepted = acceptor.next() => {
                match admission.admit(client(&accepted)) {
                    Ok(place) => {
                        let admin = Arc::clone(&admin);
                        let connection = Connection::new(accepted.peer, drain.clone());
                        connections.spawn(Span::none(), async move {
                            tokio::select! {
                                () = serve_connection(accepted.stream, endpoints, admin, connection) => {}
                                _evicted = place.evicted() => debug!("an admin connection was closed in favour of a \
                                    newer one"),
                            }
                        });
                    }
                    Err(full) => debug!(peer = %accepted.peer, reason = full.label(), "an admin connection was refused"),
                }
            }
            () = connections.reap_next(), if !connections.is_empty() => {}
            () = drain.started() => break,
        }
    }
    drop(acceptor);
    connections.join_all().await;
}

/// The client, for the limits. Processes of the node, such as the kubelet, have the address to which they connect, and count as
/// known.
fn client(accepted: &Accepted) -> Client {
    let (peer, own) = (accepted.peer.ip(), accepted.dst.ip());
    Client::new(peer, peer.is_loopback() || peer == own)
}

async fn serve_connection(stream: TcpStream, endpoints: Endpoints, admin: Arc<impl Answers>, connection: Connection) {
    let of_requests = connection.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        let admin = Arc::clone(&admin);
        request.extensions_mut().insert(of_requests.clone());
        async move { Ok::<_, Infallible>(admin.answer(endpoints, &request).await) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(16 << 10);
    let served = tokio::select! {
        served = server.serve_connection(TokioIo::new(stream), service) => Some(served),
        () = connection.is_over() => None,
    };
    match served {
        Some(Ok(())) => {}
        Some(Err(error)) => debug!(%error, "an admin connection failed"),
        None => debug!("an admin connection took too long"),
    }
}

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

impl Answers for Admin {
    async fn answer(&self, endpoints: Endpoints, request: &Request<Incoming>) -> Response<Body> {
        answer(self, endpoints, request).await
    }
}

async fn answer(admin: &Admin, endpoints: Endpoints, request: &Request<Incoming>) -> Response<Body> {
    let paths = endpoints.paths();
    let path = request.uri().path();
    if path != "/" && !paths.contains(&path) {
        return response(StatusCode::NOT_FOUND, TEXT, "not found; / lists the endpoints\n");
    }
    let connection = request.extensions().get::<Connection>();
    if path == LOGGING && matches!(*request.method(), Method::GET | Method::POST) {
        return logging::answer(&admin.levels, request, connection.map(|connection| connection.peer));
    }
    if request.method() != Method::GET {
        return response(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET only\n");
    }
    if path == "/" {
        return response(StatusCode::OK, TEXT, paths.join("\n") + "\n");
    }
    if path == "/healthz/ready" {
        return readiness(admin);
    }
    if path == EXPLAIN {
        return match explain::answer(&admin.mesh, &admin.manager, &admin.explaining, request.uri().query()).await {
            Ok(json) => response(StatusCode::OK, JSON, json),
            Err(error) => response(status(&error), TEXT, format!("{error}\n")),
        };
    }
    if path == CONFIG_DUMP {
        return dump(admin, request.uri().query().unwrap_or_default()).await;
    }
    if path == STATUS {
        return json(&standing::of(&standing::Sources {
            node: admin.config.node(),
            manager: &admin.manager,
            mesh: &admin.mesh.load(),
            certificates: admin.certificates.standings(),
            traffic: &admin.traffic,
            budget: &admin.budget,
            control_plane: admin.control_plane.as_ref(),
            start_window: admin.start_window.borrow().clone(),
            lost_lines: admin.lost.count(),
        }));
    }
    if path == EVENTS {
        let query = request.uri().query().unwrap_or_default();
        return stream::answer(&admin.events, admin.config.node(), query, connection.cloned());
    }
    metrics(admin, request).await
}

async fn dump(admin: &Admin, query: &str) -> Response<Body> {
    let sections = match Sections::read(query) {
        Ok(sections) => sections,
        Err(error) => return response(StatusCode::BAD_REQUEST, TEXT, error),
    };
    let place = timeout(DUMP_WAITS, Arc::clone(&admin.dumping).acquire_owned()).await;
    let Ok(Ok(place)) = place else {
        return response(StatusCode::SERVICE_UNAVAILABLE, TEXT, "the daemon is busy with other dumps: try again\n");
    };
    let Some(now) = admin.manager.describe().await else {
        return response(StatusCode::SERVICE_UNAVAILABLE, TEXT, "not ready, pending: shutdown\n");
    };
    let (config, local) = (Arc::clone(&admin.config), admin.manager.local_pods());
    // A mesh can be large, and the current thread also runs the manager of the pods.
    let written = spawn_blocking(move || {
        let json = serde_json::to_vec_pretty(&Dump::new(now, config, &local, sections));
        drop(place);
        json
    });
    match written.await {
        Ok(Ok(json)) => response(StatusCode::OK, JSON, json),
        Ok(Err(error)) => response(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
        Err(_) => response(StatusCode::SERVICE_UNAVAILABLE, TEXT, "the dump was cancelled: the daemon is stopping\n"),
    }
}

/// Answers a scrape without waiting for the manager: metrics are most important while a part of the daemon is stuck.
async fn metrics(admin: &Admin, request: &Request<Incoming>) -> Response<Body> {
    // If a data worker is busy for longer, its earlier counts are shown.
    let _too_late = timeout(COUNTING_TIMEOUT, join_all(admin.carried.iter().map(ByteCount::count))).await;
    let sources = exposition::Sources {
        traffic: &admin.registry,
        lost: admin.lost.count(),
        budget: &admin.budget,
        tasks: admin.tasks.alive(),
        mesh: &admin.mesh.load(),
        ready: admin.manager.pending().is_none(),
        start_window: admin.start_window.borrow().is_some(),
        control_plane_lost: admin.control_plane.as_ref().map(Contact::is_lost),
        node_unknown: admin.manager.unknown_node().is_some(),
        local_stale: admin.manager.local_problem().is_some(),
        status: &admin.manager.status(),
        certificates: admin.certificates.expiries(),
    };
    let left = match &admin.state {
        Some(state) => left::all(state).await,
        None => Vec::new(),
    };
    let others: Vec<_> = left.iter().map(|left| exposition::Other { name: &left.name, text: &left.metrics }).collect();
    scraped(request, exposition::text(&sources).map(|own| exposition::merged(&own, &others)))
}

/// The answer to a scrape, in the format that the client accepts. `text` is in OpenMetrics format.
pub(super) fn scraped(request: &Request<Incoming>, text: Result<String, fmt::Error>) -> Response<Body> {
    match text {
        Ok(text) if takes_openmetrics(request) => response(StatusCode::OK, OPENMETRICS, text),
        Ok(text) => response(StatusCode::OK, PROMETHEUS, prometheus(&text)),
        Err(error) => {
            response(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("cannot encode the metrics: {error}\n"))
        }
    }
}

fn readiness(admin: &Admin) -> Response<Body> {
    let Some(pending) = admin.manager.pending() else {
        let unknown = admin.manager.unknown_node().map(|unknown| unknown.to_string());
        let stale = admin.manager.local_problem().map(|problem| problem.to_string());
        let window = admin.start_window.borrow().clone();
        let warnings: String =
            unknown.into_iter().chain(stale).chain(window).map(|warning| format!("warning: {warning}\n")).collect();
        return response(StatusCode::OK, TEXT, format!("ready\n{warnings}"));
    };
    let mut text = format!("not ready, pending: {pending}\n");
    let mesh = admin.mesh.load();
    // The mesh has never been valid: the first problem is the place to start.
    if let Some(first) = mesh.problems().first().filter(|_| mesh.version() == 0) {
        text.push_str(&format!("{} problem(s) with the mesh, the first: {first}\n", mesh.problems().len()));
    }
    if let Some(problem) = admin.manager.local_problem() {
        text.push_str(&format!("{problem}\n"));
    }
    response(StatusCode::SERVICE_UNAVAILABLE, TEXT, text)
}

fn status(error: &ExplainError) -> StatusCode {
    match error {
        ExplainError::Parameter(_) => StatusCode::BAD_REQUEST,
        ExplainError::Query(QueryError::NoMesh)
        | ExplainError::Unresolved(_)
        | ExplainError::Busy
        | ExplainError::GivenUp => StatusCode::SERVICE_UNAVAILABLE,
        ExplainError::Json(_) => StatusCode::INTERNAL_SERVER_ERROR,
        ExplainError::Query(_) => StatusCode::BAD_REQUEST,
    }
}

/// Whether a client accepts OpenMetrics. All others get the Prometheus text format.
fn takes_openmetrics(request: &Request<Incoming>) -> bool {
    let accept = request.headers().get(hyper::header::ACCEPT).and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| accept.contains("application/openmetrics-text"))
}

#[cfg(test)]
pub(super) mod tests;
