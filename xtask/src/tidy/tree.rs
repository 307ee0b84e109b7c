//! The tree that is checked: the members, their sources as syntax trees, and every file.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use toml::Table;

use super::references;

/// Folders without text of the project. In a work tree of git, `.git` is a file.
const NOT_OURS: [&str; 2] = [".git", "target"];
/// The crate that has layers.
pub(super) const LAYERED: &str = "ztunnel/src";

/// A checked-out workspace.
pub(super) struct Tree {
    pub(super) root: PathBuf,
    /// The root Cargo.toml.
    pub(super) manifest: Table,
    /// Folders of the members, relative to the root.
    pub(super) members: Vec<PathBuf>,
    /// Every .rs file of every member.
    pub(super) sources: Vec<Source>,
    /// Every file, relative to the root.
    pub(super) files: Vec<PathBuf>,
}

/// One .rs file.
pub(super) struct Source {
    /// Relative to the tree's root.
    pub(super) path: PathBuf,
    pub(super) text: String,
    pub(super) syntax: syn::File,
    /// Its place in the layered crate, if it belongs to that crate.
    pub(super) place: Option<Place>,
}

/// A module of the layered crate.
pub(super) struct Place {
    /// `net/netns.rs` is `["net", "netns"]`; main.rs and lib.rs are empty.
    pub(super) module: Vec<String>,
    /// Whether the file is compiled for tests only.
    pub(super) is_test: bool,
}

impl Tree {
    pub(super) fn read(root: &Path) -> Result<Self> {
        let manifest = read_manifest(&root.join("Cargo.toml"))?;
        let members = members(&manifest)?;
        let mut files = Vec::new();
        walk(root, Path::new(""), &mut files)?;
        files.sort();
        let sources = files
            .iter()
            .filter(|file| file.extension().is_some_and(|extension| extension == "rs"))
            .filter(|file| members.iter().any(|member| file.starts_with(member)))
            .map(|file| Source::read(root, file))
            .collect::<Result<Vec<_>>>()?;
        let mut tree = Self { root: root.to_path_buf(), manifest, members, sources, files };
        tree.mark_test_modules();
        Ok(tree)
    }

    /// `#[cfg(test)] mod fixtures;` marks fixtures.rs, and everything below it, as test code.
    fn mark_test_modules(&mut self) {
        let declared = |source: &Source| {
            let module = source.place.as_ref().map(|place| place.module.clone())?;
            Some(references::test_modules(&source.syntax, &module))
        };
        let tests: HashSet<Vec<String>> = self.sources.iter().filter_map(declared).flatten().collect();
        for place in self.sources.iter_mut().filter_map(|source| source.place.as_mut()) {
            place.is_test |= tests.iter().any(|module| place.module.starts_with(module));
        }
    }
}

impl Source {
    fn read(root: &Path, path: &Path) -> Result<Self> {
        let full = root.join(path);
        let text = fs::read_to_string(&full).with_context(|| format!("could not read {}", full.display()))?;
        let syntax = syn::parse_file(&text).with_context(|| format!("{} is not Rust", path.display()))?;
        Ok(Self { path: path.to_path_buf(), text, syntax, place: Place::of(path) })
    }
}

impl Place {
    /// The module of a file of the layered crate.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let inside = path.strip_prefix(LAYERED).ok()?.with_extension("");
        let mut module: Vec<String> = inside.iter().map(|name| name.to_string_lossy().into_owned()).collect();
        if module.last().is_some_and(|name| name == "mod") || module == ["lib"] || module == ["main"] {
            module.pop();
        }
        let is_test = module.iter().any(|name| name == "tests");
        Some(Self { module, is_test })
    }

    /// The folder, or file, directly below `src`; `None` for main.rs and lib.rs, which are above all layers.
    pub(super) fn folder(&self) -> Option<&str> {
        self.module.first().map(String::as_str)
    }
}

/// Reads a Cargo.toml.
pub(super) fn read_manifest(path: &Path) -> Result<Table> {
    let text = fs::read_to_string(path).with_context(|| format!("could not read {}", path.display()))?;
    text.parse().with_context(|| format!("{} is not TOML", path.display()))
}

fn members(manifest: &Table) -> Result<Vec<PathBuf>> {
    let members = manifest.get("workspace").and_then(|workspace| workspace.get("members")?.as_array());
    let members = members.context("the root Cargo.toml has no workspace.members")?;
    let names = members.iter().map(|member| member.as_str().map(PathBuf::from));
    names.collect::<Option<_>>().context("workspace.members holds something that is not a string")
}

fn walk(root: &Path, inside: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let folder = root.join(inside);
    let entries = fs::read_dir(&folder).with_context(|| format!("could not list {}", folder.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("could not list {}", folder.display()))?;
        let path = inside.join(entry.file_name());
        let kind = entry.file_type().with_context(|| format!("could not look at {}", path.display()))?;
        let is_ours = !NOT_OURS.iter().any(|name| entry.file_name() == *name);
        if kind.is_dir() && is_ours {
            walk(root, &path, files)?;
        } else if kind.is_file() && is_ours {
            files.push(path);
        }
    }
    Ok(())
}
