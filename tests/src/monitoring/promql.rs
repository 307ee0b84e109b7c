//! The names of metrics and labels in an expression of PromQL. Prometheus itself says whether the expression is valid; this
//! module only finds the names.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};

/// Words that are neither metrics nor functions.
const KEYWORDS: [&str; 7] = ["and", "or", "unless", "bool", "offset", "inf", "nan"];

/// Words in front of a list of labels in parentheses.
const GROUPINGS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

/// The function whose arguments name labels.
const REPLACING: &str = "label_replace";

/// What an expression uses.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Uses {
    /// The metrics, with the labels by which their series are selected.
    pub metrics: BTreeMap<String, BTreeSet<String>>,
    /// The labels by which results are grouped or matched, and that `label_replace` reads.
    pub labels: BTreeSet<String>,
    /// The labels by which results are grouped (`by`).
    pub by: BTreeSet<String>,
    /// Labels that `label_replace` makes.
    pub made: BTreeSet<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Name(String),
    Text(String),
    Number,
    Mark(char),
}

/// Finds the names in an expression.
///
/// # Errors
/// When brackets or quotes are not closed.
pub fn uses(expression: &str) -> Result<Uses> {
    find(&tokens(expression)?).with_context(|| format!("in `{expression}`"))
}

fn find(tokens: &[Token]) -> Result<Uses> {
    let mut uses = Uses::default();
    let mut texts = Vec::new();
    let mut rest = tokens;
    while let Some((token, after)) = rest.split_first() {
        rest = after;
        match token {
            Token::Text(text) => texts.push(text.clone()),
            Token::Name(name) if GROUPINGS.contains(&name.as_str()) => {
                let (labels, after) = grouped(rest)?;
                if name == "by" {
                    uses.by.extend(labels.iter().cloned());
                }
                uses.labels.extend(labels);
                rest = after;
            }
            Token::Name(name) if KEYWORDS.contains(&name.to_ascii_lowercase().as_str()) => {}
            Token::Name(name) if !is_function(rest) => {
                let (labels, after) = selected(rest)?;
                uses.metrics.entry(name.clone()).or_default().extend(labels);
                rest = after;
            }
            _ => {}
        }
    }
    if tokens.contains(&Token::Name(REPLACING.to_owned())) {
        // The texts of a call: the new label, its value, the label that is read, and a regular expression.
        for call in texts.chunks(4) {
            let [made, _, read, _] = call else { bail!("{REPLACING} has {} texts instead of four", call.len()) };
            uses.made.insert(made.clone());
            uses.labels.insert(read.clone());
        }
    }
    Ok(uses)
}

/// Whether a name in front of these tokens is a function or an aggregation.
fn is_function(behind: &[Token]) -> bool {
    match behind.first() {
        Some(Token::Mark('(')) => true,
        Some(Token::Name(name)) => ["by", "without"].contains(&name.as_str()),
        _ => false,
    }
}

/// Reads `(a, b)`. `group_left` may stand without a list.
fn grouped(tokens: &[Token]) -> Result<(Vec<String>, &[Token])> {
    let Some((Token::Mark('('), mut rest)) = tokens.split_first() else { return Ok((Vec::new(), tokens)) };
    let mut labels = Vec::new();
    loop {
        let (token, after) = rest.split_first().context("a list of labels has no end")?;
        rest = after;
        match token {
            Token::Mark(')') => return Ok((labels, rest)),
            Token::Name(label) => labels.push(label.clone()),
            Token::Mark(',') => {}
            other => bail!("{other:?} in a list of labels"),
        }
    }
}

/// Reads `{a="x", b!~"y"}`, if it is there.
fn selected(tokens: &[Token]) -> Result<(Vec<String>, &[Token])> {
    let Some((Token::Mark('{'), mut rest)) = tokens.split_first() else { return Ok((Vec::new(), tokens)) };
    let mut labels = Vec::new();
    loop {
        let (token, after) = rest.split_first().context("a selector has no end")?;
        rest = after;
        match token {
            Token::Mark('}') => return Ok((labels, rest)),
            Token::Name(label) => labels.push(label.clone()),
            _ => {}
        }
    }
}

fn tokens(text: &str) -> Result<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    let is_name = |c: &char| c.is_ascii_alphanumeric() || "_:.".contains(*c);
    while let Some(first) = chars.next() {
        match first {
            c if c.is_whitespace() => {}
            '"' | '\'' => {
                let mut text = String::new();
                loop {
                    match chars.next().context("a text has no end")? {
                        c if c == first => break,
                        '\\' => text.extend(chars.next()),
                        c => text.push(c),
                    }
                }
                tokens.push(Token::Text(text));
            }
            '[' => {
                let mut closed = false;
                for c in chars.by_ref() {
                    closed = c == ']';
                    if closed {
                        break;
                    }
                }
                ensure!(closed, "a range has no end");
            }
            c if c.is_ascii_digit() || c == '.' => {
                while chars.next_if(is_name).is_some() {}
                tokens.push(Token::Number);
            }
            c if is_name(&c) => {
                let mut name = c.to_string();
                while let Some(c) = chars.next_if(is_name) {
                    name.push(c);
                }
                tokens.push(Token::Name(name));
            }
            c => tokens.push(Token::Mark(c)),
        }
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn metrics_and_labels_are_found() -> Result<()> {
        let found = uses(
            "histogram_quantile(0.99, sum by (le, way) (rate(a_bucket{x=~\"by (z)\", y!='q'}[5m]))) > 3 * 4e9 \
             and on (job) (b offset 1h or c) unless d <= bool 1",
        )?;
        let metrics: Vec<_> = found.metrics.keys().map(String::as_str).collect();
        assert_eq!(metrics, ["a_bucket", "b", "c", "d"]);
        assert_eq!(found.metrics["a_bucket"], set(&["x", "y"]));
        assert_eq!((found.labels, found.by), (set(&["le", "way", "job"]), set(&["le", "way"])));
        Ok(())
    }

    #[test]
    fn labels_of_label_replace_are_found() -> Result<()> {
        let found = uses("sum by (n) (label_replace(a{b=\"1\"}, \"n\", \"$1\", \"from\", \"(.+)\") or vector(0))")?;
        assert_eq!((found.made, found.labels), (set(&["n"]), set(&["from", "n"])));
        assert_eq!(found.metrics.keys().collect::<Vec<_>>(), ["a"]);
        Ok(())
    }

    #[test]
    fn what_has_no_end_is_an_error() {
        for broken in ["a{b=\"1", "a{b=\"1\"", "sum by (a", "a[5m"] {
            assert!(uses(broken).is_err(), "{broken}");
        }
    }
}
