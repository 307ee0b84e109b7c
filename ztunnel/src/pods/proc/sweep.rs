//! Goes through all processes of the node once, and collects the network namespaces of the processes of given pods.
//!
//! The facts may change at any moment, and a hostile pod may change them: a pod can make any number of processes and
//! network namespaces. So the work is done in portions, the findings about a pod are limited, and processes that were
//! started earlier come first: a pod's network namespace is that of its sandbox, whose process is older than all
//! others.

use std::{
    collections::{HashMap, HashSet},
    fs::ReadDir,
    io,
    path::Path,
    sync::Arc,
};

use super::{cgroup::Belongs, process::Process};
use crate::net::netns::NetnsId;

/// Network namespaces of one pod that are examined. Container engines inside a pod make one for each container.
pub(super) const MOST_NAMESPACES: usize = 64;

/// A network namespace of a pod's processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) netns: NetnsId,
    /// The start of the oldest process of the pod in it.
    pub(super) started: u64,
    /// The PID of that process.
    pub(super) process: u32,
}

/// The findings about one pod.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Its network namespaces. The one with the oldest process comes first.
    pub(super) candidates: Vec<Candidate>,
    /// There were more network namespaces, which are left out.
    pub(super) is_cut: bool,
    /// The number of its processes.
    pub(super) processes: usize,
    /// Why the network namespace of one of them is not known.
    pub(super) denied: Option<io::ErrorKind>,
}

impl Seen {
    fn note(&mut self, found: Candidate) {
        if let Some(known) = self.candidates.iter_mut().find(|known| known.netns == found.netns) {
            if (found.started, found.process) < (known.started, known.process) {
                *known = found;
            }
        } else {
            self.candidates.push(found);
        }
        self.candidates.sort_unstable_by_key(|one| (one.started, one.process));
        if self.candidates.len() > MOST_NAMESPACES {
            self.candidates.truncate(MOST_NAMESPACES);
            self.is_cut = true;
        }
    }
}

/// A pass over all processes.
#[derive(Debug)]
pub(super) struct Sweep {
    proc: Arc<Path>,
    entries: ReadDir,
    wanted: HashSet<Arc<str>>,
    found: HashMap<Arc<str>, Seen>,
    processes: usize,
}

impl Sweep {
    /// Starts a pass that collects the processes of these pods, by UID.
    ///
    /// # Errors
    /// The folder can't be listed.
    pub(super) fn begin(proc: Arc<Path>, wanted: HashSet<Arc<str>>) -> io::Result<Self> {
        let entries = std::fs::read_dir(&proc)?;
        Ok(Self { proc, entries, wanted, found: HashMap::new(), processes: 0 })
    }

    /// Goes through at most `entries` more entries. Returns whether the pass is complete.
    ///
    /// # Errors
    /// The folder can't be listed any further.
    pub(super) fn go_on(&mut self, entries: usize) -> io::Result<bool> {
        for _ in 0..entries {
            let Some(entry) = self.entries.next() else { return Ok(true) };
            let number = entry?.file_name().to_str().and_then(|name| name.parse().ok());
            // An entry that is no number is no process. A process that has ended meanwhile is ignored.
            if let Some(number) = number {
                self.processes += 1;
                let _ended = self.look_at(number);
            }
        }
        Ok(false)
    }

    fn look_at(&mut self, number: u32) -> io::Result<()> {
        let process = Process::open(&self.proc, number)?;
        let Belongs::To(uid) = process.pod()? else { return Ok(()) };
        let Some(uid) = self.wanted.get(&*uid).map(Arc::clone) else { return Ok(()) };
        let seen = self.found.entry(uid).or_default();
        seen.processes += 1;
        match process.netns() {
            Ok(netns) => seen.note(Candidate { netns, started: process.started()?, process: number }),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => seen.denied = Some(error.kind()),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The findings about each pod that was seen, and the number of all processes.
    pub(super) fn end(self) -> (HashMap<Arc<str>, Seen>, usize) {
        (self.found, self.processes)
    }
}
