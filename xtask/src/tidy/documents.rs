//! Tables in documents are complete, blocks of YAML can be parsed, and values of the chart that documents name exist.

use std::fs;
use std::path::Path;

use serde_json::Value;
use ztunnel_tests::documents::{blocks, yaml};

use super::Violation;
use super::tree::Tree;

/// The values of the chart.
const VALUES: &str = "deploy/helm/ztunnel/values.yaml";

pub(super) fn check(tree: &Tree) -> Vec<Violation> {
    let mut violations = Vec::new();
    let values = fs::read_to_string(tree.root.join(VALUES)).ok().and_then(|text| yaml(&text).ok()?.into_iter().next());
    for file in tree.files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "md")) {
        let Ok(text) = fs::read_to_string(tree.root.join(file)) else { continue };
        let mut wrong = |(line, why)| violations.push(Violation { file: file.clone(), line, why });
        tables(&text).into_iter().for_each(&mut wrong);
        for block in blocks(&text).iter().filter(|block| block.language == "yaml") {
            if let Err(error) = yaml(&block.text) {
                wrong((block.line, format!("the block is not valid YAML: {error:#}")));
            }
        }
        if let Some(values) = values.as_ref().filter(|_| !file.starts_with("ztunnel")) {
            named_values(&text, values).into_iter().for_each(&mut wrong);
        }
    }
    violations
}

/// The lines outside of blocks of code, with their numbers.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_code = false;
    (1..).zip(text.lines()).filter(move |(_, line)| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    })
}

/// Rows that belong to no table, and rows with another number of cells than the head of their table.
fn tables(text: &str) -> Vec<(usize, String)> {
    let lines: Vec<(usize, &str)> = prose(text).map(|(number, line)| (number, line.trim())).collect();
    let mut wrong = Vec::new();
    let mut cells_of_head = None;
    for (index, (number, line)) in lines.iter().enumerate() {
        if !line.starts_with('|') {
            cells_of_head = None;
            continue;
        }
        let cells = cells(line);
        let Some(expected) = cells_of_head else {
            let next = lines.get(index + 1).filter(|(below, next)| *below == number + 1 && next.starts_with("|-"));
            if next.is_none() {
                wrong.push((
                    *number,
                    "the row belongs to no table: remove the blank line above it, or add `|---|`".to_owned(),
                ));
            }
            cells_of_head = Some(cells);
            continue;
        };
        if cells != expected {
            let why = format!(
                "the row has {cells} cells, and the head of its table {expected}: write `\\|` for a bar in a cell"
            );
            wrong.push((*number, why));
        }
    }
    wrong
}

/// The number of cells of a row. A bar splits cells also in code, unless a backslash is before it.
fn cells(row: &str) -> usize {
    row.replace("\\|", "").matches('|').count().saturating_sub(1)
}

/// The values of the chart that a text names and that do not exist: in `--set NAME=VALUE`, and in code of prose.
fn named_values(text: &str, values: &Value) -> Vec<(usize, String)> {
    let why = |name: &str| format!("names the value `{name}` of the chart, which {VALUES} does not have");
    let mut wrong = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        for name in line.split("--set ").skip(1).filter_map(|rest| rest.split('=').next()) {
            if !has_value(values, name) {
                wrong.push((number, why(name)));
            }
        }
    }
    for (number, line) in prose(text) {
        let spans = line.split('`').skip(1).step_by(2).map(|span| span.split('=').next().unwrap_or_default());
        for name in spans.filter(|name| is_value(values, name) && !has_value(values, name)) {
            wrong.push((number, why(name)));
        }
    }
    wrong
}

/// Whether a name in prose can only be that of a value: it begins with a section of the values.
fn is_value(values: &Value, name: &str) -> bool {
    let is_word = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric());
    let is_section = |section: &str| values.get(section).is_some_and(Value::is_object);
    let is_file = Path::new(name).extension().is_some_and(|end| end == "rs" || end == "yaml" || end == "md");
    name.split('.').all(is_word) && name.split_once('.').is_some_and(|(section, _)| is_section(section)) && !is_file
}

/// Whether the chart has a value. Below a value that is an empty object or list by default, every name is possible.
fn has_value(values: &Value, name: &str) -> bool {
    let mut here = values;
    for part in name.split('.') {
        match here {
            Value::Object(fields) if fields.is_empty() => return true,
            Value::Array(_) => return true,
            Value::Object(fields) => match fields.get(part.split('[').next().unwrap_or_default()) {
                Some(below) => here = below,
                None => return false,
            },
            _ => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::{named_values, tables};

    fn lines(found: Vec<(usize, String)>) -> Vec<usize> {
        found.into_iter().map(|(line, _)| line).collect()
    }

    #[test]
    fn a_row_after_a_blank_line_and_a_row_with_too_many_cells_are_found() {
        let good = "| a | b |\n|---|---|\n| c | `d\\|e` |\n\n```\n| x\n\n| y\n```\n";
        assert_eq!(lines(tables(good)), [0; 0]);
        assert_eq!(lines(tables("| a | b |\n|---|---|\n| c | d |\n\n| e | f |\n| g | h |\n")), [5]);
        assert_eq!(lines(tables("| a | b |\n|---|---|\n| c | `d|e` |\n| f |\n")), [3, 4]);
        assert_eq!(lines(tables("| a |\n")), [1]);
    }

    #[test]
    fn a_value_that_the_chart_does_not_have_is_found() {
        let values =
            serde_json::json!({"cni": {"install": true, "labels": {}}, "node": {"tolerations": [{}]}, "tag": ""});
        let found = |text: &str| lines(named_values(text, &values));
        assert_eq!(
            found("`cni.install=false`, `cni.labels.a`, `node.tolerations`, `node.rs`, `pod.spec`, `--set tag=1`"),
            [0; 0]
        );
        assert_eq!(found("a\n`cni.instal`"), [2]);
        assert_eq!(found("```\nhelm --set cni.instal=true --set node.tolerations[0].key=a\n```\n"), [2]);
        assert_eq!(found("`--set pod.a=1`"), [1]);
    }
}
