//! The headings of the troubleshooting page quote messages, reasons and metrics of the program, so that a search finds
//! them.

use std::fs;
use std::path::Path;

use super::Violation;
use super::tree::Tree;

/// The page.
const PAGE: &str = "docs/troubleshooting.md";
/// The sources with the messages.
const SOURCES: [&str; 2] = ["ztunnel/src", "ebpf-common/src"];
/// Stands in a heading for a part of a message that varies.
const VARIES: char = '…';

pub(super) fn check(tree: &Tree) -> Vec<Violation> {
    let page = Path::new(PAGE);
    let Ok(text) = fs::read_to_string(tree.root.join(page)) else { return Vec::new() };
    let sources = tree.sources.iter().filter(|source| SOURCES.iter().any(|folder| source.path.starts_with(folder)));
    let messages: Vec<String> = sources.map(|source| joined(&source.text)).collect();
    let is_there = |part: &str| {
        let part = part.trim().trim_end_matches("_total");
        messages.iter().any(|text| text.contains(part))
    };
    let mut violations = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| line.starts_with("### ")) {
        for quoted in line.split('`').skip(1).step_by(2) {
            if let Some(part) = quoted.split(VARIES).find(|part| !is_there(part)) {
                let why = format!(
                    "quotes {part:?}, which no message of the program has: write the message as it is, with {VARIES} for what varies"
                );
                violations.push(Violation { file: page.to_path_buf(), line: index + 1, why });
            }
        }
    }
    violations
}

/// A source text in which messages are not split across lines.
fn joined(text: &str) -> String {
    let mut joined = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once("\\\n") {
        joined.push_str(before);
        rest = behind.trim_start();
    }
    joined.push_str(rest);
    joined
}
