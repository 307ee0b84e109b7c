//! Copies of the last valid content of each file, on disk. A daemon that starts while a file is broken continues with
//! the last valid content, like a daemon that was running. Without a copy nobody would know what the file may hold, and
//! every connection that it may concern has to be refused.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use nix::fcntl::OFlag;
use tracing::warn;

use crate::lifecycle::keeps::Keeps;

/// The name under which the record is kept; no file has it.
const RECORD: &str = "";

/// Name of a copy while it is written; after a crash the unfinished file may remain.
const UNFINISHED: &str = ".unfinished";

/// A directory of copies, of the files of one folder.
#[derive(Debug)]
pub(super) struct Kept {
    dir: PathBuf,
    /// Size of the largest file, in bytes.
    largest: u64,
    /// Prefix of the names of this folder's copies; the directory may also have copies of another folder.
    prefix: String,
    /// Why the last copy could not be written. It is reported once.
    failure: Option<String>,
    /// Whether this daemon keeps copies.
    keeps: Keeps,
}

impl Kept {
    pub(super) fn new(dir: PathBuf, folder: &Path, largest: u64) -> Self {
        Self { dir, largest, prefix: hex(folder.as_os_str(), 8), failure: None, keeps: Keeps::default() }
    }

    /// Only as long as this daemon keeps copies.
    pub(super) fn kept_by(&mut self, keeps: Keeps) {
        self.keeps = keeps;
    }

    fn name(&self, file: &OsStr) -> String {
        format!("{}-{}", self.prefix, hex(file, SHA256_OUTPUT_LEN))
    }

    /// The copy of a file, if there is one and its digest is right.
    pub(super) fn get(&self, file: &OsStr) -> Option<Vec<u8>> {
        let flags = (OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW).bits();
        let copy = OpenOptions::new().read(true).custom_flags(flags).open(self.dir.join(self.name(file))).ok()?;
        let mut bytes = Vec::new();
        copy.take(self.largest + SHA256_OUTPUT_LEN as u64).read_to_end(&mut bytes).ok()?;
        let (sum, content) = bytes.split_at_checked(SHA256_OUTPUT_LEN)?;
        // A crash of the machine may have left half of the copy, which would have fewer objects.
        (digest(&SHA256, content).as_ref() == sum).then(|| content.to_vec())
    }

    /// Keeps a copy of a file's content. If that fails, the daemon continues without it.
    pub(super) fn put(&mut self, file: &OsStr, content: &[u8]) {
        if !self.keeps.is_so() || self.get(file).is_some_and(|known| known == content) {
            return;
        }
        let failure = self.write(&self.name(file), content).err().map(|error| error.to_string());
        if let Some(failure) = &failure
            && self.failure.as_ref() != Some(failure)
        {
            warn!(
                dir = %self.dir.display(), error = %failure,
                "cannot write a copy of the valid objects of the mesh folder: a daemon that starts while a file is \
                 invalid will refuse connections that the file may concern; make the directory writable"
            );
        }
        self.failure = failure;
    }

    fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        // Another daemon that takes over, or has been taken over from, may write as well. What a crash has left is removed by `retain`.
        let unfinished = self.dir.join(format!("{}-{:016x}{UNFINISHED}", self.prefix, fastrand::u64(..)));
        let mut copy = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
        copy.write_all(digest(&SHA256, content).as_ref())?;
        copy.write_all(content)?;
        // Not synchronised, which would take long for a folder of many files: a copy that a crash has cut short is
        // found by its digest.
        fs::rename(&unfinished, self.dir.join(name))
    }

    /// Whether the last copy could not be written.
    pub(super) fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// The record: the files whose content was known when all files were last read, since every file was valid once.
    /// `None`: there is no record.
    pub(super) fn record(&self) -> Option<BTreeSet<OsString>> {
        let bytes = self.get(OsStr::new(RECORD))?;
        let names = bytes.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        Some(names.map(|name| OsStr::from_bytes(name).to_owned()).collect())
    }

    /// Writes the record. It is removed if a copy could not be written: without the copy, a file of the record would look
    /// as if it had never been valid.
    pub(super) fn put_record(&mut self, files: &BTreeSet<OsString>) {
        if self.failure.is_none() {
            let names: Vec<&[u8]> = files.iter().map(|file| file.as_bytes()).collect();
            self.put(OsStr::new(RECORD), &names.join(&0));
        }
        if self.failure.is_some() && self.keeps.is_so() {
            let _not_there = fs::remove_file(self.dir.join(self.name(OsStr::new(RECORD))));
        }
    }

    /// Removes the copies of files that are not among these.
    pub(super) fn retain(&self, files: &BTreeSet<OsString>) {
        if !self.keeps.is_so() {
            return;
        }
        let files = files.iter().map(OsString::as_os_str).chain([OsStr::new(RECORD)]);
        let names: BTreeSet<String> = files.map(|file| self.name(file)).collect();
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
            let is_ours = name.split('-').next() == Some(&self.prefix);
            if is_ours && !names.contains(&name) {
                let _gone_already = fs::remove_file(self.dir.join(&name));
            }
        }
    }
}

fn hex(text: &OsStr, bytes: usize) -> String {
    let sum = digest(&SHA256, text.as_bytes());
    sum.as_ref().iter().take(bytes).map(|byte| format!("{byte:02x}")).collect()
}
