//! A control plane whose answers come from the test.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::Stream;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};
use tracing::Span;

use crate::control::remote::plane::{ControlPlane, Token};
use crate::identity::clock;
use crate::istio::certificate::{IstioCertificateRequest, IstioCertificateResponse};
use crate::istio::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use crate::istio::server::{CertificateAuthority, Discovery, Services};
use crate::lifecycle::tasks::TaskSet;
use crate::tls::NamedServer;

/// The deadline of each step: a step that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(60);

const HOUR: Duration = Duration::from_secs(3600);

/// A CA, which issues certificates of servers.
pub(crate) struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// Signs a request as an authority does.
    pub(super) fn sign(&self, csr: &str) -> String {
        self.sign_for(csr, HOUR)
    }

    /// The same, with a certificate that is valid for this time from now on.
    pub(crate) fn sign_for(&self, csr: &str, validity: Duration) -> String {
        let mut request = rcgen::CertificateSigningRequestParams::from_pem(csr).unwrap();
        request.params.not_before = (clock::now() - 2 * HOUR).into();
        request.params.not_after = (clock::now() + validity).into();
        request.params.is_ca = IsCa::ExplicitNoCa;
        request.signed_by(&self.0).unwrap().pem()
    }

    pub(super) fn server(&self, name: &str) -> NamedServer {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &self.0).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        NamedServer::new(vec![leaf.der().clone()], key).unwrap()
    }
}

/// One stream of delta xDS, which the test drives.
pub(crate) struct Opened {
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::UnboundedSender<Result<DeltaDiscoveryResponse, Status>>,
    /// The token of the client.
    pub(super) token: Option<String>,
}

impl Opened {
    /// The next request of the client.
    pub(crate) async fn request(&mut self) -> DeltaDiscoveryRequest {
        within(self.requests.message()).await.unwrap().expect("a request")
    }

    pub(crate) fn send(&self, response: DeltaDiscoveryResponse) {
        self.responses.send(Ok(response)).unwrap();
    }

    /// Ends the stream with an error.
    pub(super) fn fail(self, status: Status) {
        self.responses.send(Err(status)).unwrap();
    }
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(TIMEOUT, future).await.expect("it takes too long")
}

/// The answer of an authority to a request with its token.
type Sign = dyn FnMut(&IstioCertificateRequest, Option<&str>) -> Result<Vec<String>, Status> + Send;

struct Script {
    opened: mpsc::UnboundedSender<Opened>,
    sign: Arc<Mutex<Box<Sign>>>,
    /// The number of connections so far.
    connections: Arc<AtomicUsize>,
    /// Certificate requests over this many of the first connections are never answered.
    silent: Arc<AtomicUsize>,
}

fn token<T>(request: &Request<T>) -> Option<String> {
    request.metadata().get("authorization").map(|value| value.to_str().unwrap().to_owned())
}

impl Discovery for Script {
    type Responses = std::pin::Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        requests: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::Responses>, Status> {
        let (responses, mut receiver) = mpsc::unbounded_channel();
        let opened = Opened { token: token(&requests), requests: requests.into_inner(), responses };
        self.opened.send(opened).map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx)))))
    }
}

impl CertificateAuthority for Script {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        if self.connections.load(SeqCst) <= self.silent.load(SeqCst) {
            return std::future::pending().await;
        }
        let token = token(&request);
        let cert_chain = (self.sign.lock().unwrap())(request.get_ref(), token.as_deref())?;
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

/// A control plane on loopback. Its connections break when it is dropped.
pub(crate) struct Plane {
    pub(crate) address: SocketAddr,
    opened: mpsc::UnboundedReceiver<Opened>,
    sign: Arc<Mutex<Box<Sign>>>,
    silent: Arc<AtomicUsize>,
    connections: TaskSet,
}

impl Plane {
    /// Listens with a certificate for this name, on `address` if one is given.
    pub(crate) async fn start(ca: &Ca, name: &str, address: Option<SocketAddr>) -> Self {
        let listener = TcpListener::bind(address.unwrap_or_else(|| "127.0.0.1:0".parse().unwrap())).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (opened, receiver) = mpsc::unbounded_channel();
        let sign: Box<Sign> = Box::new(|_, _| Err(Status::unimplemented("no authority")));
        let sign = Arc::new(Mutex::new(sign));
        let [count, silent] = [0; 2].map(|number| Arc::new(AtomicUsize::new(number)));
        let script =
            Script { opened, sign: Arc::clone(&sign), connections: Arc::clone(&count), silent: Arc::clone(&silent) };
        let script = Arc::new(script);
        let (services, tls) = (Services::new(Arc::clone(&script), script), ca.server(name));
        let mut connections = TaskSet::default();
        connections.spawn(Span::none(), async move {
            let mut open = TaskSet::default();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                count.fetch_add(1, SeqCst);
                let (services, tls) = (services.clone(), tls.clone());
                open.spawn(Span::none(), async move {
                    let Ok(stream) = tls.accept(tcp).await else { return };
                    let answer = service_fn(move |request| {
                        let services = services.clone();
                        async move { Ok::<_, std::convert::Infallible>(services.answer(request).await) }
                    });
                    let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _broken = http.serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
        Self { address, opened: receiver, sign, silent, connections }
    }

    /// The next stream that a client opens.
    pub(crate) async fn stream(&mut self) -> Opened {
        within(self.opened.recv()).await.unwrap()
    }

    /// Sets the answers of the authority.
    pub(crate) fn sign(
        &self,
        sign: impl FnMut(&IstioCertificateRequest, Option<&str>) -> Result<Vec<String>, Status> + Send + 'static,
    ) {
        *self.sign.lock().unwrap() = Box::new(sign);
    }

    /// Leaves certificate requests over the first connection unanswered.
    pub(super) fn leave_the_first_connection_unanswered(&self) {
        self.silent.store(1, SeqCst);
    }

    /// Breaks all connections, and stops listening.
    pub(crate) async fn stop(mut self) -> SocketAddr {
        self.connections.abort_all().await;
        self.address
    }

    /// The settings with which a daemon reaches it. `root.pem` and `token` are written to `dir`.
    pub(crate) fn reached(&self, dir: &Path, roots: &Ca, token: &str) -> ControlPlane {
        reached(self.address, dir, roots, token)
    }
}

/// The settings with which a daemon reaches a control plane. `root.pem` and `token` are written to `dir`.
pub(super) fn reached(address: SocketAddr, dir: &Path, roots: &Ca, token: &str) -> ControlPlane {
    std::fs::write(dir.join("root.pem"), roots.pem()).unwrap();
    std::fs::write(dir.join("token"), token).unwrap();
    ControlPlane {
        url: format!("https://{address}").parse().unwrap(),
        roots: dir.join("root.pem"),
        token: Token::File(dir.join("token")),
        ..super::control_plane()
    }
}
