use std::path::Path;

use super::{Journal, Keeper, Record, SLACK, clear, encode, set_apart};
use crate::istio::discovery::{ADDRESS, AUTHORIZATION, DeltaDiscoveryResponse, Resource};
use crate::lifecycle::keeps::Keeps;

const PLANE: &str = "https://istiod:15012";

fn record(at: u64, names: &[&str], removed: &[&str]) -> Record {
    let resource = |name: &&str| Resource { name: (*name).into(), version: at.to_string(), ..Resource::default() };
    let response = DeltaDiscoveryResponse {
        type_url: ADDRESS.into(),
        resources: names.iter().map(resource).collect(),
        removed_resources: removed.iter().map(ToString::to_string).collect(),
        ..DeltaDiscoveryResponse::default()
    };
    Record { at, response: Some(response) }
}

/// Opens the journal, and returns its records.
fn open(path: &Path, plane: &str) -> (Journal, Vec<Record>) {
    let mut records = Vec::new();
    let journal = Journal::open(path, plane, |record| records.push(record)).unwrap();
    (journal, records)
}

#[test]
fn records_are_read_as_they_were_written_and_only_by_the_owner() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mesh");
    let (mut journal, none) = open(&path, PLANE);
    assert_eq!(none, []);
    let records = [record(1, &["a", "b"], &[]), record(2, &["c"], &["a"])];
    records.iter().for_each(|record| journal.append(&encode(record)).unwrap());
    assert_eq!(open(&path, PLANE).1, records);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(open(&path, "https://other:15012").1, [], "of another control plane");
    assert_eq!(open(&path, PLANE).1, [], "it has been replaced");
}

#[test]
fn whatever_a_crash_leaves_is_a_state_from_before() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mesh");
    let (mut journal, _) = open(&path, PLANE);
    let records = [record(1, &["a"], &[]), record(2, &["b"], &[]), record(3, &["c"], &[])];
    records.iter().for_each(|record| journal.append(&encode(record)).unwrap());
    let whole = std::fs::read(&path).unwrap();
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        let (mut journal, read) = open(&path, PLANE);
        assert!(read.len() < 3 && read[..] == records[..read.len()], "{length}");
        // New records follow the remaining ones.
        journal.append(&encode(&records[2])).unwrap();
        assert_eq!(open(&path, PLANE).1.len(), read.len() + 1, "{length}");
    }
    for position in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[position] ^= 0x40;
        std::fs::write(&path, &bytes).unwrap();
        let (_, read) = open(&path, PLANE);
        assert!(read.len() < 3 && read[..] == records[..read.len()], "{position}");
    }
}

#[test]
fn a_journal_that_has_grown_is_written_anew_with_the_last_state_of_each_resource() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mesh");
    let (mut journal, _) = open(&path, PLANE);
    let padding = "x".repeat(1 << 20);
    for at in 1..40 {
        let mut record = record(at, &["a", "b"], &["gone"]);
        record.response.as_mut().unwrap().resources[0].aliases.push(padding.clone());
        journal.append(&encode(&record)).unwrap();
        journal.append(&encode(&super::tests::record(at, &["gone"], &[]))).unwrap();
    }
    journal.append(&encode(&record(40, &[], &["gone"]))).unwrap();
    assert!(std::fs::metadata(&path).unwrap().len() < SLACK + (4 << 20));
    let (_, records) = open(&path, PLANE);
    let mut last = std::collections::BTreeMap::new();
    for response in records.into_iter().filter_map(|record| record.response) {
        last.extend(response.resources.into_iter().map(|resource| (resource.name, resource.version)));
        response.removed_resources.iter().for_each(|name| drop(last.remove(name)));
    }
    assert_eq!(last, [("a".to_owned(), "39".to_owned()), ("b".to_owned(), "39".to_owned())].into());
}

/// A mesh may have no policies: a daemon that starts later must know that the control plane has answered so.
#[test]
fn a_type_without_resources_is_still_answered_for_in_a_journal_that_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mesh");
    let (mut journal, _) = open(&path, PLANE);
    let none = DeltaDiscoveryResponse { type_url: AUTHORIZATION.into(), ..DeltaDiscoveryResponse::default() };
    journal.append(&encode(&Record { at: 1, response: Some(none) })).unwrap();
    let padding = "x".repeat(1 << 20);
    for at in 2..40 {
        let mut record = record(at, &["a"], &[]);
        record.response.as_mut().unwrap().resources[0].aliases.push(padding.clone());
        journal.append(&encode(&record)).unwrap();
    }
    assert!(std::fs::metadata(&path).unwrap().len() < SLACK + (4 << 20), "it has been written anew");
    let types: std::collections::BTreeSet<String> =
        open(&path, PLANE).1.into_iter().filter_map(|record| Some(record.response?.type_url)).collect();
    assert_eq!(types, [ADDRESS.to_owned(), AUTHORIZATION.to_owned()].into());
}

/// During a handover two daemons have a journal open. Neither writes into that of the other.
#[test]
fn two_daemons_never_write_into_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mesh");
    set_apart(&path).unwrap();
    let (mut old, _) = open(&path, PLANE);
    old.append(&encode(&record(1, &["a"], &[]))).unwrap();
    set_apart(&path).unwrap();
    let (mut new, read) = open(&path, PLANE);
    assert_eq!(read, [record(1, &["a"], &[])]);
    // The new daemon gives up, and the old one continues: what it has is in place again.
    old.append(&encode(&record(2, &["b"], &[]))).unwrap();
    let names = |path: &Path| {
        let mut names: Vec<String> = open(path, PLANE)
            .1
            .into_iter()
            .flat_map(|record| record.response.unwrap().resources)
            .map(|resource| resource.name)
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(&path), ["a", "b"]);
    // The new daemon does not give up.
    new.append(&encode(&record(3, &["c"], &[]))).unwrap();
    assert_eq!(names(&path), ["a", "c"]);
    std::fs::write(path.with_extension("0123.unfinished"), "").unwrap();
    clear(&path).unwrap();
    let files = || std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(files(), 1);
}

#[tokio::test]
async fn a_daemon_that_has_handed_over_keeps_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mesh");
    let keeps = Keeps::default();
    let mut keeper = Keeper::new(Journal::open(&path, PLANE, |_| {})).kept_by(keeps.clone());
    keeper.put(&record(1, &["a"], &[]));
    keeper.written().await;
    keeps.leave();
    keeper.put(&record(2, &["b"], &[]));
    assert!(!keeper.is_busy() && keeper.failure().is_none());
    assert_eq!(open(&path, PLANE).1, [record(1, &["a"], &[])]);
}
