//! Ready certificates from a directory, for operators who make certificates in another way.
//!
//! ```text
//! DIR/root-cert.pem                      the trusted roots, for all identities without such a file of their own
//! DIR/NAMESPACE/SERVICE-ACCOUNT/         one identity
//!     cert-chain.pem, key.pem            leaf first, then intermediates
//!     root-cert.pem                      optional
//! DIR/cert-chain.pem, DIR/key.pem        the one identity that the certificate names, if it has no directory
//! ```
//!
//! `ztunnel ca issue --out` writes this layout. Files may be links, as in a mounted Secret.

mod error;
mod layout;

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use rcgen::KeyPair;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::{
    sync::{Semaphore, watch},
    task::spawn_blocking,
};
use tracing::{Span, info};

pub use self::{
    error::FilesError,
    layout::{CHAIN, KEY, ROOTS},
};
use super::{
    Credentials,
    certificate::{self, Certificate, FileError, Flaw},
    disk::{self, Stamp},
    poll::{self, Polled},
    source::{CertSource, Issuing, SourceError},
};
use crate::{
    lifecycle::tasks::{TaskCount, TaskSet},
    model::identity::SpiffeId,
};

/// The maximum number of identities whose files are read at the same time.
const READERS: usize = 8;

/// Ready certificates.
#[derive(Debug)]
pub struct CertFiles {
    files: Arc<Files>,
    /// A file system that hangs blocks only this many threads.
    readers: Arc<Semaphore>,
    /// Follows the files until this value is dropped.
    _watch: TaskSet,
}

#[derive(Debug)]
struct Files {
    dir: PathBuf,
    /// The files that were requested, with their stamps from the last reading. It grows with the number of identities that this
    /// node ever had, by some hundred bytes each.
    known: Mutex<Stamps>,
    generation: watch::Sender<u64>,
}

type Stamps = BTreeMap<PathBuf, Option<Stamp>>;

impl CertFiles {
    /// Follows the files of a directory; to be called within a runtime. The files may be created later.
    #[must_use]
    pub fn open(dir: PathBuf, tasks: TaskCount) -> Self {
        info!(dir = %dir.display(), "certificates come from files");
        let files = Arc::new(Files { dir, known: Mutex::default(), generation: watch::Sender::new(1) });
        let mut watch = TaskSet::new(tasks);
        watch.spawn(Span::none(), poll::poll(Arc::clone(&files)));
        Self { files, readers: Arc::new(Semaphore::new(READERS)), _watch: watch }
    }
}

impl CertSource for CertFiles {
    fn issue<'a>(&'a self, identity: &'a SpiffeId) -> Issuing<'a> {
        let (files, identity) = (Arc::clone(&self.files), identity.clone());
        let readers = Arc::clone(&self.readers);
        Box::pin(async move {
            let reader = readers.acquire_owned().await.map_err(|_| SourceError::Interrupted)?;
            let work = move || {
                let _reader = reader;
                files.find(&identity, SystemTime::now())
            };
            Ok(spawn_blocking(work).await.map_err(|_| SourceError::Interrupted)??)
        })
    }

    fn generation(&self) -> watch::Receiver<u64> {
        self.files.generation.subscribe()
    }
}

impl Files {
    fn find(&self, identity: &SpiffeId, now: SystemTime) -> Result<Credentials, FilesError> {
        let place = self.place(identity)?;
        let (own, all) = (place.join(CHAIN), self.dir.join(CHAIN));
        self.remember([&own, &all, &place.join(ROOTS), &self.dir.join(ROOTS)]);
        for (place, chain) in [(&place, own), (&self.dir, all)] {
            match certificate::read_certificates(&chain) {
                Err(FileError::Read(error)) if error.is_missing() => {}
                Err(error) => return Err(error.into()),
                Ok(found) => return self.credentials(identity, place, chain, found, now),
            }
        }
        Err(FilesError::Absent { identity: identity.clone(), place, dir: self.dir.clone() })
    }

