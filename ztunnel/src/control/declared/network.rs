//! NetworkPolicies.

use std::sync::Arc;

use serde_json::Value;

use super::fields::{labels, list, text, texts};
use crate::analyze::declared::{Expression, LabelSelector, NetworkPolicy, Peer, PortRange, TrafficRule};
use crate::model::origin::Origin;
use crate::model::workload::NamespacedName;

pub(super) fn policy(name: NamespacedName, value: &Value, origin: &Origin) -> NetworkPolicy {
    let spec = value.get("spec").unwrap_or(&Value::Null);
    let types = texts(spec.get("policyTypes"));
    let has = |wanted: &str| types.iter().any(|given| **given == *wanted);
    // Without `policyTypes` a policy is for incoming connections. It is for outgoing ones too if it has the field
    // `egress`.
    let is_ingress = types.is_empty() || has("Ingress");
    let is_egress = if types.is_empty() { spec.get("egress").is_some() } else { has("Egress") };
    let rules = |key: &str, peers: &str| list(spec.get(key)).iter().map(|entry| rule(entry, peers)).collect();
    NetworkPolicy {
        name,
        origin: origin.clone(),
        pods: selector(spec.get("podSelector")),
        ingress: is_ingress.then(|| rules("ingress", "from")),
        egress: is_egress.then(|| rules("egress", "to")),
    }
}

fn rule(entry: &Value, peers: &str) -> TrafficRule {
    let written = entry.get(peers);
    let ports = list(entry.get("ports"));
    let tcp = ports.iter().filter(|port| text(port, "/protocol").is_none_or(|protocol| protocol == "TCP"));
    TrafficRule {
        ports: (!ports.is_empty()).then(|| tcp.filter_map(range).collect()),
        peers: list(written).iter().map(peer).collect(),
        text: written.cloned().unwrap_or_default(),
    }
}

fn range(port: &Value) -> Option<PortRange> {
    let number = |key: &str| port.get(key).and_then(Value::as_u64).and_then(|number| u16::try_from(number).ok());
    match (number("port"), text(port, "/port")) {
        (Some(first), _) => Some(PortRange::Numbers(first, number("endPort").unwrap_or(first))),
        (None, Some(name)) => match name.parse() {
            Ok(number) => Some(PortRange::Numbers(number, number)),
            Err(_) => Some(PortRange::Named(name.into())),
        },
        (None, None) if port.get("port").is_none() => Some(PortRange::Numbers(1, u16::MAX)),
        (None, None) => None,
    }
}

fn peer(written: &Value) -> Peer {
    if written.get("ipBlock").is_some() {
        return Peer::Block;
    }
    Peer::Pods {
        namespaces: written.get("namespaceSelector").map(|of| selector(Some(of))),
        pods: selector(written.get("podSelector")),
    }
}

fn selector(value: Option<&Value>) -> LabelSelector {
    let value = value.unwrap_or(&Value::Null);
    let expression = |entry: &Value| {
        Some(Expression {
            key: Arc::from(text(entry, "/key")?),
            operator: Arc::from(text(entry, "/operator")?),
            values: texts(entry.get("values")),
        })
    };
    LabelSelector {
        labels: labels(value.get("matchLabels")),
        expressions: list(value.get("matchExpressions")).iter().filter_map(expression).collect(),
    }
}
