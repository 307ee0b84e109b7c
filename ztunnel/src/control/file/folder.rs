//! The folder's files: what each says when it is read, and what is wrong with those that say nothing that makes sense.
//!
//! What a file says is handed on and not kept here, so that a mesh of many pods is in memory once.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use nix::fcntl::OFlag;

use super::kept::Kept;
use crate::control::join::{Joiner, Voice};
use crate::control::manifests::{FileContent, FileError, PoliciesIn, parse, policies_in};
use crate::model::origin::Origin;
use crate::model::policy::UnreadPolicies;
use crate::model::problem::{Problem, Severity};

/// The largest file that is read. A manifest of ten thousand pods has a tenth of it; what is larger is a mistake.
pub(super) const LARGEST_FILE: u64 = 16 * 1024 * 1024;

/// A folder and its files.
#[derive(Debug)]
pub(super) struct Folder {
    dir: PathBuf,
    files: BTreeMap<OsString, Manifest>,
    /// `None`: nothing is kept beyond this process.
    kept: Option<Kept>,
    /// Files that went when others came that make no sense.
    gone: BTreeMap<OsString, Gone>,
    /// Why the folder as a whole could not be read the last time.
    unreadable: Option<Problem>,
    was_read: bool,
}

/// One file.
#[derive(Debug)]
struct Manifest {
    name: Arc<str>,
    /// Of the bytes that were read the last time; `None` when there were none to be had.
    digest: Option<Digest>,
    /// What the file system said of it before these were read. A file of which it says the same again has not changed.
    state: Option<State>,
    /// It has made sense at least once, and what it said then counts.
    has_said: bool,
    /// Why the newest content does not count.
    error: Option<Problem>,
    /// Where that has policies, for all that is known.
    unread: PoliciesIn,
}

/// What the file system says of a file, behind links. Whatever writes to the file changes its `ctime`, which nobody can set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// The clock of a file system may tick this slowly: a file that changed within the same tick as it was read looks the same.
const COARSEST_TICK: Duration = Duration::from_secs(2);

impl State {
    /// `None` also for a file that has changed just now: it may do so again, and look the same.
    pub(super) fn settled(path: &Path, now: SystemTime) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        let since = Duration::new(changed.0.try_into().ok()?, changed.1.try_into().ok()?);
        let is_settled = now.duration_since(SystemTime::UNIX_EPOCH).ok()?.checked_sub(since)? > COARSEST_TICK;
        is_settled.then(|| Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed,
        })
    }
}

/// How a folder is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// All files.
    Thorough,
    /// Those that are not surely as they were.
    Changed,
}

/// SHA-256.
type Digest = [u8; digest::SHA256_OUTPUT_LEN];

/// A file that may have been renamed: what it said may now stand in a file that has never made sense, and counts as long as one
/// of those is there.
#[derive(Debug)]
struct Gone {
    name: Arc<str>,
    others: BTreeSet<OsString>,
}

impl Folder {
    /// Copies are kept in a directory, if one is given.
    pub(super) fn new(dir: PathBuf, kept: Option<PathBuf>) -> Self {
        let kept = kept.map(|kept| Kept::new(kept, &dir, LARGEST_FILE));
        Self { dir, files: BTreeMap::new(), kept, gone: BTreeMap::new(), unreadable: None, was_read: false }
    }

    /// Files and texts from anywhere, each of which is [taken](Self::take_file) once.
    pub(super) fn of_files() -> Self {
        Self { was_read: true, ..Self::new(PathBuf::new(), None) }
    }

