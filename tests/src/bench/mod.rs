//! The benchmark: the cost of the mesh, compared with the same machine without it.
//!
//! Two nodes on a wire with an MTU of 1500, real programs in the pods, and the daemon in its release build. Every
//! figure of the mesh is compared with a figure without the mesh from the same round, since a shared machine is never
//! the same twice; medians over the rounds. Bytes that should have gone through HBONE are checked in the daemon's
//! metrics: a figure of another path is an error.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::requirements;

mod chain;
mod compare;
mod crowd;
mod crr;
pub mod plane;
mod proc;
mod report;
mod servers;
mod slow;
mod stage;
mod work;

use report::{Report, Row};
use stage::{Mode, Stage};
use work::Work;

/// Options of the benchmark.
#[derive(Debug, Clone)]
pub struct BenchOptions {
    /// Only measurements whose name contains one of these; if empty, all work except that which takes minutes.
    pub filters: Vec<String>,
    /// Only these modes, by name; if empty, all modes.
    pub modes: Vec<String>,
    /// Number of rounds.
    pub rounds: u32,
    /// Duration of each measurement.
    pub seconds: u32,
    /// File for the figures as JSON.
    pub json: Option<PathBuf>,
    /// Figures of an earlier run; a figure that is worse than there is an error.
    pub baseline: Option<PathBuf>,
    /// The daemon's program.
    pub ztunnel: PathBuf,
}

/// Measures, and prints the table.
///
/// # Errors
/// When something fails, or is worse than in the earlier run.
pub fn run(options: &BenchOptions) -> Result<()> {
    requirements::check()?;
    for program in ["iperf3", "nginx", "wrk"] {
        requirements::program(program)?;
    }
    ensure!(options.ztunnel.is_file(), "{} is no file: build the daemon first", options.ztunnel.display());
    let chosen = chosen(&options.filters, &options.modes);
    let (filters, modes) = (&options.filters, &options.modes);
    ensure!(!chosen.is_empty(), "no work has one of {filters:?} in its name, and one of the modes {modes:?}");
    // Before the work of minutes: the file may be unreadable, or the new figures may be written over it.
    let earlier = options.baseline.as_deref().map(read).transpose()?;
    let mut stage = Stage::build(&options.ztunnel)?;
    let mut report = Report::default();
    for (work, modes) in chosen {
        report.rows.extend(measure(&mut stage, work, &modes, options)?);
    }
    drop(stage);
    let machine = proc::machine();
    say(&format!("{machine}; medians of {} rounds of {} s\n{}", options.rounds, options.seconds, report.table()))?;
    let figures = report.json(&machine);
    if let Some(path) = &options.json {
        std::fs::write(path, format!("{figures:#}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let Some(earlier) = earlier else { return Ok(()) };
    let losses = compare::losses(&figures, &earlier)?;
    ensure!(losses.is_empty(), "worse than before by more than noise:\n{}", losses.join("\n"));
    say("Nothing is worse than before by more than noise.")
}

/// The figures in one file that are worse than in an earlier file, by more than the noise of both.
///
/// # Errors
/// When one of the files has no figures.
pub fn losses(now: &Path, earlier: &Path) -> Result<Vec<String>> {
    compare::losses(&read(now)?, &read(earlier)?)
}

fn read(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))
}

/// The selected work.
fn chosen(filters: &[String], modes: &[String]) -> Vec<(Work, Vec<Mode>)> {
    let wanted = |work: Work| {
        let name = work.name();
        let mut named = filters.iter().filter(|filter| name.contains(filter.as_str()));
        match work.is_long() {
            // The filter "scale" is not meant to select work that takes minutes.
            true => named.any(|filter| filter.contains("100,000")),
            false => filters.is_empty() || named.next().is_some(),
        }
    };
    let in_modes = |(work, mut all): (Work, Vec<Mode>)| {
        all.retain(|mode| modes.is_empty() || modes.iter().any(|name| name == mode.name()));
        (!all.is_empty()).then_some((work, all))
    };
    Work::all().into_iter().filter(|(work, _)| wanted(*work)).filter_map(in_modes).collect()
}

/// Measures one work in all of its modes, in turn.
fn measure(stage: &mut Stage, work: Work, modes: &[Mode], options: &BenchOptions) -> Result<Vec<Row>> {
    if let Some(first) = modes.first() {
        stage.arrange(*first, work.crowd())?;
    }
    // Memory that an earlier work left in a daemon must not count for this one.
    stage.renew()?;
    let mut rows: Vec<_> = modes.iter().map(|mode| Row { work, mode: *mode, samples: Vec::new() }).collect();
    for round in 1..=options.rounds {
        for row in &mut rows {
            let sample = work.measure(stage, row.mode, options.seconds)?;
            say(&format!(
                "round {round} of {}: {}, {}: {} {}",
                options.rounds,
                work.name(),
                row.mode.name(),
                report::short(sample.value),
                work.unit()
            ))?;
            row.samples.push(sample);
        }
    }
    Ok(rows)
}

fn say(text: &str) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{text}").context("cannot write to standard output")
}

#[cfg(test)]
mod tests;
