//! Streams of nodes. They store nothing but the times at which they were told of changes.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_rustls::TlsConnector;

use super::api::{Api, address};
use crate::protobuf::{Fields, put};

const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
/// The types of resources, in the order in which a node asks for them.
const TYPES: [&str; 4] = [
    "type.googleapis.com/ambient.mesh.v1.Settings",
    ADDRESS,
    "type.googleapis.com/istio.security.Authorization",
    "type.googleapis.com/ambient.mesh.v1.Object",
];
const RESOURCES: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// Prefix of the resource names of pods.
const POD: &str = "Kubernetes//Pod/demo/p";
/// Streams that are opened at once.
const AT_ONCE: usize = 32;
/// Flow control window of a stream.
const WINDOW: u32 = 4 << 20;

/// The part of the mesh that a stream asks for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wish {
    /// All of it, which has so many workloads.
    Everything { workloads: usize },
    /// So many pods.
    Names { count: usize },
}

impl Wish {
    /// The pods that a stream asks for by their names; `None`: all.
    fn pods(self, stream: usize, workloads: usize) -> Option<HashSet<usize>> {
        match self {
            Self::Everything { .. } => None,
            // Half of them are those of the node, the others are anywhere.
            Self::Names { count } => {
                let own = (0..count / 2).map(|number| (stream * 100 + number) % workloads);
                let mut pods: HashSet<usize> = own.collect();
                let mut next = stream * 7919;
                while pods.len() < count.min(workloads) {
                    pods.insert(next % workloads);
                    next += 97;
                }
                Some(pods)
            }
        }
    }

    fn awaited(self) -> usize {
        match self {
            Self::Everything { workloads } => workloads,
            Self::Names { count } => count,
        }
    }
}

/// The name of a stream's node.
pub(super) fn node(stream: usize) -> String {
    format!("bench-{stream}")
}

/// The token of a node.
pub(super) fn token(node: &str) -> String {
    format!("token-of-{node}-{:0>32}", 0)
}

/// Totals over all streams.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) bytes: u64,
    pub(super) responses: u64,
}

#[derive(Debug, Default)]
struct Shared {
    counts: Counts,
    /// Number of streams that have everything that they asked for.
    synced: usize,
    /// Times from the event of the API server to a client, in microseconds.
    latencies: Vec<u32>,
    /// Why a stream has ended.
    failure: Option<String>,
}

/// All streams. They end when this is dropped.
pub(super) struct Clients {
    shared: Arc<Mutex<Shared>>,
    wish: Wish,
    streams: usize,
    _tasks: JoinSet<()>,
}

