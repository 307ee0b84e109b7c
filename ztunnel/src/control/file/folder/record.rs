//! That every file of a folder was valid once: a fact that outlives the process.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::sync::Arc;

use super::{Folder, Gone, Manifest, voice};
use crate::control::file::content::read_bytes_again;
use crate::control::join::Joiner;
use crate::control::manifests::Known;

impl Folder {
    /// Continues the state of an earlier process, for which every file was valid at least once: files that have never been
    /// valid came after that, as long as the content of all files from before is known.
    pub(super) fn resume(&mut self, joiner: &mut Joiner) {
        let Some((kept, record)) = self.kept.as_ref().and_then(|kept| Some((kept, kept.record()?))) else { return };
        let unclear = |(name, file): (&OsString, &Manifest)| file.is_unclear().then(|| name.clone());
        let came: BTreeSet<OsString> = self.files.iter().filter_map(unclear).collect();
        let is_lost = self.left_out.is_some() || came.iter().any(|name| record.contains(name));
        if is_lost || came.is_empty() {
            return;
        }
        // A file that is not there any more may have been renamed; then its content is in a file that is not valid.
        let missing = record.iter().filter(|name| !self.files.contains_key(*name));
        let copies: Option<Vec<_>> = missing.map(|name| Some((name.clone(), kept.get(name)?))).collect();
        let Some(copies) = copies else { return };
        for (key, bytes) in copies {
            let name: Arc<str> = key.to_string_lossy().into();
            let (content, _) = read_bytes_again(&name, &bytes, &Known::nothing_in(self.namespace.clone()));
            joiner.say(&voice(&name), content.objects, content.problems);
            joiner.keep(&name);
            self.gone.insert(key, Gone { name, others: came.clone() });
        }
        self.was_complete = true;
    }

    /// Keeps on disk that every file was valid at least once.
    pub(super) fn keep_record(&mut self) {
        self.was_complete |= !self.is_incomplete();
        if !self.was_complete {
            return;
        }
        let known = self.files.iter().filter(|(_, file)| !file.is_unclear()).map(|(name, _)| name);
        let known: BTreeSet<OsString> = known.chain(self.gone.keys()).cloned().collect();
        let Some(kept) = &mut self.kept else { return };
        if self.record.as_ref() != Some(&known) || kept.has_failed() {
            kept.put_record(&known);
            self.record = Some(known);
        }
    }
}
