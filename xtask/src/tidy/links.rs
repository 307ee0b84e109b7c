//! Links in documents must have a target. Files and tests that are named in documents, and in comments on modules and
//! items, must exist.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::Violation;
use super::tree::{LAYERED, Source, Tree};

/// Folders to which the names of files in documents may be relative.
const BASES: [&str; 5] = ["", LAYERED, "ztunnel", "tests/tests", "tests"];
/// A name in a document with one of these endings is the name of a file.
const ENDINGS: [&str; 6] = [".rs", ".md", ".toml", ".json", ".yaml", ".sh"];

pub(super) fn check(tree: &Tree) -> Vec<Violation> {
    let known = Known::of(tree);
    let mut violations = Vec::new();
    for (file, document) in &known.documents {
        let mut wrong = |line: usize, why: String| violations.push(Violation { file: file.clone(), line, why });
        for (line, target) in &document.links {
            if let Some(why) = known.dead(file, target) {
                wrong(*line, why);
            }
        }
        for (line, name) in &document.files {
            if !known.has_file(name) {
                wrong(*line, format!("names the file `{name}`, which does not exist: correct the path"));
            }
        }
        for (line, file, test) in &document.tests {
            if let Some(why) = known.without_test(file, test) {
                wrong(*line, why);
            }
        }
    }
    for source in &tree.sources {
        for (index, line) in source.text.lines().enumerate() {
            let Some(comment) = ["//!", "///"].iter().find_map(|start| line.trim_start().strip_prefix(start)) else {
                continue;
            };
            for name in code_spans(comment).filter(|name| is_file(name) && !known.has_file(name)) {
                let why = format!("names the file `{name}`, which does not exist: correct the path");
                violations.push(Violation { file: source.path.clone(), line: index + 1, why });
            }
        }
    }
    violations
}

/// Everything to which documents may refer.
struct Known<'a> {
    documents: Vec<(PathBuf, Document)>,
    headings: HashMap<&'a Path, HashSet<String>>,
    files: HashSet<&'a Path>,
    folders: HashSet<&'a Path>,
    /// The functions of each source file.
    functions: HashMap<&'a Path, HashSet<String>>,
}

impl<'a> Known<'a> {
    fn of(tree: &'a Tree) -> Self {
        let files: HashSet<&Path> = tree.files.iter().map(PathBuf::as_path).collect();
        let folders = files.iter().flat_map(|file| file.ancestors().skip(1)).collect();
        let mut documents = Vec::new();
        let mut headings = HashMap::new();
        for file in tree.files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "md")) {
            let Ok(text) = fs::read_to_string(tree.root.join(file)) else { continue };
            let document = Document::read(&text);
            headings.insert(file.as_path(), document.headings.clone());
            documents.push((file.clone(), document));
        }
        let of_file = |source: &'a Source| (source.path.as_path(), functions(&source.text).collect());
        let functions = tree.sources.iter().map(of_file).collect();
        Self { documents, headings, files, folders, functions }
    }

    /// Why a link has no target.
    fn dead(&self, from: &Path, target: &str) -> Option<String> {
        if target.contains("://") || target.starts_with("mailto:") {
            return None;
        }
        let (path, heading) = match target.split_once('#') {
            Some((path, heading)) => (path, Some(heading)),
            None => (target, None),
        };
        let file = match path {
            "" => from.to_path_buf(),
            path => normal(&from.parent().unwrap_or(Path::new("")).join(path)),
        };
        if !self.files.contains(file.as_path()) && !self.folders.contains(file.as_path()) {
            return Some(format!("the link `{target}` leads to no file: there is no {}", file.display()));
        }
        let heading = heading?;
        let headings = self.headings.get(file.as_path())?;
        let is_there = headings.contains(heading);
        (!is_there).then(|| format!("the link `{target}` leads to no heading of {}", file.display()))
    }

    /// Why a file does not have a test.
    fn without_test(&self, file: &str, test: &str) -> Option<String> {
        let paths: Vec<PathBuf> = BASES.iter().map(|base| Path::new(base).join(file)).collect();
        let named: Vec<_> = paths.iter().filter_map(|path| self.functions.get(path.as_path())).collect();
        if named.is_empty() {
            return Some(format!("names the test `{test}` of `{file}`, which does not exist: correct the path"));
        }
        if named.iter().any(|functions| functions.contains(test)) {
            return None;
        }
        let elsewhere = self.functions.iter().find(|(_, functions)| functions.contains(test));
        Some(match elsewhere {
            Some((path, _)) => {
                format!("names the test `{test}` of `{file}`, which {} has: correct the path", path.display())
            }
            None => format!("names the test `{test}` of `{file}`, which does not exist: correct the name"),
        })
    }

    fn has_file(&self, name: &str) -> bool {
        BASES.iter().any(|base| {
            let path = Path::new(base).join(name);
            self.files.contains(path.as_path()) || self.folders.contains(path.as_path())
        })
    }
}

