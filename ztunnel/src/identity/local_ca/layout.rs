//! The directory of a CA, with the layout of Istio's `cacerts` Secret.

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

/// The trusted roots: one, or the old and the new one while they are being replaced.
pub const ROOTS: &str = "root-cert.pem";
/// The signing certificate.
pub const CERTIFICATE: &str = "ca-cert.pem";
/// Its key.
pub const KEY: &str = "ca-key.pem";
/// The signing certificate, and the intermediates up to a root.
pub const CHAIN: &str = "cert-chain.pem";

/// All files.
pub const FILES: [&str; 4] = [ROOTS, CERTIFICATE, KEY, CHAIN];

/// The files of a CA that were found in a directory.
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

/// The digest of the files' content; it changes when the content changes.
pub(super) type Digest = Vec<u8>;

/// The content of the files.
pub struct Content {
    pub(super) roots: Vec<u8>,
    pub(super) certificate: Vec<u8>,
    pub(super) key: Vec<u8>,
    pub(super) chain: Vec<u8>,
}

impl Content {
    /// The content of files that are not in a directory; `file` returns a file by its name.
    ///
    /// # Errors
    /// The names of the missing files.
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

/// The mode of the key's file. Only its owner should have access.
///
/// # Errors
/// If the file does not exist.
pub fn key_mode(dir: &Path) -> io::Result<u32> {
    Ok(fs::metadata(dir.join(KEY))?.permissions().mode() & 0o777)
}
