//! A folder that exceeds the limits for a folder.

use std::fs;

use tempfile::TempDir;

use super::{SOON, pod, running, running_within};
use crate::control::file::folder::FolderLimits;

fn bytes(bytes: usize) -> FolderLimits {
    FolderLimits { bytes: bytes.try_into().unwrap(), ..FolderLimits::default() }
}

/// A manifest of `length` bytes.
fn padded(name: &str, length: usize) -> String {
    let mut text = pod(name) + "#";
    text.extend(std::iter::repeat_n('-', length.checked_sub(text.len()).unwrap()));
    text
}

const TOO_LARGE: &str = "is not read: the files of the mesh folder may have";

#[tokio::test]
async fn a_new_file_over_the_budget_displaces_none_that_was_read() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("b.yaml"), padded("b", 600)).unwrap();
    fs::write(dir.path().join("c.yaml"), padded("c", 300)).unwrap();
    running_within(bytes(1000), dir.path(), SOON, async |mesh| {
        mesh.until("b c |").await;
        mesh.write("a.yaml", &padded("a", 101));
        mesh.until(&format!("b c | a.yaml: {TOO_LARGE}")).await;
        // Objects that were read stay in force, and their file may change within its share.
        mesh.write("c.yaml", &padded("d", 300));
        mesh.until(&format!("b d | a.yaml: {TOO_LARGE}")).await;
        mesh.write("c.yaml", &padded("d", 200));
        mesh.write("a.yaml", &padded("a", 150));
        mesh.until("a b d |").await;
        // A file that grows too large keeps its last valid version.
        mesh.write("b.yaml", &padded("e", 651));
        mesh.until(&format!("a b d | b.yaml: {TOO_LARGE}")).await;
        mesh.remove("a.yaml");
        mesh.write("b.yaml", &padded("e", 652));
        mesh.until("d e |").await;
    })
    .await;
}

#[tokio::test]
async fn what_is_over_the_budget_from_the_start_leaves_the_mesh_incomplete() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("a.yaml"), padded("a", 600)).unwrap();
    fs::write(dir.path().join("b.yaml"), padded("b", 600)).unwrap();
    running_within(bytes(1000), dir.path(), SOON, async |mesh| {
        let snapshot = mesh.until(&format!("a | b.yaml: {TOO_LARGE}")).await;
        assert!(snapshot.is_blind());
    })
    .await;
}

#[tokio::test]
async fn files_beyond_the_most_are_not_read_and_told_once() {
    let limits = FolderLimits { files: 2, ..FolderLimits::default() };
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("b.yaml"), pod("b")).unwrap();
    fs::write(dir.path().join("c.yaml"), pod("c")).unwrap();
    running_within(limits, dir.path(), SOON, async |mesh| {
        mesh.until("b c |").await;
        mesh.write("a.yaml", &pod("a"));
        mesh.until("b c | 1 files, of which a.yaml is the first, are not read").await;
        mesh.write("d.yaml", &pod("d"));
        mesh.until("b c | 2 files, of which a.yaml is the first, are not read").await;
        mesh.remove("c.yaml");
        mesh.remove("d.yaml");
        mesh.until("a b |").await;
    })
    .await;
    // From the start: the content of the other files is unknown.
    fs::write(dir.path().join("z.yaml"), pod("z")).unwrap();
    running_within(limits, dir.path(), SOON, async |mesh| {
        let snapshot = mesh.until("a b | 1 files, of which z.yaml is the first, are not read").await;
        assert!(snapshot.is_blind());
        mesh.remove("z.yaml");
        assert!(!mesh.until("a b |").await.is_blind());
    })
    .await;
}

#[tokio::test]
async fn the_usual_limits_are_far_from_a_usual_folder() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("a.yaml"), padded("a", 1 << 20)).unwrap();
    running(dir.path(), SOON, async |mesh| {
        mesh.until("a |").await;
    })
    .await;
}
