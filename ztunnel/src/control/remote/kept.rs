//! The last good state of all resources, kept on disk: a daemon that starts while the control plane is unavailable serves the
//! last known mesh.
//!
//! The file is a journal: a header that names the format and the control plane, then one record for each accepted response,
//! with the resources that are in force. A record that was cut by a crash is detected by its digest; the mesh up to it is
//! consistent. When the journal has grown, it is rewritten with the last state of each resource.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use nix::fcntl::OFlag;
use prost::Message;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::istio::discovery::{DeltaDiscoveryResponse, Resource};
use crate::lifecycle::keeps::Keeps;

/// The number of bytes of a record's digest: it detects accidents, not forgery.
const DIGEST: usize = 16;
/// The largest size of a record (one response) in bytes.
const LONGEST: u32 = 256 << 20;
/// A journal is rewritten when it has twice its size after the last rewrite, and this many bytes more.
const SLACK: u64 = 16 << 20;
/// The largest number of bytes that wait for a stalled disk; above it nothing is kept any more.
const MOST_WAITING: usize = 64 << 20;
/// The number of resources in one record of a rewritten journal.
const CHUNK: usize = 1000;
/// The file extension of a journal that is being rewritten.
const UNFINISHED: &str = "unfinished";

/// One record.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Record {
    /// The time of the response, in seconds since 1970.
    #[prost(uint64, tag = "1")]
    pub(super) at: u64,
    /// The part of the response that is in force.
    #[prost(message, optional, tag = "2")]
    pub(super) response: Option<DeltaDiscoveryResponse>,
}

/// The journal, open at its end.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    header: Vec<u8>,
    file: File,
    size: u64,
    /// The size from which the journal is rewritten.
    limit: u64,
}

impl Journal {
    /// Opens and reads the journal of a control plane. A journal of another control plane or in another format is not read, but
    /// replaced. Blocks on the file system.
    ///
    /// # Errors
    /// The error of the system.
    pub(super) fn open(path: &Path, plane: &str, mut each: impl FnMut(Record)) -> io::Result<Self> {
        let header = format!("ztunnel mesh 1 {plane}\n").into_bytes();
        let flags = (OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW).bits();
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
        let mut file = options.open(path)?;
        let mut size = 0;
        if has_header(&mut file, &header)? {
            size = header.len() as u64;
            let mut reader = BufReader::new(&file);
            while let Some((record, length)) = read_record(&mut reader)? {
                size += length;
                each(record);
            }
        }
        file.set_len(size)?;
        file.seek(SeekFrom::Start(size))?;
        if size == 0 {
            file.write_all(&header)?;
            size = header.len() as u64;
        }
        let limit = size.saturating_mul(2).saturating_add(SLACK);
        Ok(Self { path: path.to_owned(), header, file, size, limit })
    }

    /// Adds records, encoded by [`encode`]. Blocks on the file system.
    ///
    /// # Errors
    /// The error of the system. No more records may be added then.
    pub(super) fn append(&mut self, records: &[u8]) -> io::Result<()> {
        self.file.write_all(records)?;
        self.file.sync_data()?;
        self.size += records.len() as u64;
        if self.size > self.limit || !self.is_in_place() { self.rewrite() } else { Ok(()) }
    }

    /// Whether the file is still in its place: another daemon may have put its own there, see [`set_apart`].
    fn is_in_place(&self) -> bool {
        let here = fs::metadata(&self.path).and_then(|placed| Ok((placed, self.file.metadata()?)));
        here.is_ok_and(|(placed, own)| (placed.dev(), placed.ino()) == (own.dev(), own.ino()))
    }

    /// Writes the last state of each resource to a new file, and replaces the journal with it.
    fn rewrite(&mut self) -> io::Result<()> {
        let mut last: HashMap<(String, String), Resource> = HashMap::new();
        // Types without resources are written as well, because the control plane has answered for them.
        let mut by_type: HashMap<String, Vec<Resource>> = HashMap::new();
        let mut at = 0;
        self.file.seek(SeekFrom::Start(self.header.len() as u64))?;
        let mut reader = BufReader::new(&self.file);
        while let Some((record, _)) = read_record(&mut reader)? {
            at = record.at;
            let Some(DeltaDiscoveryResponse { type_url, resources, removed_resources, .. }) = record.response else {
                continue;
            };
            by_type.entry(type_url.clone()).or_default();
            for resource in resources {
                last.insert((type_url.clone(), resource.name.clone()), resource);
            }
            for name in removed_resources {
                last.remove(&(type_url.clone(), name));
            }
        }
        for ((type_url, _), resource) in last {
            by_type.entry(type_url).or_default().push(resource);
        }
        let unfinished = self.path.with_extension(format!("{:016x}.{UNFINISHED}", fastrand::u64(..)));
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&unfinished)?;
        file.write_all(&self.header)?;
        let mut size = self.header.len() as u64;
        for (type_url, resources) in by_type {
            let chunks: Vec<&[Resource]> = resources.chunks(CHUNK).collect();
            for chunk in if chunks.is_empty() { vec![&[][..]] } else { chunks } {
                let resources = chunk.to_vec();
                let response = DeltaDiscoveryResponse { type_url: type_url.clone(), resources, ..Default::default() };
                let record = encode(&Record { at, response: Some(response) });
                file.write_all(&record)?;
                size += record.len() as u64;
            }
        }
        file.sync_all()?;
        fs::rename(&unfinished, &self.path)?;
        (self.file, self.size, self.limit) = (file, size, size.saturating_mul(2).saturating_add(SLACK));
        Ok(())
    }
}

