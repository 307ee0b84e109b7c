//! The files of the folder: the objects of each file when it is read, and the problems of files that are not valid.
//!
//! The objects are handed on and not kept here, so that a mesh of many pods is in memory only once.

mod parts;
mod record;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::digest;

use super::content::{Digest, LARGEST_FILE, ReadError, State, is_manifest, read_bytes, read_bytes_again, unreadable};
use super::kept::Kept;
use super::last::LastValid;
use crate::control::join::{Joiner, Voice};
use crate::control::manifests::{AddressesIn, FileContent, Hides, Known, PoliciesIn, valid_texts};
use crate::control::objects::Object;
use crate::lifecycle::keeps::Keeps;
use crate::model::origin::Origin;
use crate::model::policy::UnreadPolicies;
use crate::model::problem::{Problem, Severity};

/// A file larger than this is read again only when its state in the file system differs, also in a thorough reading.
const LARGE_FILE: u64 = 16 * 1024 * 1024;

/// The most bytes that are read of all files of a folder together. The objects of a file take about as much memory as
/// its text. Files that were read before keep their share, so that a new file cannot displace them.
pub(super) const LARGEST_FOLDER: u64 = 1024 * 1024 * 1024;

/// The most files of a folder that are read. Every reading looks at each of them.
pub(super) const MOST_FILES: usize = 50_000;

/// Changed files of at most this size together take effect at once: tools write several files that belong together.
pub(super) const LARGEST_AT_ONCE: u64 = 1024 * 1024;

/// If more has changed, this many bytes are read before the objects take effect: about 0.1 s.
pub(super) const PART: u64 = 256 * 1024;

/// Limits of a folder.
#[derive(Clone, Copy, Debug)]
pub(super) struct FolderLimits {
    pub(super) bytes: u64,
    pub(super) files: usize,
    pub(super) at_once: u64,
    pub(super) part: u64,
}

impl Default for FolderLimits {
    fn default() -> Self {
        Self { bytes: LARGEST_FOLDER, files: MOST_FILES, at_once: LARGEST_AT_ONCE, part: PART }
    }
}

/// A folder and its files.
#[derive(Debug)]
pub(super) struct Folder {
    dir: PathBuf,
    limits: FolderLimits,
    /// The bytes of all files that were read.
    bytes: u64,
    files: BTreeMap<OsString, Manifest>,
    /// `None`: no copies are kept beyond this process.
    kept: Option<Kept>,
    /// Files that disappeared at the same reading at which new files came that are not valid.
    gone: BTreeMap<OsString, Gone>,
    /// The first of the files that are not read because there are too many, and the number of these files.
    left_out: Option<(Arc<str>, usize)>,
    /// The reading that is not finished.
    unfinished: Option<Unfinished>,
    /// Why the folder as a whole could not be read the last time.
    unreadable: Option<Problem>,
    was_read: bool,
    /// Every file was valid at least once, in this process or an earlier one: a file that was never valid came later, and
    /// hides nothing that was in force.
    was_complete: bool,
    /// The record of an earlier process has been looked for.
    is_resumed: bool,
    /// The record that was written last.
    record: Option<BTreeSet<OsString>>,
    /// The namespace of objects that name none, if it is not `default`.
    namespace: Option<Arc<str>>,
}

/// A reading of which some files are left.
#[derive(Debug)]
struct Unfinished {
    /// All files.
    names: BTreeSet<OsString>,
    /// The files of the reading before.
    before: BTreeSet<OsString>,
    /// Those that are not there any more.
    went: BTreeMap<OsString, Manifest>,
    /// Those that are left; the smallest is the last.
    left: Vec<OsString>,
    /// Files that lack objects which they had: another file may have them now, so these files take effect together,
    /// after all others.
    last: Vec<OsString>,
    /// Everything takes effect at once.
    is_whole: bool,
}

impl Unfinished {
    /// Whether nothing may be removed yet.
    fn keeps(&self) -> bool {
        !self.is_whole && (!self.left.is_empty() || !self.last.is_empty())
    }
}

