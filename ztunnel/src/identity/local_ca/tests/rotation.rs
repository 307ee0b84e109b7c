//! The CA of a directory changes under a source that is in use. The tests use tokio's paused clock, which advances only while
//! all tasks wait; while files are read it stands still.

use std::{fs, os::unix::fs::symlink, path::Path, time::Duration};

use rcgen::BasicConstraints;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{HOUR, HandMade, id, lay_out, layout, params};
use crate::{
    identity::{
        certificate::{Certificate, to_pem},
        local_ca::{CaSettings, LocalCa},
        source::CertSource as _,
    },
    lifecycle::tasks::TaskCount,
    model::identity::TrustDomain,
};

/// Longer than it takes to notice a change.
const A_WHILE: Duration = Duration::from_secs(10);

fn root(name: &str) -> HandMade {
    HandMade::root(params(name, BasicConstraints::Unconstrained))
}

fn open(dir: &Path, tasks: TaskCount) -> LocalCa {
    let settings = CaSettings { dir: dir.to_owned(), trust_domain: TrustDomain::default(), ttl: HOUR };
    LocalCa::open(settings, tasks).unwrap()
}

/// The current issuer, and the roots that are given with a certificate.
async fn signed_by(source: &LocalCa) -> (String, Vec<String>) {
    let credentials = source.issue(&id()).await.unwrap();
    let issuer = Certificate::parse(credentials.chain[0].clone()).unwrap().issuer;
    (issuer, credentials.roots.iter().map(to_pem).collect())
}

async fn next(generation: &mut watch::Receiver<u64>) -> u64 {
    timeout(A_WHILE, generation.changed()).await.unwrap().unwrap();
    *generation.borrow_and_update()
}

#[tokio::test(start_paused = true)]
async fn a_ca_is_replaced_file_by_file_without_a_moment_without_one() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (root("old"), root("new"));
    lay_out(dir.path(), [&old.pem, &old.pem, &old.key.serialize_pem(), &old.pem]);
    let source = open(dir.path(), TaskCount::default());
    let mut generation = source.generation();
    assert_eq!(*generation.borrow_and_update(), 1);
    let put = |name: &str, content: &str| fs::write(dir.path().join(name), content).unwrap();

    put(layout::ROOTS, &format!("{}{}", old.pem, new.pem));
    assert_eq!(next(&mut generation).await, 2);
    assert_eq!(signed_by(&source).await, ("CN=old".to_owned(), vec![old.pem.clone(), new.pem.clone()]));

    put(layout::CERTIFICATE, &new.pem);
    sleep(A_WHILE).await;
    put(layout::CHAIN, &new.pem);
    sleep(A_WHILE).await;
    assert!(!generation.has_changed().unwrap(), "the key is still the old one's");
    assert_eq!(signed_by(&source).await.0, "CN=old");

    put(layout::KEY, &new.key.serialize_pem());
    assert_eq!(next(&mut generation).await, 3);
    assert_eq!(signed_by(&source).await.0, "CN=new");

    put(layout::ROOTS, &new.pem);
    assert_eq!(next(&mut generation).await, 4);
    assert_eq!(signed_by(&source).await, ("CN=new".to_owned(), vec![new.pem.clone()]));
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_goes_and_comes_back_changes_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let (dir, away) = (parent.path().join("ca"), parent.path().join("away"));
    let source = open(&dir, TaskCount::default());
    let before = signed_by(&source).await;
    let generation = source.generation();
    fs::rename(&dir, &away).unwrap();
    sleep(HOUR).await;
    assert_eq!(signed_by(&source).await, before);
    // It does not make a new CA in its place either.
    assert!(!dir.exists());
    fs::rename(&away, &dir).unwrap();
    sleep(A_WHILE).await;
    fs::write(dir.join(layout::ROOTS), "garbage").unwrap();
    sleep(HOUR).await;
    assert_eq!(signed_by(&source).await, before);
    assert!(!generation.has_changed().unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_mounted_secret_is_replaced_by_turning_a_link() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (root("old"), root("new"));
    for (name, ca) in [("..1", &old), ("..2", &new)] {
        fs::create_dir(dir.path().join(name)).unwrap();
        lay_out(&dir.path().join(name), [&ca.pem, &ca.pem, &ca.key.serialize_pem(), &ca.pem]);
    }
    symlink("..1", dir.path().join("..data")).unwrap();
    for name in layout::FILES {
        symlink(Path::new("..data").join(name), dir.path().join(name)).unwrap();
    }
    let source = open(dir.path(), TaskCount::default());
    let mut generation = source.generation();
    assert_eq!(signed_by(&source).await.0, "CN=old");
    symlink("..2", dir.path().join("..tmp")).unwrap();
    fs::rename(dir.path().join("..tmp"), dir.path().join("..data")).unwrap();
    next(&mut generation).await;
    assert_eq!(signed_by(&source).await.0, "CN=new");
}

#[tokio::test(start_paused = true)]
async fn the_watch_ends_with_the_source() {
    let dir = tempfile::tempdir().unwrap();
    let count = TaskCount::default();
    let source = open(dir.path(), count.clone());
    sleep(A_WHILE).await;
    assert_eq!(count.alive(), 1);
    let mut generation = source.generation();
    drop(source);
    assert!(generation.changed().await.is_err());
    assert_eq!(count.alive(), 0);
}
