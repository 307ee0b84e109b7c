//! The secrets of connections, in a file, for a person with a packet capture. Never without being asked for.

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

/// A file of secrets in NSS' format, which Wireshark reads. Clones write to the same file.
#[derive(Clone, Debug)]
pub struct KeyLog(Arc<Mutex<File>>);

impl KeyLog {
    /// Opens the file, to append to it, for its owner only; and warns.
    ///
    /// # Errors
    /// It can't be opened, it is no regular file or a symbolic link, it is another user's, or its mode can't be set.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
            .open(path)?;
        let metadata = file.metadata()?;
        // A device, whose mode is everybody's business, or a pipe that somebody reads.
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        // Its owner could read it whatever its mode.
        if metadata.uid() != geteuid().as_raw() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to another user"));
        }
        // The mode above is for a file that was made just now.
        file.set_permissions(Permissions::from_mode(0o600))?;
        warn!(path = %path.display(), "the secrets of TLS connections are written to a file: who has it can decrypt the traffic of this node's pods");
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
