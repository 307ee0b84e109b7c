//! The exposition follows the rules of `promtool check metrics`, and uses no label of the scrape target.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    app::reference::{every_metric, every_metric_of_control_plane},
    metrics::text::prometheus,
};

/// Labels that Prometheus and its usual service discovery give to the target. A label of the daemon with such a name would be
/// renamed.
const OF_TARGETS: [&str; 10] =
    ["namespace", "pod", "container", "node", "job", "instance", "service", "endpoint", "host", "cluster"];

/// Units that are not base units, and abbreviations.
const BAD_UNITS: [&str; 24] = [
    "milliseconds",
    "microseconds",
    "nanoseconds",
    "minutes",
    "hours",
    "days",
    "kilobytes",
    "megabytes",
    "gigabytes",
    "kibibytes",
    "mebibytes",
    "bits",
    "percent",
    "s",
    "ms",
    "us",
    "ns",
    "sec",
    "b",
    "kb",
    "mb",
    "m",
    "h",
    "d",
];

#[derive(Debug, Default)]
struct Family {
    kind: Option<String>,
    help: Option<String>,
    samples: usize,
}

/// All violations of the rules.
fn faults(text: &str) -> Vec<String> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let (mut faults, mut seen) = (Vec::new(), BTreeSet::new());
    for line in text.lines().filter(|line| *line != "# EOF") {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            families.entry(name.to_owned()).or_default().help = Some(help.to_owned());
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            families.entry(name.to_owned()).or_default().kind = Some(kind.to_owned());
        } else {
            let (name, labels) =
                line.rsplit_once(' ').unwrap().0.split_once('{').unwrap_or((line.split(' ').next().unwrap(), ""));
            if !seen.insert(line.rsplit_once(' ').unwrap().0.to_owned()) {
                faults.push(format!("twice: {line}"));
            }
            for label in labels.split('"').step_by(2).filter_map(|part| part.trim_start_matches(',').strip_suffix('='))
            {
                let is_plain = label.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
                if OF_TARGETS.contains(&label) || label.starts_with("__") || !is_plain {
                    faults.push(format!("{name}: label {label}"));
                }
            }
            let of_histogram = ["_bucket", "_sum", "_count"].into_iter().find_map(|end| {
                let name = name.strip_suffix(end)?;
                (families.get(name)?.kind.as_deref() == Some("histogram")).then_some(name)
            });
            families.entry(of_histogram.unwrap_or(name).to_owned()).or_default().samples += 1;
        }
    }
    for (name, family) in &families {
        let mut fault = |what: &str| faults.push(format!("{name}: {what}"));
        let kind = family.kind.as_deref();
        if kind.is_none() || family.samples == 0 {
            fault("no type, or no sample under the name that has the type");
        }
        if family.help.as_deref().is_none_or(str::is_empty) {
            fault("no help");
        }
        if (kind == Some("counter")) != name.ends_with("_total") {
            fault("counters end in _total, and nothing else does");
        }
        if ["_bucket", "_sum", "_count", "_info"].iter().any(|end| name.ends_with(end)) {
            fault("a reserved suffix");
        }
        if !name.chars().all(|c| c.is_ascii_lowercase() || c == '_') {
            fault("lower case and underscores only");
        }
        let words: Vec<&str> = name.split('_').collect();
        if words.iter().any(|word| BAD_UNITS.contains(word)) {
            fault("a unit that is no base unit");
        }
        if words.iter().any(|word| ["counter", "gauge", "histogram", "summary"].contains(word)) {
            fault("the type in the name");
        }
        let is_time = family.help.as_deref().is_some_and(|help| help.contains("Unix time"));
        let is_named = name.ends_with("_timestamp_seconds") || name == "process_start_time_seconds";
        if is_time != is_named {
            fault("Unix times are named timestamps");
        }
    }
    faults
}

#[test]
fn the_exposition_keeps_the_rules_of_promtool() {
    for text in [every_metric().unwrap(), every_metric_of_control_plane().unwrap()] {
        let text = prometheus(&text);
        assert_eq!(faults(&text), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn what_breaks_a_rule_is_found() {
    let good = "# HELP a_total A.\n# TYPE a_total counter\na_total{way=\"in\"} 1\n";
    assert_eq!(faults(good), Vec::<String>::new());
    for (from, to) in [
        ("# HELP a_total A.\n", ""),
        ("a_total", "a"),
        ("counter", "gauge"),
        ("way", "namespace"),
        ("way", "isIn"),
        ("a_total", "a_milliseconds_total"),
        ("a_total", "a_counter_total"),
        ("A.", "A Unix time."),
        ("# TYPE a_total", "# TYPE a"),
    ] {
        assert_ne!(faults(&good.replace(from, to)), Vec::<String>::new(), "{from} {to}");
    }
    assert_ne!(faults(&format!("{good}a_total{{way=\"in\"}} 2\n")), Vec::<String>::new());
}