    fn credentials(
        &self,
        identity: &SpiffeId,
        place: &Path,
        path: PathBuf,
        chain: Vec<Certificate>,
        now: SystemTime,
    ) -> Result<Credentials, FilesError> {
        let key_path = place.join(KEY);
        self.remember([&key_path]);
        let roots_path =
            if disk::stamp(&place.join(ROOTS)).is_some() { place.join(ROOTS) } else { self.dir.join(ROOTS) };
        let key = certificate::parse_key(&key_path, &disk::read(&key_path).map_err(FileError::from)?)?;
        let ders = |certificates: &[Certificate]| certificates.iter().map(|one| one.der.clone()).collect::<Vec<_>>();
        let roots = ders(&certificate::read_certificates(&roots_path)?);
        let ders: Vec<_> = ders(&chain).into_iter().filter(|der| !roots.contains(der)).collect();
        // An expired certificate is ignored: the chain is verified without it. Each of the others limits the validity of the
        // chain, as it would with every peer.
        let not_after = chain.iter().map(|one| one.not_after).filter(|end| *end > now).min();
        let leaf = chain.into_iter().next().ok_or_else(|| FileError::NoCertificate { path: path.clone() })?;
        check_leaf(&leaf, identity, now).map_err(|flaw| FilesError::Unfit { path: path.clone(), flaw })?;
        check_key(&key, &leaf, &path).map_err(|flaw| FilesError::Unfit { path: key_path, flaw })?;
        check_chain(&ders, &roots, roots_path, now).map_err(|flaw| FilesError::Unfit { path, flaw })?;
        Ok(Credentials {
            identity: identity.clone(),
            chain: ders,
            key,
            roots: roots.into(),
            serial: leaf.serial,
            not_before: leaf.not_before,
            not_after: not_after.unwrap_or(leaf.not_after),
        })
    }

    /// The directory of an identity's files.
    fn place(&self, identity: &SpiffeId) -> Result<PathBuf, FilesError> {
        let mut place = self.dir.clone();
        for name in [&*identity.namespace, &*identity.service_account] {
            let mut parts = Path::new(name).components();
            match (parts.next(), parts.next()) {
                (Some(Component::Normal(part)), None) if part == name => place.push(name),
                _ => return Err(FilesError::NotAPath { identity: identity.clone() }),
            }
        }
        Ok(place)
    }

    /// Records the stamps of files before they are read, so that a change while they are read counts as a change. The old stamp
    /// of a known file stays until the change is taken up: others may have read the file before it changed.
    fn remember<'a>(&self, paths: impl IntoIterator<Item = &'a PathBuf>) {
        let stamps: Vec<_> = paths.into_iter().map(|path| (path, disk::stamp(path))).collect();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for (path, stamp) in stamps {
            known.entry(path.clone()).or_insert(stamp);
        }
    }
}

fn check_leaf(leaf: &Certificate, identity: &SpiffeId, now: SystemTime) -> Result<(), Flaw> {
    if leaf.identity().as_ref() != Ok(identity) {
        return Err(Flaw::OtherIdentity { expected: identity.clone(), found: leaf.uris.clone() });
    }
    leaf.check_time(now)
}

fn check_key(key: &PrivateKeyDer<'static>, leaf: &Certificate, path: &Path) -> Result<(), Flaw> {
    let key = KeyPair::try_from(key).map_err(|_| Flaw::KeyType)?;
    if key.public_key_raw() != leaf.public_key {
        return Err(Flaw::OtherKey(path.to_owned()));
    }
    Ok(())
}

fn check_chain(
    chain: &[CertificateDer<'static>],
    roots: &[CertificateDer<'static>],
    roots_path: PathBuf,
    now: SystemTime,
) -> Result<(), Flaw> {
    certificate::verify(chain, roots, now).map_err(|source| Flaw::Untrusted { roots: roots_path, source })
}

impl Polled for Files {
    type State = Vec<Option<Stamp>>;

    fn news(&self) -> Option<Self::State> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let now: Vec<_> = known.keys().map(|path| disk::stamp(path)).collect();
        (!now.iter().eq(known.values())).then_some(now)
    }

    fn take_up(&self) -> Result<(), String> {
        let paths: Vec<_> =
            self.known.lock().unwrap_or_else(PoisonError::into_inner).keys().map(PathBuf::clone).collect();
        let stamps: Vec<_> = paths.into_iter().map(|path| (path.clone(), disk::stamp(&path))).collect();
        self.known.lock().unwrap_or_else(PoisonError::into_inner).extend(stamps);
        // Whether the new files can be used is known only when they are read. Each identity is read on its own, and the old
        // certificates stay in use until then.
        self.generation.send_modify(|generation| *generation += 1);
        Ok(())
    }

    fn name(&self) -> String {
        format!("certificates in {}", self.dir.display())
    }
}

#[cfg(test)]
mod tests;
