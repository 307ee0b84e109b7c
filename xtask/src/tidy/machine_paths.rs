//! No file names a path that exists on one machine only.

use std::fs;

use super::Violation;
use super::tree::Tree;

/// The first folders of home and working directories. They have no slashes here, since this file is checked too.
const PERSONAL: [&str; 3] = ["home", "root", "work"];

pub(super) fn check(tree: &Tree) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in tree.files.iter().filter(|file| !file.ends_with("Cargo.lock")) {
        // A file that is not text has no path that a person reads.
        let Ok(text) = fs::read_to_string(tree.root.join(file)) else {
            continue;
        };
        for (index, line) in text.lines().enumerate() {
            if let Some(path) = PERSONAL.iter().map(|name| format!("/{name}/")).find(|path| names(line, path)) {
                let why = format!("names a path of one machine (`{path}…`)");
                violations.push(Violation { file: file.clone(), line: index + 1, why });
            }
        }
    }
    violations
}

/// Whether the line has an absolute path that begins with `path`. A path that continues a name or a variable does not
/// count.
fn names(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(start, _)| {
        let before = line.get(..start).and_then(|before| before.chars().next_back());
        before.is_none_or(|c| !c.is_alphanumeric() && !"._-/}*)$".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use super::names;

    #[test]
    fn only_absolute_paths_count() {
        // `~` stands for the path here: this file is checked too.
        let path = ["/", "/"].join("work");
        let seen = |line: &str| names(&line.replace('~', &path), &path);
        assert!(seen("see \"~x\""));
        assert!(seen("~x"));
        assert!(seen("PATH=/bin:~x"));
        assert!(!seen("https://host~x"));
        assert!(!seen("src~x"));
        assert!(!seen("$DIR~x ${DIR}~x"));
    }
}
