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
        for paragraph in paragraphs(&text) {
            for (phrase, instead) in &PHRASES {
                let why = format!("{phrase:?} is not a plain technical term: write, for example, {instead:?}");
                let lines = paragraph.lines_with(phrase);
                violations.extend(lines.map(|line| Violation { file: file.clone(), line, why: why.clone() }));
            }
        }
    }
    violations
}

/// Text that is read without a break: its lines are joined, since a phrase may begin in one line and end in the next.
#[derive(Debug, Default)]
struct Paragraph {
    text: String,
    /// Where each line begins in the text, and its number.
    lines: Vec<(usize, usize)>,
}

/// The paragraphs of a document outside of code blocks. Items of lists, headings and rows of tables are paragraphs.
fn paragraphs(text: &str) -> Vec<Paragraph> {
    let mut paragraphs = vec![Paragraph::default()];
    let mut is_code = false;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        let is_fence = line.starts_with("```");
        is_code ^= is_fence;
        let begins = ["- ", "* ", "#", "|", ">"].iter().any(|start| line.starts_with(start));
        if begins || is_code || is_fence || line.is_empty() {
            paragraphs.push(Paragraph::default());
        }
        if let (false, false, Some(last)) = (is_code, is_fence, paragraphs.last_mut()) {
            last.lines.push((last.text.len(), number));
            last.text.push_str(&line.to_lowercase());
            last.text.push(' ');
        }
    }
    paragraphs
}

impl Paragraph {
    /// The lines in which a phrase begins, as whole words outside of code.
    fn lines_with<'p>(&'p self, phrase: &'p str) -> impl Iterator<Item = usize> + 'p {
        let is_letter = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        let found = self.text.match_indices(phrase).filter(move |(at, _)| {
            let (before, behind) = (self.text.get(..*at).unwrap_or_default(), self.text.get(at + phrase.len()..));
            let is_word =
                !is_letter(before.chars().next_back()) && !is_letter(behind.and_then(|behind| behind.chars().next()));
            is_word && before.matches('`').count() % 2 == 0
        });
        found.filter_map(|(at, _)| self.lines.iter().rev().find(|(begin, _)| *begin <= at).map(|(_, line)| *line))
    }
}

#[cfg(test)]
mod tests {
    use super::paragraphs;

    fn lines(text: &str, phrase: &str) -> Vec<usize> {
        paragraphs(text).iter().flat_map(|paragraph| paragraph.lines_with(phrase).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn only_whole_words_outside_of_code_count() {
        assert_eq!(lines("The pods whom it protects", "whom"), [1]);
        assert_eq!(lines("Whom?\n\nAnd whom, whom.", "whom"), [1, 3, 3]);
        assert_eq!(lines("`whom`, whomever\n```\nwhom\n```\n", "whom"), [0; 0]);
        assert_eq!(lines("`a\nwhom`", "whom"), [0; 0]);
    }

    #[test]
    fn a_phrase_may_reach_over_the_end_of_a_line() {
        let phrase = "makes no sense";
        assert_eq!(lines("First.\nA file that makes no\n  sense keeps", phrase), [2]);
        assert_eq!(lines("- it makes\n  no sense", phrase), [1]);
        // The next item, the next row and the next paragraph are other sentences.
        for text in
            ["- it makes\n- no sense", "| makes no |\n| sense |", "makes no\n\nsense", "makes no\n```\n```\nsense"]
        {
            assert_eq!(lines(text, phrase), [0; 0], "{text}");
        }
    }
}