/// What has been done about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done {
    /// This many bytes were read into objects.
    Taken(u64),
    /// It lacks objects that it had, and has to be read again at the end.
    Postponed,
}

/// One file.
#[derive(Debug)]
struct Manifest {
    name: Arc<str>,
    /// Digest of the bytes that were read the last time; `None` when the file could not be read.
    digest: Option<Digest>,
    /// The file's state in the file system before these bytes were read. As long as the state is the same, the file has
    /// not changed.
    state: Option<State>,
    /// How many bytes were read the last time that it could be read.
    size: u64,
    /// The file was not read, because the folder would be too large with it.
    is_over_budget: bool,
    /// The parsed objects, by the hash of their texts.
    known: Known,
    /// The whole file was valid at least once, in this process or an earlier one.
    was_whole: bool,
    /// The copy that an earlier process kept has been looked for.
    is_recalled: bool,
    /// Some object of the file is in force.
    has_said: bool,
    /// The parts of the file that can't be read.
    faults: Vec<Unread>,
}

/// Something that can't be read.
#[derive(Debug)]
struct Unread {
    /// What the part may contain and has never been read.
    hides: Hides,
    problem: Problem,
}

impl Unread {
    fn hides_policies(&self) -> bool {
        !matches!(&self.hides.policies, PoliciesIn::Namespaces(namespaces) if namespaces.is_empty())
    }
}

/// How a folder is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// All files.
    Thorough,
    /// Those that may have changed.
    Changed,
}

/// A file that disappeared and may have been renamed: its content may now be in a file that has never been valid. Its
/// objects stay in force as long as one of those files is there.
#[derive(Debug)]
struct Gone {
    name: Arc<str>,
    others: BTreeSet<OsString>,
}

impl Folder {
    /// Keeps copies only as long as this daemon does.
    pub(super) fn kept_by(mut self, keeps: Keeps) -> Self {
        if let Some(kept) = &mut self.kept {
            kept.kept_by(keeps);
        }
        self
    }

    /// Copies are kept in the directory `kept`, if one is given.
    pub(super) fn new(dir: PathBuf, kept: Option<PathBuf>, limits: FolderLimits) -> Self {
        let kept = kept.map(|kept| Kept::new(kept, &dir, LARGEST_FILE));
        Self {
            dir,
            limits,
            bytes: 0,
            files: BTreeMap::new(),
            kept,
            gone: BTreeMap::new(),
            left_out: None,
            unfinished: None,
            unreadable: None,
            was_read: false,
            was_complete: false,
            is_resumed: false,
            record: None,
            namespace: None,
        }
    }

    /// For files and texts from anywhere, each of which is [taken](Self::take_file) once.
    /// Objects that name no namespace are in `namespace`, or in `default`.
    pub(super) fn of_files(namespace: Option<&str>) -> Self {
        Self {
            was_read: true,
            namespace: namespace.map(Arc::from),
            ..Self::new(PathBuf::new(), None, FolderLimits::default())
        }
    }

