//! Further objects in the mesh or on the nodes, to see whether a cost grows with their number.

use serde_json::{Value, json};

use super::stage;
use crate::mesh::{MODE_LABEL, NAMESPACE, NETNS_ANNOTATION};

/// A kind of further objects, and their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Crowd {
    /// Workloads on other nodes.
    Workloads(usize),
    /// Services; the clients connect through one of them.
    Services(usize),
    /// Enrolled pods on each node, including those that are measured.
    Pods(usize),
    /// Live connections in addition to those that are measured, from the same pod to the same node.
    Connections(usize),
}

/// The namespace of further pods. It is in the mesh in every mode.
pub(super) const PLACE: &str = "crowd";

/// The number of manifests in one file: many files are slow to list, and a large file is slow to read for a small
/// change.
const TOGETHER: usize = 1_000;

/// The service that clients connect to, one of [`Crowd::Services`].
pub(super) const SERVICE: &str = "10.96.0.1";

impl Crowd {
    /// Its name in tables and files.
    #[must_use]
    pub(super) fn name(self) -> String {
        let (count, what) = match self {
            Self::Workloads(count) => (count, "workload"),
            Self::Services(count) => (count, "service"),
            Self::Pods(count) => (count, "pod"),
            Self::Connections(count) => (count, "live connection"),
        };
        format!("{} {what}{}", thousands(count), if count == 1 { "" } else { "s" })
    }

    /// The files of the crowd, and their text.
    pub(super) fn files(self) -> Box<dyn Iterator<Item = (String, String)>> {
        match self {
            Self::Workloads(count) => Box::new(files("workloads", count, workload)),
            Self::Services(count) => Box::new(files("services", count, service)),
            Self::Pods(_) | Self::Connections(_) => Box::new(std::iter::empty()),
        }
    }

    /// The number of workloads and services in its files.
    #[must_use]
    pub(super) const fn counts(self) -> (usize, usize) {
        match self {
            Self::Workloads(count) => (count, 0),
            Self::Services(count) => (0, count),
            Self::Pods(_) | Self::Connections(_) => (0, 0),
        }
    }

    /// How many enrolled pods there are on each node.
    #[must_use]
    pub(super) const fn pods(self) -> Option<usize> {
        match self {
            Self::Pods(count) => Some(count),
            Self::Workloads(_) | Self::Services(_) | Self::Connections(_) => None,
        }
    }
}

fn files(kind: &'static str, count: usize, object: fn(usize) -> Value) -> impl Iterator<Item = (String, String)> {
    (0..count.div_ceil(TOGETHER)).map(move |file| {
        let numbers = file * TOGETHER..count.min((file + 1) * TOGETHER);
        let text: String = numbers.map(|number| format!("---\n{}\n", object(number))).collect();
        (format!("{kind}-{file}.yaml"), text)
    })
}

/// A labelled pod on another node; ten pods share a service account.
fn workload(number: usize) -> Value {
    let address = format!("10.{}.{}.{}", 100 + (number >> 16), number >> 8 & 255, number & 255);
    one_workload(&format!("far-{number}"), &address, &format!("account-{}", number / 10), "1")
}

/// The workload that changes; `version` is the part that changes.
pub(super) fn changing(version: usize) -> String {
    format!("{}\n", one_workload("changing", "10.99.0.1", "changing", &version.to_string()))
}

fn one_workload(name: &str, address: &str, account: &str, version: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": PLACE,
            "uid": format!("uid-{name}"),
            "labels": { MODE_LABEL: "ambient", "app": account, "version": version },
            "annotations": { NETNS_ANNOTATION: format!("/run/netns/{name}") },
        },
        "spec": {
            "nodeName": "node-far",
            "serviceAccountName": account,
            "containers": [{ "name": "app", "image": "app" }],
        },
        "status": { "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }] },
    })
}

/// A service. The first leads to the server that is measured, the others have no endpoints.
fn service(number: usize) -> Value {
    // The first service has the address 10.96.0.1, [`SERVICE`].
    let place = number + 1;
    let address = format!("10.{}.{}.{}", 96 + (place >> 16), place >> 8 & 255, place & 255);
    let (app, ports) = match number {
        0 => ("web-b".to_owned(), vec![stage::EXCHANGE, stage::IPERF]),
        _ => (format!("nobody-{number}"), vec![stage::EXCHANGE]),
    };
    let port = |port| json!({ "name": format!("tcp-{port}"), "port": port, "targetPort": port });
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": format!("service-{number}"), "namespace": NAMESPACE },
        "spec": {
            "selector": { "app": app },
            "clusterIP": address,
            "clusterIPs": [address],
            "ports": ports.into_iter().map(port).collect::<Vec<_>>(),
        },
    })
}

/// A number with separators of thousands.
#[must_use]
pub(super) fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let comma = |(place, digit): (usize, char)| {
        let left = digits.len() - place;
        let comma = (place > 0 && left.is_multiple_of(3)).then_some(',');
        comma.into_iter().chain([digit])
    };
    digits.chars().enumerate().flat_map(comma).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn numbers_are_readable() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (10_000, "10,000"), (1_234_567, "1,234,567")] {
            assert_eq!(thousands(number), text);
        }
        assert_eq!(Crowd::Pods(1).name(), "1 pod");
        assert_eq!(Crowd::Services(10_000).name(), "10,000 services");
    }

    #[test]
    fn there_are_as_many_as_it_says_and_none_twice() {
        for crowd in [Crowd::Workloads(70_000), Crowd::Services(2_500)] {
            let text: String = crowd.files().map(|(_, text)| text).collect();
            let (workloads, services) = crowd.counts();
            assert_eq!(text.matches("---\n").count(), workloads + services);
            let documents = text.lines().filter(|line| *line != "---");
            let parsed: Vec<Value> =
                documents.map(|line| serde_json::from_str(line).expect("every document is JSON")).collect();
            let all = |pointer: &str| parsed.iter().filter_map(|v| v.pointer(pointer)).map(Value::to_string).collect();
            let names: BTreeSet<String> = all("/metadata/name");
            let addresses: BTreeSet<String> = all(if services > 0 { "/spec/clusterIP" } else { "/status/podIP" });
            assert_eq!((names.len(), addresses.len()), (workloads + services, workloads + services));
        }
    }
}
