//! Documents use plain technical terms: phrases that a reader would have to guess are reported with an alternative.

use std::fs;

use super::Violation;
use super::tree::Tree;

/// Phrases, in lower case, and the alternative.
const PHRASES: [(&str, &str); 10] = [
    ("are told", "are reported"),
    ("lets nobody in", "denies every connection"),
    ("made sense", "was valid"),
    ("make sense", "be valid"),
    ("makes no sense", "is invalid"),
    ("nobody can judge", "cannot be evaluated"),
    ("spoken to", "connections to it are made"),
    ("that is none", "that cannot be parsed"),
    ("the house", "the program"),
    ("whom", "the noun that is meant: the client, the pod, the author"),
];

pub(super) fn check(tree: &Tree) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in tree.files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "md")) {
        let Ok(text) = fs::read_to_string(tree.root.join(file)) else { continue };
        let mut is_code = false;
        for (index, line) in text.lines().enumerate() {
            if line.trim_start().starts_with("```") {
                is_code = !is_code;
            }
            if is_code {
                continue;
            }
            for (phrase, instead) in PHRASES.iter().filter(|(phrase, _)| says(line, phrase)) {
                let why = format!("{phrase:?} is not a plain technical term: write, for example, {instead:?}");
                violations.push(Violation { file: file.clone(), line: index + 1, why });
            }
        }
    }
    violations
}

/// Whether a line has the phrase, as whole words outside code.
fn says(line: &str, phrase: &str) -> bool {
    let is_letter = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    line.split('`').step_by(2).any(|text| {
        let text = text.to_lowercase();
        text.match_indices(phrase).any(|(at, _)| {
            let before = text.get(..at).and_then(|before| before.chars().next_back());
            let behind = text.get(at + phrase.len()..).and_then(|behind| behind.chars().next());
            !is_letter(before) && !is_letter(behind)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::says;

    #[test]
    fn only_whole_words_outside_of_code_count() {
        assert!(says("The pods whom it protects", "whom"));
        assert!(says("Whom?", "whom"));
        assert!(!says("`whom`, whomever", "whom"));
    }
}
