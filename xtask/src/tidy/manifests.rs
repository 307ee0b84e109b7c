//! Every member inherits the workspace's lints: a table that no member inherits is worse than none.

use std::path::Path;

use toml::Table;

use super::Violation;
use super::tree::{self, Tree};

pub(super) fn check(tree: &Tree) -> Vec<Violation> {
    let mut violations = Vec::new();
    let lints = tree.manifest.get("workspace").and_then(|workspace| workspace.get("lints")?.as_table());
    if lints.is_none_or(Table::is_empty) {
        violations.push(whole_file(Path::new("Cargo.toml"), "no [workspace.lints] for members to inherit".to_owned()));
    }
    for member in &tree.members {
        let path = member.join("Cargo.toml");
        match tree::read_manifest(&tree.root.join(&path)) {
            Ok(manifest) if inherits_lints(&manifest) => {}
            Ok(_) => violations
                .push(whole_file(&path, "the lints are not inherited: add `[lints] workspace = true`".to_owned())),
            Err(error) => violations.push(whole_file(&path, format!("{error:#}"))),
        }
    }
    violations
}

fn inherits_lints(manifest: &Table) -> bool {
    manifest.get("lints").and_then(|lints| lints.get("workspace")?.as_bool()) == Some(true)
}

fn whole_file(path: &Path, why: String) -> Violation {
    Violation { file: path.to_path_buf(), line: 0, why }
}
