//! Circles: the files of one folder of the layered crate don't use each other in a circle.
//!
//! File A uses file B if A names an item that B defines. A name that a third file only re-exports counts for the file
//! that defines it. These do not count: `mod child;`, a `pub use` whose name the file itself does not use, and test
//! code.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt::Write as _;
use std::path::Path;

use super::Violation;
use super::definitions::Definitions;
use super::references::{Reference, Target};
use super::tree::Tree;

/// The place where a file names an item of another file.
struct Use {
    line: usize,
    /// The resolved path, or the path as written if it begins with an imported name.
    path: String,
}

/// The files that a file uses, each with the first place.
type Graph<'a> = BTreeMap<&'a Path, BTreeMap<&'a Path, Use>>;

/// One violation for each group of files that use each other. It names the shortest circle.
pub(super) fn check(tree: &Tree, references: &HashMap<&Path, Vec<Reference>>) -> Vec<Violation> {
    let graph = graph(tree, references);
    let reachable: BTreeMap<&Path, BTreeSet<&Path>> =
        graph.keys().map(|file| (*file, reachable(&graph, file))).collect();
    let reaches = |from: &Path, to: &Path| reachable.get(from).is_some_and(|files| files.contains(to));
    let mut seen = BTreeSet::new();
    let mut violations = Vec::new();
    for file in graph.keys().filter(|file| reaches(file, file)) {
        if !seen.insert(*file) {
            continue;
        }
        let knot: Vec<&Path> =
            graph.keys().copied().filter(|other| reaches(file, other) && reaches(other, file)).collect();
        seen.extend(&knot);
        let circles = knot.iter().filter_map(|start| shortest(&graph, start));
        violations.extend(circles.min_by_key(Vec::len).and_then(|circle| violation(&graph, &circle, knot.len())));
    }
    violations
}

fn graph<'a>(tree: &'a Tree, references: &HashMap<&'a Path, Vec<Reference>>) -> Graph<'a> {
    let definitions = Definitions::of(tree, references);
    let folder_of: HashMap<&Path, &str> = tree
        .sources
        .iter()
        .filter_map(|source| Some((source.path.as_path(), source.place.as_ref()?.folder()?)))
        .collect();
    let mut graph = Graph::new();
    for (file, folder) in &folder_of {
        let found = references.get(file).map(Vec::as_slice).unwrap_or_default();
        let used: &mut BTreeMap<&Path, Use> = graph.entry(*file).or_default();
        for reference in found.iter().filter(|reference| counts(reference, found)) {
            let (other, path) = match &reference.target {
                Target::Own(path) => (definitions.file_of(path), format!("crate::{}", path.join("::"))),
                Target::Other(path) => (definitions.file_in_scope(&reference.module, path), path.join("::")),
                Target::Name(_) | Target::Method(_) => continue,
            };
            if let Some(other) = other.filter(|other| other != file && folder_of.get(other) == Some(folder)) {
                used.entry(other).or_insert_with(|| Use { line: reference.line, path });
            }
        }
    }
    graph
}

/// Whether a reference counts as a use. References in tests do not, nor does a re-export whose name the file does not
/// use itself.
fn counts(reference: &Reference, found: &[Reference]) -> bool {
    let is_used = |name: &str| {
        found.iter().filter(|other| other.import.is_none() && !other.is_test).any(|other| match &other.target {
            Target::Name(used) => used == name,
            Target::Other(path) => path.first().is_some_and(|first| first == name),
            Target::Own(_) | Target::Method(_) => false,
        })
    };
    match &reference.import {
        _ if reference.is_test => false,
        Some(import) if import.is_reexport => import.name.as_deref().is_some_and(is_used),
        _ => true,
    }
}

/// The files that a file uses, directly or through others.
fn reachable<'a>(graph: &Graph<'a>, from: &Path) -> BTreeSet<&'a Path> {
    let mut found = BTreeSet::new();
    let mut open = vec![from];
    while let Some(file) = open.pop() {
        for next in graph.get(file).into_iter().flat_map(BTreeMap::keys) {
            if found.insert(*next) {
                open.push(next);
            }
        }
    }
    found
}

/// The shortest circle through a file, beginning with the file.
fn shortest<'a>(graph: &Graph<'a>, start: &'a Path) -> Option<Vec<&'a Path>> {
    let mut before: HashMap<&Path, &'a Path> = HashMap::new();
    let mut open = VecDeque::from([start]);
    while let Some(file) = open.pop_front() {
        for next in graph.get(file).into_iter().flat_map(BTreeMap::keys) {
            if *next == start {
                let mut circle: Vec<&Path> =
                    std::iter::successors(Some(file), |file| before.get(file).copied()).collect();
                circle.reverse();
                return Some(circle);
            }
            if !before.contains_key(next) {
                before.insert(next, file);
                open.push_back(next);
            }
        }
    }
    None
}

fn violation(graph: &Graph<'_>, circle: &[&Path], knot: usize) -> Option<Violation> {
    let mut why = format!("circle of {} files", circle.len());
    if knot > circle.len() {
        // Writing to a string can't fail.
        let _ = write!(why, ", the shortest one among {knot} files that use each other");
    }
    let nexts = circle.iter().skip(1).chain(circle.first());
    let uses: Vec<&Use> =
        circle.iter().zip(nexts.clone()).filter_map(|(file, next)| graph.get(file)?.get(next)).collect();
    for ((file, next), used) in circle.iter().zip(nexts).zip(&uses) {
        let _ = write!(why, "\n    {}:{}: `{}` is defined in {}", file.display(), used.line, used.path, next.display());
    }
    why.push_str(
        "\n  To break it, move what several of them need into a file that uses none of them, move the function that needs \
         both sides into the file that uses the other one, or pass the value as an argument.",
    );
    Some(Violation { file: circle.first()?.to_path_buf(), line: uses.first()?.line, why })
}
