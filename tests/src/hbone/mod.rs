//! Peers at a pod's tunnel port that are not a daemon: with any certificate, any HTTP/2, or none of either.
//!
//! [`Caller`] says what a peer shows of itself. It makes a TLS connection only to see how it ends
//! ([`Caller::ending`]), a tunnel connection of proper HTTP/2 ([`peer::HbonePeer`]), or one whose frames the test writes
//! by hand ([`raw::RawPeer`]). [`fake::FakeServer`] is the other side: a tunnel port that is not who it should be.

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

/// What a peer shows of itself.
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
    /// In good order, or at least with a FIN.
    Closed,
    /// With a reset.
    Reset,
    /// It did not end within the deadline, and nothing came.
    Silent,
    /// Otherwise.
    Other(String),
}

impl Caller {
    /// A peer without a certificate.
    ///
    /// # Errors
    /// When rustls does not like its own defaults.
    pub fn nobody() -> Result<Self> {
        let mut config = Self::builder()?.with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { config: Arc::new(config) })
    }

    /// A peer with a certificate, whoever issued it.
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

    /// Connects from a pod, shakes hands, says nothing, and waits for what comes: a server that takes the peer sends its
    /// HTTP/2 settings, one that does not an alert.
    ///
    /// # Errors
    /// When not even TCP connects.
    pub fn ending(&self, pod: &Pod, target: SocketAddr) -> Result<Ending> {
        self.ending_of(pod.connect(target)?, target)
    }

    /// The same over a connection that is there already.
    ///
    /// # Errors
    /// When rustls does not like the configuration.
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

    /// A TLS connection from a pod; `None` when the server ends it already in the handshake.
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
    /// What an error of a TLS stream means.
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

    /// Whether the connection was ended, in whatever way.
    #[must_use]
    pub fn is_end(&self) -> bool {
        !matches!(self, Self::Data(_) | Self::Silent)
    }
}

/// Writes bytes to a port without any TLS, and tells how it ends.
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
        // A record of content type 21: level, description.
        Ok(_) if answer.first() == Some(&0x15) && answer.len() == 7 => {
            Ending::Alert(AlertDescription::from(answer.last().copied().unwrap_or_default()))
        }
        Ok(0) => Ending::Closed,
        Ok(_) => Ending::Data(answer),
        Err(error) => Ending::of(&error),
    })
}

/// Takes any server: what a hostile peer does, and what a test wants that looks at the certificate itself.
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
