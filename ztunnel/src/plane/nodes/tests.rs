use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use aws_lc_rs::digest::{SHA256, digest};

use super::{NodeTokens, Polled as _, Shared};
use crate::lifecycle::tasks::TaskCount;

const ONE: &str = "0123456789abcdef0123456789abcdef";
const OTHER: &str = "fedcba9876543210fedcba9876543210";

fn write(dir: &Path, name: &str, content: &str, mode: u32) {
    let path = dir.join(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
}

fn hex(token: &str) -> String {
    digest(&SHA256, token.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn node(tokens: &NodeTokens, token: &str) -> Option<String> {
    tokens.authenticate(token.as_bytes()).map(|caller| caller.node.to_string())
}

#[tokio::test]
async fn a_token_or_its_digest_names_a_node() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "node-a", &format!("{ONE}\n"), 0o600);
    write(dir.path(), "node-b.example", &format!("sha256:{}\n", hex(OTHER)), 0o644);
    let tokens = NodeTokens::open(dir.path().to_owned(), TaskCount::default()).unwrap();
    assert_eq!(node(&tokens, ONE).as_deref(), Some("node-a"));
    assert_eq!(node(&tokens, OTHER).as_deref(), Some("node-b.example"));
    for wrong in ["", "x", &ONE[1..], &hex(OTHER), &format!("sha256:{}", hex(OTHER)), &format!("{ONE} ")] {
        assert_eq!(node(&tokens, wrong), None, "{wrong:?}");
    }
    assert_eq!(tokens.len(), 2);
}

#[tokio::test]
async fn a_file_that_makes_no_sense_keeps_out_its_node_alone() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "good", ONE, 0o400);
    write(dir.path(), "open", OTHER, 0o640);
    write(dir.path(), "short", &ONE[1..], 0o600);
    write(dir.path(), "empty", "", 0o600);
    write(dir.path(), "two", &format!("{ONE}x {OTHER}x"), 0o600);
    write(dir.path(), "digest", "sha256:00", 0o600);
    write(dir.path(), "no-digits", &format!("sha256:{}", "x".repeat(64)), 0o600);
    write(dir.path(), "Upper", &format!("{ONE}upper"), 0o600);
    write(dir.path(), ".hidden", &format!("{ONE}hidden"), 0o600);
    write(dir.path(), "same-1", &format!("{ONE}same"), 0o600);
    write(dir.path(), "same-2", &format!("sha256:{}", hex(&format!("{ONE}same"))), 0o600);
    fs::create_dir(dir.path().join("folder")).unwrap();
    let tokens = NodeTokens::open(dir.path().to_owned(), TaskCount::default()).unwrap();
    assert_eq!((tokens.len(), node(&tokens, ONE).as_deref()), (1, Some("good")));
    let missing = NodeTokens::open(dir.path().join("nowhere"), TaskCount::default()).unwrap_err().to_string();
    assert!(missing.contains("--node-tokens"), "{missing}");
}

#[tokio::test]
async fn a_token_that_is_replaced_or_taken_away_counts_no_more() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "node-a", ONE, 0o600);
    let tokens = NodeTokens::open(dir.path().to_owned(), TaskCount::default()).unwrap();
    let shared: &Shared = &tokens.shared;
    let caller = tokens.authenticate(ONE.as_bytes()).unwrap();
    let changes = tokens.changes();
    assert!(shared.news().is_none() && tokens.knows(&caller));
    write(dir.path(), "node-b", OTHER, 0o600);
    assert!(shared.news().is_some());
    shared.take_up().unwrap();
    assert!(shared.news().is_none() && changes.has_changed().unwrap());
    assert!(tokens.knows(&caller) && node(&tokens, OTHER).as_deref() == Some("node-b"));
    // The same token in the file of another node is another caller.
    fs::rename(dir.path().join("node-a"), dir.path().join("node-c")).unwrap();
    shared.take_up().unwrap();
    assert!(!tokens.knows(&caller) && node(&tokens, ONE).as_deref() == Some("node-c"));
    // When the directory cannot be read, all tokens stay valid.
    fs::rename(dir.path().join("node-c"), dir.path().join("node-a")).unwrap();
    shared.take_up().unwrap();
    let away = dir.path().with_extension("away");
    fs::rename(dir.path(), &away).unwrap();
    shared.take_up().unwrap_err();
    assert!(tokens.knows(&caller));
    fs::rename(&away, dir.path()).unwrap();
}
