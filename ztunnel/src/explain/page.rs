//! Lines of text for a terminal: of a width that it shows, and without anything that it would obey.

use std::fmt::Write as _;

/// Columns: what a log viewer or a split terminal still shows without breaking lines.
const WIDTH: usize = 120;

/// Text that is written line by line.
#[derive(Debug, Default)]
pub(super) struct Page(String);

impl Page {
    /// A line; what does not fit goes on below, further in by `hang`.
    pub(super) fn line(&mut self, indent: usize, hang: usize, text: &str) {
        let text = printable(text);
        let (mut column, mut begun) = (indent, false);
        self.0.extend(std::iter::repeat_n(' ', indent));
        for word in text.split(' ') {
            let width = word.chars().count();
            if begun && column.saturating_add(width).saturating_add(1) > WIDTH {
                self.0.push('\n');
                self.0.extend(std::iter::repeat_n(' ', indent.saturating_add(hang)));
                column = indent.saturating_add(hang);
            } else if begun {
                self.0.push(' ');
                column = column.saturating_add(1);
            }
            self.0.push_str(word);
            column = column.saturating_add(width);
            begun = true;
        }
        self.0.truncate(self.0.trim_end_matches(' ').len());
        self.0.push('\n');
    }

    /// A line without text.
    pub(super) fn gap(&mut self) {
        self.0.push('\n');
    }

    /// All of it.
    pub(super) fn finish(self) -> String {
        self.0
    }
}

/// Whether a terminal would obey it, or show it as something else than it is: control characters, and Unicode's marks that
/// turn the direction of text around or take no room.
fn is_treacherous(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// The text with everything that a terminal would obey written out as `\u{1b}`.
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

/// JSON with everything that a terminal would obey as an escape of JSON's; line ends between its parts stay.
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
    use super::{Page, WIDTH, printable, printable_json};

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
    fn long_lines_go_on_below() {
        let mut page = Page::default();
        page.line(4, 2, &"word ".repeat(60));
        page.line(0, 0, &"x".repeat(300));
        let shown = page.finish();
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines[0].starts_with("    word") && lines[1].starts_with("      word"), "{shown}");
        assert!(lines[..lines.len() - 1].iter().all(|line| line.len() <= WIDTH && !line.ends_with(' ')), "{shown}");
        assert_eq!(lines.last().unwrap().len(), 300, "a word is never broken");
    }
}
