//! Signs of change in a folder, from inotify. The watch survives the removal and return of the folder.
//!
//! Only events that matter are requested, so that others cause no wake-up: for example writes to a log next to the
//! folder, and the daemon's own reading of manifests.

use std::future::pending;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use thiserror::Error;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::warn;

/// Events requested for the folder above: those that may put another folder in the place of the watched one.
const ABOVE: AddWatchFlags = AddWatchFlags::IN_ONLYDIR
    .union(AddWatchFlags::IN_CREATE)
    .union(AddWatchFlags::IN_MOVE)
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_ATTRIB)
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_DELETE_SELF);
/// Events requested for the folder: the same, and writes to its files. Includes [`ABOVE`], since a link may make one
/// folder both, and the kernel keeps only the last request.
const INSIDE: AddWatchFlags = ABOVE.union(AddWatchFlags::IN_MODIFY).union(AddWatchFlags::IN_CLOSE_WRITE);

/// The meaning of events, the weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Sign {
    /// A program is writing; an event will follow when it has finished.
    Busy,
    /// Something has changed and is complete.
    Changed,
    /// The same, and the folder itself may be another one now.
    Replaced,
}

/// A watch on a folder and on the closest folder above it that exists; the latter shows removal and return.
#[derive(Debug, Default)]
pub(super) struct Watch {
    dir: PathBuf,
    armed: Option<Armed>,
    /// Something has changed for which no event will come.
    missed: bool,
    replaced: bool,
    /// The failure has been reported; it is reported again only after the watch has worked.
    failed: bool,
}

#[derive(Debug)]
struct Armed {
    /// The watched folders with their identities. Watch descriptors prove nothing, since a new folder may get those of
    /// the old one.
    targets: Vec<Target>,
    descriptors: Vec<WatchDescriptor>,
    instance: AsyncFd<Instance>,
}

#[derive(Debug, PartialEq)]
struct Target {
    path: PathBuf,
    device: u64,
    inode: u64,
}

/// An instance of inotify that does not block.
#[derive(Debug)]
struct Instance(Inotify);

impl AsRawFd for Instance {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Why a folder can't be watched.
#[derive(Debug, Error)]
enum ArmError {
    #[error(
        "the limit of inotify instances of this user or of open files of this process is reached: raise \
         fs.inotify.max_user_instances, or the limit of open files"
    )]
    NoInstance,
    #[error("the limit of inotify watches of this user is reached: raise fs.inotify.max_user_watches")]
    NoWatch,
    #[error(transparent)]
    Other(#[from] io::Error),
}

impl From<Errno> for ArmError {
    fn from(error: Errno) -> Self {
        match error {
            Errno::EMFILE => Self::NoInstance,
            // Nothing is written here: ENOSPC means the limit of watches, not a full disk.
            Errno::ENOSPC => Self::NoWatch,
            other => Self::Other(other.into()),
        }
    }
}

impl Watch {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, ..Self::default() }
    }

    /// Makes sure that the folder as it is now is watched, and returns whether it is. [`Self::sign`] reports changes
    /// after that. Blocks on the file system.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub(super) fn arm(&mut self) -> bool {
        let replaced = std::mem::take(&mut self.replaced);
        let targets = self.targets();
        if !replaced && self.armed.as_ref().is_some_and(|armed| armed.targets == targets) {
            return true;
        }
        self.armed = None;
        match self.start(targets) {
            Ok(armed) => {
                // A folder that came or was replaced in between is not watched: read again.
                self.missed = self.targets() != armed.targets;
                self.armed = Some(armed);
                self.failed = false;
                true
            }
            Err(error) => {
                // The folder may just have been removed, which the next round finds. A limit on inotify remains.
                if !std::mem::replace(&mut self.failed, true) {
                    warn!(%error, "cannot watch {}; reading it every second instead", self.dir.display());
                }
                false
            }
        }
    }

    /// Waits for the next sign; forever when nothing is watched. No sign is lost when the future is dropped.
    pub(super) async fn sign(&mut self) -> Sign {
        if std::mem::take(&mut self.missed) {
            return Sign::Changed;
        }
        let Some(armed) = &self.armed else { return pending().await };
        loop {
            let read = armed.instance.async_io(Interest::READABLE, |instance| Ok(instance.0.read_events()?));
            match read.await {
                Ok(events) => {
                    let Some(sign) = events.iter().filter_map(|event| armed.meaning(event, &self.dir)).max() else {
                        continue;
                    };
                    self.replaced |= sign == Sign::Replaced;
                    return sign;
                }
                // Events may be lost: watch anew, and read.
                Err(error) => {
                    warn!(%error, "watching {} failed; starting again", self.dir.display());
                    self.armed = None;
                    return Sign::Replaced;
                }
            }
        }
    }

    /// The folder above comes first, so that a replacement between the two steps raises an event.
    fn targets(&self) -> Vec<Target> {
        let above = self.dir.ancestors().skip(1).find_map(target);
        above.into_iter().chain(target(&self.dir)).collect()
    }

    fn start(&self, targets: Vec<Target>) -> Result<Armed, ArmError> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let ask = |target: &Target| {
            let asked = if target.path == self.dir { INSIDE } else { ABOVE };
            inotify.add_watch(&target.path, asked)
        };
        let descriptors = targets.iter().map(ask).collect::<Result<_, _>>()?;
        // SAFETY: the instance owns its descriptor for as long as it lives, and always gives the same one.
        let instance = unsafe { AsyncFd::register_with_interest(Instance(inotify), Interest::READABLE) };
        Ok(Armed { targets, descriptors, instance: instance.map_err(io::Error::from)? })
    }
}

impl Armed {
    /// The meaning of an event for the folder `dir`, if it has one.
    fn meaning(&self, event: &InotifyEvent, dir: &Path) -> Option<Sign> {
        // Events were lost: anything may have changed.
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            return Some(Sign::Replaced);
        }
        let watched = self.targets.iter().zip(&self.descriptors).filter(|(_, descriptor)| **descriptor == event.wd);
        watched.filter_map(|(target, _)| target.meaning(event, dir)).max()
    }
}

impl Target {
    fn meaning(&self, event: &InotifyEvent, dir: &Path) -> Option<Sign> {
        let is = |kind| event.mask.contains(kind);
        let inside = self.path == dir;
        match &event.name {
            // A file has changed when its writer closes it, not when the writer truncates it at the beginning.
            Some(_) if inside && is(AddWatchFlags::IN_MODIFY) => Some(Sign::Busy),
            Some(_) if inside => Some(Sign::Changed),
            // An entry next to the folder, or next to a folder that contains it.
            Some(name) if dir.strip_prefix(&self.path).ok()?.iter().next() != Some(name) => None,
            _ if is(AddWatchFlags::IN_ATTRIB) => Some(Sign::Changed),
            _ => Some(Sign::Replaced),
        }
    }
}

fn target(path: &Path) -> Option<Target> {
    let metadata = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_dir)?;
    Some(Target { path: path.to_owned(), device: metadata.dev(), inode: metadata.ino() })
}

#[cfg(test)]
mod tests;
