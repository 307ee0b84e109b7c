//! Events on pods that a node refuses, on a real API server.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use ztunnel_tests::cluster::ApiServer;
use ztunnel_tests::cluster::calls::{Connection, Ended, REPORT_PODS, pod_report};
use ztunnel_tests::cluster::plane::{self, NAMESPACE, Plane};
use ztunnel_tests::wait;

const RESOURCE_EXHAUSTED: u32 = 8;

/// The daemons of two nodes, and a pod on each node.
const WORLD: &str = "
{apiVersion: v1, kind: ServiceAccount, metadata: {name: ztunnel, namespace: istio-system}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: demo, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: default, namespace: demo}}
---
{apiVersion: v1, kind: Pod, metadata: {name: zt-1, namespace: istio-system}, spec: {serviceAccountName: ztunnel, nodeName: node-1, containers: [{name: c, image: none}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: zt-2, namespace: istio-system}, spec: {serviceAccountName: ztunnel, nodeName: node-2, containers: [{name: c, image: none}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: demo}, spec: {nodeName: node-1, containers: [{name: c, image: none}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: far, namespace: demo}, spec: {nodeName: node-2, containers: [{name: c, image: none}]}}
";

/// The Events on pods of the namespace `demo`.
fn events(api: &ApiServer) -> Result<Vec<Value>> {
    let text = api.kubectl(["get", "events.events.k8s.io", "-n", "demo", "-o", "json"])?;
    let mut list: Value = serde_json::from_str(&text)?;
    let events = list.get_mut("items").and_then(Value::as_array_mut).map(std::mem::take).unwrap_or_default();
    Ok(events.into_iter().filter(|event| event["reportingController"] == "ambient.mesh/ztunnel").collect())
}

/// Waits until the Events are as wanted.
fn until(api: &ApiServer, plane: &Plane, what: &str, is_so: impl Fn(&[Value]) -> bool) -> Result<Vec<Value>> {
    let mut last = Vec::new();
    let met = wait::until_true(what, wait::PATIENCE, || {
        last = events(api)?;
        Ok(is_so(&last))
    });
    met.with_context(|| format!("{:#}\n{}", Value::from(last.clone()), plane.log()))?;
    Ok(last)
}

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn a_refused_pod_has_one_event_that_counts_and_its_node_alone_says_so() -> Result<()> {
    let api = ApiServer::start()?;
    plane::prepare(&api, true)?;
    api.apply(WORLD)?;
    for (pod, address) in [("web", "10.244.1.5"), ("far", "10.244.2.5")] {
        let status = json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]});
        api.pod_status("demo", pod, &status.to_string())?;
    }
    let planes = [Plane::start(&api, 0, &[])?, Plane::start(&api, 1, &[])?];
    let of_pod = |pod: &str| {
        let bound = ["--bound-object-kind", "Pod", "--bound-object-name", pod];
        let args = ["create", "token", "ztunnel", "-n", NAMESPACE, "--audience", "istio-ca"];
        api.kubectl(args.iter().chain(&bound))
    };
    let tokens = [of_pod("zt-1")?, of_pod("zt-2")?];
    let roots = api.kubectl([
        "get",
        "configmap",
        "istio-ca-root-cert",
        "-n",
        NAMESPACE,
        "-o",
        "jsonpath={.data.root-cert\\.pem}",
    ])?;
    let connections = [Connection::open(&api, &planes[0], &roots)?, Connection::open(&api, &planes[1], &roots)?];
    let report = |plane: usize, node: usize, pod: &str, state: u8, reason: &str| -> Result<Ended> {
        connections[plane].call(REPORT_PODS, &tokens[node], &pod_report("demo", pod, state, reason))
    };

    // Each node for its own pod; what node-2 says of the pod of node-1 is not written.
    for (node, pod) in [(0, "web"), (1, "far"), (1, "web")] {
        let ended = report(0, node, pod, 1, "no network namespace was found")?;
        ensure!(ended.code == 0, "{ended:?}\n{}", planes[0].log());
    }
    let written = until(&api, &planes[0], "an Event of each pod", |events| events.len() == 2)?;
    for (pod, node) in [("web", "node-1"), ("far", "node-2")] {
        let event = written.iter().find(|event| event["regarding"]["name"] == pod).context("no Event")?;
        ensure!(event["reportingInstance"] == node && event["type"] == "Warning", "{event:#}");
        ensure!(event["note"] == "The pod is not enrolled in the mesh: no network namespace was found", "{event:#}");
    }
    let described = api.kubectl(["describe", "pod", "web", "-n", "demo"])?;
    ensure!(
        described.lines().any(|line| line.contains("MeshRefused") && line.contains("no network namespace was found")),
        "{described}"
    );

    // The other replica hears the same some time later: the Event counts on. The time is set back; the API server gives none.
    let web = |events: &[Value]| events.iter().find(|event| event["regarding"]["name"] == "web").cloned();
    let name = web(&written).and_then(|event| event["metadata"]["name"].as_str().map(str::to_owned)).context("name")?;
    let set_back = |count: u64| {
        let series = json!({"series": {"count": count, "lastObservedTime": "2026-01-01T00:00:00.000000Z"}}).to_string();
        api.kubectl(["patch", "events.events.k8s.io", &name, "-n", "demo", "--type=merge", "-p", &series])
    };
    for (replica, count) in [(1, 5), (0, 7)] {
        set_back(count)?;
        let ended = report(replica, 0, "web", 1, "no network namespace was found")?;
        ensure!(ended.code == 0, "{ended:?}");
        let counted = until(&api, &planes[replica], "the Event counts on", |events| {
            web(events).is_some_and(|event| event["series"]["count"] == count + 1)
        })?;
        ensure!(counted.len() == 2, "{counted:#?}");
    }

    // It heals.
    ensure!(report(1, 0, "web", 2, "")?.code == 0);
    let healed = until(&api, &planes[1], "an Event says so", |events| events.len() == 3)?;
    ensure!(
        healed.iter().any(|event| event["reason"] == "MeshEnrolled" && event["type"] == "Normal"),
        "{:#}",
        Value::from(healed)
    );

    // A node that reports without end is refused, and the other one is not.
    let refused =
        (0..20).map(|round| report(0, 0, "web", 1, &format!("round {round}"))).find_map(|ended| match ended {
            Ok(ended) if ended.code == 0 => None,
            other => Some(other),
        });
    let refused = refused.context("20 reports at once are taken")??;
    ensure!(refused.code == RESOURCE_EXHAUSTED, "{refused:?}");
    ensure!(report(0, 1, "far", 2, "")?.code == 0);
    until(&api, &planes[0], "an Event of the other node", |events| {
        events.iter().any(|event| event["reason"] == "MeshEnrolled" && event["regarding"]["name"] == "far")
    })?;

    // Without the right it says what is missing, and goes on when it is there again.
    let metrics = planes[0].metrics(&api)?;
    ensure!(metrics.contains("ztunnel_pod_events_total{result=\"created\"}"), "{metrics}");
    Ok(())
}
