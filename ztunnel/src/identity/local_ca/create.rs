//! Creation of a new CA.
//!
//! The CA is self-signed and signs workloads' certificates itself, as istiod's own CA does: there is one key, and no
//! intermediate that has to be sent in every handshake. A root above it would help only if its key were kept in a safer place,
//! and this program knows no such place. Operators who have such a place make an intermediate CA there, and put it into the
//! same four files.

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

/// The settings of a new CA.
#[derive(Clone, Debug)]
pub struct NewCa {
    /// The trust domain of the workloads whose certificates it will sign. It is part of the CA's name.
    pub trust_domain: TrustDomain,
    /// Its validity.
    pub ttl: Duration,
}

impl NewCa {
    /// Ten years, as in istiod.
    pub const TTL: Duration = Duration::from_secs(3650 * 24 * 60 * 60);
}

/// The CA's certificate is backdated by this, so that nodes whose clocks are behind can use it at once.
const BACKDATED: Duration = Duration::from_secs(60 * 60);
/// The maximum time to wait for another program that makes the same CA.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The pause between two attempts to get the lock.
const PAUSE: Duration = Duration::from_millis(10);

/// Makes a CA if there is none; returns whether it did. If several programs call this at the same time, one of them makes the
/// CA and the others find it.
///
/// # Errors
/// If the directory contains part of a CA or other files, or can't be written.
pub fn ensure(dir: &Path, new: &NewCa) -> Result<bool, CaError> {
    // The usual case. It works also in a directory that must not be written.
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
    // A directory that was named by mistake must not get a CA, and another mode.
    if let Some(found) =
        disk::names(dir, true).map_err(|source| failed("list the directory", source))?.into_iter().next()
    {
        return Err(CaError::Foreign { dir: dir.to_owned(), found });
    }
    fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(|source| failed("set the mode of", source))?;
    let (certificate, key) = generate(new, SystemTime::now()).map_err(CaError::Make)?;
    // The key is written last: without it, nothing can be signed by an incomplete CA.
    for name in [layout::ROOTS, layout::CHAIN, layout::CERTIFICATE] {
        disk::write(dir, name, certificate.as_bytes(), 0o644).map_err(|source| failed("write to", source))?;
    }
    disk::write(dir, layout::KEY, key.as_bytes(), 0o600).map_err(|source| failed("write to", source))?;
    Ok(true)
}

/// The same, but an existing CA is an error.
///
/// # Errors
/// As [`ensure`].
pub fn init(dir: &Path, new: &NewCa) -> Result<(), CaError> {
    if ensure(dir, new)? { Ok(()) } else { Err(CaError::Exists { dir: dir.to_owned() }) }
}

/// The files of a new CA, by name, as PEM.
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
    // While roots are being replaced, the old and the new root are in one file. The serial number in the name distinguishes
    // them.
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

/// Locks the directory itself, so that no lock file stays behind.
fn lock(dir: &Path) -> io::Result<Flock<File>> {
    let mut file = File::open(dir)?;
    let started = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((same, Errno::EWOULDBLOCK)) if started.elapsed() < TIMEOUT => file = same,
            Err((_, errno)) => return Err(errno.into()),
        }
        std::thread::sleep(PAUSE);
    }
}
