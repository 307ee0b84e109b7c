//! Signs of change in a folder, by inotify, through its removal and return.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tracing::warn;

/// What the watch has seen since it was asked last.
#[derive(Debug, Default)]
pub(super) struct Activity {
    /// Something has changed and is complete.
    changed: Notify,
    /// Somebody is writing; the end of it will be told.
    busy: Notify,
    /// The folder itself may be another one now.
    replaced: AtomicBool,
}

impl Activity {
    /// Waits for a change.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Waits for a change or the beginning of one.
    pub(super) async fn any(&self) {
        tokio::select! {
            () = self.changed.notified() => {}
            () = self.busy.notified() => {}
        }
    }

    fn see(&self, dir: &Path, event: notify::Result<Event>) {
        // An error of the watch itself, or lost events: anything may have happened.
        let Some(event) = event.ok().filter(|event| !event.need_rescan()) else {
            self.replaced.store(true, Ordering::Release);
            self.changed.notify_one();
            return;
        };
        let above = event.paths.iter().any(|path| dir.starts_with(path));
        let inside = event.paths.iter().any(|path| path.parent() == Some(dir));
        match event.kind {
            // A file counts as changed when its writer closes it, not at the truncation that writing begins with.
            EventKind::Modify(ModifyKind::Data(_)) if inside => self.busy.notify_one(),
            EventKind::Access(AccessKind::Close(AccessMode::Write)) if inside => self.changed.notify_one(),
            // Our own reading is among these.
            EventKind::Access(_) | EventKind::Modify(ModifyKind::Data(_)) => {}
            EventKind::Modify(ModifyKind::Metadata(_)) if above || inside => self.changed.notify_one(),
            _ if above => {
                self.replaced.store(true, Ordering::Release);
                self.changed.notify_one();
            }
            _ if inside => self.changed.notify_one(),
            _ => {}
        }
    }
}

/// A watch on a folder and on the closest folder above it that exists, which tells its removal and return.
#[derive(Debug, Default)]
pub(super) struct Watch {
    dir: PathBuf,
    activity: Arc<Activity>,
    armed: Option<Armed>,
    /// Told once, until it works again.
    failed: bool,
}

#[derive(Debug)]
struct Armed {
    /// What is watched. Numbers alone prove nothing, since a new folder may get those of the old one.
    targets: Vec<Target>,
    _watcher: RecommendedWatcher,
}

#[derive(Debug, PartialEq)]
struct Target {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Watch {
    pub(super) fn new(dir: PathBuf, activity: Arc<Activity>) -> Self {
        Self { dir, activity, armed: None, failed: false }
    }

    /// Makes sure that the folder as it is now is watched, and says whether it is.
    pub(super) fn arm(&mut self) -> bool {
        let replaced = self.activity.replaced.swap(false, Ordering::AcqRel);
        let targets = self.targets();
        if !replaced && self.armed.as_ref().is_some_and(|armed| armed.targets == targets) {
            return true;
        }
        self.armed = None;
        match self.start(targets) {
            Ok(armed) => {
                // A folder that came or was replaced in between is unwatched: look again.
                if self.targets() != armed.targets {
                    self.activity.changed.notify_one();
                }
                self.armed = Some(armed);
                self.failed = false;
                true
            }
            Err(error) => {
                // The folder may just have gone, which the next round finds; a limit on inotify stays.
                if !std::mem::replace(&mut self.failed, true) {
                    let dir = self.dir.display();
                    warn!(
                        %error,
                        "cannot watch {dir}, reading it every second instead; if fs.inotify.max_user_watches or \
                         max_user_instances is too low, raise it"
                    );
                }
                false
            }
        }
    }

    /// The folder above first, so that a replacement between the two steps is told.
    fn targets(&self) -> Vec<Target> {
        let above = self.dir.ancestors().skip(1).find_map(target);
        above.into_iter().chain(target(&self.dir)).collect()
    }

    fn start(&self, targets: Vec<Target>) -> notify::Result<Armed> {
        let (activity, dir) = (Arc::clone(&self.activity), self.dir.clone());
        let mut watcher = notify::recommended_watcher(move |event| activity.see(&dir, event))?;
        for target in &targets {
            watcher.watch(&target.path, RecursiveMode::NonRecursive)?;
        }
        Ok(Armed { targets, _watcher: watcher })
    }
}

fn target(path: &Path) -> Option<Target> {
    let metadata = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_dir)?;
    Some(Target { path: path.to_owned(), device: metadata.dev(), inode: metadata.ino() })
}
