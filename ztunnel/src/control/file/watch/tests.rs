use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt, symlink};

use tempfile::TempDir;

use super::*;

/// A watched folder inside a folder of its own.
struct Watched {
    above: TempDir,
    dir: PathBuf,
    watch: Watch,
}

impl Watched {
    fn new() -> Self {
        let above = TempDir::new().unwrap();
        let dir = above.path().join("mesh");
        fs::create_dir(&dir).unwrap();
        let mut watch = Watch::new(dir.clone());
        assert!(watch.arm());
        Self { above, dir, watch }
    }

    /// The events since the last call, without waiting: each of them may have caused a wake-up.
    fn told(&self) -> Vec<InotifyEvent> {
        let mut told = Vec::new();
        loop {
            match self.watch.armed.as_ref().unwrap().instance.get_ref().0.read_events() {
                Ok(events) => told.extend(events),
                Err(error) => {
                    assert_eq!(error, Errno::EAGAIN);
                    return told;
                }
            }
        }
    }

    /// The meaning of these events, in order.
    fn signs(&self) -> Vec<Sign> {
        let armed = self.watch.armed.as_ref().unwrap();
        self.told().iter().filter_map(|event| armed.meaning(event, &self.dir)).collect()
    }
}

#[tokio::test]
async fn a_busy_neighbour_and_readers_wake_nobody() {
    let watched = Watched::new();
    let manifest = watched.dir.join("a.yaml");
    let log = watched.above.path().join("log");
    fs::write(&manifest, "a").unwrap();
    let mut neighbour = fs::File::create(&log).unwrap();
    assert!(!watched.told().is_empty());

    for _ in 0..100 {
        neighbour.write_all(b"line\n").unwrap();
    }
    drop(neighbour);
    fs::OpenOptions::new().append(true).open(&log).unwrap().write_all(b"line\n").unwrap();
    assert_eq!(fs::read(&log).unwrap().len(), 505);
    assert_eq!(fs::read(&manifest).unwrap(), b"a");
    assert_eq!(fs::read_dir(&watched.dir).unwrap().count(), 1);
    assert_eq!(fs::read_dir(watched.above.path()).unwrap().count(), 2);
    let told = watched.told();
    assert!(told.is_empty(), "{told:?}");
}

#[tokio::test]
async fn each_change_has_its_meaning() {
    use Sign::{Busy, Changed, Replaced};

    let watched = Watched::new();
    let above = watched.above.path();
    let file = watched.dir.join("a.yaml");
    fs::write(above.join("neighbour"), "a").unwrap();
    fs::remove_file(above.join("neighbour")).unwrap();
    assert_eq!(watched.signs(), []);

    let mut writer = fs::File::create(&file).unwrap();
    assert_eq!(watched.signs(), [Changed]);
    writer.write_all(b"a").unwrap();
    assert_eq!(watched.signs(), [Busy]);
    drop(writer);
    assert_eq!(watched.signs(), [Changed]);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(watched.signs(), [Changed]);
    symlink("a.yaml", watched.dir.join("link")).unwrap();
    assert_eq!(watched.signs(), [Changed]);
    fs::rename(&file, watched.dir.join("b.yaml")).unwrap();
    assert_eq!(watched.signs(), [Changed, Changed]);
    fs::remove_file(watched.dir.join("b.yaml")).unwrap();
    assert_eq!(watched.signs().last(), Some(&Changed));

    fs::set_permissions(&watched.dir, fs::Permissions::from_mode(0o700)).unwrap();
    // One event from the folder and one from the folder above.
    assert_eq!(watched.signs(), [Changed, Changed]);
    fs::rename(&watched.dir, above.join("away")).unwrap();
    assert_eq!(watched.signs(), [Replaced, Replaced]);
    fs::create_dir(&watched.dir).unwrap();
    assert_eq!(watched.signs(), [Replaced]);
}

#[tokio::test]
async fn what_is_lost_may_have_been_anything() {
    let mut watched = Watched::new();
    // The test writes two files in turn, since the kernel merges equal events in a row.
    let limit: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
    let mut files = ["a", "b"].map(|name| fs::File::create(watched.dir.join(name)).unwrap());
    for _ in 0..limit {
        files.iter_mut().for_each(|file| file.write_all(b"a").unwrap());
    }
    while watched.watch.sign().await != Sign::Replaced {}
    assert!(watched.told().is_empty(), "the loss is told last");
    // The folder is watched anew although it is the same one: the events of the old watch are gone.
    files.iter_mut().for_each(|file| file.write_all(b"a").unwrap());
    assert!(watched.watch.arm());
    assert!(watched.told().is_empty());
    fs::write(watched.dir.join("c"), "").unwrap();
    assert!(!watched.told().is_empty());
}

#[tokio::test]
async fn a_link_may_make_the_folder_the_one_above_it() {
    let above = TempDir::new().unwrap();
    let dir = above.path().join("mesh");
    symlink(".", &dir).unwrap();
    let mut watch = Watch::new(dir.clone());
    assert!(watch.arm());
    let watched = Watched { above, dir, watch };
    let mut file = fs::File::create(watched.dir.join("a.yaml")).unwrap();
    file.write_all(b"a").unwrap();
    drop(file);
    assert_eq!(watched.signs(), [Sign::Changed, Sign::Busy, Sign::Changed]);
    fs::remove_file(&watched.dir).unwrap();
    assert_eq!(watched.signs().last(), Some(&Sign::Replaced));
}

#[test]
fn limits_of_inotify_are_told_with_their_remedy() {
    let told = |error| ArmError::from(error).to_string();
    assert!(told(Errno::EMFILE).contains("raise fs.inotify.max_user_instances"));
    assert!(told(Errno::ENOSPC).ends_with("raise fs.inotify.max_user_watches"));
    assert_eq!(told(Errno::EACCES), io::Error::from(Errno::EACCES).to_string());
}
