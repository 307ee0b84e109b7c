//! TLS between a node and its control plane. The client knows the server by a DNS name or an address. The client has no
//! certificate, because it authenticates in its requests. Version 1.3 only, ALPN `h2`.

use std::{io, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    server::NoServerSessionStorage,
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::{config::ALPN, provider::provider};

/// A connection of a [`NamedServer`].
pub type NamedStream<S> = server::TlsStream<S>;

/// Why there is no TLS connection to a named server.
#[derive(Debug, Error)]
pub enum NamedError {
    /// The text is not a name.
    #[error("{name:?} is neither a DNS name nor an IP address")]
    Name {
        /// The text.
        name: String,
    },
    /// There is no root.
    #[error("there is no certificate that can be used as a root")]
    NoRoots,
    /// TLS can't use the key or the certificate.
    #[error("the certificate or its key can't be used")]
    Unusable(#[source] Box<rustls::Error>),
    /// The server's certificate was not issued by one of the roots.
    #[error("the server's certificate was not issued by any of the roots")]
    UnknownIssuer,
    /// The server's certificate has other names.
    #[error("the server's certificate is not valid for {}", names.join(" or "))]
    OtherName {
        /// The accepted names.
        names: Vec<String>,
    },
    /// The other end does not speak HTTP/2.
    #[error("the other end does not offer HTTP/2 (ALPN h2)")]
    NoAlpn,
    /// Any other error.
    #[error("the TLS handshake failed")]
    Handshake(#[source] io::Error),
}

/// A client of one server. Cheap to clone.
#[derive(Clone)]
pub struct NamedClient {
    config: Arc<ClientConfig>,
    names: Vec<ServerName<'static>>,
}

impl NamedClient {
    /// A client that trusts `roots` (PEM), and accepts a server with any of `names`, which must not be empty.
    ///
    /// # Errors
    /// There is no root, or a text is not a name.
    pub fn new(roots: &[u8], names: &[&str]) -> Result<Self, NamedError> {
        let parse = |name: &&str| {
            ServerName::try_from((*name).to_owned()).map_err(|_| NamedError::Name { name: (*name).to_owned() })
        };
        let names = names.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(CertificateDer::pem_slice_iter(roots).filter_map(Result::ok));
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider())
            .build()
            .map_err(|_no_anchors| NamedError::NoRoots)?;
        let verifier = AnyOf { verifier, names: names.clone() };
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| NamedError::Unusable(Box::new(error)))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Self { config: Arc::new(config), names })
    }

    /// The handshake with the server.
    ///
    /// # Errors
    /// Why the handshake failed.
    pub async fn connect<S>(&self, io: S) -> Result<client::TlsStream<S>, NamedError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = self.names.first().cloned().ok_or_else(|| NamedError::Name { name: String::new() })?;
        let stream = TlsConnector::from(Arc::clone(&self.config)).connect(name, io).await;
        let stream = stream.map_err(|error| self.explain(error))?;
        match stream.get_ref().1.alpn_protocol() {
            Some(ALPN) => Ok(stream),
            _ => Err(NamedError::NoAlpn),
        }
    }

    fn explain(&self, error: io::Error) -> NamedError {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match tls {
            Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => NamedError::UnknownIssuer,
            Some(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => {
                let names = self.names.iter().map(|name| name.to_str().into_owned()).collect();
                NamedError::OtherName { names }
            }
            Some(rustls::Error::NoApplicationProtocol) => NamedError::NoAlpn,
            _ => NamedError::Handshake(error),
        }
    }
}

/// Accepts a server with any of these names.
#[derive(Debug)]
struct AnyOf {
    verifier: Arc<WebPkiServerVerifier>,
    names: Vec<ServerName<'static>>,
}

impl ServerCertVerifier for AnyOf {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _asked: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verify = |name| self.verifier.verify_server_cert(end_entity, intermediates, name, ocsp, now);
        let mut result = Err(CertificateError::NotValidForName.into());
        for name in &self.names {
            result = verify(name);
            if result.is_ok() {
                break;
            }
        }
        result
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// A server that clients know by the names in its certificate. Cheap to clone.
#[derive(Clone, Debug)]
pub struct NamedServer(Arc<ServerConfig>);

impl NamedServer {
    /// A server with this certificate, leaf first, and its key.
    ///
    /// # Errors
    /// TLS can't use them.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, NamedError> {
        let unusable = |error| NamedError::Unusable(Box::new(error));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(unusable)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // A resumed session would not use the current certificate.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self(Arc::new(config)))
    }

    /// The handshake with a client.
    ///
    /// # Errors
    /// Why the handshake failed.
    pub async fn accept<S>(&self, io: S) -> Result<server::TlsStream<S>, NamedError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let stream = TlsAcceptor::from(Arc::clone(&self.0)).accept(io).await.map_err(NamedError::Handshake)?;
        match stream.get_ref().1.alpn_protocol() {
            Some(ALPN) => Ok(stream),
            _ => Err(NamedError::NoAlpn),
        }
    }
}
