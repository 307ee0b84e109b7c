//! Structure as a test: layers, fences, circles of files, lint inheritance, module docs, documents, links, words, no path of one machine.
//!
//! Works on the text of the tree, so it needs no build and sees code that is configured out. Only the comparison of the
//! generated parts of documents needs a build.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Result, bail};

use self::tree::Tree;
use crate::docs;
use crate::workspace::Workspace;

mod circles;
mod definitions;
mod documents;
mod fences;
mod layers;
mod links;
mod longest;
mod machine_paths;
mod manifests;
mod map;
mod messages;
mod module_docs;
mod references;
mod tree;
mod words;

/// One broken rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Violation {
    /// Relative to the tree's root.
    file: PathBuf,
    /// From 1; 0 is the file as a whole.
    line: usize,
    why: String,
}

/// Checks the tree and prints the violations; an error if a rule is broken. `generated`: checks the generated parts of
/// documents as well, which needs a build.
pub(crate) fn run(workspace: &Workspace, generated: bool) -> Result<()> {
    let tree = Tree::read(&workspace.root)?;
    print!("{}", longest::report(&tree));
    let mut violations = check(&tree);
    if generated {
        violations.extend(docs::stale(workspace)?.into_iter().map(|docs::Stale { file, line, name }| Violation {
            file,
            line,
            why: format!("the generated part {name:?} differs from what the code says: run `cargo xtask docs`"),
        }));
    }
    for violation in &violations {
        eprintln!("{violation}");
    }
    match violations.len() {
        0 => println!("tidy: {} files follow the rules", tree.sources.len()),
        count => bail!("tidy: {count} broken rules; `cargo xtask tidy --layers` prints layers and fences"),
    }
    Ok(())
}

/// The tables of layers and fences, as text.
pub(crate) fn tables() -> String {
    format!("{}\n{}", layers::table(), fences::table())
}

fn check(tree: &Tree) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut named = HashMap::new();
    for source in &tree.sources {
        violations.extend(module_docs::check(source));
        if let Some(place) = &source.place {
            let references = references::of(&source.syntax, &place.module, place.is_test);
            violations.extend(layers::check(source, place, &references));
            violations.extend(fences::check(source, place, &references));
            named.insert(source.path.as_path(), references);
        }
    }
    violations.extend(circles::check(tree, &named));
    violations.extend(manifests::check(tree));
    violations.extend(machine_paths::check(tree));
    violations.extend(documents::check(tree));
    violations.extend(links::check(tree));
    violations.extend(words::check(tree));
    violations.extend(messages::check(tree));
    violations.extend(map::check(tree));
    violations.sort();
    violations.dedup();
    violations
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if self.line > 0 {
            write!(f, "{}:", self.line)?;
        }
        f.write_char(' ')?;
        f.write_str(&self.why)
    }
}

#[cfg(test)]
mod tests;
