//! The embedded CA: signs the node's workloads with the CA of a directory, and follows that directory.
//!
//! The directory is laid out as Istio's `cacerts` secret, so that one CA can serve both meshes. When its files change, and
//! what they hold then is consistent, every certificate is issued anew; while it is not, the last good CA stays in use.
//! To replace the CA without losing a connection: first put the new root beside the old one into `root-cert.pem`, and wait
//! until every node has read it (seconds; its log says so), then replace the other three files, and when the old certificates
//! are gone take the old root away.

pub mod authority;
pub mod create;
mod der;
pub mod layout;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use thiserror::Error;
use tokio::{sync::watch, task::spawn_blocking};
use tracing::{Span, info};

use self::{
    authority::Authority,
    create::NewCa,
    layout::{Content, Digest},
};
use super::{
    Credentials,
    certificate::{FileError, Flaw, rfc3339},
    poll::{self, Polled},
    source::{CertSource, Issuing, SourceError},
};
use crate::{
    lifecycle::tasks::{TaskCount, TaskSet},
    model::{
        cause::causes,
        identity::{SpiffeId, TrustDomain},
    },
};

/// Why there is no CA, or none that can be used.
#[derive(Debug, Error)]
pub enum CaError {
    /// Not one of the files is there.
    #[error("there is no CA in {dir}: `ztunnel ca init --ca-dir {dir}` makes one", dir = dir.display())]
    Absent {
        /// The directory.
        dir: PathBuf,
    },
    /// A new one would replace it.
    #[error("there is a CA in {} already: name another directory, or move that CA away", dir.display())]
    Exists {
        /// The directory.
        dir: PathBuf,
    },
    /// Some of the files are missing.
    #[error(
        "the CA in {} is incomplete, it lacks {}: put the missing files there, or empty the directory to have a new CA made",
        dir.display(),
        missing.join(", ")
    )]
    Incomplete {
        /// The directory.
        dir: PathBuf,
        /// What is not there.
        missing: Vec<&'static str>,
    },
    /// A CA is only made in an empty directory.
    #[error("{} holds no CA, but {found}: no CA is made in a directory that is used for something else", dir.display())]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// One of the things in it.
        found: String,
    },
    /// A file that can't be read or makes no sense.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file that does not fit the others, or not its purpose.
    #[error("{} can't be used", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        flaw: Flaw,
    },
    /// The directory can't be worked with.
    #[error("cannot {what} {}", dir.display())]
    Write {
        /// The directory.
        dir: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The crypto library fails.
    #[error("cannot make a key or certificate")]
    Make(#[source] rcgen::Error),
}

/// How the embedded CA works.
#[derive(Clone, Debug)]
pub struct CaSettings {
    /// Where it is.
    pub dir: PathBuf,
    /// Whose workloads it signs.
    pub trust_domain: TrustDomain,
    /// How long a certificate is valid, unless the CA's own ends before.
    pub ttl: Duration,
}

/// The embedded CA.
#[derive(Debug)]
pub struct LocalCa {
    ca: Arc<Ca>,
    /// Follows the directory for as long as this is there.
    _watch: TaskSet,
}

#[derive(Debug)]
struct Ca {
    settings: CaSettings,
    authority: ArcSwap<Authority>,
    generation: watch::Sender<u64>,
}

impl LocalCa {
    /// Reads the CA of the directory, which is made if there is none, and follows it from then on; within a runtime.
    ///
    /// # Errors
    /// When there is a CA that can't be used, or none can be made.
    pub fn open(settings: CaSettings, tasks: TaskCount) -> Result<Self, CaError> {
        let new = NewCa { trust_domain: settings.trust_domain.clone(), ttl: NewCa::TTL };
        let made = create::ensure(&settings.dir, &new)?;
        let authority = Authority::read(&settings.dir, &settings.trust_domain, SystemTime::now())?;
        info!(
            dir = %settings.dir.display(),
            made,
            subject = authority.certificate.subject,
            serial = authority.certificate.serial,
            not_after = rfc3339(authority.not_after()),
            roots = authority.roots.len(),
            "certificates come from the embedded CA"
        );
        let ca =
            Arc::new(Ca { settings, authority: ArcSwap::from_pointee(authority), generation: watch::Sender::new(1) });
        let mut watch = TaskSet::new(tasks);
        watch.spawn(Span::none(), poll::poll(Arc::clone(&ca)));
        Ok(Self { ca, _watch: watch })
    }
}

impl CertSource for LocalCa {
    fn issue<'a>(&'a self, identity: &'a SpiffeId) -> Issuing<'a> {
        let (ca, identity) = (Arc::clone(&self.ca), identity.clone());
        // An RSA CA signs for milliseconds.
        let work = spawn_blocking(move || ca.issue(&identity));
        Box::pin(async move { Ok(work.await.map_err(|_| SourceError::Interrupted)??) })
    }

    fn generation(&self) -> watch::Receiver<u64> {
        self.ca.generation.subscribe()
    }
}

impl Ca {
    fn issue(&self, identity: &SpiffeId) -> Result<Credentials, CaError> {
        self.authority.load().issue(identity, self.settings.ttl, SystemTime::now())
    }

    /// What is there now: the content, or why it can't be read.
    fn look(&self) -> Result<Content, String> {
        Content::read(&self.settings.dir).map_err(|error| causes(&error))
    }
}

impl Polled for Ca {
    type State = Result<Digest, String>;

    fn news(&self) -> Option<Self::State> {
        let state = self.look().map(|content| content.digest());
        (state.as_ref() != Ok(&self.authority.load().digest)).then_some(state)
    }

    fn take_up(&self) -> Result<(), String> {
        let content = self.look()?;
        let settings = &self.settings;
        let authority = Authority::from_content(&settings.dir, &content, &settings.trust_domain, SystemTime::now())
            .map_err(|error| causes(&error))?;
        if authority.digest == self.authority.load().digest {
            return Ok(());
        }
        info!(
            dir = %settings.dir.display(),
            subject = authority.certificate.subject,
            serial = authority.certificate.serial,
            not_after = rfc3339(authority.not_after()),
            roots = authority.roots.len(),
            "the CA has changed; every certificate is issued anew"
        );
        self.authority.store(Arc::new(authority));
        self.generation.send_modify(|generation| *generation += 1);
        Ok(())
    }

    fn name(&self) -> String {
        format!("CA in {}", self.settings.dir.display())
    }
}

#[cfg(test)]
mod tests;
