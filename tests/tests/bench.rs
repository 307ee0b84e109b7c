//! The benchmark runs, and its file has the promised entries. The figures themselves are not checked here.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use ztunnel_tests::bench::plane::{self, PlaneBench};
use ztunnel_tests::bench::{BenchOptions, losses, run};
use ztunnel_tests::settings;

/// The keys on which a reader of the file may rely.
const KEYS: [&str; 11] = [
    "work",
    "mode",
    "value",
    "unit",
    "ratio",
    "cpu_per_unit",
    "cpu_of_chain",
    "p50_us",
    "p99_us",
    "rss_kb",
    "taken_per_connection",
];

/// One workload of each kind.
const WORKS: [&str; 8] = [
    "start to ready",
    "iperf3, 8 streams",
    "wrk, 64 connections",
    "connect-request-response",
    "1,000 idle connections",
    "slow reader, 8 connections",
    "scale: 100 services",
    "scale: 1,000 workloads, one change",
];

#[test]
fn one_work_of_each_kind_is_measured_and_compared() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("figures.json");
    let options = BenchOptions {
        filters: WORKS.map(ToOwned::to_owned).to_vec(),
        modes: Vec::new(),
        rounds: 1,
        seconds: 1,
        json: Some(file.clone()),
        baseline: None,
        ztunnel: settings::daemon_binary()?,
    };
    run(&options)?;
    let mut figures: Value = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
    let rows = figures.get_mut("rows").and_then(Value::as_array_mut).context("no rows")?;
    for work in WORKS {
        let of_work = |row: &&Value| row.get("work").and_then(Value::as_str).is_some_and(|name| name.contains(work));
        ensure!(rows.iter().filter(of_work).count() > 0, "no row of {work}: {rows:#?}");
    }
    for row in rows.iter() {
        for key in KEYS {
            ensure!(row.get(key).is_some(), "no {key} in {row:#}");
        }
        ensure!(row.get("value").and_then(Value::as_f64).is_some_and(|value| value >= 0.0), "{row:#}");
        ensure!(row.get("rss_kb").and_then(Value::as_f64).is_some_and(|kb| kb > 0.0), "{row:#}");
        let (is_mesh, has_ratio) = (row.get("mode") == Some(&json!("mesh")), row.get("p50_us") != Some(&Value::Null));
        ensure!(!(is_mesh && has_ratio) || row.get("ratio").is_some_and(Value::is_f64), "{row:#}");
    }
    let of = |work: &str, mode: &str| {
        let wanted = |row: &&Value| row.get("work") == Some(&json!(work)) && row.get("mode") == Some(&json!(mode));
        rows.iter().find(wanted).with_context(|| format!("no row of {work}, {mode}"))
    };
    for work in ["iperf3, 8 streams", "wrk, 64 connections", "connect-request-response, 16 at once"] {
        for key in ["ratio", "cpu_per_unit"] {
            ensure!(
                of(work, "copy chain")?.get(key).and_then(Value::as_f64) > Some(0.0),
                "the chain's {key} of {work}"
            );
        }
        ensure!(of(work, "mesh")?.get("cpu_of_chain").is_some_and(Value::is_f64), "no chain beside {work}");
    }
    let stream = of("scale: 100 services, one stream", "mesh")?;
    ensure!(stream.get("cpu_per_unit").and_then(Value::as_f64) > Some(0.0), "{stream:#}");
    let stuck = of("slow reader, 8 connections", "mesh")?;
    ensure!(stuck.get("taken_per_connection").and_then(Value::as_f64) > Some(0.0), "{stuck:#}");
    ensure!(losses(&file, &file)?.is_empty(), "worse than itself: {:?}", losses(&file, &file)?);
    // As if the earlier run had been twice as fast.
    for row in rows.iter_mut() {
        if let Some(ratio) = row.get("ratio").and_then(Value::as_f64) {
            row["ratio"] = json!(ratio * 2.0);
        }
    }
    let better = folder.path().join("better.json");
    std::fs::write(&better, figures.to_string())?;
    let lost = losses(&file, &better)?;
    ensure!(lost.iter().any(|line| line.starts_with("iperf3, 8 streams, mesh: ")), "{lost:?}");
    Ok(())
}

/// A small control plane under a small load: every stream is told of every change.
#[test]
fn a_control_plane_is_measured_with_its_streams() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("figures.json");
    let ztunnel = settings::daemon_binary()?;
    let small = PlaneBench { streams: 8, workloads: 500, changes: 50, seconds: 2, json: Some(file.clone()), ztunnel };
    plane::run(&small)?;
    let figures: Value = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
    let rows = figures.get("rows").and_then(Value::as_array).context("no rows")?;
    for (row, mode) in rows.iter().zip(["wildcard", "on-demand"]) {
        ensure!(row.get("mode") == Some(&json!(mode)), "{row:#}");
        let figure = |key: &str| row.get(key).and_then(Value::as_f64).with_context(|| format!("no {key} in {row:#}"));
        // 100 pods change. All streams want all of them, or each wants 200 of the 500 pods.
        let least = if mode == "wildcard" { 800.0 } else { 100.0 };
        ensure!(figure("deliveries")? >= least && figure("changes")? == 100.0, "{row:#}");
        for key in ["p50_ms", "server_cpu", "server_rss_kb", "bytes_per_second", "daemon_rss_kb"] {
            ensure!(figure(key)? > 0.0, "{key} in {row:#}");
        }
        ensure!(figure("p50_ms")? <= figure("p99_ms")?, "{row:#}");
    }
    ensure!(rows.len() == 2, "{rows:#?}");
    Ok(())
}
