//! Findings that a user has seen and wants to hide.

use std::str::FromStr;

use thiserror::Error;

use super::code::Code;
use super::declared::Ignored;
use super::finding::Finding;
use super::nearest::Nearest;

/// Suppresses findings of one code, about all objects or those that match a pattern: `CODE`, or
/// `CODE=KIND/NAMESPACE/NAME`, in which `*` is any text and `?` any character.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suppression {
    code: Code,
    objects: Option<String>,
}

/// Why a text is not a [`Suppression`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SuppressionError {
    /// The code does not exist.
    #[error("{code:?} is not the code of a finding{meant}: `analyze --list-codes` prints all of them")]
    UnknownCode {
        /// The code.
        code: String,
        /// The code that was probably meant; begins with a separator.
        meant: String,
    },
    /// The pattern is empty or can match no object.
    #[error("{pattern:?} matches no object: write KIND/NAMESPACE/NAME or KIND/NAME, with * for any text")]
    Pattern {
        /// The pattern.
        pattern: String,
    },
}

impl FromStr for Suppression {
    type Err = SuppressionError;

    fn from_str(text: &str) -> Result<Self, SuppressionError> {
        let (code, objects) = match text.split_once('=') {
            Some((code, objects)) => (code, Some(objects)),
            None => (text, None),
        };
        let known = Code::find(code).ok_or_else(|| {
            let meant = Nearest::default().find(code, Code::ALL.iter().map(|code| code.code())).map(str::to_owned);
            let meant = meant.map(|meant| format!(", is {meant} meant?")).unwrap_or_default();
            SuppressionError::UnknownCode { code: code.to_owned(), meant }
        })?;
        match objects {
            Some(pattern) if !pattern.contains(['/', '*']) => {
                Err(SuppressionError::Pattern { pattern: pattern.to_owned() })
            }
            objects => Ok(Self { code: known, objects: objects.map(str::to_owned) }),
        }
    }
}

impl Suppression {
    fn suppresses(&self, finding: &Finding) -> bool {
        let matches = |pattern: &String| {
            let object = finding.object.as_deref().unwrap_or_default();
            matches_glob(pattern.as_bytes(), object.replacen(' ', "/", 1).as_bytes())
        };
        finding.code == self.code && self.objects.as_ref().is_none_or(matches)
    }
}

/// Removes suppressed findings. Returns their number.
pub fn suppress(findings: &mut Vec<Finding>, wanted: &[Suppression], annotated: &[Ignored]) -> usize {
    let before = findings.len();
    let by_annotation = |finding: &Finding| {
        // The author of an annotation must not be able to hide that the annotation is wrong.
        finding.code != Code::UnknownCode
            && annotated
                .iter()
                .filter(|ignored| finding.object.as_deref() == Some(&*ignored.object))
                .any(|ignored| ignored.codes.iter().any(|code| code == "*" || code == finding.code.code()))
    };
    findings.retain(|finding| !wanted.iter().any(|one| one.suppresses(finding)) && !by_annotation(finding));
    before - findings.len()
}

/// Whether a text matches a pattern with `*` and `?`.
fn matches_glob(pattern: &[u8], text: &[u8]) -> bool {
    // The last `*`, and how much of the text it stands for: the position to which the search goes back.
    let (mut at, mut of, mut star) = (0, 0, None);
    while at < text.len() {
        match pattern.get(of) {
            Some(b'*') => {
                star = Some((of, at));
                of += 1;
            }
            Some(wanted) if *wanted == b'?' || Some(wanted) == text.get(at) => {
                of += 1;
                at += 1;
            }
            _ => {
                let Some((star_of, star_at)) = star else { return false };
                star = Some((star_of, star_at + 1));
                (of, at) = (star_of + 1, star_at + 1);
            }
        }
    }
    pattern.get(of..).unwrap_or_default().iter().all(|rest| *rest == b'*')
}

#[cfg(test)]
mod tests {
    use super::{Suppression, matches_glob};

    #[test]
    fn patterns() {
        let table = [
            ("*", "Service/demo/a", true),
            ("Service/demo/*", "Service/demo/a", true),
            ("Service/*/a", "Service/demo/b", false),
            ("Service/*/a?", "Service/demo/ab", true),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b", "xxbxxa", false),
            ("", "", true),
            ("", "a", false),
            ("a**", "a", true),
        ];
        for (pattern, text, expected) in table {
            assert_eq!(matches_glob(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn texts_of_suppressions() {
        assert!("unmatched-selector".parse::<Suppression>().is_ok());
        assert!("unmatched-selector=Service/demo/*".parse::<Suppression>().is_ok());
        let error = "unmatched-selectr".parse::<Suppression>().unwrap_err().to_string();
        assert!(error.contains("is unmatched-selector meant?") && error.contains("--list-codes"), "{error}");
        let error = "unmatched-selector=".parse::<Suppression>().unwrap_err().to_string();
        assert!(error.contains("KIND/NAMESPACE/NAME"), "{error}");
    }
}
