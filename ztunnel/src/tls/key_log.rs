//! Writes the secrets of connections to a file, for the analysis of packet captures. Only if an operator asks for it.

use std::{
    fmt::Write as _,
    fs::{File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use nix::{fcntl::OFlag, unistd::geteuid};
use tracing::warn;

/// A file of secrets in the NSS format, which Wireshark reads. Clones write to the same file.
#[derive(Clone, Debug)]
pub struct KeyLog(Arc<Mutex<File>>);

impl KeyLog {
    /// Opens the file for appending, with access for its owner only, and logs a warning.
    ///
    /// # Errors
    /// The file can't be opened, it is not a regular file, it is a symbolic link, it belongs to another user, or its mode can't
    /// be set.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
            .open(path)?;
        let metadata = file.metadata()?;
        // It may be a device, whose mode must not change, or a pipe with an unknown reader.
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        // The owner could read the file with any mode.
        if metadata.uid() != geteuid().as_raw() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to another user"));
        }
        // The mode above applies only to a file that was just created.
        file.set_permissions(Permissions::from_mode(0o600))?;
        warn!(path = %path.display(), "the secrets of TLS connections are written to a file: everyone who can read \
            it can decrypt the traffic of this node's pods");
        Ok(Self(Arc::new(Mutex::new(file))))
    }
}

impl rustls::KeyLog for KeyLog {
    fn log(&self, label: &str, client_random: &[u8], secret: &[u8]) {
        let mut line = format!("{label} ");
        for (bytes, end) in [(client_random, ' '), (secret, '\n')] {
            for byte in bytes {
                // Writing to a String does not fail.
                let _written = write!(line, "{byte:02x}");
            }
            line.push(end);
        }
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = file.write_all(line.as_bytes()) {
            warn!(%error, "a secret could not be written to the TLS key log");
        }
    }
}
