//! The folder's content: every file's last text and the last it said that made sense.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;

use crate::control::manifests::{FileContent, FileError, PoliciesIn, parse, policies_in};
use crate::model::origin::Origin;
use crate::model::policy::UnreadPolicies;
use crate::model::problem::{Problem, Severity};

/// The largest file that is read. A manifest of ten thousand pods has a tenth of it; what is larger is a mistake.
pub(super) const LARGEST_FILE: u64 = 16 * 1024 * 1024;

/// A folder and its files. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    dir: PathBuf,
    files: BTreeMap<OsString, Manifest>,
    /// Files that went when others came that make no sense.
    gone: BTreeMap<OsString, Gone>,
    /// Why the folder as a whole could not be read the last time.
    unreadable: Option<Problem>,
    was_read: bool,
}

/// One file.
#[derive(Debug, Clone)]
struct Manifest {
    name: Arc<str>,
    /// The bytes that `content` or `error` came from; `None` when there were none to be had.
    bytes: Option<Arc<[u8]>>,
    /// The last good content, which counts.
    content: Option<Arc<FileContent>>,
    /// Why the newest content does not count.
    error: Option<Problem>,
    /// Where that has policies, for all that is known.
    unread: PoliciesIn,
}

/// A file that may have been renamed: what it said may now stand in a file that has never made sense.
#[derive(Debug, Clone)]
struct Gone {
    name: Arc<str>,
    /// What it said, which counts as long as one of the others is there and makes no sense.
    content: Arc<FileContent>,
    others: BTreeSet<OsString>,
}

impl Folder {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, files: BTreeMap::new(), gone: BTreeMap::new(), unreadable: None, was_read: false }
    }

    pub(super) fn path(&self) -> &Path {
        &self.dir
    }

    /// Whether it could be read at least once.
    pub(super) fn was_read(&self) -> bool {
        self.was_read
    }

    /// Whether something in it has never made sense, so that nobody knows what it would say.
    pub(super) fn is_partial(&self) -> bool {
        !self.was_read || self.files.values().any(|file| file.content.is_none())
    }

    /// Which policies may stand in what has never made sense, in a mesh with this root namespace. Of several files the
    /// first is named.
    pub(super) fn unread(&self, root_namespace: &str) -> UnreadPolicies {
        let mut unread = UnreadPolicies::default();
        if !self.was_read {
            unread.anywhere = Some(self.dir.to_string_lossy().into());
        }
        for file in self.files.values().filter(|file| file.content.is_none()) {
            let namespaces = match &file.unread {
                PoliciesIn::Namespaces(namespaces) if !namespaces.contains(root_namespace) => namespaces,
                _ => {
                    unread.anywhere.get_or_insert_with(|| Arc::clone(&file.name));
                    continue;
                }
            };
            for namespace in namespaces {
                unread.namespaces.entry(Arc::clone(namespace)).or_insert_with(|| Arc::clone(&file.name));
            }
        }
        unread
    }

    /// The first of what has never made sense.
    pub(super) fn first_unread(&self) -> Option<Arc<str>> {
        let never = || self.files.values().find(|file| file.content.is_none()).map(|file| Arc::clone(&file.name));
        if self.was_read { never() } else { Some(self.dir.to_string_lossy().into()) }
    }

    /// What counts, in the order of the files' names; then that of files which may have been renamed.
    pub(super) fn contents(&self) -> impl Iterator<Item = (&Arc<str>, &FileContent)> {
        let there = self.files.values().filter_map(|file| Some((&file.name, file.content.as_deref()?)));
        there.chain(self.gone.values().map(|gone| (&gone.name, &*gone.content)))
    }

    /// What could not be read.
    pub(super) fn problems(&self) -> impl Iterator<Item = Problem> {
        let broken = self.files.values().filter_map(|file| file.error.as_ref());
        self.unreadable.iter().chain(broken).cloned().chain(self.gone.values().map(Gone::problem))
    }

    /// Reads everything again. Blocks on the file system, on nothing else.
    pub(super) fn read(&mut self) {
        match self.manifest_names() {
            Ok(names) => {
                self.unreadable = None;
                self.was_read = true;
                let before: BTreeSet<OsString> = self.files.keys().cloned().collect();
                let files = std::mem::take(&mut self.files).into_iter();
                let (there, went): (BTreeMap<_, _>, BTreeMap<_, _>) = files.partition(|(name, _)| names.contains(name));
                self.files = there;
                for name in names {
                    self.read_file(&name);
                }
                self.keep_renamed(&before, went);
            }
            Err(error) => {
                let message = format!("cannot read the mesh folder: {error}; the last good mesh stays in force");
                let origin = Origin::file(self.dir.to_string_lossy());
                self.unreadable = Some(Problem { origin, object: None, message, severity: Severity::Error });
            }
        }
    }

    /// Keeps what files said that went while others came which have never made sense: nobody knows whether they were
    /// renamed, and what stands in them, policies above all, must not end with that.
    fn keep_renamed(&mut self, before: &BTreeSet<OsString>, went: BTreeMap<OsString, Manifest>) {
        let files = &self.files;
        let never = |name: &OsString| files.get(name).is_some_and(|file| file.content.is_none());
        let came: BTreeSet<OsString> =
            files.keys().filter(|name| !before.contains(*name) && never(name)).cloned().collect();
        if !came.is_empty() {
            self.gone.values_mut().for_each(|gone| gone.others.extend(came.iter().cloned()));
            let said = went.into_iter().filter_map(|(name, file)| {
                Some((name, Gone { name: file.name, content: file.content?, others: came.clone() }))
            });
            self.gone.extend(said);
        }
        let is_back = |name: &OsString| files.get(name).is_some_and(|file| file.content.is_some());
        self.gone.retain(|name, gone| !is_back(name) && gone.others.iter().any(never));
    }

    fn manifest_names(&self) -> io::Result<BTreeSet<OsString>> {
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            if is_manifest(&name) {
                names.insert(name);
            }
        }
        Ok(names)
    }

    fn read_file(&mut self, name: &OsStr) {
        let path = self.dir.join(name);
        let bytes = match read_bytes(&path) {
            Ok(bytes) => Arc::<[u8]>::from(bytes),
            // Removed since the folder was listed; a link that leads nowhere is something else.
            Err(ReadError::Open(error))
                if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(&path).is_err() =>
            {
                self.files.remove(name);
                return;
            }
            Err(error) => {
                let file = self.manifest(name);
                file.bytes = None;
                file.unread = PoliciesIn::Anywhere;
                file.fail(Origin::file(Arc::clone(&file.name)), &error.to_string());
                return;
            }
        };
        let file = self.manifest(name);
        if file.bytes.as_ref() == Some(&bytes) {
            return;
        }
        file.bytes = Some(Arc::clone(&bytes));
        match parse_bytes(&file.name, &bytes) {
            Ok(content) => {
                file.content = Some(Arc::new(content));
                file.error = None;
            }
            Err(error) => {
                file.unread = policies_in_bytes(&bytes);
                let problem = Problem::from(error);
                file.fail(problem.origin, &problem.message);
            }
        }
    }

    fn manifest(&mut self, name: &OsStr) -> &mut Manifest {
        self.files.entry(name.to_owned()).or_insert_with(|| Manifest {
            name: name.to_string_lossy().into(),
            bytes: None,
            content: None,
            error: None,
            unread: PoliciesIn::Anywhere,
        })
    }
}

