//! The serving certificate. The control plane's own CA signs it, and it is renewed long before it expires.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use thiserror::Error;
use tokio::{
    net::TcpStream,
    sync::watch,
    time::{sleep, timeout},
};
use tracing::{info, warn};

use crate::{
    identity::{
        certificate::rfc3339,
        local_ca::{CaError, LocalCa, authority::ServerCertificate},
        source::CertSource as _,
    },
    model::cause::causes,
    tls::{NamedError, NamedServer, NamedStream},
};

/// The pause after a failure.
const RETRY: Duration = Duration::from_secs(30);

/// The shortest pause between two renewals.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);

/// Why there is no serving certificate.
#[derive(Debug, Error)]
pub enum ServingError {
    /// The CA does not sign one.
    #[error("the CA gives no serving certificate for {names}")]
    Ca {
        /// The names that were asked for.
        names: String,
        /// Why.
        source: Box<CaError>,
    },
    /// TLS cannot use the certificate.
    #[error("the serving certificate cannot be used")]
    Tls(#[from] NamedError),
}

/// The server's side of TLS. Its certificate is replaced from time to time. Clones share their state.
#[derive(Clone, Debug)]
pub struct Serving {
    server: Arc<ArcSwap<NamedServer>>,
    deadline: Duration,
}

/// Why a handshake failed.
#[derive(Debug, Error)]
pub enum HandshakeError {
    /// The client was too slow.
    #[error("the TLS handshake was not complete within {} s", .0.as_secs())]
    Deadline(Duration),
    /// The handshake failed for another reason.
    #[error(transparent)]
    Failed(#[from] NamedError),
}

impl Serving {
    /// The server's side of a handshake.
    ///
    /// # Errors
    /// The client does not complete it in time, or does not speak HTTP/2 over TLS 1.3.
    pub async fn accept(&self, io: TcpStream) -> Result<NamedStream<TcpStream>, HandshakeError> {
        let server = self.server.load_full();
        let late = |_| HandshakeError::Deadline(self.deadline);
        Ok(timeout(self.deadline, server.accept(io)).await.map_err(late)??)
    }
}

/// Keeps a server's certificate valid.
#[derive(Debug)]
pub struct Keeper {
    ca: Arc<LocalCa>,
    names: Vec<String>,
    serving: Serving,
    /// The expiry of the certificate in use.
    ends: watch::Sender<SystemTime>,
    renew_at: SystemTime,
}

impl Keeper {
    /// A server with a certificate for these names. `deadline` is the time that a handshake may take.
    ///
    /// # Errors
    /// The CA does not sign a certificate, or TLS cannot use it.
    pub fn start(
        ca: Arc<LocalCa>,
        names: Vec<String>,
        deadline: Duration,
    ) -> Result<(Self, Serving, watch::Receiver<SystemTime>), ServingError> {
        let issued = issue(&ca, &names)?;
        let (begins, end) = (issued.certified.not_before, issued.certified.not_after);
        let server = NamedServer::new(issued.certified.chain, issued.key)?;
        let serving = Serving { server: Arc::new(ArcSwap::from_pointee(server)), deadline };
        let (ends, watch) = watch::channel(end);
        let keeper = Self { ca, names, serving: serving.clone(), ends, renew_at: middle(begins, end) };
        Ok((keeper, serving, watch))
    }

    /// Renews the certificate when half of its validity is over, and when the CA changes.
    pub async fn run(mut self) {
        let mut generation = self.ca.generation();
        loop {
            // A CA that is about to expire signs certificates of ever shorter validity.
            let wait = self.renew_at.duration_since(SystemTime::now()).unwrap_or_default().max(SHORTEST_WAIT);
            tokio::select! {
                () = sleep(wait) => {}
                changed = generation.changed() => if changed.is_err() { return },
            }
            if let Err(error) = self.renew() {
                let (error, ends) = (causes(&error), rfc3339(*self.ends.borrow()));
                warn!(
                    error,
                    ends, "the serving certificate cannot be renewed; the last one stays in use until it ends"
                );
                self.renew_at = SystemTime::now() + RETRY;
            }
        }
    }

    fn renew(&mut self) -> Result<(), ServingError> {
        let issued = issue(&self.ca, &self.names)?;
        let (begins, end) = (issued.certified.not_before, issued.certified.not_after);
        let serial = issued.certified.serial;
        self.serving.server.store(Arc::new(NamedServer::new(issued.certified.chain, issued.key)?));
        self.ends.send_replace(end);
        self.renew_at = middle(begins, end);
        info!(serial, not_after = rfc3339(end), "the serving certificate was renewed");
        Ok(())
    }
}

fn issue(ca: &LocalCa, names: &[String]) -> Result<ServerCertificate, ServingError> {
    ca.server_certificate(names)
        .map_err(|source| ServingError::Ca { names: names.join(", "), source: Box::new(source) })
}

fn middle(begins: SystemTime, ends: SystemTime) -> SystemTime {
    begins + ends.duration_since(begins).unwrap_or_default() / 2
}
