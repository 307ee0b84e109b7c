//! `ztunnel stat`, `ztunnel edges` and `ztunnel who-is-plaintext`: which workloads have connections with each other, from the daemon's counters.

mod counters;
mod plaintext;

use std::{thread::sleep, time::Duration};

use serde::Serialize;

use self::counters::{Counters, Edge, Latencies, Side, Totals};
pub(super) use self::plaintext::who_is_plaintext;
use super::{
    ask,
    output::json,
    samples::{Sample, read},
    table::{Table, bytes},
};
use crate::{
    app::admin::METRICS,
    config::live::{ListArgs, TrafficArgs, View},
};

/// The connections between two ends, since the daemon started, and their rates.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    #[serde(flatten)]
    edge: Edge,
    #[serde(flatten)]
    totals: Totals,
    /// Connections that opened in a second, over the interval. `None`: there was only one look.
    opened_per_second: Option<f64>,
    /// Bytes of both directions in a second.
    bytes_per_second: Option<f64>,
}

/// One workload of this node, as client or as server.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct WorkloadRow {
    workload: String,
    /// `outbound`: it connects; `inbound`: it is connected to.
    direction: &'static str,
    #[serde(flatten)]
    totals: Totals,
    /// The part of the ended connections that did not fail. `None`: none has ended.
    success: Option<f64>,
    opened_per_second: Option<f64>,
    bytes_per_second: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Edges {
    edges: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Stat {
    workloads: Vec<WorkloadRow>,
    /// How long connects took, of all workloads of this node.
    latencies: Vec<Latencies>,
}

/// One look at the counters, or two with a pause in between.
struct Looks {
    now: Vec<Sample>,
    before: Option<(Vec<Sample>, Duration)>,
}

impl Looks {
    fn take(args: &TrafficArgs, pause: impl FnOnce(Duration)) -> anyhow::Result<Self> {
        let look = || read(&ask::text(args.list.daemon.admin, METRICS)?);
        let interval = args.interval.duration();
        if interval.is_zero() {
            return Ok(Self { now: look()?, before: None });
        }
        let before = look()?;
        pause(interval);
        Ok(Self { now: look()?, before: Some((before, interval)) })
    }

    /// The edges with their rates, the busiest first.
    fn rows(&self, wanted: impl Fn(&Edge) -> bool) -> Vec<Row> {
        let now = Counters::of(&self.now);
        let before = self.before.as_ref().map(|(samples, between)| (Counters::of(samples), between.as_secs_f64()));
        let row = |(edge, totals): (Edge, Totals)| {
            let last = before.as_ref().map(|(before, seconds)| (before.of_edge(&edge), *seconds));
            let rate = |of: fn(&Totals) -> f64| {
                last.as_ref().map(|(last, seconds)| (of(&totals) - of(last)).max(0.0) / seconds.max(0.001))
            };
            Row {
                opened_per_second: rate(|totals| totals.opened),
                bytes_per_second: rate(|totals| totals.bytes_received + totals.bytes_sent),
                edge,
                totals,
            }
        };
        let mut rows: Vec<Row> = now.edges().into_iter().filter(|(edge, _)| wanted(edge)).map(row).collect();
        rows.sort_by(|one, other| {
            let busy = |row: &Row| row.opened_per_second.unwrap_or(row.totals.opened);
            busy(other).total_cmp(&busy(one)).then_with(|| one.edge.cmp(&other.edge))
        });
        rows
    }
}

/// Whether one of the two ends is in the namespace.
fn is_of(namespace: Option<&str>, edge: &Edge) -> bool {
    let is_in = |workload: &str, namespace: &str| workload.split_once('/').is_some_and(|(of, _)| of == namespace);
    namespace.is_none_or(|namespace| is_in(&edge.source, namespace) || is_in(&edge.destination, namespace))
}

/// The text of `edges`.
///
/// # Errors
/// If no daemon answers, or its metrics cannot be read.
pub(super) fn edges(args: &TrafficArgs) -> anyhow::Result<String> {
    edges_after(args, sleep)
}

fn edges_after(args: &TrafficArgs, pause: impl FnOnce(Duration)) -> anyhow::Result<String> {
    let ListArgs { daemon, namespace } = &args.list;
    let rows = Looks::take(args, pause)?.rows(|edge| is_of(namespace.as_deref(), edge));
    if daemon.output == View::Json {
        return Ok(json(&Edges { edges: rows }));
    }
    let columns =
        ["SOURCE", "DESTINATION", "SECURITY", "OPENED", "OPENED/S", "OPEN", "FAILED", "RECEIVED", "SENT", "BYTES/S"];
    let more = ["SERVICE", "SOURCE IDENTITY", "DESTINATION IDENTITY", "DENIED"];
    let mut table = Table::new(&columns, &more, daemon.output == View::Wide);
    for Row { edge, totals, opened_per_second, bytes_per_second } in rows {
        table.row([
            edge.source,
            edge.destination,
            edge.security.to_owned(),
            totals.opened.to_string(),
            rate(opened_per_second),
            totals.open.to_string(),
            totals.failed.to_string(),
            bytes(totals.bytes_received),
            bytes(totals.bytes_sent),
            bytes_per_second.map(bytes).unwrap_or_default(),
            edge.service,
            edge.source_identity,
            edge.destination_identity,
            totals.denied.to_string(),
        ]);
    }
    Ok(table.text("no connections since the daemon started"))
}

fn rate(rate: Option<f64>) -> String {
    rate.map(|rate| format!("{rate:.1}")).unwrap_or_default()
}

/// The text of `stat`.
///
/// # Errors
/// If no daemon answers, or its metrics cannot be read.
pub(super) fn stat(args: &TrafficArgs) -> anyhow::Result<String> {
    stat_after(args, sleep)
}

fn stat_after(args: &TrafficArgs, pause: impl FnOnce(Duration)) -> anyhow::Result<String> {
    let ListArgs { daemon, namespace } = &args.list;
    let looks = Looks::take(args, pause)?;
    let workloads = workloads(&looks, namespace.as_deref());
    let latencies = Latencies::all(&looks.now);
    if daemon.output == View::Json {
        return Ok(json(&Stat { workloads, latencies }));
    }
    let columns =
        ["WORKLOAD", "DIRECTION", "OPENED", "OPENED/S", "OPEN", "SUCCESS", "FAILED", "RECEIVED", "SENT", "BYTES/S"];
    let mut table = Table::new(&columns, &["DENIED"], daemon.output == View::Wide);
    for row in workloads {
        table.row([
            row.workload,
            row.direction.to_owned(),
            row.totals.opened.to_string(),
            rate(row.opened_per_second),
            row.totals.open.to_string(),
            row.success.map(|part| format!("{:.2}%", part * 100.0)).unwrap_or_default(),
            row.totals.failed.to_string(),
            bytes(row.totals.bytes_received),
            bytes(row.totals.bytes_sent),
            row.bytes_per_second.map(bytes).unwrap_or_default(),
            row.totals.denied.to_string(),
        ]);
    }
    let mut times = Table::new(&["DURATION OF", "DIRECTION", "CARRIED", "COUNT", "P50", "P90", "P99"], &[], false);
    for one in latencies.iter().filter(|one| one.count > 0.0) {
        let time =
            |seconds: Option<f64>| seconds.map(|seconds| format!("{:.2}ms", seconds * 1000.0)).unwrap_or_default();
        times.row([
            one.of.to_owned(),
            one.direction.clone(),
            one.carried.clone(),
            one.count.to_string(),
            time(one.p50),
            time(one.p90),
            time(one.p99),
        ]);
    }
    Ok(format!("{}\n{}", table.text("no connections since the daemon started"), times.text("no connects")))
}

/// Each workload of this node in each direction: as clients report as sources, and servers as destinations.
fn workloads(looks: &Looks, namespace: Option<&str>) -> Vec<WorkloadRow> {
    let mut rows: Vec<WorkloadRow> = Vec::new();
    let now = Counters::of(&looks.now);
    let before = looks.before.as_ref().map(|(samples, between)| (Counters::of(samples), between.as_secs_f64()));
    for side in [Side::Source, Side::Destination] {
        for (workload, totals) in now.of_side(side) {
            let is_wanted = namespace.is_none_or(|wanted| workload.split_once('/').is_some_and(|(of, _)| of == wanted));
            if !is_wanted {
                continue;
            }
            let last = before.as_ref().map(|(before, seconds)| {
                (before.of_side(side).remove(&workload).unwrap_or_default(), seconds.max(0.001))
            });
            let rate = |of: fn(&Totals) -> f64| {
                last.as_ref().map(|(last, seconds)| (of(&totals) - of(last)).max(0.0) / seconds)
            };
            let ended = totals.opened - totals.open;
            rows.push(WorkloadRow {
                direction: side.direction(),
                success: (ended > 0.0).then(|| 1.0 - (totals.failed / ended).clamp(0.0, 1.0)),
                opened_per_second: rate(|totals| totals.opened),
                bytes_per_second: rate(|totals| totals.bytes_received + totals.bytes_sent),
                workload,
                totals,
            });
        }
    }
    rows.sort_by(|one, other| (&one.workload, one.direction).cmp(&(&other.workload, other.direction)));
    rows
}

#[cfg(test)]
mod tests;
