//! The TLS end of one pod.

use std::{
    future::poll_fn,
    io,
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use rustls::{ClientConnection, Connection};
use rustls_pki_types::{ServerName, TrustAnchor};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::{Instant, timeout_at},
};

use super::{
    config::{ALPN, ConfigError, Configs, Settings},
    error::{AcceptError, ConnectError},
    hello,
    inbound::Inbound,
    proof::{Proof, Role, Roots, Shown},
    stream::{Broken, TlsStream},
    verify::{Leaf, issuers_end},
};
use crate::{
    identity::{
        Credentials, clock,
        handle::{CertHandle, Unavailable},
    },
    model::identity::SpiffeId,
    net::{buffer::BufferPool, packed::Packed},
};

/// The TLS end of one pod, for all its connections. Cheap to clone; used by all workers.
#[derive(Clone, Debug)]
pub struct Endpoint(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cert: CertHandle,
    settings: Settings,
    /// The configurations of the newest certificate that was used.
    configs: ArcSwapOption<Configs>,
    /// The roots of the newest certificate, whether it is valid or not.
    roots: ArcSwapOption<Roots>,
}

/// The other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The identity that its certificate proves.
    pub identity: SpiffeId,
    /// The earliest expiry of the certificates of both ends, including their issuers. The connection should not be used longer.
    pub expires: SystemTime,
    /// The cipher suite, for the log.
    pub suite: &'static str,
    /// The key exchange, for the log.
    pub group: &'static str,
    /// The evidence from the handshake, which can be verified again later.
    pub proof: Proof,
}

/// A handshake is not possible.
enum Unready {
    Unavailable(Unavailable),
    Unusable(ConfigError),
}

/// Why a handshake failed.
enum Failed {
    Deadline,
    Broken(Broken),
    /// The peer does not speak TLS.
    NotTls,
    /// The ends did not agree on HTTP/2.
    NoAlpn,
}

impl Endpoint {
    /// The TLS end of the pod with this certificate.
    #[must_use]
    pub fn new(cert: CertHandle, settings: Settings) -> Self {
        Self(Arc::new(Inner { cert, settings, configs: ArcSwapOption::empty(), roots: ArcSwapOption::empty() }))
    }

    /// The identity of the pod.
    #[must_use]
    pub fn identity(&self) -> &SpiffeId {
        self.0.cert.identity()
    }

    /// Waits for a certificate, at most for the time limit of a handshake.
    ///
    /// # Errors
    /// There is no valid certificate.
    pub async fn ready(&self) -> Result<(), Unavailable> {
        self.0.cert.credentials(self.0.settings.deadline).await.map(drop)
    }

    /// The handshake with a client of the pod, which may have any identity of the pod's trust domain.
    ///
    /// # Errors
    /// Why the handshake failed. The peer has been told by an alert where possible.
    pub async fn accept<S>(&self, mut io: S, pool: &BufferPool) -> Result<(TlsStream<S>, Peer), AcceptError>
    where
        S: AsyncRead + Packed + Unpin,
    {
        let deadline = self.deadline();
        let configs = match self.configs(deadline).await {
            Ok(configs) => configs,
            Err(unready) => {
                farewell(&mut io, &hello::plain(hello::INTERNAL_ERROR), deadline).await;
                return Err(match unready {
                    Unready::Unavailable(reason) => reason.into(),
                    Unready::Unusable(error) => error.into(),
                });
            }
        };
        let mut inbound = Inbound::new(pool);
        let read = timeout_at(deadline, hello::read(&mut io, &mut inbound)).await;
        let first = read.map_err(|_elapsed| AcceptError::Deadline(self.0.settings.deadline))?;
        let connection = match first.and_then(|accepted| hello::answer(accepted, &configs)) {
            Ok(connection) => connection,
            Err(refusal) => {
                farewell(&mut io, &refusal.farewell, deadline).await;
                return Err(refusal.error);
            }
        };
        let stream = TlsStream::new(io, Connection::Server(connection), inbound);
        finish(stream, &configs, deadline).await.map_err(|failed| match failed {
            Failed::Deadline => AcceptError::Deadline(self.0.settings.deadline),
            Failed::Broken(Broken::Closed) => AcceptError::Io(io::ErrorKind::UnexpectedEof.into()),
            Failed::Broken(Broken::Io(error)) => AcceptError::Io(error),
            Failed::Broken(Broken::Tls(error)) => error.into(),
            Failed::NotTls => AcceptError::NotTls,
            Failed::NoAlpn => AcceptError::NoAlpn,
        })
    }

