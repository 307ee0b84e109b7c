//! The table of folders in ARCHITECTURE.md has every folder of the layered crate, with its layer.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::Violation;
use super::layers;
use super::tree::{LAYERED, Tree};

/// The document.
const MAP: &str = "ARCHITECTURE.md";

pub(super) fn check(tree: &Tree) -> Vec<Violation> {
    let Ok(text) = fs::read_to_string(tree.root.join(MAP)) else { return Vec::new() };
    let inside = tree.files.iter().filter_map(|file| file.strip_prefix(LAYERED).ok());
    let folders: BTreeSet<&Path> =
        inside.filter_map(|file| file.ancestors().nth(1)?.iter().next().map(Path::new)).collect();
    let mut violations = Vec::new();
    for folder in folders.iter().filter_map(|folder| folder.to_str()) {
        let Some(layer) = layers::layer_of(folder) else { continue };
        let row = text
            .lines()
            .any(|line| line.starts_with(&format!("| L{layer} |")) && line.contains(&format!("`{folder}`")));
        if !row {
            let why = format!("the table of folders has no row `| L{layer} | `{folder}` | … |`: add it");
            violations.push(Violation { file: MAP.into(), line: 0, why });
        }
    }
    violations
}