impl Gone {
    fn problem(&self) -> Problem {
        let others: Vec<_> = self.others.iter().map(|name| name.to_string_lossy()).collect();
        let message = format!(
            "went when {} came, which makes no sense: what it said stays in force until that is repaired or removed",
            others.join(", ")
        );
        let origin = Origin::file(Arc::clone(&self.name));
        Problem { origin, object: None, message, severity: Severity::Error }
    }
}

impl Manifest {
    fn fail(&mut self, origin: Origin, why: &str) {
        let consequence = match self.content {
            Some(_) => "what the file said before stays in force",
            None => {
                "the file counts for nothing until it is repaired; if it was there from the start, nothing is sent where a pod \
                 that it tells of may be, and nobody is let in where a policy of it may say no"
            }
        };
        let message = format!("{why}; {consequence}");
        self.error = Some(Problem { origin, object: None, message, severity: Severity::Error });
    }
}

fn is_manifest(name: &OsStr) -> bool {
    let hidden = name.as_encoded_bytes().starts_with(b".");
    let extension = Path::new(name).extension();
    !hidden && extension.is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known))
}

/// Why a file's bytes could not be had; `Display` gives the cause, since it ends up in a problem.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("cannot be opened: {0}")]
    Open(#[source] io::Error),
    #[error("is not a regular file: move it away")]
    NotRegular,
    #[error("is larger than {} MiB: split it", LARGEST_FILE / 1024 / 1024)]
    TooLarge,
    #[error("cannot be read: {0}")]
    Read(#[source] io::Error),
}

fn read_bytes(path: &Path) -> Result<Vec<u8>, ReadError> {
    // Looked at before it is opened, since opening a device may do something; and opened without blocking, since a
    // pipe may have taken the file's place meanwhile.
    if !fs::metadata(path).map_err(ReadError::Open)?.is_file() {
        return Err(ReadError::NotRegular);
    }
    let flags = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
    let file: File = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(ReadError::Open)?;
    let metadata = file.metadata().map_err(ReadError::Read)?;
    if !metadata.is_file() {
        return Err(ReadError::NotRegular);
    }
    let mut bytes = Vec::new();
    // The length may change while reading: the limit counts, not the metadata.
    file.take(LARGEST_FILE + 1).read_to_end(&mut bytes).map_err(ReadError::Read)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > LARGEST_FILE) {
        return Err(ReadError::TooLarge);
    }
    Ok(bytes)
}

fn parse_bytes(name: &Arc<str>, bytes: &[u8]) -> Result<FileContent, FileError> {
    let failed = |line, message: &str| FileError {
        file: Arc::clone(name),
        line,
        column: None,
        field: None,
        message: message.to_owned(),
    };
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = bytes.iter().take(error.valid_up_to()).filter(|byte| **byte == b'\n').count();
        failed(u64::try_from(before + 1).ok(), "is not UTF-8 text")
    })?;
    // A parser's panic over one file must not take the others with it.
    catch_unwind(AssertUnwindSafe(|| parse(name, text)))
        .unwrap_or_else(|_| Err(failed(None, "the parser failed over it; please report this with the file")))
}

/// The same of the policies in it. Another encoding may hide anything.
fn policies_in_bytes(bytes: &[u8]) -> PoliciesIn {
    let Ok(text) = std::str::from_utf8(bytes) else { return PoliciesIn::Anywhere };
    catch_unwind(|| policies_in(text)).unwrap_or(PoliciesIn::Anywhere)
}