    /// The handshake with a server, which must have one of the `expected` identities. It fails if `expected` is empty.
    ///
    /// # Errors
    /// Why the handshake failed. The peer has been told by an alert where possible.
    pub async fn connect<S>(
        &self,
        io: S,
        expected: &[SpiffeId],
        pool: &BufferPool,
    ) -> Result<(TlsStream<S>, Peer), ConnectError>
    where
        S: AsyncRead + Packed + Unpin,
    {
        let deadline = self.deadline();
        let configs = self.configs(deadline).await.map_err(|unready| match unready {
            Unready::Unavailable(reason) => ConnectError::NoCertificate(reason),
            Unready::Unusable(error) => ConnectError::Unusable(error),
        })?;
        // As in Istio, the client sends no server name.
        let name = ServerName::from(std::net::IpAddr::from(Ipv4Addr::UNSPECIFIED));
        let connection = ClientConnection::new(configs.client(expected), name)?;
        let stream = TlsStream::new(io, Connection::Client(connection), Inbound::new(pool));
        finish(stream, &configs, deadline).await.map_err(|failed| match failed {
            Failed::Deadline => ConnectError::Deadline(self.0.settings.deadline),
            Failed::Broken(Broken::Closed) => ConnectError::Io(io::ErrorKind::UnexpectedEof.into()),
            Failed::Broken(Broken::Io(error)) => ConnectError::Io(error),
            Failed::Broken(Broken::Tls(error)) => error.into(),
            Failed::NotTls => ConnectError::NotTls,
            Failed::NoAlpn => ConnectError::NoAlpn,
        })
    }

    fn deadline(&self) -> Instant {
        let now = Instant::now();
        now.checked_add(self.0.settings.deadline).unwrap_or(now)
    }

    /// The configurations of the newest certificate. They are built when the certificate is new.
    async fn configs(&self, deadline: Instant) -> Result<Arc<Configs>, Unready> {
        let left = deadline.saturating_duration_since(Instant::now());
        let credentials = self.0.cert.credentials(left).await.map_err(Unready::Unavailable)?;
        self.configs_of(credentials).map_err(Unready::Unusable)
    }

    fn configs_of(&self, credentials: Arc<Credentials>) -> Result<Arc<Configs>, ConfigError> {
        if let Some(configs) = self.0.configs.load_full()
            && Arc::ptr_eq(&configs.credentials, &credentials)
        {
            return Ok(configs);
        }
        // Two workers may build them at the same time; each result is correct.
        let roots = self.roots_of(&credentials);
        let configs = Arc::new(Configs::build(credentials, roots, &self.0.settings)?);
        self.0.configs.store(Some(Arc::clone(&configs)));
        Ok(configs)
    }

    fn roots_of(&self, credentials: &Credentials) -> Arc<Roots> {
        if let Some(roots) = self.0.roots.load_full()
            && roots.is_of(&credentials.roots)
        {
            return roots;
        }
        let roots = Arc::new(Roots::read(&credentials.identity, &credentials.roots));
        self.0.roots.store(Some(Arc::clone(&roots)));
        roots
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.0.settings
    }

    pub(super) fn certificate(&self) -> &CertHandle {
        &self.0.cert
    }

    /// The newest roots. They stay in use when the certificate that came with them has expired.
    pub(super) fn roots(&self) -> Option<Arc<Roots>> {
        self.0.cert.newest().map(|credentials| self.roots_of(&credentials))
    }

