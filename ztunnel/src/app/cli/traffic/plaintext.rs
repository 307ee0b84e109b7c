//! `ztunnel who-is-plaintext`: the plaintext connections to pods of this node, which the mode STRICT would refuse.

use std::{collections::BTreeMap, thread::sleep, time::Duration};

use serde::Serialize;

use super::{Looks, counters::Counters, counters::Totals};
use crate::{
    app::cli::{
        output::json,
        pods::{Pods, ask_for},
        table::{Table, bytes},
    },
    config::live::{ListArgs, TrafficArgs, View},
};

/// Plaintext connections that were accepted since the daemon started.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    /// `NAMESPACE/WORKLOAD`.
    destination: String,
    /// `NAMESPACE/WORKLOAD`, or `unknown`: no pod that the mesh knows.
    source: String,
    #[serde(flatten)]
    totals: Totals,
    /// Those that opened within the interval. `None`: there was only one look.
    opened_in_interval: Option<f64>,
}

/// A plaintext connection that is open now: the clients that the counters call unknown have addresses here.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Open {
    destination: String,
    client: String,
    peer: Option<String>,
    port: String,
}

#[derive(Debug, Serialize)]
struct Plaintext {
    node: String,
    accepted: Vec<Row>,
    open: Vec<Open>,
}

/// The text of the command.
///
/// # Errors
/// If no daemon answers, or its metrics cannot be read.
pub(in crate::app::cli) fn who_is_plaintext(args: &TrafficArgs) -> anyhow::Result<String> {
    after(args, sleep)
}

pub(super) fn after(args: &TrafficArgs, pause: impl FnOnce(Duration)) -> anyhow::Result<String> {
    let ListArgs { daemon, namespace } = &args.list;
    let looks = Looks::take(args, pause)?;
    let accepted = accepted(&looks, namespace.as_deref());
    let pods = ask_for(&args.list)?;
    let node = pods.node.clone();
    let open = open(pods);
    if daemon.output == View::Json {
        return Ok(json(&Plaintext { node, accepted, open }));
    }
    let is_wide = daemon.output == View::Wide;
    let mut table =
        Table::new(&["DESTINATION", "SOURCE", "ACCEPTED", "OPEN", "RECEIVED", "SENT"], &["IN INTERVAL"], is_wide);
    for row in &accepted {
        table.row([
            row.destination.clone(),
            row.source.clone(),
            (row.totals.opened - row.totals.denied).to_string(),
            row.totals.open.to_string(),
            bytes(row.totals.bytes_received),
            bytes(row.totals.bytes_sent),
            row.opened_in_interval.map(|count| count.to_string()).unwrap_or_default(),
        ]);
    }
    let none = "nobody: no pod of this node has accepted a plaintext connection since the daemon started, so STRICT would have refused none";
    let mut text = table.text(none);
    if !open.is_empty() {
        let mut table = Table::new(&["OPEN NOW TO", "PORT", "CLIENT", "POD OF THE CLIENT"], &[], false);
        for Open { destination, client, peer, port } in open {
            table.row([destination, port, client, peer.unwrap_or_default()]);
        }
        text.push('\n');
        text.push_str(&table.text(""));
    }
    Ok(text)
}

/// The sources of each destination, without those of which everything was denied. Probes of the kubelet are not counted by Istio's
/// series, and STRICT does not refuse them.
fn accepted(looks: &Looks, namespace: Option<&str>) -> Vec<Row> {
    let now = sums(&looks.now);
    let before = looks.before.as_ref().map(|(samples, _)| sums(samples));
    let is_wanted =
        |workload: &str| namespace.is_none_or(|wanted| workload.split_once('/').is_some_and(|(of, _)| of == wanted));
    let rows = now.into_iter().filter(|((to, _), totals)| is_wanted(to) && totals.opened > totals.denied);
    rows.map(|(key, totals)| {
        let last = before.as_ref().map(|before| before.get(&key).copied().unwrap_or_default());
        let (destination, source) = key;
        Row { destination, source, totals, opened_in_interval: last.map(|last| (totals.opened - last.opened).max(0.0)) }
    })
    .collect()
}

fn sums(samples: &[crate::app::cli::samples::Sample]) -> BTreeMap<(String, String), Totals> {
    let mut sums: BTreeMap<(String, String), Totals> = BTreeMap::new();
    for (edge, totals) in Counters::of(samples).at_destinations().filter(|(edge, _)| edge.security == "plaintext") {
        *sums.entry((edge.destination.clone(), edge.source.clone())).or_default() += *totals;
    }
    sums
}

fn open(Pods { pods, .. }: Pods) -> Vec<Open> {
    let mut open = Vec::new();
    for pod in pods {
        let name = format!("{}/{}", pod.namespace, pod.name);
        let plain = pod.connections.into_iter().filter(|connection| {
            connection.direction == "inbound"
                && connection.protocol == "TCP"
                // A probe of the kubelet, or a port at which no policy counts.
                && !connection.allowed_by.as_deref().is_some_and(|why| why.starts_with("not enforced"))
        });
        open.extend(plain.map(|connection| Open {
            destination: name.clone(),
            port: connection.dst.rsplit_once(':').map(|(_, port)| port.to_owned()).unwrap_or_default(),
            client: connection.src,
            peer: connection.peer,
        }));
    }
    open
}