    /// The files that are there.
    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.files.values().map(|file| &file.name)
    }

    /// Reads one more file, and has the joiner hear what it says. Blocks on the file system.
    pub(super) fn take_file(&mut self, path: &Path, joiner: &mut Joiner) {
        self.take(path.as_os_str(), read_bytes(path), None, joiner);
    }

    /// Reads one more text, and has the joiner hear what it says.
    pub(super) fn take_text(&mut self, name: &OsStr, bytes: &[u8], joiner: &mut Joiner) {
        self.take(name, Ok(bytes.to_vec()), None, joiner);
    }

    /// Whether it could be read at least once.
    pub(super) fn was_read(&self) -> bool {
        self.was_read
    }

    /// Whether something in it has never made sense, so that nobody knows what it would say.
    pub(super) fn is_partial(&self) -> bool {
        !self.was_read || self.files.values().any(|file| !file.has_said)
    }

    /// Which policies may stand in what has never made sense, in a mesh with this root namespace. Of several files the
    /// first is named.
    pub(super) fn unread(&self, root_namespace: &str) -> UnreadPolicies {
        let mut unread = UnreadPolicies::default();
        if !self.was_read {
            unread.anywhere = Some(self.dir.to_string_lossy().into());
        }
        for file in self.files.values().filter(|file| !file.has_said) {
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
        let never = || self.files.values().find(|file| !file.has_said).map(|file| Arc::clone(&file.name));
        if self.was_read { never() } else { Some(self.dir.to_string_lossy().into()) }
    }

    /// What could not be read.
    pub(super) fn problems(&self) -> impl Iterator<Item = Problem> {
        let broken = self.files.values().filter_map(|file| file.error.as_ref());
        self.unreadable.iter().chain(broken).cloned().chain(self.gone.values().map(Gone::problem))
    }

    /// Reads the files again, and has the joiner hear what is new. Blocks on the file system, on nothing else.
    pub(super) fn read(&mut self, joiner: &mut Joiner, reading: Reading) {
        match self.manifest_names() {
            Ok(names) => {
                self.unreadable = None;
                self.was_read = true;
                let before: BTreeSet<OsString> = self.files.keys().cloned().collect();
                let files = std::mem::take(&mut self.files).into_iter();
                let (there, went): (BTreeMap<_, _>, BTreeMap<_, _>) = files.partition(|(name, _)| names.contains(name));
                self.files = there;
                for name in &names {
                    self.read_file(name, joiner, reading);
                }
                self.keep_renamed(&before, went, joiner);
                // What a renamed file said counts on, and may be asked for after a restart.
                if let Some(kept) = self.kept.as_ref().filter(|_| self.gone.is_empty()) {
                    kept.retain(&names);
                }
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
    fn keep_renamed(&mut self, before: &BTreeSet<OsString>, went: BTreeMap<OsString, Manifest>, joiner: &mut Joiner) {
        let files = &self.files;
        let never = |name: &OsString| files.get(name).is_some_and(|file| !file.has_said);
        let came: BTreeSet<OsString> =
            files.keys().filter(|name| !before.contains(*name) && never(name)).cloned().collect();
        if !came.is_empty() {
            self.gone.values_mut().for_each(|gone| gone.others.extend(came.iter().cloned()));
        }
        for (key, file) in went {
            if came.is_empty() || !file.has_said {
                joiner.silence(&voice(&file.name));
            } else {
                joiner.keep(&file.name);
                self.gone.insert(key, Gone { name: file.name, others: came.clone() });
            }
        }
        let is_back = |name: &OsString| files.get(name).is_some_and(|file| file.has_said);
        self.gone.retain(|name, gone| {
            let counts = !is_back(name) && gone.others.iter().any(never);
            if !counts {
                joiner.silence(&Voice { is_gone: true, name: Arc::clone(&gone.name) });
            }
            counts
        });
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

    fn read_file(&mut self, name: &OsStr, joiner: &mut Joiner, reading: Reading) {
        let path = self.dir.join(name);
        // Before the file is read: what comes later changes it again.
        let state = State::settled(&path, SystemTime::now());
        if reading == Reading::Changed
            && state.is_some()
            && self.files.get(name).is_some_and(|file| file.digest.is_some() && file.state == state)
        {
            return;
        }
        match read_bytes(&path) {
            // Removed since the folder was listed; a link that leads nowhere is something else.
            Err(ReadError::Open(error))
                if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(&path).is_err() =>
            {
                if let Some(file) = self.files.remove(name) {
                    joiner.silence(&voice(&file.name));
                }
            }
            bytes => self.take(name, bytes, state, joiner),
        }
    }

    /// Takes what was read of a file, before which the file system said this of it.
    fn take(&mut self, name: &OsStr, bytes: Result<Vec<u8>, ReadError>, state: Option<State>, joiner: &mut Joiner) {
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(error) => {
                self.recall(name, joiner);
                let file = self.manifest(name);
                file.digest = None;
                file.unread = PoliciesIn::Anywhere;
                file.fail(Origin::file(Arc::clone(&file.name)), &error.to_string());
                return;
            }
        };
        let file = self.manifest(name);
        let digest = digest::digest(&digest::SHA256, &bytes).as_ref().try_into().ok();
        file.state = state;
        if digest.is_some() && file.digest == digest {
            return;
        }
        file.digest = digest;
        match parse_bytes(&file.name, &bytes) {
            Ok(content) => {
                file.has_said = true;
                file.error = None;
                joiner.say(&voice(&file.name), content.objects, content.problems);
                if let Some(kept) = &mut self.kept {
                    kept.put(name, &bytes);
                }
            }
            Err(error) => {
                self.recall(name, joiner);
                let file = self.manifest(name);
                file.unread = policies_in_bytes(&bytes);
                let problem = Problem::from(error);
                file.fail(problem.origin, &problem.message);
            }
        }
    }

    /// Has a file that was never read here say what it said to the process before.
    fn recall(&mut self, name: &OsStr, joiner: &mut Joiner) {
        if self.manifest(name).has_said {
            return;
        }
        let Some(bytes) = self.kept.as_ref().and_then(|kept| kept.get(name)) else { return };
        let file = self.manifest(name);
        if let Ok(content) = parse_bytes(&file.name, &bytes) {
            file.has_said = true;
            joiner.say(&voice(&file.name), content.objects, content.problems);
        }
    }

    fn manifest(&mut self, name: &OsStr) -> &mut Manifest {
        self.files.entry(name.to_owned()).or_insert_with(|| Manifest {
            name: name.to_string_lossy().into(),
            digest: None,
            state: None,
            has_said: false,
            error: None,
            unread: PoliciesIn::Anywhere,
        })
    }
}

fn voice(name: &Arc<str>) -> Voice {
    Voice::of(Arc::clone(name))
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
        let consequence = match self.has_said {
            true => "what the file said before stays in force",
            false => {
                "the file counts for nothing until it is repaired; if it was there from the start, nothing is sent where a pod \
                 that it tells of may be, and nobody is let in where a policy of it may say no"
            }
        };
        let message = format!("{why}; {consequence}");
        self.error = Some(Problem { origin, object: None, message, severity: Severity::Error });
    }
}

pub(super) fn is_manifest(name: &OsStr) -> bool {
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
