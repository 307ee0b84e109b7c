//! `ztunnel proxy-status`: the nodes that are connected to a control plane, and whether they have the newest mesh.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{ask, output::json, table::Table};
use crate::{
    app::control_plane::NODES,
    config::live::{ProxyStatusArgs, View},
};

/// The part of the answer of `/debug/nodes` that is shown in a table.
#[derive(Debug, Deserialize, Serialize)]
struct Answer {
    version: u64,
    served: bool,
    #[serde(default)]
    problems: Vec<String>,
    streams: Vec<Stream>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Stream {
    node: String,
    peer: String,
    client: String,
    since: String,
    types: BTreeMap<String, Type>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Type {
    wants: String,
    sent: Option<u64>,
    answered: Option<u64>,
    answered_at: Option<String>,
    rejected: Option<Rejected>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Rejected {
    version: u64,
    at: String,
    reason: String,
}

impl Type {
    /// Whether the node has what was sent last.
    fn state(&self) -> String {
        match (self.sent, self.answered, &self.rejected) {
            (None, ..) => "nothing sent".to_owned(),
            (Some(sent), Some(answered), Some(rejected)) if rejected.version == sent && answered == sent => {
                format!("REJECTED {sent}")
            }
            (Some(sent), Some(answered), _) if answered == sent => format!("synced {sent}"),
            (Some(sent), Some(answered), _) => format!("STALE {answered}<{sent}"),
            (Some(sent), None, _) => format!("sent {sent}"),
        }
    }
}

/// The text of the command.
///
/// # Errors
/// If no control plane answers.
pub(super) fn proxy_status(args: &ProxyStatusArgs) -> anyhow::Result<String> {
    let answer: Answer = ask::json(args.admin, NODES)?;
    if args.output == View::Json {
        return Ok(json(&answer));
    }
    let mut table =
        Table::new(&["NODE", "STATE", "CONNECTED SINCE"], &["PEER", "CLIENT", "REASON"], args.output == View::Wide);
    for stream in &answer.streams {
        let states: Vec<String> = stream.types.iter().map(|(name, of)| format!("{name}: {}", of.state())).collect();
        let reasons = stream.types.values().filter_map(|of| Some(of.rejected.as_ref()?.reason.as_str()));
        table.row([
            stream.node.clone(),
            states.join("; "),
            stream.since.clone(),
            stream.peer.clone(),
            stream.client.clone(),
            reasons.collect::<Vec<_>>().join("; "),
        ]);
    }
    let served = if answer.served { "" } else { ", NOT SERVED: the mesh has never been complete" };
    let mut text = format!("mesh version {}, {} problem(s){served}\n\n", answer.version, answer.problems.len());
    text.push_str(&table.text("no node is connected"));
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::proxy_status;
    use crate::{
        app::cli::ask::tests::{answering, http},
        config::live::{ProxyStatusArgs, View},
    };

    fn stream(node: &str, types: &Value) -> Value {
        json!({"node": node, "peer": "10.0.0.1:4000", "client": format!("{node}~1"), "since": "2026-12-01T00:00:00Z", "types": types})
    }

    #[test]
    fn nodes_are_synced_stale_or_have_rejected_something() {
        let kind = |sent: Option<u64>, answered: Option<u64>, rejected: Value| json!({"wants": "all", "sent": sent, "answered": answered, "answered_at": null, "rejected": rejected});
        let rejected = json!({"version": 9, "at": "2026-12-01T00:00:01Z", "reason": "no such field\u{1b}"});
        let body = json!({
            "version": 9, "served": true, "problems": ["x"], "tokens": 4, "resources": {"address": 3},
            "streams": [
                stream("node-a", &json!({"address": kind(Some(9), Some(9), Value::Null), "authorization": kind(None, None, Value::Null)})),
                stream("node-b", &json!({"address": kind(Some(9), Some(7), Value::Null)})),
                stream("node-c", &json!({"address": kind(Some(9), Some(9), rejected)})),
                stream("node-d", &json!({"address": kind(Some(9), None, Value::Null)})),
            ],
        });
        let text = body.to_string();
        let admin = answering(move |request| {
            assert_eq!(request, "GET /debug/nodes HTTP/1.1");
            http("200 OK", &text)
        });
        let shown = |output| proxy_status(&ProxyStatusArgs { admin, output }).unwrap();
        assert_eq!(
            shown(View::Table),
            "mesh version 9, 1 problem(s)\n\n\
             NODE    STATE                                           CONNECTED SINCE\n\
             node-a  address: synced 9; authorization: nothing sent  2026-12-01T00:00:00Z\n\
             node-b  address: STALE 7<9                              2026-12-01T00:00:00Z\n\
             node-c  address: REJECTED 9                             2026-12-01T00:00:00Z\n\
             node-d  address: sent 9                                 2026-12-01T00:00:00Z\n"
        );
        assert!(shown(View::Wide).contains("no such field\\u{1b}"));
        let json: Value = serde_json::from_str(&shown(View::Json)).unwrap();
        assert_eq!((&json["schemaVersion"], &json["tokens"]), (&1.into(), &4.into()));
        assert_eq!(json["streams"][2]["types"]["address"]["rejected"]["version"], 9);
    }
}
