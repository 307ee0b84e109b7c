//! The state of a pod's network namespace before the enrolment, kept on disk so that a later daemon can restore it.

use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::sysctl::Saved;

/// One enrolled pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The pod, as `namespace/name`.
    pub pod: String,
    /// Cookie of its network namespace.
    pub cookie: u64,
    /// The path at which the namespace was opened.
    pub netns: PathBuf,
    /// The addresses that were proved to be the pod's. Records of version 0.1 lack them.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// The boot of the enrolment. Cookies start again with the next boot.
    pub boot: String,
    /// The sysctls before the enrolment.
    pub sysctls: Vec<Saved>,
}

/// The pod to which a network namespace belongs, by its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The pod, as `namespace/name`.
    pub pod: String,
    /// The addresses with which it was enrolled.
    pub addresses: Vec<IpAddr>,
}

/// The kernel's id of this boot.
///
/// # Errors
/// When it can't be read.
pub fn this_boot() -> Result<String, RecordError> {
    let path = PathBuf::from("/proc/sys/kernel/random/boot_id");
    match fs::read_to_string(&path) {
        Ok(id) => Ok(id.trim().to_owned()),
        Err(source) => Err(RecordError { what: "read", path, source }),
    }
}

/// The records: one file each below `<state>/pods`, and a copy in memory. Only the daemon writes them while it runs.
#[derive(Debug)]
pub struct Records {
    dir: PathBuf,
    known: BTreeMap<u64, Record>,
}

/// Why a record could not be kept.
#[derive(Debug, Error)]
#[error("cannot {what} {path}: {source}; --state must be a directory that the daemon may write and that survives it")]
pub struct RecordError {
    /// The step.
    pub what: &'static str,
    /// The file.
    pub path: PathBuf,
    /// The cause.
    pub source: io::Error,
}

impl Records {
    /// Opens the records below a state directory. Makes the directory if it does not exist. A file that can't be read
    /// is logged and left alone. A record of another boot is removed: its namespace is gone, and another pod may have
    /// its cookie by now.
    ///
    /// # Errors
    /// Names the directory.
    pub fn open(state: &Path) -> Result<Self, RecordError> {
        Self::read(state.join("pods"))
    }

    fn read(dir: PathBuf) -> Result<Self, RecordError> {
        let failed = |what| {
            let path = dir.clone();
            move |source| RecordError { what, path, source }
        };
        fs::create_dir_all(&dir).map_err(failed("make"))?;
        let (boot, mut known) = (this_boot()?, BTreeMap::new());
        for entry in fs::read_dir(&dir).map_err(failed("list"))? {
            let path = entry.map_err(failed("list"))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice::<Record>(&bytes)?)) {
                Ok(record) if record.boot == boot => {
                    known.insert(record.cookie, record);
                }
                Ok(_of_another_boot) => fs::remove_file(&path).map_err(failed("clear"))?,
                Err(error) => tracing::warn!(path = %path.display(), %error, "unreadable record of an enrolled pod"),
            }
        }
        Ok(Self { dir, known })
    }

    /// Reads all records again: another daemon may have changed them.
    ///
    /// # Errors
    /// Names the directory. The records in memory are then unchanged.
    pub fn reread(&mut self) -> Result<(), RecordError> {
        *self = Self::read(self.dir.clone())?;
        Ok(())
    }

    /// Every record.
    pub fn all(&self) -> impl Iterator<Item = &Record> {
        self.known.values()
    }

    /// The record of a namespace.
    #[must_use]
    pub fn of(&self, cookie: u64) -> Option<&Record> {
        self.known.get(&cookie)
    }

    /// Writes a record. The file is complete or does not exist.
    ///
    /// # Errors
    /// Names the file.
    pub fn keep(&mut self, record: Record) -> Result<(), RecordError> {
        let path = self.path(record.cookie);
        let failed = |source| RecordError { what: "write", path: path.clone(), source };
        let text = serde_json::to_vec_pretty(&record).map_err(|error| failed(error.into()))?;
        let fresh = path.with_extension("new");
        fs::write(&fresh, text).map_err(failed)?;
        fs::rename(&fresh, &path).map_err(failed)?;
        self.known.insert(record.cookie, record);
        Ok(())
    }

    /// Removes the record of a pod. It is no error if there is none.
    ///
    /// # Errors
    /// Names the file.
    pub fn forget(&mut self, cookie: u64) -> Result<(), RecordError> {
        let path = self.path(cookie);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(RecordError { what: "remove", path, source })
            }
            _ => {
                self.known.remove(&cookie);
                Ok(())
            }
        }
    }

    fn path(&self, cookie: u64) -> PathBuf {
        self.dir.join(format!("{cookie}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::{Record, Records, this_boot};

    #[test]
    fn records_come_back_and_garbage_does_not_hurt() {
        let state = tempfile::tempdir().unwrap();
        let mut records = Records::open(state.path()).unwrap();
        let record = |cookie, boot: &str| Record {
            pod: "a/b".into(),
            cookie,
            netns: "/run/netns/x".into(),
            addresses: vec!["10.0.0.1".parse().unwrap()],
            boot: boot.into(),
            sysctls: vec![],
        };
        records.keep(record(9, "another")).unwrap();
        let record = record(7, &this_boot().unwrap());
        records.keep(record.clone()).unwrap();
        std::fs::write(state.path().join("pods/8.json"), "{").unwrap();
        let mut records = Records::open(state.path()).unwrap();
        assert_eq!(records.all().collect::<Vec<_>>(), [&record]);
        assert!(!state.path().join("pods/9.json").exists(), "a record of another boot");
        records.forget(7).unwrap();
        records.forget(7).unwrap();
        assert!(records.of(7).is_none() && !state.path().join("pods/7.json").exists());
    }
}
