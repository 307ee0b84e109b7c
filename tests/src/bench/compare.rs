//! Compares the figures of two runs: finds those that are worse by more than noise.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::report::short;

/// Losses smaller than this are noise, whatever the spread of the rounds says.
const LEAST_NOISE: f64 = 0.10;

/// Two figures of CPU that differ by fewer percentage points are equal: the ratio of very small values means nothing.
const LEAST_POINTS: f64 = 0.5;

/// The figures that are worse now than earlier; rows are matched by work and mode.
///
/// # Errors
/// When there is nothing to compare: no rows, or none in common.
pub(super) fn losses(now: &Value, earlier: &Value) -> Result<Vec<String>> {
    let before = rows(earlier)?;
    let same = |row: &Value, other: &Value| ["work", "mode"].iter().all(|key| text(row, key) == text(other, key));
    let pairs: Vec<_> =
        rows(now)?.iter().filter_map(|row| Some((row, before.iter().find(|other| same(row, other))?))).collect();
    ensure!(!pairs.is_empty(), "the two runs have no row in common");
    Ok(pairs.iter().flat_map(|(row, before)| losses_of(row, before)).collect())
}

fn rows(figures: &Value) -> Result<&Vec<Value>> {
    figures.get("rows").and_then(Value::as_array).context("no file of figures: it has no rows")
}

fn text<'a>(row: &'a Value, key: &str) -> &'a str {
    row.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// One figure of a row, in both runs.
struct Pair<'a> {
    what: &'a str,
    now: f64,
    then: f64,
    noise: f64,
    is_higher_better: bool,
}

impl Pair<'_> {
    fn is_lost(&self) -> bool {
        let Self { now, then, noise, .. } = *self;
        let worse = if self.is_higher_better { now < then * (1.0 - noise) } else { now > then * (1.0 + noise) };
        worse && !(self.what == "% CPU" && (now - then).abs() < LEAST_POINTS)
    }
}

/// A row without the mesh depends on the machine only. For the others, the ratio is compared if there is one, since it
/// means the same on a busy machine; likewise CPU relative to the copy chain, and memory.
fn losses_of(row: &Value, before: &Value) -> Vec<String> {
    if row.get("meshed") != Some(&Value::Bool(true)) {
        return Vec::new();
    }
    let pair = |what, key: &str, spread: &str, is_higher_better| {
        let figure = |row: &Value, key: &str| row.get(key).and_then(Value::as_f64);
        let (now, then) = (figure(row, key)?, figure(before, key)?);
        let spreads = [figure(row, spread), figure(before, spread)];
        let noise = spreads.into_iter().flatten().fold(LEAST_NOISE, f64::max);
        Some(Pair { what, now, then, noise, is_higher_better })
    };
    let is_higher_better = text(row, "better") == "higher";
    let value = pair("of no mesh", "ratio", "ratio_spread", is_higher_better)
        .or_else(|| pair(text(row, "unit"), "value", "spread", is_higher_better));
    let cpu = pair("of the copy chain's CPU", "cpu_of_chain", "cpu_of_chain_spread", false)
        .or_else(|| pair(text(row, "cpu_unit"), "cpu_per_unit", "cpu_spread", false));
    let memory = pair("kB", "rss_kb", "rss_spread", false);
    let lost = [value, cpu, memory].into_iter().flatten().filter(Pair::is_lost);
    let told = lost.map(|Pair { what, now, then, noise, .. }| {
        let (work, mode, noise) = (text(row, "work"), text(row, "mode"), noise * 100.0);
        format!("{work}, {mode}: {} {what}, was {}; noise {noise:.0} %", short(now), short(then))
    });
    told.collect()
}
