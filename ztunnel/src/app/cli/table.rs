//! Tables of what a daemon has told, as text: columns with two spaces in between, one line a row.

use serde_json::Value;

use crate::explain::printable;

/// A table.
#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns, and with `more` of them if it is wide.
    pub(super) fn new(columns: &[&'static str], more: &[&'static str], is_wide: bool) -> Self {
        let more = if is_wide { more } else { &[] };
        Self { columns: columns.iter().chain(more).copied().collect(), rows: Vec::new() }
    }

    /// Adds a row. Values beyond the number of columns are left out.
    pub(super) fn row<const N: usize>(&mut self, values: [String; N]) {
        let cell = |value: String| {
            let value = value.split_whitespace().collect::<Vec<_>>().join(" ");
            if value.is_empty() { "-".to_owned() } else { printable(&value) }
        };
        self.rows.push(values.into_iter().take(self.columns.len()).map(cell).collect());
    }

    /// The text. Without rows: `none`, as a line.
    pub(super) fn text(&self, none: &str) -> String {
        if self.rows.is_empty() {
            return format!("{none}\n");
        }
        let longest = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| Some(row.get(column)?.chars().count()));
            cells.chain(self.columns.get(column).map(|name| name.len())).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(longest).collect();
        let mut text = line(self.columns.iter().copied(), &widths);
        self.rows.iter().for_each(|row| text.push_str(&line(row.iter().map(String::as_str), &widths)));
        text
    }
}

fn line<'a>(cells: impl Iterator<Item = &'a str>, widths: &[usize]) -> String {
    let padded = cells.zip(widths).map(|(cell, width)| format!("{cell:width$}"));
    padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
}

/// The text of a field; empty if there is none.
pub(super) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The elements of a list; none if there is no list.
pub(super) fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

/// A number of bytes, for people.
pub(super) fn bytes(count: f64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut count = count;
    for (index, unit) in UNITS.iter().enumerate() {
        if count < 1024.0 || index + 1 == UNITS.len() {
            return if index == 0 { format!("{count:.0} B") } else { format!("{count:.1} {unit}") };
        }
        count /= 1024.0;
    }
    String::new()
}

/// A duration, for people: the two largest units.
pub(super) fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m{}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h{minutes}m"),
        (days, hours, _) => format!("{days}d{hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Table, bytes, duration};

    fn table(is_wide: bool) -> Table {
        let mut table = Table::new(&["NAME", "STATE"], &["WHY"], is_wide);
        table.row(["web".to_owned(), String::new(), "a\nb\u{1b}[2J".to_owned()]);
        table.row(["client-1".to_owned(), "up".to_owned(), "x".to_owned()]);
        table
    }

    #[test]
    fn columns_are_as_wide_as_their_cells_and_one_line_is_one_row() {
        assert_eq!(table(false).text("none"), "NAME      STATE\nweb       -\nclient-1  up\n");
        assert_eq!(
            table(true).text("none"),
            "NAME      STATE  WHY\nweb       -      a b\\u{1b}[2J\nclient-1  up     x\n"
        );
        assert_eq!(Table::new(&["A"], &[], false).text("no pods"), "no pods\n");
    }

    #[test]
    fn numbers_are_short() {
        for (count, text) in
            [(0.0, "0 B"), (1023.0, "1023 B"), (1024.0, "1.0 KiB"), (5e9, "4.7 GiB"), (9e18, "8185452.3 TiB")]
        {
            assert_eq!(bytes(count), text);
        }
        for (seconds, text) in [(0, "0s"), (59, "59s"), (61, "1m1s"), (3_661, "1h1m"), (90_000, "1d1h")] {
            assert_eq!(duration(seconds), text);
        }
    }
}
