//! The samples of a scrape in the text format of Prometheus.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};

/// One sample.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) value: f64,
}

impl Sample {
    /// The value of a label; empty if it has none.
    pub(super) fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// Reads a scrape. Comments are left out.
///
/// # Errors
/// The line that cannot be read.
pub(super) fn read(text: &str) -> anyhow::Result<Vec<Sample>> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| sample(line).with_context(|| format!("this line is no metric: {:.200}", line.escape_debug())))
        .collect()
}

fn sample(line: &str) -> anyhow::Result<Sample> {
    let end = line.find(['{', ' ']).context("it has no value")?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            rest = rest.trim_start_matches([',', ' ']);
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (key, value) = rest.split_once("=\"").context("a label has no value")?;
            let (value, after) = quoted(value)?;
            labels.insert(key.to_owned(), value);
            rest = after;
        }
    }
    let value = rest.split_ascii_whitespace().next().context("it has no value")?;
    Ok(Sample { name: name.to_owned(), labels, value: value.parse().context("its value is no number")? })
}

/// The text up to the closing quote, and what comes after it.
fn quoted(text: &str) -> anyhow::Result<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((value, text.get(at + 1..).unwrap_or_default())),
            '\\' => match characters.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, other)) => value.push(other),
                None => break,
            },
            other => value.push(other),
        }
    }
    bail!("a label does not end")
}

/// An estimate of a quantile of a histogram: `buckets` are upper bounds with the number of values up to them. `None`: there are no
/// values. Beyond the last finite bound it is that bound.
pub(super) fn quantile(part: f64, buckets: &[(f64, f64)]) -> Option<f64> {
    let total = buckets.last().map(|(_, count)| *count).filter(|count| *count > 0.0)?;
    let wanted = part * total;
    let (mut lower, mut below) = (0.0, 0.0);
    for (bound, count) in buckets {
        if *count >= wanted {
            if bound.is_infinite() {
                return Some(lower);
            }
            let inside = count - below;
            let share = if inside > 0.0 { (wanted - below) / inside } else { 1.0 };
            return Some(lower + (bound - lower) * share);
        }
        (lower, below) = (*bound, *count);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{quantile, read};

    #[test]
    fn samples_have_names_labels_and_values() {
        let text = "# HELP a x\n# TYPE a counter\na_total 3\n\
                    b{one=\"x\",two=\"a\\\"b\\\\c\\nd,e}\"} 1.5 1700000000\nc{} +Inf\n# EOF\n";
        let samples = read(text).unwrap();
        assert_eq!(samples.len(), 3);
        assert_eq!((&*samples[0].name, samples[0].value, samples[0].labels.len()), ("a_total", 3.0, 0));
        assert_eq!((samples[1].label("one"), samples[1].label("two")), ("x", "a\"b\\c\nd,e}"));
        assert_eq!((samples[1].label("three"), samples[1].value), ("", 1.5));
        assert!(samples[2].value.is_infinite());
    }

    #[test]
    fn what_is_no_scrape_is_told_with_its_line() {
        for wrong in ["a", "a{b", "a{b=\"c}", "a{b=\"c\\", "a x", "a{b=\"c\"}"] {
            let error = format!("{:#}", read(wrong).unwrap_err());
            assert!(error.starts_with("this line is no metric: a"), "{wrong}: {error}");
        }
    }

    #[test]
    fn quantiles_lie_in_their_buckets() {
        let buckets = [(0.001, 50.0), (0.01, 90.0), (0.1, 99.0), (f64::INFINITY, 100.0)];
        let close = |part: f64, expected: f64| {
            let found = quantile(part, &buckets).unwrap();
            assert!((found - expected).abs() < 1e-9, "{part}: {found}");
        };
        close(0.5, 0.001);
        close(0.25, 0.0005);
        close(0.9, 0.01);
        close(0.99, 0.1);
        close(1.0, 0.1);
        assert_eq!(quantile(0.5, &[]), None);
        assert_eq!(quantile(0.5, &[(1.0, 0.0), (f64::INFINITY, 0.0)]), None);
    }
}
