//! The generated parts of the documents: the text between `<!-- generated: NAME -->` and `<!-- end -->` comes from the
//! code.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use crate::process;
use crate::workspace::Workspace;

/// Texts by the names of parts.
pub(crate) type Parts = BTreeMap<String, String>;

/// The folder with documents that have such parts.
const FOLDER: &str = "docs";
const BEGIN: &str = "<!-- generated: ";
const END: &str = "<!-- end -->";

/// A part that differs from the code.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stale {
    /// Relative to the workspace.
    pub(crate) file: PathBuf,
    /// The line of its first marker, from 1.
    pub(crate) line: usize,
    /// Its name.
    pub(crate) name: String,
}

/// Writes the generated parts of all documents.
pub(crate) fn update(workspace: &Workspace) -> Result<()> {
    let parts = generate(workspace)?;
    let mut written = 0;
    for (file, text) in documents(workspace, &parts)? {
        let updated = render(&text, &parts).with_context(|| file.display().to_string())?;
        if updated.text != text {
            let path = workspace.root.join(&file);
            fs::write(&path, updated.text).with_context(|| format!("could not write {}", path.display()))?;
            println!("{}", file.display());
            written += 1;
        }
    }
    println!("docs: {written} files changed");
    Ok(())
}

/// The parts that are out of date.
pub(crate) fn stale(workspace: &Workspace) -> Result<Vec<Stale>> {
    let parts = generate(workspace)?;
    let mut stale = Vec::new();
    for (file, text) in documents(workspace, &parts)? {
        let updated = render(&text, &parts).with_context(|| file.display().to_string())?;
        let of_file = |(line, name)| Stale { file: file.clone(), line, name };
        stale.extend(updated.changed.into_iter().map(of_file));
    }
    Ok(stale)
}

/// Runs a program of the daemon's crate that prints the parts. Builds the same packages as for the unit tests, so that
/// nothing is compiled twice.
fn generate(workspace: &Workspace) -> Result<Parts> {
    let mut command = process::cargo();
    command.args(["build", "--quiet", "--package", "ebpf-common", "--package", "ztunnel", "--package", "xtask"]);
    command.args(["--example", "reference"]).current_dir(&workspace.root);
    process::run(&mut command)?;
    let program = workspace.target.join("debug/examples/reference");
    let text = process::stdout_of(&mut std::process::Command::new(&program))
        .with_context(|| format!("{} failed: run it to see why", program.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} printed something that is not JSON", program.display()))
}

/// The documents with generated parts, and their texts. Every part must occur in one of them.
fn documents(workspace: &Workspace, parts: &Parts) -> Result<Vec<(PathBuf, String)>> {
    let folder = workspace.root.join(FOLDER);
    let mut documents = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("could not list {}", folder.display()))? {
        let path = entry.with_context(|| format!("could not list {}", folder.display()))?.path();
        if path.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let text = fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))?;
        if let Some(name) = path.file_name().filter(|_| text.lines().any(|line| line.starts_with(BEGIN))) {
            documents.push((PathBuf::from(FOLDER).join(name), text));
        }
    }
    documents.sort();
    let used: BTreeSet<&str> = documents.iter().flat_map(|(_, text)| text.lines().filter_map(name_of)).collect();
    let unused: Vec<&str> = parts.keys().map(String::as_str).filter(|name| !used.contains(name)).collect();
    ensure!(
        unused.is_empty(),
        "no document has the generated parts {}: write `{BEGIN}NAME -->` and `{END}` into a file of {FOLDER}/",
        unused.join(", ")
    );
    Ok(documents)
}

/// A document with up-to-date parts.
struct Rendered {
    text: String,
    /// The parts that were different: the line of the marker, and the name.
    changed: Vec<(usize, String)>,
}

/// The name of the part that begins at a line.
fn name_of(line: &str) -> Option<&str> {
    line.strip_prefix(BEGIN)?.strip_suffix(" -->")
}

fn render(text: &str, parts: &Parts) -> Result<Rendered> {
    let mut rendered = Rendered { text: String::new(), changed: Vec::new() };
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        rendered.text.push_str(line);
        rendered.text.push('\n');
        ensure!(line != END, "line {}: `{END}` without `{BEGIN}NAME -->` before it", index + 1);
        let Some(name) = name_of(line) else { continue };
        let Some(part) = parts.get(name) else {
            let known: Vec<&str> = parts.keys().map(String::as_str).collect();
            bail!("line {}: there is no generated part {name:?}; there are {}", index + 1, known.join(", "));
        };
        let mut old = String::new();
        loop {
            match lines.next() {
                Some((_, END)) => break,
                Some((_, line)) if name_of(line).is_none() => {
                    old.push_str(line);
                    old.push('\n');
                }
                _ => bail!("line {}: the generated part {name:?} has no end: write `{END}` behind it", index + 1),
            }
        }
        if old != *part {
            rendered.changed.push((index + 1, name.to_owned()));
        }
        rendered.text.push_str(part);
        rendered.text.push_str(END);
        rendered.text.push('\n');
    }
    Ok(rendered)
}

#[cfg(test)]
mod tests;
