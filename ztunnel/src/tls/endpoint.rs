//! One pod's end of a handshake.

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
        Credentials,
        handle::{CertHandle, Unavailable},
    },
    model::identity::SpiffeId,
    net::{buffer::BufferPool, packed::Packed},
};

/// One pod's end of its TLS connections. Cheap to clone; used by all workers.
#[derive(Clone, Debug)]
pub struct Endpoint(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cert: CertHandle,
    settings: Settings,
    /// Of the newest certificate that was used.
    configs: ArcSwapOption<Configs>,
    /// Of the newest certificate, whether it may be used or not.
    roots: ArcSwapOption<Roots>,
}

/// Who is at the other end.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Proved by its certificate.
    pub identity: SpiffeId,
    /// When the first certificate of both ends expires, their issuers' included: the connection should not be used longer.
    pub expires: SystemTime,
    /// The cipher suite, for the log.
    pub suite: &'static str,
    /// The key exchange, for the log.
    pub group: &'static str,
    /// What it proved that with, to be asked for again.
    pub proof: Proof,
}

/// There is nothing to make a handshake with.
enum Unready {
    Unavailable(Unavailable),
    Unusable(ConfigError),
}

/// A handshake that did not come to its end.
enum Failed {
    Deadline,
    Broken(Broken),
    /// Nothing that speaks TLS.
    NotTls,
    /// HTTP/2 was not agreed on.
    NoAlpn,
}

impl Endpoint {
    /// The end of the pod with this certificate.
    #[must_use]
    pub fn new(cert: CertHandle, settings: Settings) -> Self {
        Self(Arc::new(Inner { cert, settings, configs: ArcSwapOption::empty(), roots: ArcSwapOption::empty() }))
    }

    /// Whose end it is.
    #[must_use]
    pub fn identity(&self) -> &SpiffeId {
        self.0.cert.identity()
    }

    /// Waits for a certificate, as long as a handshake may take.
    ///
    /// # Errors
    /// There is none that is valid.
    pub async fn ready(&self) -> Result<(), Unavailable> {
        self.0.cert.credentials(self.0.settings.deadline).await.map(drop)
    }

    /// The handshake with someone who connected to the pod: anyone of its trust domain.
    ///
    /// # Errors
    /// Who it was not, or what went wrong. Where the peer could be told, it has been.
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

    /// The handshake with someone the pod connected to, who must be one of `expected`. With nobody expected it fails.
    ///
    /// # Errors
    /// Who it was not, or what went wrong. Where the peer could be told, it has been.
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
        // As Istio: nobody is asked for by name.
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

    /// The configurations of the newest certificate: built when it is new.
    async fn configs(&self, deadline: Instant) -> Result<Arc<Configs>, Unready> {
        let patience = deadline.saturating_duration_since(Instant::now());
        let credentials = self.0.cert.credentials(patience).await.map_err(Unready::Unavailable)?;
        self.configs_of(credentials).map_err(Unready::Unusable)
    }

    fn configs_of(&self, credentials: Arc<Credentials>) -> Result<Arc<Configs>, ConfigError> {
        if let Some(configs) = self.0.configs.load_full()
            && Arc::ptr_eq(&configs.credentials, &credentials)
        {
            return Ok(configs);
        }
        // Two workers may build it at once; either result does.
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

    /// The newest roots: they stay when the certificate that they came with has expired.
    pub(super) fn roots(&self) -> Option<Arc<Roots>> {
        self.0.cert.newest().map(|credentials| self.roots_of(&credentials))
    }

    /// The root that the newest certificate leads to.
    pub(super) fn own_root(&self) -> Option<Arc<TrustAnchor<'static>>> {
        let credentials = self.0.cert.current(SystemTime::now()).ok()?;
        self.configs_of(credentials).ok()?.own_root.clone()
    }
}

/// Tells the peer why, as long as there is time. It may be gone: nothing is to be done about that.
async fn farewell<S: AsyncRead + AsyncWrite + Unpin>(io: &mut S, bytes: &[u8], deadline: Instant) {
    let told = timeout_at(deadline, async {
        io.write_all(bytes).await?;
        io.shutdown().await
    });
    if let Ok(Ok(())) = told.await {
        see_off(io, deadline).await;
    }
}

/// How long a client that is refused may take to read why.
const LINGER: Duration = Duration::from_secs(1);

/// Reads until the peer has closed as well. To close a socket over what was not read, or that more is sent to, is a reset,
/// which takes back the alert that is on its way.
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
            // It may be gone: nothing is to be done about that.
            let told = timeout_at(deadline, poll_fn(|cx| stream.poll_farewell(cx))).await;
            // A client that we are waits for nobody who has failed.
            if let (Ok(Ok(())), Connection::Server(_)) = (told, stream.tls()) {
                see_off(stream.io_mut(), deadline).await;
            }
            Err(failed)
        }
    }
}

/// Who it is. The verifiers have read the same certificate, and found it good.
fn peer(tls: &Connection, own: &Configs) -> Result<Peer, Failed> {
    if tls.alpn_protocol() != Some(ALPN) {
        return Err(Failed::NoAlpn);
    }
    let broken = |error: rustls::Error| Failed::Broken(Broken::Tls(error));
    let chain = tls.peer_certificates().unwrap_or_default().to_vec();
    let leaf = chain.first().ok_or_else(|| broken(rustls::Error::NoCertificatesPresented))?;
    let leaf = Leaf::read(leaf).map_err(|fault| broken(fault.into()))?;
    let now = SystemTime::now();
    let peer_ends = issuers_end(&chain, now).map_or(leaf.not_after, |end| end.min(leaf.not_after));
    let role = if matches!(tls, Connection::Server(_)) { Role::Client } else { Role::Server };
    // What was good in the handshake may be over by a moment now.
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
