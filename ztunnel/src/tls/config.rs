//! The TLS configurations of a pod: its certificate, the trusted roots, and the offered parameters.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    ClientConfig, ServerConfig,
    client::Resumption,
    server::{NoServerSessionStorage, danger::ClientCertVerifier},
    version::TLS13,
};
use rustls_pki_types::TrustAnchor;
use thiserror::Error;

use super::{
    key_log::KeyLog,
    proof::{Role, Roots},
    provider::{hybrid, provider},
    verify::{PeerOf, ServerOneOf, issuers_end},
};
use crate::{identity::Credentials, model::identity::SpiffeId};

/// The only ALPN protocol.
pub(super) const ALPN: &[u8] = b"h2";

/// Settings of handshakes.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The time limit for the whole handshake, including the wait for an own certificate and the alert to a refused peer.
    pub deadline: Duration,
    /// The file for the secrets of connections; `None` unless an operator asked for it.
    pub key_log: Option<KeyLog>,
    /// Whether a connection is reset when the certificate of one of its ends expires. If not, it only gets no new streams.
    pub cut_expired: bool,
}

impl Default for Settings {
    /// Five seconds, which is several round trips around the world with lost packets; no key log, and connections outlive their
    /// certificates.
    fn default() -> Self {
        Self { deadline: Duration::from_secs(5), key_log: None, cut_expired: false }
    }
}

/// A certificate that TLS can't use.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// No root can be parsed.
    #[error("the certificate of {identity} comes without a root that can be parsed: no peer could be verified")]
    NoRoots {
        /// The identity of the certificate.
        identity: SpiffeId,
    },
    /// The certificate or its key can't be used.
    #[error("the certificate of {identity} (serial {serial}) or its key can't be used: {source}")]
    Unusable {
        /// The identity of the certificate.
        identity: SpiffeId,
        /// Its serial number.
        serial: String,
        /// The cause.
        source: Box<rustls::Error>,
    },
}

/// The configurations that are built from one certificate. They are kept while it is the newest.
pub(super) struct Configs {
    pub(super) credentials: Arc<Credentials>,
    /// For clients without the hybrid key exchange.
    pub(super) server: Arc<ServerConfig>,
    /// For clients that support the hybrid key exchange, even if they prefer another one: a client that has sent a key share of
    /// another group is asked for this one (HelloRetryRequest).
    pub(super) hybrid_server: Arc<ServerConfig>,
    pub(super) roots: Arc<Roots>,
    /// The root of the own certificate.
    pub(super) own_root: Option<Arc<TrustAnchor<'static>>>,
    /// The earliest expiry of the certificates in the own chain.
    pub(super) ends: SystemTime,
    /// It accepts no server as it is: [`Configs::client`] adds the expected identities.
    client: ClientConfig,
}

impl Configs {
    pub(super) fn build(
        credentials: Arc<Credentials>,
        roots: Arc<Roots>,
        settings: &Settings,
    ) -> Result<Self, ConfigError> {
        let identity = &credentials.identity;
        let no_roots = || ConfigError::NoRoots { identity: identity.clone() };
        let unusable = |source| {
            let (identity, serial) = (identity.clone(), credentials.serial.clone());
            ConfigError::Unusable { identity, serial, source: Box::new(source) }
        };
        let store = roots.store();
        if store.is_empty() {
            return Err(no_roots());
        }
        let peers = PeerOf::new(store, identity.trust_domain.clone()).map_err(|_no_anchors| no_roots())?;
        let peers: Arc<PeerOf> = Arc::new(peers);
        let server = |provider| -> Result<ServerConfig, rustls::Error> {
            let mut server = ServerConfig::builder_with_provider(provider)
                .with_protocol_versions(&[&TLS13])?
                .with_client_cert_verifier(Arc::clone(&peers) as Arc<dyn ClientCertVerifier>)
                .with_single_cert(credentials.chain.clone(), credentials.key.clone_key())?;
            server.alpn_protocols = vec![ALPN.to_vec()];
            // A resumed session would not be verified with the current certificates.
            server.send_tls13_tickets = 0;
            server.session_storage = Arc::new(NoServerSessionStorage {});
            if let Some(key_log) = &settings.key_log {
                server.key_log = Arc::new(key_log.clone());
            }
            Ok(server)
        };
        let hybrid_server = Arc::new(server(hybrid()).map_err(unusable)?);
        let server = Arc::new(server(provider()).map_err(unusable)?);
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ServerOneOf::new(Arc::clone(store), Arc::from([]))))
            .with_client_auth_cert(credentials.chain.clone(), credentials.key.clone_key())
            .map_err(unusable)?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.enable_sni = false;
        client.resumption = Resumption::disabled();
        if let Some(key_log) = &settings.key_log {
            client.key_log = Arc::new(key_log.clone());
        }
        let now = SystemTime::now();
        let own_root = roots.root_of(&credentials.chain, Role::Client, now).ok().map(Arc::new);
        let ends =
            issuers_end(&credentials.chain, now).map_or(credentials.not_after, |end| end.min(credentials.not_after));
        Ok(Self { server, hybrid_server, roots, own_root, ends, client, credentials })
    }

    /// The configuration of one connection: it costs a few reference counts and the verifier.
    pub(super) fn client(&self, expected: &[SpiffeId]) -> Arc<ClientConfig> {
        let mut config = self.client.clone();
        config
            .dangerous()
            .set_certificate_verifier(Arc::new(ServerOneOf::new(Arc::clone(self.roots.store()), expected.into())));
        Arc::new(config)
    }
}

impl fmt::Debug for Configs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Configs").field("credentials", &self.credentials).finish_non_exhaustive()
    }
}