    /// The names of the files.
    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.files.values().map(|file| &file.name)
    }

    /// Reads one more file and passes its objects to the joiner. Blocks on the file system.
    pub(super) fn take_file(&mut self, path: &Path, joiner: &mut Joiner) {
        self.take(path.as_os_str(), self.read_bytes(path.as_os_str(), path), None, joiner, false);
    }

    /// Reads one more text and passes its objects to the joiner.
    pub(super) fn take_text(&mut self, name: &OsStr, bytes: &[u8], joiner: &mut Joiner) {
        self.take(name, Ok(bytes.to_vec()), None, joiner, false);
    }

    /// Whether the folder could be read at least once.
    pub(super) fn was_read(&self) -> bool {
        self.was_read
    }

    /// Whether every file was valid at least once, in this process or an earlier one. A file that was never valid has then
    /// come later.
    pub(super) fn was_complete(&self) -> bool {
        self.was_complete
    }

    /// Whether a part that could never be read may describe pods of the mesh.
    pub(super) fn is_partial(&self) -> bool {
        !self.was_read || self.left_out.is_some() || self.files.values().any(Manifest::hides_addresses)
    }

    /// The addresses that parts that could never be read may give to pods or services.
    pub(super) fn hidden(&self) -> AddressesIn {
        if !self.was_read || self.left_out.is_some() {
            return AddressesIn::Anywhere;
        }
        let all = self.files.values().flat_map(|file| &file.faults).map(|fault| fault.hides.addresses.clone());
        all.fold(AddressesIn::Nowhere, AddressesIn::or)
    }

    /// Whether a part that could never be read may describe pods or policies.
    pub(super) fn is_incomplete(&self) -> bool {
        !self.was_read || self.left_out.is_some() || self.files.values().any(Manifest::is_unclear)
    }

    /// The policies that may be in parts that could never be read, in a mesh with this root namespace. Where several
    /// files may hold such policies, the first is named.
    pub(super) fn unread(&self, root_namespace: &str) -> UnreadPolicies {
        let mut unread = UnreadPolicies::default();
        if !self.was_read {
            unread.anywhere = Some(self.dir.to_string_lossy().into());
        }
        if let Some((name, _)) = &self.left_out {
            unread.anywhere.get_or_insert_with(|| Arc::clone(name));
        }
        for (file, fault) in self.files.values().flat_map(|file| file.faults.iter().map(move |fault| (file, fault))) {
            let namespaces = match &fault.hides.policies {
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

    /// The first file that may describe pods and could never be read.
    pub(super) fn first_unread(&self) -> Option<Arc<str>> {
        let left_out = || self.left_out.as_ref().map(|(name, _)| Arc::clone(name));
        let hides = |file: &&Manifest| file.hides_addresses();
        let never = || self.files.values().find(hides).map(|file| Arc::clone(&file.name)).or_else(left_out);
        if self.was_read { never() } else { Some(self.dir.to_string_lossy().into()) }
    }

    /// The files and parts that could not be read.
    pub(super) fn problems(&self) -> impl Iterator<Item = Problem> {
        let broken = self.files.values().flat_map(|file| &file.faults).map(|fault| &fault.problem);
        let left_out = self.left_out.iter().map(|(name, count)| self.left_out_problem(name, *count));
        self.unreadable.iter().chain(broken).cloned().chain(self.gone.values().map(Gone::problem)).chain(left_out)
    }

    fn left_out_problem(&self, name: &Arc<str>, count: usize) -> Problem {
        let message = format!(
            "{count} files, of which {name} is the first, are not read: a mesh folder may have {} files; put several objects \
             into one file",
            self.limits.files
        );
        let origin = Origin::file(self.dir.to_string_lossy());
        Problem { origin, object: None, message, severity: Severity::Error }
    }

    /// Removes the names that exceed the limit. Files that were read before are not among these.
    fn leave_out(&mut self, names: BTreeSet<OsString>) -> BTreeSet<OsString> {
        let excess = names.len().saturating_sub(self.limits.files);
        self.left_out = None;
        if excess == 0 {
            return names;
        }
        let new: Vec<&OsString> =
            names.iter().rev().filter(|name| !self.files.contains_key(*name)).take(excess).collect();
        let left_out: BTreeSet<OsString> = new.into_iter().cloned().collect();
        self.left_out = left_out.first().map(|name| (name.to_string_lossy().into(), left_out.len()));
        names.into_iter().filter(|name| !left_out.contains(name)).collect()
    }

    /// Keeps the objects of files that disappeared, if files came at the same time that could never be read. Nobody
    /// knows whether the files were renamed; their objects, policies above all, must not end with a renaming.
    fn keep_renamed(&mut self, before: &BTreeSet<OsString>, went: BTreeMap<OsString, Manifest>, joiner: &mut Joiner) {
        let files = &self.files;
        let never = |name: &OsString| files.get(name).is_some_and(Manifest::is_unclear);
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
        let is_back = |name: &OsString| files.get(name).is_some_and(|file| !file.is_unclear());
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

    /// The bytes of the other files.
    fn bytes_beside(&self, name: &OsStr) -> u64 {
        self.bytes.saturating_sub(self.files.get(name).map_or(0, |file| file.size))
    }

    fn read_bytes(&self, name: &OsStr, path: &Path) -> Result<Vec<u8>, ReadError> {
        let limit = self.limits.bytes;
        read_bytes(path, limit, limit.saturating_sub(self.bytes_beside(name)))
    }

    /// `keeps`: a file that lacks objects which it had is not taken.
    fn read_file(&mut self, name: &OsStr, joiner: &mut Joiner, reading: Reading, keeps: bool) -> Done {
        let path = self.dir.join(name);
        // Before the file is read: a change after this gives another state.
        let state = State::settled(&path, SystemTime::now());
        let looks_the_same = self.files.get(name).is_some_and(|file| file.digest.is_some() && file.state == state);
        if let Some(state) = &state
            && looks_the_same
            && (reading == Reading::Changed || state.size > LARGE_FILE)
        {
            return Done::Taken(0);
        }
        match self.read_bytes(name, &path) {
            // The file was removed or renamed after the folder was listed: the next reading sees which. A link that
            // leads nowhere is another case.
            Err(ReadError::Open(error))
                if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(&path).is_err() =>
            {
                Done::Taken(0)
            }
            bytes => self.take(name, bytes, state, joiner, keeps),
        }
    }

    /// Takes the bytes of a file. `state` is its metadata before it was read.
    fn take(
        &mut self,
        name: &OsStr,
        bytes: Result<Vec<u8>, ReadError>,
        state: Option<State>,
        joiner: &mut Joiner,
        keeps: bool,
    ) -> Done {
        let (limit, others) = (self.limits.bytes, self.bytes_beside(name));
        let bytes = bytes.and_then(|bytes| {
            let all = others.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
            if all > limit { Err(ReadError::FolderTooLarge { limit }) } else { Ok((bytes, all)) }
        });
        let file = self.manifest(name);
        file.is_over_budget = matches!(bytes, Err(ReadError::FolderTooLarge { .. }));
        let (bytes, all) = match bytes {
            Ok(bytes) => bytes,
            Err(error) => {
                file.digest = None;
                let content = unreadable(&file.name, None, error.to_string());
                self.say(name, content, joiner);
                return Done::Taken(0);
            }
        };
        let digest = digest::digest(&digest::SHA256, &bytes).as_ref().try_into().ok();
        if digest.is_some() && file.digest == digest {
            file.state = state;
            return Done::Taken(0);
        }
        let (content, known) = read_bytes_again(&file.name, &bytes, &file.known);
        if keeps && lacks_some(&joiner.said(&voice(&file.name)), &content.objects) {
            return Done::Postponed;
        }
        file.state = state;
        file.digest = digest;
        file.size = all.saturating_sub(others);
        let size = file.size;
        self.bytes = all;
        let file = self.manifest(name);
        // A text that can't be read at all does not change what is known about its objects.
        if let Some(known) = known {
            file.known = known;
        }
        if content.faults.is_empty()
            && let Some(kept) = &mut self.kept
        {
            kept.put(name, &bytes);
        }
        self.say(name, content, joiner);
        self.keep_valid(name, &bytes, joiner);
        Done::Taken(size)
    }

    /// Keeps a copy of the objects that are in force of a file that is only partly valid. No copy is made if a part has
    /// never been read: after a restart the copy would make that part look empty.
    fn keep_valid(&mut self, name: &OsStr, bytes: &[u8], joiner: &Joiner) {
        let Some(file) = self.files.get(name).filter(|file| !file.faults.is_empty() && !file.is_unclear()) else {
            return;
        };
        let Some(kept) = &mut self.kept else { return };
        let texts = |bytes: &[u8]| valid_texts(std::str::from_utf8(bytes).ok()?);
        let Some((now, before)) = texts(bytes).zip(kept.get(name).and_then(|bytes| texts(&bytes))) else { return };
        let said: BTreeSet<_> =
            joiner.said(&voice(&file.name)).iter().map(|object| (object.body.kind(), object.name.clone())).collect();
        let is_new: BTreeSet<_> = now.iter().map(|(key, _)| key.clone()).collect();
        let before = before.into_iter().filter(|(key, _)| said.contains(key) && !is_new.contains(key));
        let all: Vec<String> = now.iter().cloned().chain(before).map(|(_, text)| text).collect();
        kept.put(name, all.join("\n...\n").as_bytes());
    }

    /// Passes to the joiner the objects of a file, and the last valid version of objects that can't be read now.
    fn say(&mut self, name: &OsStr, content: FileContent, joiner: &mut Joiner) {
        let recalled = if content.faults.is_empty() { None } else { self.recall(name) };
        let file = self.manifest(name);
        let FileContent { mut objects, problems, faults } = content;
        let before = match (faults.is_empty(), recalled) {
            (true, _) => Vec::new(),
            (false, Some(recalled)) => recalled,
            (false, None) => joiner.said(&voice(&file.name)),
        };
        let last = LastValid::of(before, &objects, &faults);
        file.faults = faults
            .iter()
            .enumerate()
            .map(|(index, fault)| Unread {
                hides: if file.was_whole || last.has_all(index) { Hides::nothing() } else { fault.hides.clone() },
                problem: fault.problem(&last.consequence(index, fault, file.was_whole)),
            })
            .collect();
        file.was_whole |= faults.is_empty();
        objects.extend(last.objects);
        file.has_said |= file.was_whole || !objects.is_empty();
        joiner.say(&voice(&file.name), objects, problems);
    }

    /// The objects in the copy that an earlier process kept, unless the whole file was valid in this process.
    fn recall(&mut self, name: &OsStr) -> Option<Vec<Object>> {
        let file = self.manifest(name);
        if file.was_whole || std::mem::replace(&mut file.is_recalled, true) {
            return None;
        }
        let bytes = self.kept.as_ref().and_then(|kept| kept.get(name))?;
        let file = self.manifest(name);
        let (content, _) = read_bytes_again(&file.name, &bytes, &Known::default());
        file.was_whole = content.faults.is_empty();
        Some(content.objects)
    }

    fn manifest(&mut self, name: &OsStr) -> &mut Manifest {
        let known = || Known::nothing_in(self.namespace.clone());
        self.files.entry(name.to_owned()).or_insert_with(|| Manifest {
            name: name.to_string_lossy().into(),
            digest: None,
            state: None,
            size: 0,
            is_over_budget: false,
            known: known(),
            was_whole: false,
            is_recalled: false,
            has_said: false,
            faults: Vec::new(),
        })
    }
}

/// Whether some object of a file is not among its objects now.
fn lacks_some(before: &[Object], now: &[Object]) -> bool {
    let there: BTreeSet<_> = now.iter().map(|object| (object.body.kind(), &object.name)).collect();
    before.iter().any(|object| !there.contains(&(object.body.kind(), &object.name)))
}

fn voice(name: &Arc<str>) -> Voice {
    Voice::of(Arc::clone(name))
}

impl Gone {
    fn problem(&self) -> Problem {
        let others: Vec<_> = self.others.iter().map(|name| name.to_string_lossy()).collect();
        let message = format!(
            "was removed when {} was added, which cannot be read: the objects of the removed file stay in force \
             until the unreadable file is corrected or removed",
            others.join(", ")
        );
        let origin = Origin::file(Arc::clone(&self.name));
        Problem { origin, object: None, message, severity: Severity::Error }
    }
}

impl Manifest {
    /// Whether a part that could never be read may describe pods.
    fn hides_addresses(&self) -> bool {
        self.faults.iter().any(|fault| fault.hides.addresses != AddressesIn::Nowhere)
    }

    /// Whether a part that could never be read may describe pods or policies.
    fn is_unclear(&self) -> bool {
        self.hides_addresses() || self.faults.iter().any(Unread::hides_policies)
    }
}