impl Clients {
    /// Opens so many streams; within a runtime.
    pub(super) async fn start(
        server: SocketAddr,
        roots: &[u8],
        streams: usize,
        wish: Wish,
        api: Arc<Api>,
    ) -> Result<Self> {
        let mut store = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(roots) {
            store.add(root?)?;
        }
        let mut config = ClientConfig::builder().with_root_certificates(store).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let connector = TlsConnector::from(Arc::new(config));
        let shared: Arc<Mutex<Shared>> = Arc::default();
        let mut tasks = JoinSet::new();
        let places = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
        for number in 0..streams {
            let place = Arc::clone(&places).acquire_owned().await?;
            let (connector, api) = (connector.clone(), Arc::clone(&api));
            let shared = Arc::clone(&shared);
            tasks.spawn(async move {
                let opened = Stream::open(server, &connector, number, wish, &api).await;
                drop(place);
                let ended = match opened {
                    Ok(mut stream) => stream.run(&shared, &api).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = ended {
                    lock(&shared).failure.get_or_insert(format!("stream {number}: {error:#}"));
                }
            });
        }
        Ok(Self { shared, wish, streams, _tasks: tasks })
    }

    pub(super) fn counts(&self) -> Counts {
        lock(&self.shared).counts
    }

    pub(super) fn latencies(&self) -> Vec<u32> {
        lock(&self.shared).latencies.clone()
    }

    async fn until(&self, what: &str, patience: Duration, is_so: impl Fn(&Shared) -> bool) -> Result<()> {
        let begin = Instant::now();
        loop {
            {
                let shared = lock(&self.shared);
                if let Some(failure) = &shared.failure {
                    bail!("{failure}");
                }
                if is_so(&shared) {
                    return Ok(());
                }
                ensure!(
                    begin.elapsed() < patience,
                    "{what}: not within {patience:?}: {} of {} streams synced, {} deliveries",
                    shared.synced,
                    self.streams,
                    shared.latencies.len()
                );
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until all streams have everything that they asked for.
    pub(super) async fn synced(&self, patience: Duration) -> Result<()> {
        self.until("all streams to be synced", patience, |shared| shared.synced == self.streams).await
    }

    /// Waits until every stream was told of every change that it asked for.
    pub(super) async fn told_of(&self, api: &Api, patience: Duration) -> Result<()> {
        let changed = api.changed();
        let expected: usize = (0..self.streams)
            .map(|stream| match self.wish.pods(stream, api.pods()) {
                None => changed.len(),
                Some(pods) => changed.iter().filter(|pod| pods.contains(pod)).count(),
            })
            .sum();
        ensure!(expected > 0, "no change concerns any stream");
        self.until("all streams to be told", patience, |shared| shared.latencies.len() >= expected).await?;
        let told = lock(&self.shared).latencies.len();
        ensure!(told == expected, "{told} deliveries, not {expected}");
        Ok(())
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Stream {
    send: SendStream<Bytes>,
    body: RecvStream,
    buffer: BytesMut,
    /// Bytes of the message that is being read which are not in the buffer, or not parsed yet.
    left: usize,
    nonce: String,
    type_url: String,
    /// Number of pods that the stream has received.
    has: usize,
    awaited: usize,
    is_synced: bool,
    _driver: JoinSet<()>,
}

fn request(type_url: &str, nonce: &str, names: &[String]) -> Bytes {
    let mut message = Vec::new();
    put(&mut message, 2, type_url.as_bytes());
    for name in names {
        put(&mut message, 3, name.as_bytes());
    }
    if !nonce.is_empty() {
        put(&mut message, 6, nonce.as_bytes());
    }
    let mut framed = BytesMut::with_capacity(5 + message.len());
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.put_slice(&message);
    framed.freeze()
}

impl Stream {
    async fn open(server: SocketAddr, connector: &TlsConnector, number: usize, wish: Wish, api: &Api) -> Result<Self> {
        let tcp = TcpStream::connect(server).await.context("cannot connect")?;
        tcp.set_nodelay(true)?;
        let tls = connector.connect(ServerName::from(server.ip()), tcp).await.context("TLS")?;
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake::<_, Bytes>(tls)
            .await?;
        let mut driver = JoinSet::new();
        driver.spawn(async move { drop(connection.await) });
        let head = http::Request::post(format!("https://{server}{RESOURCES}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("authorization", format!("Bearer {}", token(&node(number))))
            .body(())?;
        let (response, mut send) = send.ready().await?.send_request(head, false)?;
        for type_url in TYPES {
            let pods = if type_url == ADDRESS { wish.pods(number, api.pods()) } else { None };
            // Half by their names, half by their addresses, as a node asks for its own pods and for destinations.
            let name = |(index, pod): (usize, usize)| match index % 2 {
                0 => format!("{POD}{pod}"),
                _ => format!("/{}", address(pod)),
            };
            let names: Vec<String> = pods.into_iter().flatten().enumerate().map(name).collect();
            send.send_data(request(type_url, "", &names), false)?;
        }
        let response = response.await.context("no answer")?;
        ensure!(!response.headers().contains_key("grpc-status"), "refused: {:?}", response.headers());
        Ok(Self {
            send,
            body: response.into_body(),
            buffer: BytesMut::new(),
            left: 0,
            nonce: String::new(),
            type_url: String::new(),
            has: 0,
            awaited: wish.awaited(),
            is_synced: false,
            _driver: driver,
        })
    }

    /// Reads responses field by field: the first one has the whole mesh.
    async fn run(&mut self, shared: &Mutex<Shared>, api: &Api) -> Result<()> {
        while let Some(data) = self.body.data().await {
            let data = data?;
            self.body.flow_control().release_capacity(data.len())?;
            lock(shared).counts.bytes += data.len() as u64;
            self.buffer.extend_from_slice(&data);
            self.parse(shared, api)?;
        }
        bail!("the control plane ended the stream")
    }

    fn parse(&mut self, shared: &Mutex<Shared>, api: &Api) -> Result<()> {
        loop {
            if self.left == 0 {
                let Some((prefix, _)) = self.buffer.split_at_checked(5) else { return Ok(()) };
                self.left = prefix.get(1..).unwrap_or_default().get_u32() as usize;
                self.buffer.advance(5);
            }
            let within = self.buffer.get(..self.left.min(self.buffer.len())).unwrap_or_default();
            let mut fields = Fields(within);
            let Some((number, content)) = fields.next() else {
                ensure!(self.left > self.buffer.len(), "a response cannot be parsed");
                return Ok(());
            };
            let length = within.len() - fields.0.len();
            match number {
                2 => {
                    let name = Fields(content).find(|(number, _)| *number == 3).map(|(_, name)| name);
                    let name = std::str::from_utf8(name.unwrap_or_default())?;
                    let pod = name.strip_prefix(POD).and_then(|number| number.parse::<usize>().ok());
                    if let Some(pod) = pod {
                        self.has += 1;
                        if let Some(said) = api.said(pod) {
                            let micros = u32::try_from(said.elapsed().as_micros()).unwrap_or(u32::MAX);
                            lock(shared).latencies.push(micros);
                        }
                    }
                }
                4 => self.type_url = String::from_utf8(content.to_vec())?,
                5 => self.nonce = String::from_utf8(content.to_vec())?,
                _ => {}
            }
            self.buffer.advance(length);
            self.left -= length;
            if self.left == 0 {
                let acknowledgement = request(&self.type_url, &self.nonce, &[]);
                self.send.send_data(acknowledgement, false)?;
                let mut shared = lock(shared);
                shared.counts.responses += 1;
                if !self.is_synced && self.has >= self.awaited {
                    self.is_synced = true;
                    shared.synced += 1;
                }
            }
        }
    }
}
