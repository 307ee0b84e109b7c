//! One connection to a control plane: TCP, TLS and HTTP/2.

use std::io;
use std::path::{Path, PathBuf};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tonic::body::Body;
use tonic::metadata::{Ascii, MetadataValue};
use tracing::{Span, debug};

use super::plane::{ControlPlane, PlaneUrl, Token};
use crate::identity::disk::{self, ReadError};
use crate::istio::client::Client;
use crate::lifecycle::tasks::{TaskCount, TaskSet};
use crate::tls::{NamedClient, NamedError};

/// The deadline for name resolution, TCP and TLS together. Istio has the same value for TCP alone.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Why there is no connection to the control plane.
#[derive(Debug, Error)]
pub(super) enum ConnectError {
    /// The file of the roots or of the token can't be read.
    #[error("cannot use the file of {flag}")]
    File {
        /// The flag that names it.
        flag: &'static str,
        /// The cause.
        source: ReadError,
    },
    /// The file contains no token.
    #[error("{} (--control-plane-token) holds no token: it needs one line of visible ASCII characters", path.display())]
    NoToken {
        /// The file.
        path: PathBuf,
    },
    /// The TCP connect or the name resolution failed.
    #[error("cannot connect to {url}")]
    Dial {
        /// The control plane.
        url: PlaneUrl,
        /// The system's answer.
        source: io::Error,
    },
    /// There was no connection in time.
    #[error("no connection to {url} within {} s", CONNECT_DEADLINE.as_secs())]
    Deadline {
        /// The control plane.
        url: PlaneUrl,
    },
    /// The control plane could not be verified.
    #[error(
        "{url} cannot be verified with the roots in {}: correct --control-plane-root, or give the name in its certificate with \
         --control-plane-name",
        roots.display()
    )]
    Tls {
        /// The control plane.
        url: PlaneUrl,
        /// The file of the roots.
        roots: PathBuf,
        /// The cause.
        source: NamedError,
    },
    /// The control plane does not speak HTTP/2.
    #[error("{url} does not speak HTTP/2")]
    Http {
        /// The control plane.
        url: PlaneUrl,
        /// The cause.
        source: hyper::Error,
    },
    /// The thread that read a file has ended.
    #[error("reading a file was interrupted; this is a bug if the daemon was not stopping")]
    Interrupted,
}

/// A connection, which ends when the value is dropped.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) client: Client<Channel>,
    _driver: TaskSet,
}

/// Sends requests over a connection. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Channel(SendRequest<Body>);

impl tower_service::Service<http::Request<Body>> for Channel {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

impl Connection {
    /// Connects. The file of the roots is read again.
    ///
    /// # Errors
    /// The error names the control plane or the file, and the remedy.
    pub(super) async fn open(plane: &ControlPlane, tasks: TaskCount) -> Result<Self, ConnectError> {
        let roots = read(plane.roots.clone()).await?;
        let roots = roots.map_err(|source| ConnectError::File { flag: "--control-plane-root", source })?;
        let url = || plane.url.clone();
        let connected = timeout(CONNECT_DEADLINE, async {
            let dial = |source| ConnectError::Dial { url: url(), source };
            let tcp = TcpStream::connect((plane.url.host(), plane.url.port())).await.map_err(dial)?;
            tcp.set_nodelay(true).map_err(dial)?;
            let tls = |source| ConnectError::Tls { url: url(), roots: plane.roots.clone(), source };
            let mut names = vec![plane.url.host()];
            names.extend(plane.alternative_name.as_deref());
            NamedClient::new(&roots, &names).map_err(tls)?.connect(tcp).await.map_err(tls)
        });
        let tls = connected.await.map_err(|_elapsed| ConnectError::Deadline { url: url() })??;
        let (spawner, spawned) = mpsc::unbounded_channel();
        let (sender, connection) = http2::Builder::new(Spawner(spawner))
            .timer(TokioTimer::new())
            .keep_alive_interval(plane.keepalive.interval)
            .keep_alive_timeout(plane.keepalive.timeout)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(tls))
            .await
            .map_err(|source| ConnectError::Http { url: url(), source })?;
        let mut driver = TaskSet::new(tasks);
        driver.spawn(Span::none(), drive(connection, spawned));
        Ok(Self { client: Client::new(Channel(sender), plane.url.uri()), _driver: driver })
    }
}

/// A request with the token that identifies the daemon. The file of the token is read again.
///
/// # Errors
/// The error names the file of the token, and the remedy.
pub(super) async fn request<T>(plane: &ControlPlane, message: T) -> Result<tonic::Request<T>, ConnectError> {
    let mut request = tonic::Request::new(message);
    if let Some(token) = token(&plane.token).await? {
        request.metadata_mut().insert("authorization", token);
    }
    if let Ok(cluster) = plane.cluster.parse::<MetadataValue<Ascii>>() {
        request.metadata_mut().insert("clusterid", cluster);
    }
    Ok(request)
}

async fn token(token: &Token) -> Result<Option<MetadataValue<Ascii>>, ConnectError> {
    let path = token.path();
    let text = match (read(path.clone()).await?, token) {
        (Ok(text), _) => text,
        (Err(error), Token::IfThere(_)) if error.is_missing() => return Ok(None),
        (Err(source), _) => return Err(ConnectError::File { flag: "--control-plane-token", source }),
    };
    let no_token = || ConnectError::NoToken { path: path.clone() };
    let text = std::str::from_utf8(&text).map_err(|_| no_token())?.trim();
    let is_token = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    let mut value: MetadataValue<Ascii> =
        is_token.then(|| format!("Bearer {text}").parse().ok()).flatten().ok_or_else(no_token)?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// Reads a small file on a blocking thread.
async fn read(path: PathBuf) -> Result<Result<Vec<u8>, ReadError>, ConnectError> {
    spawn_blocking(move || disk::read(Path::new(&path))).await.map_err(|_| ConnectError::Interrupted)
}

/// Passes hyper's helper futures to the task of the connection.
#[derive(Clone)]
struct Spawner(mpsc::UnboundedSender<BoxFuture<'static, ()>>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Spawner {
    fn execute(&self, future: F) {
        // An error means that the task has ended with the connection.
        let _gone = self.0.send(Box::pin(future));
    }
}

/// Runs the connection and its helper futures in one task until the connection ends.
async fn drive(
    connection: impl Future<Output = Result<(), hyper::Error>>,
    mut spawned: mpsc::UnboundedReceiver<BoxFuture<'static, ()>>,
) {
    let mut helpers: FuturesUnordered<BoxFuture<'static, ()>> = FuturesUnordered::new();
    let mut connection = std::pin::pin!(connection);
    loop {
        tokio::select! {
            result = &mut connection => {
                debug!(?result, "the connection to the control plane has ended");
                return;
            }
            Some(helper) = spawned.recv() => helpers.push(helper),
            Some(()) = helpers.next() => {}
        }
    }
}
