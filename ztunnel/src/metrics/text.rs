//! The two text formats of an exposition. `prometheus-client` writes OpenMetrics; the older Prometheus format is made of that.

use std::collections::HashSet;

/// The Prometheus text format, version 0.0.4, of an exposition in OpenMetrics.
///
/// In OpenMetrics, type and help of a counter stand under its name without `_total`, which in the older format is the name of
/// another metric: the samples would have neither. The last line `# EOF` is a comment there, and stays: with it a reader
/// knows that the text is complete.
#[must_use]
pub fn prometheus(openmetrics: &str) -> String {
    let counters: HashSet<&str> = openmetrics.lines().filter_map(counter).collect();
    let mut text = String::with_capacity(openmetrics.len() + 8 * counters.len());
    for line in openmetrics.lines() {
        // Units are a line of OpenMetrics only; they stand in the names.
        if line.starts_with("# UNIT ") {
            continue;
        }
        match described(line).filter(|(_, name, _)| counters.contains(name)) {
            Some((keyword, name, rest)) => {
                let end = if name.ends_with("_total") { "" } else { "_total" };
                for part in [keyword, name, end, " ", rest] {
                    text.push_str(part);
                }
            }
            None => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

/// The counter that a line gives its type.
fn counter(line: &str) -> Option<&str> {
    line.strip_prefix("# TYPE ")?.strip_suffix(" counter")
}

/// A line with a type or help: its keyword, the name, and what is said of it.
fn described(line: &str) -> Option<(&'static str, &str, &str)> {
    ["# TYPE ", "# HELP "].into_iter().find_map(|keyword| {
        let (name, rest) = line.strip_prefix(keyword)?.split_once(' ')?;
        Some((keyword, name, rest))
    })
}

#[cfg(test)]
mod tests;