/// The headings and references of a document, with lines from 1.
#[derive(Default)]
struct Document {
    headings: HashSet<String>,
    links: Vec<(usize, String)>,
    files: Vec<(usize, String)>,
    /// Files, and the names of tests in them.
    tests: Vec<(usize, String, String)>,
}

impl Document {
    fn read(text: &str) -> Self {
        let mut document = Self::default();
        let mut is_code = false;
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            if line.trim_start().starts_with("```") {
                is_code = !is_code;
            } else if !is_code {
                document.line(number, line);
            }
        }
        document
    }

    fn line(&mut self, number: usize, line: &str) {
        let title = line.trim_start_matches('#');
        if title.len() < line.len() && title.starts_with(' ') {
            self.heading(title);
        }
        self.links.extend(links(line).map(|target| (number, target.to_owned())));
        for name in code_spans(line).filter(|name| is_file(name)) {
            self.files.push((number, name.to_owned()));
        }
        for (file, test) in tests(line) {
            self.tests.push((number, file.to_owned(), test.to_owned()));
        }
    }

    /// Adds a heading. Of several equal headings, the second gets `-1`, and so on.
    fn heading(&mut self, title: &str) {
        let anchor = anchor(title);
        let numbered = (1..).map(|number| format!("{anchor}-{number}"));
        let mut names = std::iter::once(anchor.clone()).chain(numbered);
        if let Some(name) = names.find(|name| !self.headings.contains(name)) {
            self.headings.insert(name);
        }
    }
}

/// The anchor of a heading in GitHub's form: lower case, without punctuation, with hyphens for spaces.
fn anchor(title: &str) -> String {
    let mut text = String::new();
    let mut rest = title.trim();
    // A link is replaced by its text.
    while let Some((before, behind)) = rest.split_once("](") {
        text.push_str(&before.replacen('[', "", 1));
        rest = behind.split_once(')').map_or("", |(_, rest)| rest);
    }
    text.push_str(rest);
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | ' '));
    kept.map(|c| if c == ' ' { '-' } else { c }).flat_map(char::to_lowercase).collect()
}

/// The targets of the links of a line, without those in code.
fn links(line: &str) -> impl Iterator<Item = &str> {
    let is_text = |at: usize| line.get(..at).is_some_and(|before| before.matches('`').count() % 2 == 0);
    let targets = line.match_indices("](").filter(move |(at, _)| is_text(*at));
    targets.filter_map(|(at, mark)| line.get(at + mark.len()..)?.split_once(')')).map(|(target, _)| target)
}

/// The code spans of a line.
fn code_spans(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// Whether the text is the path of a file. It must contain a folder, so that `main.rs` and the files of users do not
/// count.
fn is_file(name: &str) -> bool {
    let is_path = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-'));
    is_path
        && name.contains('/')
        && !name.starts_with(['/', '.'])
        && ENDINGS.iter().any(|ending| name.ends_with(ending))
}

/// The tests that a line names after a file: `file.rs`: `one`, `two`.
fn tests(line: &str) -> Vec<(&str, &str)> {
    let parts: Vec<&str> = line.split('`').collect();
    let mut tests = Vec::new();
    let mut file = None;
    // Code and other text alternate.
    for pair in parts.get(1..).unwrap_or_default().chunks(2) {
        let &[code, behind] = pair else { break };
        let is_name = code.contains('_') && code.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        match file {
            Some(file) if is_name => tests.push((file, code)),
            _ => file = None,
        }
        match behind {
            ": " if code.ends_with(".rs") => file = Some(code),
            ", " if file.is_some() => {}
            _ => file = None,
        }
    }
    tests
}

/// The names of the functions in a text.
fn functions(text: &str) -> impl Iterator<Item = String> {
    let name = |rest: &str| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().map(ToOwned::to_owned);
    text.split("fn ").skip(1).filter_map(name)
}

/// A path without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                normal.pop();
            }
            Component::CurDir => {}
            part => normal.push(part),
        }
    }
    normal
}
