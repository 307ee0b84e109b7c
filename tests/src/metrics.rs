//! The daemon's metrics: OpenMetrics or Prometheus text, parsed strictly, so that a test refuses what Prometheus would
//! refuse.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};

/// All samples of one scrape.
#[derive(Debug, Clone)]
pub struct Metrics {
    samples: Vec<Sample>,
}

/// One line with a value.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The name with its suffix, e.g. `_total`.
    pub name: String,
    /// The labels.
    pub labels: BTreeMap<String, String>,
    /// The value.
    pub value: f64,
}

impl Metrics {
    /// Reads the text.
    ///
    /// # Errors
    /// Names the first invalid line: a missing type or help, a counter without `_total`, a repeated label, a repeated
    /// sample, a missing end.
    pub fn parse(text: &str) -> Result<Self> {
        ensure!(text.ends_with("# EOF\n"), "the text does not end with # EOF");
        let (mut types, mut helps) = (BTreeMap::new(), BTreeSet::new());
        let (mut samples, mut seen) = (Vec::new(), BTreeSet::new());
        for line in text.lines().filter(|line| *line != "# EOF") {
            let mut words = line.splitn(4, ' ');
            match (words.next(), words.next(), words.next(), words.next()) {
                (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                    let again = types.insert(name.to_owned(), kind.to_owned());
                    ensure!(again.is_none(), "two types of {name}");
                }
                (Some("#"), Some("HELP"), Some(name), Some(_)) => {
                    ensure!(helps.insert(name.to_owned()), "two helps of {name}");
                }
                (Some("#"), Some("UNIT"), Some(_), Some(_)) => (),
                (Some("#"), ..) => bail!("a comment that means nothing: {line}"),
                _ => {
                    let sample = Sample::parse(line).with_context(|| format!("not a sample: {line}"))?;
                    let family = family(&sample.name, &types).with_context(|| format!("of no family: {line}"))?;
                    ensure!(helps.contains(family), "{family} has no help");
                    ensure!(seen.insert(format!("{} {:?}", sample.name, sample.labels)), "twice: {line}");
                    samples.push(sample);
                }
            }
        }
        Ok(Self { samples })
    }

    /// All samples with a name and at least these labels.
    pub fn all<'a>(&'a self, name: &'a str, labels: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = &'a Sample> {
        let fits = move |sample: &&Sample| {
            sample.name == name && labels.iter().all(|(key, value)| sample.label(key) == Some(*value))
        };
        self.samples.iter().filter(fits)
    }

    /// The sum of all samples with a name and these labels.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.all(name, labels).map(|sample| sample.value).sum()
    }

    /// Whether there is a sample whose name has this prefix.
    #[must_use]
    pub fn has(&self, begin: &str) -> bool {
        self.samples.iter().any(|sample| sample.name.starts_with(begin))
    }
}

impl Sample {
    /// A label.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key).map(String::as_str)
    }

    fn parse(line: &str) -> Option<Self> {
        let Some((name, rest)) = line.split_once('{') else {
            let (name, value) = line.split_once(' ')?;
            return Some(Self { name: named(name)?, labels: BTreeMap::new(), value: value.parse().ok()? });
        };
        let (labels, value) = labels(rest)?;
        Some(Self { name: named(name)?, labels, value: value.trim_start().split(' ').next()?.parse().ok()? })
    }
}

fn named(name: &str) -> Option<String> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    (!name.is_empty() && name.chars().all(good)).then(|| name.to_owned())
}

/// Parses `a="b",c="d"} 7`: the labels and the rest.
fn labels(text: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let (mut labels, mut rest) = (BTreeMap::new(), text);
    while !rest.starts_with('}') {
        let (key, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next()? {
                (end, '"') => break end,
                (_, '\\') => value.push(match chars.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, other) => value.push(other),
            }
        };
        if labels.insert(named(key)?, value).is_some() {
            return None;
        }
        rest = after.get(end + 1..)?;
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    Some((labels, rest.strip_prefix('}')?))
}

/// The family of a sample. Counters have the suffix `_total`, which only the Prometheus format has in the family's name
/// as well. Histograms have their three suffixes.
fn family<'a>(name: &'a str, types: &BTreeMap<String, String>) -> Option<&'a str> {
    let of = |family: &str, kinds: &[&str]| types.get(family).is_some_and(|kind| kinds.contains(&kind.as_str()));
    if of(name, &["gauge", "unknown", "info"]) || name.ends_with("_total") && of(name, &["counter"]) {
        return Some(name);
    }
    let suffixes: [(&str, &[&str]); 5] = [
        ("_total", &["counter"]),
        ("_bucket", &["histogram"]),
        ("_sum", &["histogram", "summary"]),
        ("_count", &["histogram", "summary"]),
        ("_info", &["info"]),
    ];
    suffixes.into_iter().find_map(|(suffix, kinds)| name.strip_suffix(suffix).filter(|family| of(family, kinds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_text_is_read_and_bad_text_is_not() -> Result<()> {
        let good = "# HELP c It counts.\n# TYPE c counter\nc_total{a=\"x\\\"y, }\",b=\"\"} 7\nc_total{a=\"z\",b=\"\"} 1\n\
                    # HELP g It is.\n# TYPE g gauge\ng 0.5\n# EOF\n";
        let metrics = Metrics::parse(good)?;
        assert_eq!(metrics.sum("c_total", &[]), 8.0);
        assert_eq!(metrics.sum("c_total", &[("a", "x\"y, }")]), 7.0);
        assert!(metrics.has("g") && !metrics.has("h"));
        for (from, to) in
            [("# EOF\n", ""), ("c_total{a=\"z\"", "c_total{a=\"x\\\"y, }\""), ("c_total", "c"), ("0.5", "x")]
        {
            assert!(Metrics::parse(&good.replace(from, to)).is_err(), "{to:?} for {from:?}");
        }
        Ok(())
    }
}
