//! Files, folders and texts as sources of one mesh.

use std::fs;
use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::{pod, pods};
use crate::control::file::{OpenFolderError, Source, read_sources};
use crate::model::identity::TrustDomain;

#[test]
fn files_folders_and_texts_are_one_mesh() {
    let dir = TempDir::new().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("mesh/a.yaml", &pod("a"));
    write("mesh/deep/er/b.json", r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "b"}}"#);
    write("mesh/deep/notes.txt", "kind: [");
    write("mesh/.git/c.yaml", &pod("c"));
    write("mesh/.hidden.yaml", &pod("d"));
    write("one.txt", &pod("e"));
    symlink("..", dir.path().join("mesh/deep/back")).unwrap();
    let sources = [
        Source::Path(dir.path().join("mesh")),
        Source::Path(dir.path().join("one.txt")),
        Source::Text { name: "(standard input)".into(), bytes: pod("f").into_bytes() },
    ];
    let read = read_sources(&sources, TrustDomain::default(), None).unwrap();
    assert_eq!(pods(&read.snapshot), "a b e f");
    assert_eq!((read.snapshot.problems(), read.files.len(), read.local.len()), (&[][..], 4, 4));
    assert!(read.files.iter().any(|name| name.ends_with("mesh/deep/er/b.json")), "{:?}", read.files);

    let missing = Source::Path(dir.path().join("none"));
    let error = read_sources(&[missing], TrustDomain::default(), None).unwrap_err();
    assert!(matches!(error, OpenFolderError::Argument { .. }), "{error}");
    let nothing = read_sources(&[], TrustDomain::default(), None).unwrap();
    assert_eq!((pods(&nothing.snapshot).as_str(), nothing.files.len()), ("", 0));
    let broken = Source::Text { name: "x".into(), bytes: b"kind: [".to_vec() };
    let told = read_sources(&[broken], TrustDomain::default(), None).unwrap();
    assert!(told.snapshot.problems()[0].to_string().starts_with("x:1: "));
}
