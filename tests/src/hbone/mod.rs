//! Peers at a pod's HBONE port that are not a daemon: with any certificate or none, and with valid HTTP/2, invalid
//! HTTP/2 or none.
//!
//! [`Caller`] has the certificate and the protocols that a peer presents. It can make a TLS connection only to see how
//! it ends ([`Caller::ending`]), an HBONE connection with valid HTTP/2 ([`peer::HbonePeer`]), or a connection whose
//! frames the test writes itself ([`raw::RawPeer`]). [`fake::FakeServer`] is the other side: a server at the HBONE port
//! with a wrong identity.

use std::io::{self, ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{AlertDescription, ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::ca::Certificate;
use crate::topology::Pod;

pub mod fake;
pub mod peer;
pub mod raw;

/// The certificate and the protocols that a peer presents.
#[derive(Debug, Clone)]
pub struct Caller {
    config: Arc<ClientConfig>,
}

/// How a connection ended, as the peer saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// With a TLS alert.
    Alert(AlertDescription),
    /// It did not end: data came.
    Data(Vec<u8>),
    /// Gracefully, or at least with a FIN.
    Closed,
    /// With a reset.
    Reset,
    /// It did not end within the deadline, and nothing came.
    Silent,
    /// In another way.
    Other(String),
}

impl Caller {
    /// A peer without a certificate.
    ///
    /// # Errors
    /// When rustls refuses its own defaults.
    pub fn nobody() -> Result<Self> {
        let mut config = Self::builder()?.with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { config: Arc::new(config) })
    }

    /// A peer with a certificate of any issuer.
    ///
    /// # Errors
    /// When the key does not fit.
    pub fn with(certificate: &Certificate) -> Result<Self> {
        let (chain, key) = (certificate.chain.clone(), certificate.key().into());
        let mut config = Self::builder()?.with_client_auth_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { config: Arc::new(config) })
    }

    /// Offers these protocols instead of `h2`; none at all when empty.
    #[must_use]
    pub fn alpn(mut self, protocols: &[&str]) -> Self {
        Arc::make_mut(&mut self.config).alpn_protocols =
            protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        self
    }

    /// Connects from a pod, makes the handshake, sends nothing, and waits for an answer: a server that accepts the peer
    /// sends its HTTP/2 settings, a server that refuses it an alert.
    ///
    /// # Errors
    /// When not even TCP connects.
    pub fn ending(&self, pod: &Pod, target: SocketAddr) -> Result<Ending> {
        self.ending_of(pod.connect(target)?, target)
    }

    /// The same over an existing connection.
    ///
    /// # Errors
    /// When rustls refuses the configuration.
    pub fn ending_of(&self, tcp: TcpStream, target: SocketAddr) -> Result<Ending> {
        let mut stream = StreamOwned::new(self.session(target)?, tcp);
        let mut bytes = [0; 1024];
        Ok(match stream.read(&mut bytes) {
            Ok(0) => Ending::Closed,
            Ok(length) => Ending::Data(bytes.get(..length).unwrap_or_default().to_vec()),
            Err(error) => Ending::of(&error),
        })
    }

    fn session(&self, target: SocketAddr) -> Result<ClientConnection> {
        Ok(ClientConnection::new(Arc::clone(&self.config), ServerName::from(target.ip()))?)
    }

    /// A TLS connection from a pod. It fails when the server ends it during the handshake.
    fn secured(&self, pod: &Pod, target: SocketAddr) -> Result<StreamOwned<ClientConnection, TcpStream>> {
        let mut stream = StreamOwned::new(self.session(target)?, pod.connect(target)?);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).context("the TLS handshake")?;
        }
        Ok(stream)
    }

    fn builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = Arc::new(AnyServer(Arc::clone(&provider)));
        let builder =
            ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13])?;
        Ok(builder.dangerous().with_custom_certificate_verifier(verifier))
    }
}

impl Ending {
    /// The meaning of an error of a TLS stream.
    #[must_use]
    pub fn of(error: &io::Error) -> Self {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(rustls::Error::AlertReceived(alert)) = tls {
            return Self::Alert(*alert);
        }
        match error.kind() {
            ErrorKind::UnexpectedEof => Self::Closed,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Self::Reset,
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Self::Silent,
            _ => Self::Other(error.to_string()),
        }
    }

    /// Whether the connection ended, in any way.
    #[must_use]
    pub fn is_end(&self) -> bool {
        !matches!(self, Self::Data(_) | Self::Silent)
    }
}

/// Writes bytes to a port without TLS, and returns how the connection ends.
///
/// # Errors
/// When not even TCP connects.
pub fn plain_ending(pod: &Pod, target: SocketAddr, bytes: &[u8], patience: Duration) -> Result<Ending> {
    let mut stream = pod.connect(target)?;
    stream.set_read_timeout(Some(patience))?;
    if let Err(error) = io::Write::write_all(&mut stream, bytes) {
        return Ok(Ending::of(&error));
    }
    let mut answer = Vec::new();
    Ok(match stream.read_to_end(&mut answer) {
        // A record of content type 21 (alert) contains level and description.
        Ok(_) if answer.first() == Some(&0x15) && answer.len() == 7 => {
            Ending::Alert(AlertDescription::from(answer.last().copied().unwrap_or_default()))
        }
        Ok(0) => Ending::Closed,
        Ok(_) => Ending::Data(answer),
        Err(error) => Ending::of(&error),
    })
}

/// Accepts any server: as a hostile peer does, and for tests that examine the certificate themselves.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
