//! The metrics of other daemons beside those of this one, in one OpenMetrics text. Their samples have a label of their own: no counter is
//! a sum of counters of two processes, so no counter decreases when one of the processes ends.

use std::collections::HashMap;

/// The label of samples of another daemon.
const LABEL: &str = "leaving";

/// A text of another daemon, with the value of its label, which must not contain quotes or backslashes.
pub struct Other<'a> {
    /// The value of the label.
    pub name: &'a str,
    /// The text, without the last line `# EOF`.
    pub text: &'a str,
}

/// One metric family: its lines of type, help and unit, and its samples.
#[derive(Default)]
struct Family {
    described: String,
    samples: String,
}

/// Adds the samples of other daemons to a text, which may end with `# EOF`.
#[must_use]
pub fn merged(own: &str, others: &[Other<'_>]) -> String {
    if others.is_empty() {
        return own.to_owned();
    }
    let (mut order, mut families) = (Vec::new(), HashMap::new());
    read(own, None, &mut order, &mut families);
    for other in others {
        read(other.text, Some(other.name), &mut order, &mut families);
    }
    let mut text = String::with_capacity(own.len() + others.iter().map(|other| other.text.len()).sum::<usize>());
    for name in order {
        if let Some(family) = families.get(name) {
            text.push_str(&family.described);
            text.push_str(&family.samples);
        }
    }
    text.push_str("# EOF\n");
    text
}

fn read<'a>(text: &'a str, label: Option<&str>, order: &mut Vec<&'a str>, families: &mut HashMap<&'a str, Family>) {
    let mut current = "";
    let mut is_known = false;
    for line in text.lines() {
        if let Some(description) = line.strip_prefix("# ") {
            let mut words = description.split(' ');
            let (Some("HELP" | "TYPE" | "UNIT"), Some(name)) = (words.next(), words.next()) else { continue };
            if name != current {
                current = name;
                is_known = families.contains_key(name);
                if !is_known {
                    order.push(name);
                }
            }
            let family = families.entry(name).or_default();
            if !is_known {
                push_line(&mut family.described, line);
            }
            continue;
        }
        let Some(family) = families.get_mut(current) else { continue };
        match label {
            None => push_line(&mut family.samples, line),
            Some(value) => labelled(&mut family.samples, line, value),
        }
    }
}

fn push_line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

/// Adds a sample with one more label. A line that is no sample is left out.
fn labelled(text: &mut String, sample: &str, value: &str) {
    let Some(end) = sample.find(['{', ' ']) else { return };
    let (name, rest) = sample.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) if rest.starts_with('}') => ("", rest),
        Some(rest) => (",", rest),
        None => ("}", rest),
    };
    for part in [name, "{", LABEL, "=\"", value, "\"", labels, rest, "\n"] {
        text.push_str(part);
    }
}

#[cfg(test)]
mod tests {
    use super::{Other, merged};

    const OWN: &str = "# HELP a Some.\n# TYPE a counter\na_total{x=\"1\"} 5\na_total 2\n# HELP g State.\n# TYPE g gauge\ng 1\n# EOF\n";

    #[test]
    fn samples_of_others_stand_in_their_families_with_a_label() {
        let other = "# HELP a Some.\n# TYPE a counter\na_total{x=\"1 } {\"} 7 # {trace=\"b\"} 1\na_total{} 8\na_total 9\n\
                     # HELP h Only there.\n# TYPE h histogram\n# UNIT h seconds\nh_bucket{le=\"+Inf\"} 3\n";
        let expected = "# HELP a Some.\n# TYPE a counter\na_total{x=\"1\"} 5\na_total 2\n\
                        a_total{leaving=\"o1\",x=\"1 } {\"} 7 # {trace=\"b\"} 1\na_total{leaving=\"o1\"} 8\n\
                        a_total{leaving=\"o1\"} 9\n# HELP g State.\n# TYPE g gauge\ng 1\n\
                        # HELP h Only there.\n# TYPE h histogram\n# UNIT h seconds\n\
                        h_bucket{leaving=\"o1\",le=\"+Inf\"} 3\n# EOF\n";
        assert_eq!(merged(OWN, &[Other { name: "o1", text: other }]), expected);
        assert_eq!(merged(OWN, &[]), OWN);
    }

    #[test]
    fn what_makes_no_sense_adds_nothing() {
        let other = "a_total 1\n\n# comment\n# TYPE\nnothing\n# TYPE a counter\nword\n";
        assert_eq!(merged(OWN, &[Other { name: "o1", text: other }]), OWN);
    }
}
