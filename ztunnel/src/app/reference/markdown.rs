//! The Markdown of the documents.

use std::fmt::Write as _;

/// Text as inline code.
pub(super) fn code(text: &str) -> String {
    format!("`{text}`")
}

/// A table with a head.
pub(super) fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut text = String::new();
    line(&mut text, head);
    line(&mut text, ["---"; N]);
    for row in rows {
        line(&mut text, row.each_ref().map(String::as_str));
    }
    text
}

fn line<const N: usize>(text: &mut String, cells: [&str; N]) {
    text.push('|');
    for cell in cells {
        // Writing to a string can't fail.
        let _ = match cell {
            "---" => write!(text, "---|"),
            "" => write!(text, " |"),
            cell => write!(text, " {} |", cell.replace('|', "\\|").replace('\n', " ")),
        };
    }
    text.push('\n');
}
