//! Lines of text for a terminal: wrapped at the terminal's width, and without control sequences.

use std::fmt::Write as _;

/// A text that is written line by line.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
    /// The number of columns. `None`: lines are not wrapped.
    width: Option<usize>,
}

impl Page {
    /// A page of this many columns. `None`: lines are not wrapped.
    #[must_use]
    pub const fn new(width: Option<usize>) -> Self {
        Self { text: String::new(), width }
    }

    /// Writes a line. The part that does not fit continues on the next lines, with an additional indent of `hang`.
    pub fn line(&mut self, indent: usize, hang: usize, text: &str) {
        let text = printable(text);
        let width = self.width.unwrap_or(usize::MAX);
        let (mut column, mut begun) = (indent, false);
        self.text.extend(std::iter::repeat_n(' ', indent));
        for word in text.split(' ') {
            let columns = word.chars().count();
            if begun && column.saturating_add(columns).saturating_add(1) > width {
                self.text.push('\n');
                self.text.extend(std::iter::repeat_n(' ', indent.saturating_add(hang)));
                column = indent.saturating_add(hang);
            } else if begun {
                self.text.push(' ');
                column = column.saturating_add(1);
            }
            self.text.push_str(word);
            column = column.saturating_add(columns);
            begun = true;
        }
        self.text.truncate(self.text.trim_end_matches(' ').len());
        self.text.push('\n');
    }

    /// The same. The first occurrence of a word is painted, which takes no columns.
    pub fn painted(&mut self, indent: usize, hang: usize, text: &str, word: &str, paint: impl Fn(&str) -> String) {
        let begin = self.text.len();
        self.line(indent, hang, text);
        if let Some(at) = self.text.get(begin..).and_then(|line| line.find(word)) {
            self.text.replace_range(begin + at..begin + at + word.len(), &paint(word));
        }
    }

    /// Writes an empty line.
    pub fn gap(&mut self) {
        self.text.push('\n');
    }

    /// The whole text.
    #[must_use]
    pub fn finish(self) -> String {
        self.text
    }
}

/// Whether a terminal would interpret the character, or show it misleadingly: control characters, and Unicode characters that
/// change the direction of text or have no width.
fn is_treacherous(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// The text with these characters escaped as `\u{1b}`.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_treacherous(c) {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// JSON with these characters escaped as in JSON; line ends between its parts stay.
#[must_use]
pub fn printable_json(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for c in json.chars() {
        if c != '\n' && is_treacherous(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a String can't fail.
                let _written = write!(shown, "\\u{unit:04x}");
            }
        } else {
            shown.push(c);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::{Page, printable, printable_json};

    #[test]
    fn nothing_that_a_terminal_obeys_gets_through() {
        let hostile = "a\u{1b}[2Jb\nc\u{9b}d\u{202e}e\u{7f}f\u{feff}";
        let mut page = Page::default();
        page.line(2, 2, hostile);
        let shown = page.finish();
        assert_eq!(shown, "  a\\u{1b}[2Jb\\u{a}c\\u{9b}d\\u{202e}e\\u{7f}f\\u{feff}\n");
        assert_eq!(printable("plain ü 10.0.0.1"), "plain ü 10.0.0.1");

        let json = serde_json::to_string_pretty(&[hostile]).unwrap();
        let shown = printable_json(&json);
        assert!(!shown.chars().any(|c| c != '\n' && super::is_treacherous(c)), "{shown:?}");
        assert_eq!(serde_json::from_str::<Vec<String>>(&shown).unwrap(), [hostile]);
    }

    #[test]
    fn words_are_painted_once_and_lines_without_a_width_stay_whole() {
        let mut page = Page::new(None);
        page.painted(0, 0, &format!("error error {}", "x ".repeat(200)), "error", |word| format!("<{word}>"));
        let shown = page.finish();
        assert!(shown.starts_with("<error> error x") && shown.lines().count() == 1, "{shown}");
    }

    #[test]
    fn long_lines_go_on_below() {
        let mut page = Page::new(Some(120));
        page.line(4, 2, &"word ".repeat(60));
        page.line(0, 0, &"x".repeat(300));
        let shown = page.finish();
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines[0].starts_with("    word") && lines[1].starts_with("      word"), "{shown}");
        assert!(lines[..lines.len() - 1].iter().all(|line| line.len() <= 120 && !line.ends_with(' ')), "{shown}");
        assert_eq!(lines.last().unwrap().len(), 300, "a word is never broken");
    }
}
