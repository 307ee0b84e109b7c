//! Where certificates come from.

use std::{future::Future, pin::Pin, time::Duration};

use thiserror::Error;
use tokio::sync::watch;

use super::{Credentials, files::FilesError, local_ca::CaError, request::RequestError};
use crate::model::identity::SpiffeId;

/// A certificate on its way.
pub type Issuing<'a> = Pin<Box<dyn Future<Output = Result<Credentials, SourceError>> + Send + 'a>>;

/// Gives certificates. It does not remember them: that is the [cache](super::cache)'s task.
pub trait CertSource: Send + Sync {
    /// A certificate for that identity, with a key that nobody else has.
    fn issue<'a>(&'a self, identity: &'a SpiffeId) -> Issuing<'a>;

    /// Counts up when everything is to be fetched anew, because the CA, the roots or the files have changed.
    fn generation(&self) -> watch::Receiver<u64>;
}

/// Why there is no certificate.
#[derive(Debug, Error)]
pub enum SourceError {
    /// The embedded CA can't give one.
    #[error("the embedded CA gives no certificate")]
    Ca(#[from] CaError),
    /// The ready certificate can't be used.
    #[error("there is no usable certificate among the files")]
    Files(#[from] FilesError),
    /// A certificate can't be asked for, or what came can't be used.
    #[error("the certificate authority at {authority} gave no certificate that can be used")]
    Request {
        /// The authority.
        authority: String,
        /// What is wrong.
        source: RequestError,
    },
    /// An authority that is asked over the network can't be reached, or refuses.
    #[error("the certificate authority at {authority} gave no certificate: {why}")]
    Remote {
        /// The authority.
        authority: String,
        /// What it said, or what went wrong on the way.
        why: String,
    },
    /// The source is silent.
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The source answered with something else.
    #[error("asked for {asked}, but was given a certificate for {given}, valid until {until}")]
    Unusable {
        /// The identity that was asked for.
        asked: SpiffeId,
        /// The one that came.
        given: SpiffeId,
        /// When what came expires.
        until: String,
    },
    /// The thread that worked on it is gone.
    #[error("the work on it was interrupted; this is a bug if the daemon was not stopping")]
    Interrupted,
}
