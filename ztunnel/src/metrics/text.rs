//! The two text formats of an exposition. `prometheus-client` writes OpenMetrics, and the older Prometheus format is made from
//! that.

use std::collections::HashSet;

/// Converts an exposition in OpenMetrics to the Prometheus text format, version 0.0.4.
///
/// In OpenMetrics the type and help of a counter have its name without `_total`. In the older format that is the name of
/// another metric, so the samples would have no type and help. The last line `# EOF` is a comment in the older format. It
/// stays, because it tells a reader that the text is complete.
#[must_use]
pub fn prometheus(openmetrics: &str) -> String {
    let counters: HashSet<&str> = openmetrics.lines().filter_map(counter).collect();
    let mut text = String::with_capacity(openmetrics.len() + 8 * counters.len());
    for line in openmetrics.lines() {
        // Only OpenMetrics has lines with units; the names contain the units as well.
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

/// The name of the counter whose type is on this line.
fn counter(line: &str) -> Option<&str> {
    line.strip_prefix("# TYPE ")?.strip_suffix(" counter")
}

/// A line with a type or help: its keyword, the name, and the rest.
fn described(line: &str) -> Option<(&'static str, &str, &str)> {
    ["# TYPE ", "# HELP "].into_iter().find_map(|keyword| {
        let (name, rest) = line.strip_prefix(keyword)?.split_once(' ')?;
        Some((keyword, name, rest))
    })
}

#[cfg(test)]
mod tests;
