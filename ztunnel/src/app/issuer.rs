//! The record of the authority that signed this node's certificates last. An authority that has disappeared is not replaced
//! automatically.
//!
//! No other node trusts a new authority. If the daemon made one because a volume was not mounted, it would be ready while every
//! connection of its pods fails.

use std::{fs, io, path::Path};

use anyhow::{Context as _, bail};

use crate::identity::{disk, local_ca::layout};

/// The file in the state directory.
const FILE: &str = "issuer";
/// The content of the file if certificates are read from files.
const FILES: &str = "certificate files";

/// Refuses to make a new authority if there must have been one: this daemon or an earlier one has used one, or has enrolled
/// pods.
///
/// # Errors
/// The error names the directory and the remedies.
pub fn check(state: &Path, ca_dir: &Path, has_pods: bool) -> anyhow::Result<()> {
    if layout::FILES.iter().any(|name| ca_dir.join(name).symlink_metadata().is_ok()) {
        return Ok(());
    }
    let before = match fs::read_to_string(state.join(FILE)) {
        Ok(before) => Some(before),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", state.join(FILE).display())),
    };
    let reason = match before.as_deref().map(str::trim) {
        Some(FILES) => return Ok(()),
        Some(dir) => format!("the certificates of this node came from the CA in {dir}"),
        None if has_pods => "an earlier daemon with a CA has enrolled pods".to_owned(),
        None => return Ok(()),
    };
    bail!(
        "there is no CA in {dir}, but {reason}; a new CA is not created, because no other node would trust \
         it; restore the directory (is the volume mounted? does --ca-dir name it?), or create a new CA: \
         ztunnel ca init --ca-dir {dir}",
        dir = ca_dir.display()
    );
}

/// Records the authority in use; `None`: certificates are read from files.
///
/// # Errors
/// The error names the file.
pub fn remember(state: &Path, ca_dir: Option<&Path>) -> anyhow::Result<()> {
    let text = ca_dir.map_or(FILES.to_owned(), |dir| dir.display().to_string());
    let path = state.join(FILE);
    if fs::read_to_string(&path).is_ok_and(|before| before.trim() == text) {
        return Ok(());
    }
    disk::write(state, FILE, format!("{text}\n").as_bytes(), 0o600)
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::{check, remember};
    use crate::identity::local_ca::layout;

    #[test]
    fn be_ready_with_a_new_authority_in_place_of_one_that_is_gone() {
        let (state, ca) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let check = |has_pods| check(state.path(), ca.path(), has_pods).map_err(|error| error.to_string());
        assert_eq!(check(false), Ok(()), "nothing is known: the first start");
        let refused = check(true).unwrap_err();
        let init = format!("ztunnel ca init --ca-dir {}", ca.path().display());
        assert!(refused.contains("has enrolled pods") && refused.contains(&init), "{refused}");

        remember(state.path(), Some(ca.path())).unwrap();
        for has_pods in [false, true] {
            let refused = check(has_pods).unwrap_err();
            assert!(refused.contains("came from the CA in") && refused.contains(&init), "{refused}");
        }
        // If any file of a CA exists, this check passes; the CA itself checks the files.
        std::fs::write(ca.path().join(layout::KEY), "").unwrap();
        assert_eq!(check(true), Ok(()));
        std::fs::remove_file(ca.path().join(layout::KEY)).unwrap();

        remember(state.path(), None).unwrap();
        assert_eq!(check(true), Ok(()), "there was none before");
    }
}
