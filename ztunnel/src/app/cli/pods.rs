//! `ztunnel pods`: the labelled pods of this node.

use serde::{Deserialize, Serialize};

use super::{ask, output::json, table::Table};
use crate::{
    app::admin::CONFIG_DUMP,
    config::live::{ListArgs, View},
    pods::describe::{PodInfo, PodState},
};

/// The pods of a node.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Pods {
    /// The node.
    pub(super) node: String,
    /// Its labelled pods.
    pub(super) pods: Vec<PodInfo>,
}

/// The pods, of one namespace if it is given, by namespace and name.
///
/// # Errors
/// If no daemon answers.
pub(super) fn ask_for(args: &ListArgs) -> anyhow::Result<Pods> {
    let mut answer: Pods = ask::json(args.daemon.admin, &format!("{CONFIG_DUMP}?only=pods"))?;
    answer.pods.retain(|pod| args.namespace.as_ref().is_none_or(|namespace| pod.namespace == *namespace));
    answer.pods.sort_by(|one, other| (&one.namespace, &one.name).cmp(&(&other.namespace, &other.name)));
    Ok(answer)
}

/// The text of the command.
///
/// # Errors
/// If no daemon answers.
pub(super) fn pods(args: &ListArgs) -> anyhow::Result<String> {
    let mut answer = ask_for(args)?;
    if args.daemon.output == View::Json {
        // `ztunnel connections` shows them.
        answer.pods.iter_mut().for_each(|pod| pod.connections.sort_by(|one, other| one.src.cmp(&other.src)));
        return Ok(json(&answer));
    }
    let columns = ["NAMESPACE", "NAME", "STATE", "CONNECT", "CONNECTIONS", "TUNNELS", "REASON"];
    let more = ["IDENTITY", "ADDRESSES", "BEFORE", "NETNS"];
    let mut table = Table::new(&columns, &more, args.daemon.output == View::Wide);
    for pod in &answer.pods {
        let state = match (pod.state, pod.captured) {
            (PodState::Enrolled, _) => "enrolled",
            (PodState::Refused, true) => "CLOSED",
            (PodState::Refused, false) => "REFUSED",
        };
        table.row([
            pod.namespace.clone(),
            pod.name.clone(),
            state.to_owned(),
            pod.connect.as_deref().unwrap_or_default().to_owned(),
            pod.connections.len().to_string(),
            pod.tunnels.to_string(),
            pod.reason.clone().unwrap_or_default(),
            pod.identity.clone().unwrap_or_default(),
            pod.addresses.join(","),
            pod.connections_before_enrolment.to_string(),
            pod.netns.clone().unwrap_or_default(),
        ]);
    }
    Ok(table.text(&format!("no labelled pods on node {}", answer.node)))
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::SocketAddr;

    use serde_json::Value;

    use super::pods;
    use crate::{
        app::cli::ask::tests::{answering, http},
        config::live::{DaemonArgs, ListArgs, View},
        model::workload::NamespacedName,
        pods::describe::{ConnectionInfo, PodInfo, PodState},
    };

    pub(in crate::app::cli) fn list(admin: SocketAddr, output: View, namespace: Option<&str>) -> ListArgs {
        ListArgs { daemon: DaemonArgs { admin, output }, namespace: namespace.map(str::to_owned) }
    }

    pub(in crate::app::cli) fn connection(bytes: u64) -> ConnectionInfo {
        ConnectionInfo {
            direction: "inbound".into(),
            src: "10.0.0.1:4000".to_owned(),
            dst: "10.0.0.2:80".to_owned(),
            actual_dst: Some("10.0.0.2:80".to_owned()),
            protocol: "HBONE".into(),
            service: None,
            peer_identity: Some("spiffe://cluster.local/ns/demo/sa/client".to_owned()),
            peer: Some("demo/client".to_owned()),
            bytes_received: bytes,
            bytes_sent: 2 * bytes,
            duration_ms: 65_000,
            allowed_by: Some("AuthorizationPolicy demo/allow rules[0]".to_owned()),
        }
    }

    pub(in crate::app::cli) fn pod(name: &str, connections: Vec<ConnectionInfo>) -> PodInfo {
        let name = NamespacedName::new("demo", name);
        PodInfo {
            captured: true,
            connect: Some("early".into()),
            identity: Some("spiffe://cluster.local/ns/demo/sa/web".to_owned()),
            addresses: vec!["10.0.0.2".to_owned(), "fd00::2".to_owned()],
            netns: Some("/n/web".to_owned()),
            tunnels: 1,
            connections,
            ..PodInfo::new(&name, PodState::Enrolled)
        }
    }

    pub(in crate::app::cli) fn daemon(pods: &[PodInfo]) -> SocketAddr {
        let body = serde_json::json!({"node": "node-a", "pods": pods}).to_string();
        answering(move |request| {
            assert_eq!(request, "GET /config_dump?only=pods HTTP/1.1");
            http("200 OK", &body)
        })
    }

    #[test]
    fn pods_have_their_states_and_reasons() {
        let refused = PodInfo {
            reason: Some("hostNetwork".to_owned()),
            ..PodInfo::new(&NamespacedName::new("prod", "agent"), PodState::Refused)
        };
        let closed = PodInfo { captured: true, ..PodInfo::new(&NamespacedName::new("demo", "a"), PodState::Refused) };
        let admin = daemon(&[refused, pod("web", vec![connection(1)]), closed]);
        assert_eq!(
            pods(&list(admin, View::Table, None)).unwrap(),
            "NAMESPACE  NAME   STATE     CONNECT  CONNECTIONS  TUNNELS  REASON\n\
             demo       a      CLOSED    -        0            0        -\n\
             demo       web    enrolled  early    1            1        -\n\
             prod       agent  REFUSED   -        0            0        hostNetwork\n"
        );
        let wide = pods(&list(admin, View::Wide, Some("demo"))).unwrap();
        assert!(wide.contains("10.0.0.2,fd00::2") && wide.contains("/n/web") && !wide.contains("agent"), "{wide}");
        let json: Value = serde_json::from_str(&pods(&list(admin, View::Json, Some("demo"))).unwrap()).unwrap();
        assert_eq!((&json["schemaVersion"], &json["node"]), (&1.into(), &"node-a".into()));
        assert_eq!(json["pods"].as_array().unwrap().len(), 2);
        assert_eq!(pods(&list(admin, View::Table, Some("other"))).unwrap(), "no labelled pods on node node-a\n");
    }
}
