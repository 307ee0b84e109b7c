//! The state directory: changes by other users before the daemon starts.

use std::os::unix::fs::symlink;

use super::*;

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// A directory with the permissions that earlier versions set.
fn open_to_all() -> (tempfile::TempDir, PathBuf) {
    let parent = tempfile::tempdir().unwrap();
    let state = parent.path().join("state");
    DirBuilder::new().mode(0o700).create(&state).unwrap();
    std::fs::set_permissions(&state, Permissions::from_mode(0o755)).unwrap();
    (parent, state)
}

#[test]
fn hold_the_daemon_back_with_a_lock_on_its_directory() {
    let (_parent, state) = open_to_all();
    let attacker = File::open(&state).unwrap();
    attacker.try_lock().unwrap();
    let held = lock_state(&state).unwrap();
    assert_eq!((mode(&state), mode(&state.join(LOCK))), (0o700, 0o600));
    assert!(matches!(lock_state(&state), Err(LockError::Held { path }) if path == state.join(LOCK)));
    drop(held);
    drop(lock_state(&state).unwrap());
    drop(attacker);
}

#[test]
fn a_directory_that_is_made_is_for_its_owner_only() {
    let parent = tempfile::tempdir().unwrap();
    let state = parent.path().join("a/b");
    let _held = lock_state(&state).unwrap();
    assert_eq!(mode(&state), 0o700);
}

#[test]
fn lead_the_state_elsewhere_by_a_link() {
    let (parent, state) = open_to_all();
    let link = parent.path().join("link");
    symlink(&state, &link).unwrap();
    let refused = lock_state(&link).unwrap_err();
    assert!(matches!(&refused, LockError::NotADirectory { path, .. } if *path == link), "{refused}");
    assert!(refused.to_string().contains("--state"), "{refused}");
    assert_eq!(mode(&state), 0o755, "what the link leads to was changed");

    let victim = parent.path().join("victim");
    std::fs::write(&victim, "").unwrap();
    symlink(&victim, state.join(LOCK)).unwrap();
    assert!(matches!(lock_state(&state), Err(LockError::Access { what: "open the lock", .. })));
    let file = parent.path().join("victim");
    assert!(matches!(lock_state(&file), Err(LockError::NotADirectory { .. })));
}

/// As root, the test gives a directory to another user. As another user, it uses a directory that belongs to root.
#[test]
fn own_the_directory_of_the_daemons_state() {
    let (_parent, own) = open_to_all();
    let root = geteuid().is_root();
    let dir = if root { own } else { PathBuf::from("/usr") };
    if root {
        std::os::unix::fs::chown(&dir, Some(65_534), None).unwrap();
    }
    let refused = lock_state(&dir).unwrap_err();
    let owner = if root { 65_534 } else { 0 };
    assert!(matches!(&refused, LockError::NotOurs { owner: found, .. } if *found == owner), "{refused}");
    assert!(refused.to_string().contains("chown"), "{refused}");
}

/// A successor has the same open files: the lock lasts until the last of them is closed.
#[test]
fn a_lock_that_is_handed_over_is_never_free() {
    let (_parent, state) = open_to_all();
    let file = lock_state(&state).unwrap();
    let root = File::open(&state).unwrap();
    let pins = PinDir::at(&state);
    std::fs::create_dir_all(pins.root()).unwrap();
    let pinned = File::open(pins.root()).unwrap();
    let copies = || [OwnedFd::from(file.try_clone().unwrap()), OwnedFd::from(pinned.try_clone().unwrap())];
    let lock = Lock::handed_over(copies(), &state, &pins).unwrap();
    assert_eq!(lock.files().count(), 2);
    let wrong = [OwnedFd::from(file.try_clone().unwrap()), OwnedFd::from(root)];
    let refused = Lock::handed_over(wrong, &state, &pins).unwrap_err().to_string();
    assert!(refused.contains("pin directory") && refused.contains("--bpf-pin"), "{refused}");
    drop(file);
    assert!(matches!(lock_state(&state), Err(LockError::Held { .. })), "the successor has it");
    drop(lock);
    drop(lock_state(&state).unwrap());
}
