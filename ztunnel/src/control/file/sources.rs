//! Manifests from files, folders and texts, read once: for commands that examine them.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::content::is_manifest;
use super::folder::Folder;
use super::{Content, MeshFolder, OpenFolderError};
use crate::control::join::Joiner;
use crate::model::identity::TrustDomain;
use crate::model::local::LocalPods;
use crate::store::snapshot::Snapshot;

/// The deepest nesting of folders.
const DEEPEST: usize = 64;

/// Where manifests are read from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file with any name; or a folder with all folders below it, in which `*.yaml`, `*.yml` and `*.json` are read.
    /// Hidden files and folders are skipped, unless they are given by name.
    Path(PathBuf),
    /// A text that was read elsewhere, such as standard input.
    Text {
        /// Its name in messages.
        name: Arc<str>,
        /// The text.
        bytes: Vec<u8>,
    },
}

/// The content of all sources together.
#[derive(Debug)]
pub struct Manifests {
    /// The mesh: version 1, or 0 when no part of it is valid.
    pub snapshot: Snapshot,
    /// What the manifests of pods say for the pods' own nodes.
    pub local: LocalPods,
    /// The files and texts that were read, by their names in messages.
    pub files: Vec<Arc<str>>,
}

/// The mesh that the sources describe together, as a daemon sees one folder with all their files right after its start.
/// The names of files are the paths as they were given. Objects that name no namespace are in `namespace`, or in
/// `default`. Blocks on the file system.
///
/// # Errors
/// A path does not exist, or a folder can't be listed.
pub fn read_sources(
    sources: &[Source],
    trust_domain: TrustDomain,
    namespace: Option<&str>,
) -> Result<Manifests, OpenFolderError> {
    let mut joiner = Joiner::new(trust_domain.clone(), None);
    let mut folder = Folder::of_files(namespace);
    for source in sources {
        match source {
            Source::Text { name, bytes } => folder.take_text(&OsString::from(&**name), bytes, &mut joiner),
            Source::Path(path) => {
                for file in files_of(path)? {
                    folder.take_file(&file, &mut joiner);
                }
            }
        }
    }
    let files = folder.names().cloned().collect();
    let mut content = Content { folder, joiner };
    let news = content.take();
    let batch = MeshFolder::at(PathBuf::new(), trust_domain).batch(&content, news).unwrap_or_default();
    let snapshot = Snapshot::default().apply(batch).with_origins(content.joiner.origins());
    Ok(Manifests { snapshot, local: content.joiner.local().clone(), files })
}

/// The files of a path: the file itself, or the manifests of a folder and of the folders below it, in the order of
/// their names.
fn files_of(path: &Path) -> Result<Vec<PathBuf>, OpenFolderError> {
    let unreadable = |path: &Path, source| OpenFolderError::Argument { path: path.to_owned(), source };
    let metadata = fs::metadata(path).map_err(|error| unreadable(path, error))?;
    if !metadata.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    let mut seen = HashSet::from([(metadata.dev(), metadata.ino())]);
    let mut folders = vec![(path.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(|error| unreadable(&folder, error))? {
            let entry = entry.map_err(|error| unreadable(&folder, error))?;
            let (name, path) = (entry.file_name(), entry.path());
            // A link counts as the file or folder to which it leads. A link that leads nowhere is reported as a file.
            let metadata = fs::metadata(&path).ok();
            match metadata.filter(fs::Metadata::is_dir) {
                Some(_) if name.as_encoded_bytes().starts_with(b".") || depth == DEEPEST => {}
                // A link may lead back to a folder that contains it.
                Some(inner) if seen.insert((inner.dev(), inner.ino())) => folders.push((path, depth + 1)),
                Some(_) => {}
                None if is_manifest(&name) => files.push(path),
                None => {}
            }
        }
    }
    files.sort();
    Ok(files)
}
