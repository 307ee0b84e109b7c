//! The table that the demo prints.

use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;

use super::probe::{Cell, Path};
use crate::topology::Family;

/// One row for each path, one column for each phase. A cell has the result, the address that nginx saw, and the daemons
/// that captured it.
pub(super) fn render(phases: &[&str], paths: &[Path], columns: &[Vec<Cell>]) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    let mut header = vec![String::from("HTTP request")];
    header
        .extend(phases.iter().map(|phase| format!("{phase}\nresult, client that nginx saw\ncaptured by, carried as")));
    table.set_header(header);
    for (index, path) in paths.iter().enumerate() {
        let family = if path.family == Family::V4 { "IPv4" } else { "IPv6" };
        let mut row = vec![format!("{} -> {}\n{family}", path.client, path.web)];
        row.extend(columns.iter().filter_map(|column| column.get(index)).map(text));
        table.add_row(row);
    }
    table.to_string()
}

fn text(cell: &Cell) -> String {
    let captured = if cell.captured.is_empty() { "nobody".to_owned() } else { cell.captured.join(", ") };
    format!("{}, {}\n{captured}", cell.result, cell.seen)
}
