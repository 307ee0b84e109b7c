//! Reads the files of a folder in parts: an author of large files must not delay the changes of others.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::SystemTime;

use super::{Done, Folder, Manifest, Reading, Unfinished};
use crate::control::file::content::State;
use crate::control::join::Joiner;
use crate::model::origin::Origin;
use crate::model::problem::{Problem, Severity};

impl Folder {
    /// Reads the files again, and passes the difference to the joiner. Blocks on the file system, on nothing else.
    pub(in crate::control::file) fn read(&mut self, joiner: &mut Joiner, reading: Reading) {
        while !self.read_part(joiner, reading) {}
    }

    /// Reads some of the files, the smallest first, and passes the difference to the joiner. Returns whether the reading
    /// is finished. If much has changed, the objects of files that are read take effect before the others are read, and
    /// small files that change meanwhile are read next: an author of large files must not delay the changes of others. The
    /// first reading is always whole.
    ///
    /// A file that lacks objects which it had takes effect at the end: another file may have them now.
    pub(in crate::control::file) fn read_part(&mut self, joiner: &mut Joiner, reading: Reading) -> bool {
        let resumed = self.unfinished.take().map(|unfinished| self.look_again(unfinished));
        let Some(mut now) = resumed.or_else(|| self.begin()) else { return true };
        let mut read = 0;
        while let Some(name) = now.left.pop() {
            match self.read_file(&name, joiner, reading, now.keeps()) {
                Done::Taken(bytes) => read += bytes,
                Done::Postponed => now.last.push(name),
            }
            let is_end = now.left.is_empty() && now.last.is_empty();
            let is_part = read >= self.limits.part || (now.left.is_empty() && read > 0);
            if !now.is_whole && !is_end && is_part {
                self.unfinished = Some(now);
                return false;
            }
        }
        for name in std::mem::take(&mut now.last) {
            self.read_file(&name, joiner, reading, false);
        }
        self.finish(now, joiner, reading);
        true
    }

    /// Lists the files. `None`: the folder cannot be read.
    fn begin(&mut self) -> Option<Unfinished> {
        let names = match self.manifest_names() {
            Ok(names) => names,
            Err(error) => {
                let message = format!("cannot read the mesh folder: {error}; the last good mesh stays in force");
                let origin = Origin::file(self.dir.to_string_lossy());
                self.unreadable = Some(Problem { origin, object: None, message, severity: Severity::Error });
                return None;
            }
        };
        self.unreadable = None;
        let is_first = !std::mem::replace(&mut self.was_read, true);
        let names = self.leave_out(names);
        let before: BTreeSet<OsString> = self.files.keys().cloned().collect();
        let files = std::mem::take(&mut self.files).into_iter();
        let (there, went): (BTreeMap<_, _>, BTreeMap<_, _>) = files.partition(|(name, _)| names.contains(name));
        self.files = there;
        self.bytes = self.files.values().map(|file| file.size).sum();
        let clock = SystemTime::now();
        let mut sizes: Vec<(u64, OsString)> =
            names.iter().map(|name| (self.changed_bytes(name, clock), name.clone())).collect();
        let all = sizes.iter().fold(0, |all: u64, (size, _)| all.saturating_add(*size));
        sizes.sort_unstable_by(|one, other| other.cmp(one));
        let left = sizes.into_iter().map(|(_, name)| name).collect();
        let is_whole = is_first || all <= self.limits.at_once;
        Some(Unfinished { names, before, went, left, last: Vec::new(), is_whole })
    }

    /// Adds the smallest of the files that have changed since the reading began: they come next. A reading of large files may
    /// take minutes. The added files are at most half of a part, so that every part continues the reading as well.
    fn look_again(&mut self, mut now: Unfinished) -> Unfinished {
        // If the folder cannot be read, the next reading reports it.
        let Ok(names) = self.manifest_names() else { return now };
        let clock = SystemTime::now();
        let waiting: BTreeSet<OsString> = now.left.iter().chain(&now.last).cloned().collect();
        let names = self.leave_out(names).into_iter().filter(|name| !waiting.contains(name));
        let changed = names.map(|name| (self.changed_bytes(&name, clock), name)).filter(|(size, _)| *size > 0);
        let mut changed: Vec<(u64, OsString)> = changed.collect();
        changed.sort_unstable();
        let mut sum = 0_u64;
        let fits = |(size, _): &(u64, OsString)| {
            sum = sum.saturating_add(*size);
            sum <= self.limits.part / 2
        };
        let small: Vec<(u64, OsString)> = changed.into_iter().take_while(fits).collect();
        for (_, name) in small.into_iter().rev() {
            if let Some(back) = now.went.remove(&name) {
                self.bytes += back.size;
                self.files.insert(name.clone(), back);
            }
            now.names.insert(name.clone());
            now.left.push(name);
        }
        now
    }

    /// The size of a file that may have changed, in bytes; otherwise 0.
    fn changed_bytes(&self, name: &OsStr, clock: SystemTime) -> u64 {
        let Ok(metadata) = fs::metadata(self.dir.join(name)) else { return 0 };
        let state = State::of(&metadata, clock);
        let is_same = |file: &Manifest| file.digest.is_some() && state.is_some() && file.state == state;
        if self.files.get(name).is_some_and(is_same) { 0 } else { metadata.size() }
    }

    /// Ends a reading: removes what is not there any more.
    fn finish(&mut self, now: Unfinished, joiner: &mut Joiner, reading: Reading) {
        let Unfinished { names, before, went, .. } = now;
        // Other files may have made room for these.
        let waiting = |name: &&OsString| self.files.get(*name).is_some_and(|file| file.is_over_budget);
        for name in names.iter().filter(waiting).collect::<Vec<_>>() {
            self.read_file(name, joiner, reading, false);
        }
        self.keep_renamed(&before, went, joiner);
        if !std::mem::replace(&mut self.is_resumed, true) {
            self.resume(joiner);
        }
        self.keep_record();
        // The objects of a renamed file stay in force, and their copy may be needed after a restart.
        if let Some(kept) = self.kept.as_ref().filter(|_| self.gone.is_empty()) {
            kept.retain(&names);
        }
    }
}