/// Removes what a crash has left of journals that were written anew. No other daemon may have this one open.
///
/// # Errors
/// What the system says.
pub(super) fn clear(path: &Path) -> io::Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_stem().and_then(|name| name.to_str())) else {
        return Ok(());
    };
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    for entry in entries.flatten() {
        let other = entry.file_name();
        let rest =
            other.to_str().and_then(|other| other.strip_prefix(name)?.strip_prefix('.')?.strip_suffix(UNFINISHED));
        if rest.is_some() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Puts a copy of a journal into its place, so that a daemon that has it open goes on to write the one that was there. Blocks on the
/// file system.
///
/// # Errors
/// What the system says.
pub(super) fn set_apart(path: &Path) -> io::Result<()> {
    let copy = path.with_extension(format!("{:016x}.{UNFINISHED}", fastrand::u64(..)));
    let result = fs::copy(path, &copy).and_then(|_| fs::rename(&copy, path));
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.inspect_err(|_| drop(fs::remove_file(&copy))),
    }
}

/// The encoding of a record: length, digest, message.
pub(super) fn encode(record: &Record) -> Vec<u8> {
    let message = record.encode_to_vec();
    let mut bytes = Vec::with_capacity(message.len() + DIGEST + 4);
    // Longer records are not read again; reading ends before them.
    bytes.extend(u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend(digest(&SHA256, &message).as_ref().iter().take(DIGEST));
    bytes.extend(message);
    bytes
}

fn has_header(file: &mut File, header: &[u8]) -> io::Result<bool> {
    let mut found = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.take(header.len() as u64).read_to_end(&mut found)?;
    Ok(found == header)
}

/// The next record, and its size in bytes; `None` at the end, or if the rest is invalid.
fn read_record(reader: &mut impl Read) -> io::Result<Option<(Record, u64)>> {
    let mut head = [0; 4 + DIGEST];
    if !fill(reader, &mut head)? {
        return Ok(None);
    }
    let (length, sum) = head.split_at(4);
    let length = length.iter().fold(0_u32, |number, byte| number << 8 | u32::from(*byte));
    if length > LONGEST {
        return Ok(None);
    }
    let mut message = Vec::new();
    reader.take(length.into()).read_to_end(&mut message)?;
    let is_whole =
        message.len() as u64 == u64::from(length) && digest(&SHA256, &message).as_ref().get(..DIGEST) == Some(sum);
    let record = if is_whole { Record::decode(message.as_slice()).ok() } else { None };
    Ok(record.map(|record| (record, u64::from(length) + head.len() as u64)))
}

/// Fills the buffer; `false` at the end.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes the journal on blocking threads, one record after the other, without blocking the caller.
#[derive(Debug)]
pub(super) struct Keeper {
    journal: Option<Journal>,
    busy: Option<JoinHandle<(Journal, io::Result<()>)>>,
    waiting: Vec<u8>,
    /// Why records are not kept any more.
    failure: Option<String>,
    /// Whether this daemon keeps anything.
    keeps: Keeps,
}

impl Keeper {
    pub(super) fn new(journal: io::Result<Journal>) -> Self {
        let (journal, failure) = match journal {
            Ok(journal) => (Some(journal), None),
            Err(error) => (None, Some(error.to_string())),
        };
        Self { journal, busy: None, waiting: Vec::new(), failure, keeps: Keeps::default() }
    }

    /// Keeps something only as long as this daemon does.
    pub(super) fn kept_by(self, keeps: Keeps) -> Self {
        Self { keeps, ..self }
    }

    /// Why records are not kept any more.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Keeps a record. After a lost record no further one may be written.
    pub(super) fn put(&mut self, record: &Record) {
        if self.failure.is_some() || !self.keeps.is_so() {
            return;
        }
        if self.waiting.len() > MOST_WAITING {
            self.failure = Some("the disk does not answer".to_owned());
            self.waiting = Vec::new();
            return;
        }
        self.waiting.extend(encode(record));
        self.write();
    }

    /// Waits until the current write is finished. Never returns if there is none. Dropping the future loses no record.
    pub(super) async fn written(&mut self) {
        let Some(busy) = &mut self.busy else { return std::future::pending().await };
        let done = busy.await;
        self.busy = None;
        match done {
            Ok((journal, Ok(()))) => {
                self.journal = Some(journal);
                self.write();
            }
            Ok((_, Err(error))) => self.failure = Some(error.to_string()),
            Err(_) => self.failure = Some("writing was interrupted".to_owned()),
        }
    }

    /// Whether records wait to be written.
    #[cfg(test)]
    pub(super) fn is_busy(&self) -> bool {
        self.busy.is_some()
    }

    fn write(&mut self) {
        if self.failure.is_some() || self.waiting.is_empty() {
            return;
        }
        if let Some(mut journal) = self.journal.take() {
            let records = std::mem::take(&mut self.waiting);
            self.busy = Some(spawn_blocking(move || {
                let result = journal.append(&records);
                (journal, result)
            }));
        }
    }
}

#[cfg(test)]
mod tests;