    /// The root of the newest certificate.
    pub(super) fn own_root(&self) -> Option<Arc<TrustAnchor<'static>>> {
        let credentials = self.0.cert.current(clock::now()).ok()?;
        self.configs_of(credentials).ok()?.own_root.clone()
    }
}

/// Sends the reason to the peer, until the deadline. Errors are ignored, because the peer may be gone.
async fn farewell<S: AsyncRead + AsyncWrite + Unpin>(io: &mut S, bytes: &[u8], deadline: Instant) {
    let told = timeout_at(deadline, async {
        io.write_all(bytes).await?;
        io.shutdown().await
    });
    if let Ok(Ok(())) = told.await {
        see_off(io, deadline).await;
    }
}

/// The time that a refused client has to read the reason.
const LINGER: Duration = Duration::from_secs(1);

/// Reads until the peer has closed as well. Closing a socket with unread bytes, or while the peer still sends, causes a reset,
/// and a reset can destroy the alert on its way.
async fn see_off<S: AsyncRead + Unpin>(io: &mut S, deadline: Instant) {
    let mut rest = [0; 512];
    let ended = async { while matches!(io.read(&mut rest).await, Ok(1..)) {} };
    let _too_late = timeout_at(deadline.min(Instant::now() + LINGER), ended).await;
}

async fn finish<S>(mut stream: TlsStream<S>, own: &Configs, deadline: Instant) -> Result<(TlsStream<S>, Peer), Failed>
where
    S: AsyncRead + Packed + Unpin,
{
    let result = match timeout_at(deadline, poll_fn(|cx| stream.poll_handshake(cx))).await {
        Err(_elapsed) => return Err(Failed::Deadline),
        Ok(Ok(())) => peer(stream.tls(), own),
        Ok(Err(Broken::Tls(error))) if stream.tls().protocol_version().is_none() && hello::no_record(&error) => {
            Err(Failed::NotTls)
        }
        Ok(Err(broken)) => Err(Failed::Broken(broken)),
    };
    match result {
        Ok(peer) => Ok((stream, peer)),
        Err(failed) => {
            if matches!(failed, Failed::NoAlpn) {
                stream.close();
            }
            // Errors are ignored, because the peer may be gone.
            let told = timeout_at(deadline, poll_fn(|cx| stream.poll_farewell(cx))).await;
            // Only the server side waits: a client has no reason to wait for a failed server.
            if let (Ok(Ok(())), Connection::Server(_)) = (told, stream.tls()) {
                see_off(stream.io_mut(), deadline).await;
            }
            Err(failed)
        }
    }
}

/// The peer's identity and parameters. The verifiers have read and accepted the same certificate.
fn peer(tls: &Connection, own: &Configs) -> Result<Peer, Failed> {
    if tls.alpn_protocol() != Some(ALPN) {
        return Err(Failed::NoAlpn);
    }
    let broken = |error: rustls::Error| Failed::Broken(Broken::Tls(error));
    let chain = tls.peer_certificates().unwrap_or_default().to_vec();
    let leaf = chain.first().ok_or_else(|| broken(rustls::Error::NoCertificatesPresented))?;
    let leaf = Leaf::read(leaf).map_err(|fault| broken(fault.into()))?;
    let now = clock::now();
    let peer_ends = issuers_end(&chain, now).map_or(leaf.not_after, |end| end.min(leaf.not_after));
    let role = if matches!(tls, Connection::Server(_)) { Role::Client } else { Role::Server };
    // A certificate that was valid in the handshake may have expired a moment later.
    let at = now.min(peer_ends);
    let (roots, own_root) = (Arc::clone(&own.roots), own.own_root.clone());
    Ok(Peer {
        identity: leaf.identity,
        expires: peer_ends.min(own.ends),
        suite: tls.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).unwrap_or("unknown"),
        group: tls.negotiated_key_exchange_group().and_then(|group| group.name().as_str()).unwrap_or("unknown"),
        proof: Proof::new(Shown { chain, role, at, roots, own_root }),
    })
}

#[cfg(test)]
pub(super) mod tests;
