//! The embedded CA: it signs the certificates of the node's workloads with the CA in a directory, and follows that directory.
//!
//! The directory has the layout of Istio's `cacerts` Secret, so that one CA can serve both meshes. When its files change and
//! their content is consistent, every certificate is issued anew. While the content is inconsistent, the last good CA stays in
//! use.
//!
//! To replace the CA without losing a connection: first add the new root to `root-cert.pem` beside the old root, and wait until
//! every node has read it (seconds; its log says so). Then replace the other three files. When the old certificates have
//! expired, remove the old root.

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

/// The settings of the embedded CA.
#[derive(Clone, Debug)]
pub struct CaSettings {
    /// Its directory.
    pub dir: PathBuf,
    /// The trust domain of the workloads whose certificates it signs.
    pub trust_domain: TrustDomain,
    /// The validity of a certificate, unless the CA's own certificate expires before.
    pub ttl: Duration,
}

/// The embedded CA.
#[derive(Debug)]
pub struct LocalCa {
    ca: Arc<Ca>,
    /// Follows the directory until this value is dropped.
    _watch: TaskSet,
}

#[derive(Debug)]
struct Ca {
    settings: CaSettings,
    authority: ArcSwap<Authority>,
    generation: watch::Sender<u64>,
}

impl LocalCa {
    /// Reads the CA of the directory and follows it; to be called within a runtime. If there is no CA, a new one is made.
    ///
    /// # Errors
    /// If the CA there can't be used, or no new CA can be made.
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

    /// Takes a CA whose files are not in a directory. The settings' directory is only a name for messages. The caller follows
    /// the files, and calls [`Self::replace`] with their new content.
    ///
    /// # Errors
    /// If the CA can't be used.
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

    /// Takes over the current content of the files, if it has changed.
    ///
    /// # Errors
    /// If the new content can't be used. The last good CA stays in force then.
    pub fn replace(&self, content: &Content) -> Result<(), CaError> {
        self.ca.replace(content)
    }

    /// Signs the key of a remote request, for an identity that the sender is entitled to. `ttl` applies if it is shorter than
    /// the CA's own setting.
    ///
    /// # Errors
    /// The CA has expired, or the request contains another name.
    pub async fn certify(
        &self,
        request: SigningRequest,
        identity: SpiffeId,
        ttl: Duration,
    ) -> Result<Certified, SourceError> {
        let ca = Arc::clone(&self.ca);
        // An RSA signature takes milliseconds.
        let work = spawn_blocking(move || {
            let ttl = ttl.min(ca.settings.ttl);
            ca.authority.load().certify(&request, &identity, ttl, SystemTime::now())
        });
        Ok(work.await.map_err(|_| SourceError::Interrupted)??)
    }

    /// A certificate for a server with these DNS names or addresses.
    ///
    /// # Errors
    /// The CA has expired, or a name is not a valid DNS name.
    pub fn server_certificate(&self, names: &[String]) -> Result<ServerCertificate, CaError> {
        self.ca.authority.load().issue_server(names, self.ca.settings.ttl, SystemTime::now())
    }

    /// The earliest expiry of all certificates on which its signatures depend.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.ca.authority.load().not_after()
    }

    /// The roots of its certificates.
    #[must_use]
    pub fn roots(&self) -> Vec<Certificate> {
        self.ca.authority.load().roots.clone()
    }
}

impl CertSource for LocalCa {
    fn issue<'a>(&'a self, identity: &'a SpiffeId) -> Issuing<'a> {
        let (ca, identity) = (Arc::clone(&self.ca), identity.clone());
        // An RSA signature takes milliseconds.
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

    /// The current content, or why it can't be read.
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
