//! A peer with valid HTTP/2 that sends any request that the test needs.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Method, Request};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::Caller;
use crate::topology::{Pod, SOCKET_DEADLINE};

/// The header with the reason why a stream was refused.
pub const REFUSAL: &str = "x-ztunnel-refusal";

/// An HBONE connection to a pod. Its runtime runs only during calls.
#[derive(Debug)]
pub struct HbonePeer {
    runtime: Runtime,
    sender: SendRequest<Bytes>,
    /// The peer's own address.
    pub local: SocketAddr,
    certificate: Vec<u8>,
}

/// Bytes to send whose content does not matter.
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

impl Stream {
    /// Sends `bytes` bytes, as far as the peer's window allows, while the connection keeps running.
    ///
    /// # Errors
    /// When the stream has ended.
    pub fn push(&mut self, bytes: usize) -> Result<()> {
        for _ in 0..bytes.div_ceil(ZEROS.len()) {
            self.send.send_data(Bytes::from_static(&ZEROS), false)?;
        }
        Ok(())
    }
}

/// The result of a request.
#[derive(Debug)]
pub enum Answer {
    /// 200: the stream is open.
    Opened(Stream),
    /// Another status.
    Refused {
        /// The status.
        status: u16,
        /// All headers.
        headers: HeaderMap,
    },
    /// `RST_STREAM`.
    Reset(Reason),
    /// `GOAWAY`.
    GoAway(Reason),
    /// The connection is gone, or another failure.
    Gone(String),
    /// Nothing came in time.
    Nothing,
}

/// An open stream.
#[derive(Debug)]
pub struct Stream {
    /// The response's headers.
    pub headers: HeaderMap,
    send: SendStream<Bytes>,
    receive: RecvStream,
}

impl HbonePeer {
    /// Connects from a pod.
    ///
    /// # Errors
    /// When TCP, TLS or HTTP/2 fail.
    pub fn connect(caller: &Caller, pod: &Pod, target: SocketAddr) -> Result<Self> {
        let tcp = pod.connect(target)?;
        let local = tcp.local_addr()?;
        tcp.set_nonblocking(true)?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (connector, name) = (TlsConnector::from(caller.config.clone()), ServerName::from(target.ip()));
        let shaking = async {
            let tls = connector.connect(name, TcpStream::from_std(tcp)?).await.context("the TLS handshake")?;
            let leaf = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let certificate = leaf.context("the server showed no certificate")?.to_vec();
            let (sender, connection) = h2::client::handshake(tls).await.context("the HTTP/2 handshake")?;
            Ok::<_, anyhow::Error>((sender, connection, certificate))
        };
        let (sender, connection, certificate) =
            runtime.block_on(async { timeout(SOCKET_DEADLINE, shaking).await }).context("no handshake in time")??;
        runtime.spawn(connection);
        Ok(Self { runtime, sender, local, certificate })
    }

    /// Whether the server's certificate names an identity.
    #[must_use]
    pub fn server_is(&self, identity: &str) -> bool {
        self.certificate.windows(identity.len()).any(|window| window == identity.as_bytes())
    }

    /// Requests a stream.
    ///
    /// # Errors
    /// When the request can't be encoded.
    pub fn ask(&self, authority: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        let mut request = Request::builder().method(Method::CONNECT).uri(authority);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).with_context(|| format!("{authority} is no authority"))?;
        let asking = answer(self.sender.clone(), request);
        Ok(self.runtime.block_on(async { timeout(SOCKET_DEADLINE, asking).await }).unwrap_or(Answer::Nothing))
    }

    /// Requests a stream that must be opened.
    ///
    /// # Errors
    /// When it is not opened.
    pub fn open(&self, authority: &str, headers: &[(&str, &str)]) -> Result<Stream> {
        match self.ask(authority, headers)? {
            Answer::Opened(stream) => Ok(stream),
            other => bail!("no tunnel to {authority}: {other:?}"),
        }
    }

    /// Sends bytes through a stream and expects them back.
    ///
    /// # Errors
    /// When other bytes come back, or not in time.
    pub fn exchange(&self, stream: &mut Stream, bytes: &[u8]) -> Result<()> {
        let exchanging = async {
            stream.send.send_data(Bytes::copy_from_slice(bytes), false)?;
            let mut back = Vec::new();
            while back.len() < bytes.len() {
                let chunk = stream.receive.data().await.context("the tunnel ended")??;
                stream.receive.flow_control().release_capacity(chunk.len())?;
                back.extend_from_slice(&chunk);
            }
            ensure!(back == bytes, "other bytes came back");
            Ok(())
        };
        self.runtime.block_on(async { timeout(SOCKET_DEADLINE, exchanging).await }).context("nothing came back")?
    }

    /// Keeps the connection running without a request: it answers pings and reads all frames.
    pub fn idle(&self, duration: Duration) {
        // The sleep is created within the runtime, since it needs the runtime's clock.
        self.runtime.block_on(async { tokio::time::sleep(duration).await });
    }
}

async fn answer(sender: SendRequest<Bytes>, request: Request<()>) -> Answer {
    let asked = async {
        let (response, send) = sender.ready().await?.send_request(request, false)?;
        Ok::<_, h2::Error>((response.await?, send))
    };
    match asked.await {
        Ok((response, send)) => {
            let (parts, receive) = response.into_parts();
            if parts.status == http::StatusCode::OK {
                return Answer::Opened(Stream { headers: parts.headers, send, receive });
            }
            Answer::Refused { status: parts.status.as_u16(), headers: parts.headers }
        }
        Err(error) => match error.reason() {
            Some(reason) if error.is_reset() => Answer::Reset(reason),
            Some(reason) if error.is_go_away() => Answer::GoAway(reason),
            _ => Answer::Gone(error.to_string()),
        },
    }
}

impl Answer {
    /// The status, when there is one.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Opened(_) => Some(200),
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// The server's reason for the refusal.
    #[must_use]
    pub fn refusal(&self) -> &str {
        let Self::Refused { headers, .. } = self else { return "" };
        headers.get(REFUSAL).and_then(|value| value.to_str().ok()).unwrap_or("")
    }
}
