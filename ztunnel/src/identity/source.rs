//! The sources of certificates.

use std::{future::Future, pin::Pin, time::Duration};

use thiserror::Error;
use tokio::sync::watch;

use super::{Credentials, files::FilesError, local_ca::CaError, request::RequestError};
use crate::model::identity::SpiffeId;

/// The future of a certificate.
pub type Issuing<'a> = Pin<Box<dyn Future<Output = Result<Credentials, SourceError>> + Send + 'a>>;

/// A source of certificates. It does not keep them: that is the task of the [cache](super::cache).
pub trait CertSource: Send + Sync {
    /// A certificate for this identity, with a new key.
    fn issue<'a>(&'a self, identity: &'a SpiffeId) -> Issuing<'a>;

    /// Increases when every certificate has to be fetched anew, because the CA, the roots or the files have changed.
    fn generation(&self) -> watch::Receiver<u64>;
}

/// Why there is no certificate.
#[derive(Debug, Error)]
pub enum SourceError {
    /// The embedded CA gives no certificate.
    #[error("the embedded CA issued no certificate")]
    Ca(#[from] CaError),
    /// The ready certificate can't be used.
    #[error("there is no usable certificate among the files")]
    Files(#[from] FilesError),
    /// A certificate can't be requested, or the answer can't be used.
    #[error("the certificate authority at {authority} issued no usable certificate")]
    Request {
        /// The authority.
        authority: String,
        /// The fault.
        source: RequestError,
    },
    /// A remote authority can't be reached, or refuses.
    #[error("the certificate authority at {authority} issued no certificate: {why}")]
    Remote {
        /// The authority.
        authority: String,
        /// Its answer, or the error of the transport.
        why: String,
    },
    /// The source did not answer in time.
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The source gave another certificate than requested, or an expired one.
    #[error("requested {asked}, but received a certificate for {given}, valid until {until}")]
    Unusable {
        /// The requested identity.
        asked: SpiffeId,
        /// The identity in the certificate.
        given: SpiffeId,
        /// The expiry of the certificate.
        until: String,
    },
    /// The thread that worked on the request is gone.
    #[error("the work on it was interrupted; this is a bug if the daemon was not stopping")]
    Interrupted,
}
