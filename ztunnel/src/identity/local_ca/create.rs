//! A new CA.
//!
//! It is self-signed and signs workloads itself, as istiod's own does: one key, and no intermediate to be sent with every
//! handshake. A root above it would only help if its key were kept somewhere safer, which this program can't know how to
//! do. Whoever has such a place makes an intermediate there, and lays it down in the same four files.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};

use super::{
    CaError,
    authority::serial_number,
    layout::{self, Found},
};
use crate::{identity::disk, model::identity::TrustDomain};

/// What a new CA is like.
#[derive(Clone, Debug)]
pub struct NewCa {
    /// Whose workloads it will sign. It is in the CA's name.
    pub trust_domain: TrustDomain,
    /// How long it is valid.
    pub ttl: Duration,
}

impl NewCa {
    /// Ten years, as istiod's own.
    pub const TTL: Duration = Duration::from_secs(3650 * 24 * 60 * 60);
}

/// Nodes whose clocks are behind must be able to use it at once.
const BACKDATED: Duration = Duration::from_secs(60 * 60);
/// How long another program may take to make the CA that both want.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two tries to get the lock.
const PAUSE: Duration = Duration::from_millis(10);

/// Makes a CA where there is none, and says whether it did. Of several programs that do this at once, one makes it and
/// the others find it.
///
/// # Errors
/// When the directory holds part of a CA, or something else, or can't be written.
pub fn ensure(dir: &Path, new: &NewCa) -> Result<bool, CaError> {
    // The usual case; it works where nothing may be written.
    if layout::look(dir)? == Found::Everything {
        return Ok(false);
    }
    let failed = |what, source| CaError::Write { dir: dir.to_owned(), what, source };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| failed("make the directory", source))?;
    let _lock = lock(dir).map_err(|source| failed("lock the directory", source))?;
    match layout::look(dir)? {
        Found::Everything => return Ok(false),
        Found::Part { missing } => return Err(CaError::Incomplete { dir: dir.to_owned(), missing }),
        Found::Nothing => {}
    }
    // A wrong path must not become a CA's directory, with another mode.
    if let Some(found) =
        disk::names(dir, true).map_err(|source| failed("list the directory", source))?.into_iter().next()
    {
        return Err(CaError::Foreign { dir: dir.to_owned(), found });
    }
    fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(|source| failed("set the mode of", source))?;
    let (certificate, key) = generate(new, SystemTime::now()).map_err(CaError::Make)?;
    // The key last: without it nothing can be signed with half a CA.
    for name in [layout::ROOTS, layout::CHAIN, layout::CERTIFICATE] {
        disk::write(dir, name, certificate.as_bytes(), 0o644).map_err(|source| failed("write to", source))?;
    }
    disk::write(dir, layout::KEY, key.as_bytes(), 0o600).map_err(|source| failed("write to", source))?;
    Ok(true)
}

/// The same, but a CA that is there already is an error.
///
/// # Errors
/// As [`ensure`].
pub fn init(dir: &Path, new: &NewCa) -> Result<(), CaError> {
    if ensure(dir, new)? { Ok(()) } else { Err(CaError::Exists { dir: dir.to_owned() }) }
}

/// The files of a new CA, by their names, as PEM.
///
/// # Errors
/// The crypto library fails.
pub fn files(new: &NewCa) -> Result<[(&'static str, String); 4], CaError> {
    let (certificate, key) = generate(new, SystemTime::now()).map_err(CaError::Make)?;
    Ok(layout::FILES.map(|name| (name, if name == layout::KEY { key.clone() } else { certificate.clone() })))
}

/// Certificate and key of a new CA, as PEM.
fn generate(new: &NewCa, now: SystemTime) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let (serial, text) = serial_number()?;
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, new.trust_domain.as_str());
    // Old and new roots stand side by side while they are being replaced: nobody should mistake one for the other.
    name.push(DnType::CommonName, format!("ztunnel CA {}", text.get(..8).unwrap_or(&text)));
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    params.serial_number = Some(serial);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params.not_before = now.checked_sub(BACKDATED).unwrap_or(now).into();
    params.not_after = now.checked_add(new.ttl).ok_or(rcgen::Error::Time)?.into();
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// Locks the directory itself, which leaves nothing behind.
fn lock(dir: &Path) -> io::Result<Flock<File>> {
    let mut file = File::open(dir)?;
    let started = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((same, Errno::EWOULDBLOCK)) if started.elapsed() < PATIENCE => file = same,
            Err((_, errno)) => return Err(errno.into()),
        }
        std::thread::sleep(PAUSE);
    }
}
