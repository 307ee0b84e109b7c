//! Calls of a node to a control plane, made by hand: any token, any request.

use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::ApiServer;
use super::plane::Plane;
use crate::protobuf::{Fields, field};

/// The name in the serving certificate.
const NAME: &str = "istiod.istio-system.svc";
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// The call for certificates.
pub const CREATE_CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
/// The type of workloads and services.
const ADDRESS: &[u8] = b"type.googleapis.com/istio.workload.Address";
/// The call for resources.
pub const RESOURCES: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// The call for reports of pods.
pub const REPORT_PODS: &str = "/ambient.mesh.v1.PodReports/ReportPods";

/// A connection to a control plane.
pub struct Connection {
    runtime: Runtime,
    send: SendRequest<Bytes>,
}

/// A stream of resources that the control plane has answered. As a node does, it acknowledges each response.
pub struct Stream {
    send: SendStream<Bytes>,
    body: RecvStream,
    /// Bytes of a message that is not complete yet.
    begun: BytesMut,
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The gRPC status.
    pub code: u32,
    /// The reason.
    pub message: String,
}

impl Connection {
    /// Connects, and trusts these roots only (PEM).
    ///
    /// # Errors
    /// When the certificate of the control plane has another name or another root.
    pub fn open(api: &ApiServer, plane: &Plane, roots: &str) -> Result<Self> {
        let mut store = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
            store.add(root?)?;
        }
        let mut config = ClientConfig::builder().with_root_certificates(store).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let address = plane.listen();
        let tcp = api.netns().run(|| TcpStream::connect(&address))??;
        tcp.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (send, connection) = runtime.block_on(async {
            let tcp = tokio::net::TcpStream::from_std(tcp)?;
            let tls = TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(NAME)?, tcp).await?;
            anyhow::Ok(h2::client::handshake(tls).await?)
        })?;
        runtime.spawn(connection);
        Ok(Self { runtime, send })
    }

    fn begin(
        &self,
        path: &str,
        token: &str,
        message: &[u8],
        last: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>)> {
        let request = http::Request::post(format!("https://{NAME}{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("authorization", format!("Bearer {token}"))
            .body(())?;
        let mut send = self.runtime.block_on(self.send.clone().ready())?;
        let (response, mut stream) = send.send_request(request, false)?;
        stream.send_data(framed(message)?, last)?;
        Ok((response, stream))
    }

    /// Makes a call with one request, and waits for the end of the call.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn call(&self, path: &str, token: &str, message: &[u8]) -> Result<Ended> {
        let (response, _stream) = self.begin(path, token, message, true)?;
        self.runtime.block_on(async {
            let response = timeout(PATIENCE, response).await.context("no answer")??;
            if let Some(ended) = Ended::of(response.headers()) {
                return Ok(ended);
            }
            ended(response.into_body(), PATIENCE).await
        })
    }

    /// Opens a stream of all workloads and services, and waits for the first response.
    ///
    /// # Errors
    /// When it is refused: the message has the status.
    pub fn stream(&self, token: &str) -> Result<Stream> {
        // DeltaDiscoveryRequest: type_url.
        let request = field(2, ADDRESS);
        let (response, send) = self.begin(RESOURCES, token, &request, false)?;
        self.runtime.block_on(async {
            let response = timeout(PATIENCE, response).await.context("no answer")??;
            if let Some(ended) = Ended::of(response.headers()) {
                bail!("refused: {ended:?}");
            }
            let mut stream = Stream { send, body: response.into_body(), begun: BytesMut::new() };
            timeout(PATIENCE, stream.answer()).await.context("no response")??.context("no data")?;
            Ok(stream)
        })
    }

    /// Waits for the end of a stream.
    ///
    /// # Errors
    /// When the stream does not end in time.
    pub fn end_of(&self, mut stream: Stream, patience: Duration) -> Result<Ended> {
        self.runtime.block_on(async {
            let answering = async {
                while stream.answer().await?.is_some() {}
                status(&mut stream.body).await
            };
            timeout(patience, answering).await.context("the call goes on")?
        })
    }
}

impl Stream {
    /// Acknowledges the next response. `None`: there are no more responses.
    async fn answer(&mut self) -> Result<Option<()>> {
        let response = loop {
            if let Some(message) = message(&mut self.begun) {
                break message;
            }
            let Some(data) = self.body.data().await else { return Ok(None) };
            let data = data?;
            self.body.flow_control().release_capacity(data.len())?;
            self.begun.extend_from_slice(&data);
        };
        // DeltaDiscoveryResponse: nonce. DeltaDiscoveryRequest: type_url, response_nonce.
        let nonce = Fields(&response).find(|(number, _)| *number == 5).context("a response without a nonce")?.1;
        self.send.send_data(framed(&[field(2, ADDRESS), field(6, nonce)].concat())?, false)?;
        Ok(Some(()))
    }
}

async fn ended(mut body: RecvStream, patience: Duration) -> Result<Ended> {
    let reading = async {
        while let Some(data) = body.data().await {
            let length = data?.len();
            body.flow_control().release_capacity(length)?;
        }
        status(&mut body).await
    };
    timeout(patience, reading).await.context("the call goes on")?
}

/// The status after the last message of a call.
async fn status(body: &mut RecvStream) -> Result<Ended> {
    let trailers = body.trailers().await?.context("the call has no trailers")?;
    Ended::of(&trailers).context("the trailers have no grpc-status")
}

impl Ended {
    fn of(headers: &http::HeaderMap) -> Option<Self> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let code = text("grpc-status")?.parse().ok()?;
        Some(Self { code, message: text("grpc-message").unwrap_or_default().to_owned() })
    }
}

/// A request for a certificate of an identity: IstioCertificateRequest with `ImpersonatedIdentity`.
///
/// # Errors
/// When the key or the request cannot be made.
pub fn certificate_request(identity: &str) -> Result<Vec<u8>> {
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names.push(rcgen::SanType::URI(identity.try_into()?));
    let csr = params.serialize_request(&key)?.pem()?;
    // google.protobuf.Struct is a map of Values. Field 3 of a Value is a string.
    let value = field(3, identity.as_bytes());
    let entry = [field(1, b"ImpersonatedIdentity"), field(2, &value)].concat();
    Ok([field(1, csr.as_bytes()), field(4, &field(1, &entry))].concat())
}

/// A report of one pod: `ambient.mesh.v1.PodReport`. State 1 is refused, 2 is enrolled.
#[must_use]
pub fn pod_report(namespace: &str, name: &str, state: u8, reason: &str) -> Vec<u8> {
    let names = [field(1, namespace.as_bytes()), field(2, name.as_bytes())].concat();
    field(1, &[names, vec![4 << 3, state], field(5, reason.as_bytes())].concat())
}

/// A message with gRPC's prefix: the flag for compression and the length.
fn framed(message: &[u8]) -> Result<Bytes> {
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len())?);
    framed.put_slice(message);
    Ok(framed.freeze())
}

/// The first of the messages that have arrived.
fn message(begun: &mut BytesMut) -> Option<BytesMut> {
    let (head, rest) = begun.split_first_chunk::<5>()?;
    let [_compressed, length @ ..] = *head;
    let length = u32::from_be_bytes(length) as usize;
    (rest.len() >= length).then(|| begun.split_to(5 + length).split_off(5))
}
