use super::*;

fn parts(pairs: &[(&str, &str)]) -> Parts {
    pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

const DOCUMENT: &str =
    "# A\n\n<!-- generated: one -->\nold\n<!-- end -->\n\ntext\n\n<!-- generated: two -->\n2\n<!-- end -->\n";

#[test]
fn only_what_stands_between_the_markers_is_replaced() {
    let rendered = render(DOCUMENT, &parts(&[("one", "new\nlines\n"), ("two", "2\n")])).unwrap();
    assert_eq!(
        rendered.text,
        "# A\n\n<!-- generated: one -->\nnew\nlines\n<!-- end -->\n\ntext\n\n<!-- generated: two -->\n2\n<!-- end -->\n"
    );
    assert_eq!(rendered.changed, [(3, "one".to_owned())]);
    let again = render(&rendered.text, &parts(&[("one", "new\nlines\n"), ("two", "2\n")])).unwrap();
    assert_eq!((again.text, again.changed), (rendered.text, Vec::new()));
}

#[test]
fn a_marker_without_its_counterpart_or_of_an_unknown_part_is_named() {
    let parts = parts(&[("one", "1\n")]);
    let error = |text: &str| render(text, &parts).map(|rendered| rendered.text).unwrap_err().to_string();
    assert!(error("a\n<!-- generated: one -->\nold\n").starts_with("line 2: the generated part \"one\" has no end"));
    assert!(error("<!-- generated: one -->\n<!-- generated: one -->\n<!-- end -->\n").contains("has no end"));
    assert!(error("a\n<!-- end -->\n").starts_with("line 2: `<!-- end -->` without"));
    assert!(
        error("<!-- generated: three -->\n<!-- end -->\n")
            .contains("there is no generated part \"three\"; there are one")
    );
}

/// A workspace with only these documents.
fn workspace(documents: &[(&str, &str)]) -> (tempfile::TempDir, Workspace) {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join(FOLDER)).unwrap();
    for (name, text) in documents {
        fs::write(folder.path().join(FOLDER).join(name), text).unwrap();
    }
    let root = folder.path().to_path_buf();
    (folder, Workspace { target: root.join("target"), root, version: String::new() })
}

#[test]
fn a_part_that_no_document_has_is_named() {
    let (_folder, workspace) =
        workspace(&[("a.md", DOCUMENT), ("b.md", "nothing\n"), ("c.txt", "<!-- generated: x -->\n")]);
    let found = documents(&workspace, &parts(&[("one", ""), ("two", "")])).unwrap();
    assert_eq!(found, [(PathBuf::from("docs/a.md"), DOCUMENT.to_owned())]);
    let error = documents(&workspace, &parts(&[("one", ""), ("two", ""), ("three", "")])).unwrap_err().to_string();
    assert!(error.contains("no document has the generated parts three"), "{error}");
}
