//! The state of a namespace as far as it concerns routing: rules, routes, settings, listeners. Two footprints, taken
//! before and after the mesh, must be equal.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::netns::Netns;
use crate::process::Launch;

/// Lines that describe a namespace; each begins with its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footprint(BTreeSet<String>);

impl Footprint {
    /// Takes the footprint of a namespace.
    ///
    /// # Errors
    /// When a program fails or the namespace is gone.
    pub fn of(netns: &Netns) -> Result<Self> {
        let mut lines = BTreeSet::new();
        for family in ["-4", "-6"] {
            for what in [&["rule", "show"][..], &["route", "show", "table", "all"]] {
                let args = [&["-n", netns.name(), family][..], what].concat();
                let done = Launch::new("ip").args(&args).finish()?;
                let title = format!("ip {family} {}", what.join(" "));
                lines.extend(done.stdout.lines().map(|line| format!("{title}: {}", steady(line))));
            }
        }
        let done = Launch::new("ss").args(["-Htnl"]).inside(netns).finish()?;
        lines.extend(done.stdout.lines().map(|line| format!("ss -tnl: {}", local_address(line))));
        lines.extend(netns.run(settings)?);
        Ok(Self(lines))
    }

    /// The differences, one line each: `-` for a line that is missing now, `+` for a new line.
    #[must_use]
    pub fn difference(&self, after: &Self) -> Vec<String> {
        let gone = self.0.difference(&after.0).map(|line| format!("- {line}"));
        let new = after.0.difference(&self.0).map(|line| format!("+ {line}"));
        gone.chain(new).collect()
    }
}

/// A route without the parts that change by themselves.
fn steady(line: &str) -> String {
    let mut words = line.split_whitespace();
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        if word == "expires" {
            words.next();
        } else {
            kept.push(word);
        }
    }
    kept.join(" ")
}

fn local_address(line: &str) -> &str {
    line.split_whitespace().nth(3).unwrap_or(line)
}

/// Every readable setting of the calling thread's namespace.
fn settings() -> Vec<String> {
    let mut lines = Vec::new();
    for family in ["ipv4", "ipv6"] {
        collect(&Path::new("/proc/sys/net").join(family), &mut lines);
    }
    lines
}

fn collect(folder: &Path, lines: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, lines);
        } else if let Ok(value) = fs::read_to_string(&path) {
            lines.push(format!("{} = {}", path.display(), value.trim()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiry_is_left_out() {
        assert_eq!(steady("fe80::/64 dev eth0 expires 86395sec  pref medium"), "fe80::/64 dev eth0 pref medium");
    }

    #[test]
    fn difference_names_both_sides() {
        let of = |lines: &[&str]| Footprint(lines.iter().map(|line| (*line).to_owned()).collect());
        assert_eq!(of(&["a", "b"]).difference(&of(&["b", "c"])), ["- a", "+ c"]);
        assert!(of(&["a"]).difference(&of(&["a"])).is_empty());
    }
}
