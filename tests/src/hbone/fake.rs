//! A server with any certificate at the HBONE port of a pod without a daemon: it records how its clients behave in the
//! handshake and after it.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use ebpf_common::HBONE_PORT;
use rustls::crypto::aws_lc_rs;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::Ending;
use crate::apps::server::Server;
use crate::ca::Certificate;
use crate::topology::{Family, Pod, SOCKET_DEADLINE};

/// A server at a pod's HBONE port, stopped when dropped.
#[derive(Debug)]
pub struct FakeServer {
    server: Server,
    endings: Arc<Mutex<Vec<Ending>>>,
}

impl FakeServer {
    /// Starts it on all addresses of the pod. It does not ask for client certificates.
    ///
    /// # Errors
    /// When the port is not available, or the key does not fit the certificate.
    pub fn start(pod: &Pod, certificate: &Certificate) -> Result<Self> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(certificate.chain.clone(), certificate.key().into())?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        let (config, endings) = (Arc::new(config), Arc::new(Mutex::new(Vec::new())));
        let recording = Arc::clone(&endings);
        let address = SocketAddr::new(Family::V6.any(), HBONE_PORT);
        let server = Server::start(pod, address, move |tcp, _| {
            tcp.set_read_timeout(Some(SOCKET_DEADLINE))?;
            let session = ServerConnection::new(Arc::clone(&config)).map_err(std::io::Error::other)?;
            let mut stream = StreamOwned::new(session, tcp);
            let mut bytes = [0; 1024];
            let ending = match stream.read(&mut bytes) {
                Ok(0) => Ending::Closed,
                Ok(length) => Ending::Data(bytes.get(..length).unwrap_or_default().to_vec()),
                Err(error) => Ending::of(&error),
            };
            recording.lock().unwrap_or_else(PoisonError::into_inner).push(ending);
            Ok(())
        })?;
        Ok(Self { server, endings })
    }

    /// The number of accepted connections.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.server.accepted()
    }

    /// How each connection ended, or the first bytes that came.
    #[must_use]
    pub fn endings(&self) -> Vec<Ending> {
        self.endings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
