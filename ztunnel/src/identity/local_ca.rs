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
mod error;
pub mod layout;
pub mod request;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use tokio::{sync::watch, task::spawn_blocking};
use tracing::{Span, info};

pub use self::error::CaError;
use self::{
    authority::{Authority, Certified, ServerCertificate},
    create::NewCa,
    layout::{Content, Digest},
    request::SigningRequest,
};
use super::{
    Credentials,
    certificate::{Certificate, rfc3339},
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

    /// Takes a CA whose files are elsewhere. The settings' directory is only how they are called in messages; somebody else
    /// follows them, and [replaces](Self::replace) what they hold.
    ///
    /// # Errors
    /// When it can't be used.
    pub fn of_content(settings: CaSettings, content: &Content, made: bool) -> Result<Self, CaError> {
        let authority = Authority::from_content(&settings.dir, content, &settings.trust_domain, SystemTime::now())?;
        info!(
            place = %settings.dir.display(),
            made,
            subject = authority.certificate.subject,
            serial = authority.certificate.serial,
            not_after = rfc3339(authority.not_after()),
            roots = authority.roots.len(),
            "certificates come from the embedded CA"
        );
        let ca =
            Arc::new(Ca { settings, authority: ArcSwap::from_pointee(authority), generation: watch::Sender::new(1) });
        Ok(Self { ca, _watch: TaskSet::default() })
    }

    /// Takes over what the files hold now, if that is something else.
    ///
    /// # Errors
    /// When it can't be used; then the last good CA stays in force.
    pub fn replace(&self, content: &Content) -> Result<(), CaError> {
        self.ca.replace(content)
    }

    /// Signs the key of somebody else's request, for an identity that its sender may have. `ttl` counts if it is shorter than
    /// the CA's own.
    ///
    /// # Errors
    /// The CA has expired, or the request asks for another name.
    pub async fn certify(
        &self,
        request: SigningRequest,
        identity: SpiffeId,
        ttl: Duration,
    ) -> Result<Certified, SourceError> {
        let ca = Arc::clone(&self.ca);
        // An RSA CA signs for milliseconds.
        let work = spawn_blocking(move || {
            let ttl = ttl.min(ca.settings.ttl);
            ca.authority.load().certify(&request, &identity, ttl, SystemTime::now())
        });
        Ok(work.await.map_err(|_| SourceError::Interrupted)??)
    }

    /// A certificate for a server with these DNS names or addresses.
    ///
    /// # Errors
    /// The CA has expired, or a name is no DNS name.
    pub fn server_certificate(&self, names: &[String]) -> Result<ServerCertificate, CaError> {
        self.ca.authority.load().issue_server(names, self.ca.settings.ttl, SystemTime::now())
    }

    /// The earliest end of all that its certificates depend on.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.ca.authority.load().not_after()
    }

    /// The roots that its certificates lead to.
    #[must_use]
    pub fn roots(&self) -> Vec<Certificate> {
        self.ca.authority.load().roots.clone()
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

    fn replace(&self, content: &Content) -> Result<(), CaError> {
        let settings = &self.settings;
        let authority = Authority::from_content(&settings.dir, content, &settings.trust_domain, SystemTime::now())?;
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
        self.replace(&self.look()?).map_err(|error| causes(&error))
    }

    fn name(&self) -> String {
        format!("CA in {}", self.settings.dir.display())
    }
}

#[cfg(test)]
mod tests;
