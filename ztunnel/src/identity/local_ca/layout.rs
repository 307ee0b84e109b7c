//! The directory of a CA, laid out as Istio's `cacerts` secret.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use aws_lc_rs::digest;

use super::CaError;
use crate::identity::{
    certificate::FileError,
    disk::{self, ReadError},
};

/// Whom to trust: the root, or old and new ones while they are being replaced.
pub const ROOTS: &str = "root-cert.pem";
/// What signs.
pub const CERTIFICATE: &str = "ca-cert.pem";
/// Its key.
pub const KEY: &str = "ca-key.pem";
/// What signs, and what leads from there to a root.
pub const CHAIN: &str = "cert-chain.pem";

/// All of them.
pub const FILES: [&str; 4] = [ROOTS, CERTIFICATE, KEY, CHAIN];

/// How much of a CA is there.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    Part { missing: Vec<&'static str> },
    Everything,
}

pub(super) fn look(dir: &Path) -> Result<Found, CaError> {
    let mut missing = Vec::new();
    for name in FILES {
        let path = dir.join(name);
        match fs::metadata(&path) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => missing.push(name),
            Err(source) => return Err(FileError::from(ReadError::Unreadable { path, source }).into()),
        }
    }
    Ok(match missing.len() {
        0 => Found::Everything,
        4 => Found::Nothing,
        _ => Found::Part { missing },
    })
}

/// Tells one content of the files from another.
pub(super) type Digest = Vec<u8>;

/// What the files hold.
pub struct Content {
    pub(super) roots: Vec<u8>,
    pub(super) certificate: Vec<u8>,
    pub(super) key: Vec<u8>,
    pub(super) chain: Vec<u8>,
}

impl Content {
    /// Of files that are elsewhere, each under its name.
    ///
    /// # Errors
    /// Names those that are missing.
    pub fn of(mut file: impl FnMut(&str) -> Option<Vec<u8>>) -> Result<Self, Vec<&'static str>> {
        let mut missing = Vec::new();
        let [roots, certificate, key, chain] = FILES.map(|name| {
            file(name).unwrap_or_else(|| {
                missing.push(name);
                Vec::new()
            })
        });
        if missing.is_empty() { Ok(Self { roots, certificate, key, chain }) } else { Err(missing) }
    }

    pub(super) fn read(dir: &Path) -> Result<Self, ReadError> {
        let read = |name| disk::read(&dir.join(name));
        Ok(Self { roots: read(ROOTS)?, certificate: read(CERTIFICATE)?, key: read(KEY)?, chain: read(CHAIN)? })
    }

    pub(super) fn digest(&self) -> Digest {
        let mut sum = digest::Context::new(&digest::SHA256);
        for bytes in [&self.roots, &self.certificate, &self.key, &self.chain] {
            sum.update(&bytes.len().to_be_bytes());
            sum.update(bytes);
        }
        sum.finish().as_ref().to_vec()
    }
}

/// The mode of the key's file. Others than its owner have no business with it.
///
/// # Errors
/// When there is no such file.
pub fn key_mode(dir: &Path) -> io::Result<u32> {
    Ok(fs::metadata(dir.join(KEY))?.permissions().mode() & 0o777)
}
