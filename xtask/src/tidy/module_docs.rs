//! Every file says in its first line what it contains.

use super::Violation;
use super::tree::Source;

/// A file begins with a `//!` and some text. A tests.rs is exempt: it tests its parent module.
pub(super) fn check(source: &Source) -> Option<Violation> {
    let is_exempt = source.path.file_name().is_some_and(|name| name == "tests.rs");
    let first = source.text.lines().next().unwrap_or_default();
    let is_documented = first.strip_prefix("//!").is_some_and(|words| !words.trim().is_empty());
    (!is_exempt && !is_documented).then(|| Violation {
        file: source.path.clone(),
        line: 1,
        why: "no module documentation: the first line is `//!` and one sentence on what this is".to_owned(),
    })
}
