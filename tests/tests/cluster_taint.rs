//! The startup taint: a way to have no pod of the mesh start on a node without a daemon, without the CNI plugin.

use std::fs;

use anyhow::{Context, Result, ensure};
use ztunnel_tests::cluster::mesh::Mesh;
use ztunnel_tests::cluster::{ApiServer, Cluster, chart, images};
use ztunnel_tests::{settings, wait};

const NODE: &str = "node-1";
const NAMESPACE: &str = "demo";
const KEY: &str = "ambient.mesh/not-ready";
const TAINTS: &str = "jsonpath={.spec.taints[*].key}";

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn a_node_takes_pods_when_its_daemon_is_ready() -> Result<()> {
    let cluster = Cluster::start(1)?;
    let api = cluster.api();
    api.kubectl(["taint", "node", NODE, &format!("{KEY}=:NoSchedule"), "theirs=:PreferNoSchedule"])?;
    api.apply(&format!(
        "{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}, labels: {{istio.io/dataplane-mode: ambient}}}}}}"
    ))?;
    api.apply(&images::web("web", NAMESPACE, 1))?;
    let phases = ["get", "pods", "-n", NAMESPACE, "-o", "jsonpath={.items[*].status.conditions[0].reason}"];
    wait::until_true("the pod cannot be placed", wait::PATIENCE * 2, || Ok(api.kubectl(phases)? == "Unschedulable"))?;

    let values = ["controlPlane.replicas=1", "cni.install=false", "startupTaint.remove=true"];
    let mesh = Mesh::install(&cluster, &settings::daemon_image()?, &values)?;
    cluster.rolled_out(NAMESPACE, "deployment/web")?;
    ensure!(api.kubectl(["get", "node", NODE, "-o", TAINTS])? == "theirs", "other taints are changed");
    let pods = cluster.pods(NAMESPACE, "app=web")?;
    mesh.wait_for(pods.first().context("no pod")?, "enrolled")?;
    // The daemon puts it back under no circumstances, and a new daemon takes it off again.
    api.kubectl(["taint", "node", NODE, &format!("{KEY}=:NoSchedule")])?;
    api.kubectl(["rollout", "restart", "-n", chart::NAMESPACE, "daemonset/ztunnel"])?;
    wait::until_true("the new daemon takes it off", wait::PATIENCE * 4, || {
        Ok(api.kubectl(["get", "node", NODE, "-o", TAINTS])? == "theirs")
    })?;
    mesh.uninstall()
}

/// The right to patch nodes is limited to the taint, and to the node of the daemon.
#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn a_daemon_may_take_off_this_taint_of_its_own_node_and_nothing_else() -> Result<()> {
    let api = ApiServer::start()?;
    api.namespace(chart::NAMESPACE)?;
    let rendered = api.folder().join("rendered.yaml");
    fs::write(&rendered, chart::rendered(api.programs(), &["--set", "startupTaint.remove=true"])?)?;
    api.kubectl(["apply", "-f", &rendered.display().to_string()])?;
    // The API server adds a taint of its own to a new node.
    let taints = format!(
        r#"{{"spec":{{"taints":[{{"key":"{KEY}","effect":"NoSchedule"}},{{"key":"other","effect":"NoSchedule"}}]}}}}"#
    );
    for node in ["node-1", "node-2"] {
        api.apply(&format!("{{apiVersion: v1, kind: Node, metadata: {{name: {node}, labels: {{zone: a}}}}}}"))?;
        api.kubectl(["patch", "node", node, "--type=merge", "-p", &taints])?;
    }
    api.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: zt, namespace: {}}}, spec: {{serviceAccountName: ztunnel, \
         nodeName: node-1, containers: [{{name: c, image: none}}]}}}}",
        chart::NAMESPACE
    ))?;
    let bound =
        ["create", "token", "ztunnel", "-n", chart::NAMESPACE, "--bound-object-kind=Pod", "--bound-object-name=zt"];
    let of_node = api.kubeconfig_for("of-node", &api.kubectl(bound)?)?;
    let of_none =
        api.kubeconfig_for("of-none", &api.kubectl(["create", "token", "ztunnel", "-n", chart::NAMESPACE])?)?;
    let off = r#"{"spec":{"taints":[{"key":"other","effect":"NoSchedule"}]}}"#;
    let patch = |kubeconfig: &std::path::Path, node: &str, patch: &str| -> Result<String> {
        let done = api.try_kubectl_as(kubeconfig, ["patch", "node", node, "--type=merge", "-p", patch])?;
        Ok(if done.success { String::new() } else { done.stderr })
    };
    // The policy takes a moment to be in force.
    wait::until_true("another node is refused", wait::PATIENCE * 2, || {
        Ok(patch(&of_node, "node-2", r#"{"metadata":{"annotations":{"a":"b"}}}"#)?.contains("its own node only"))
    })?;
    for (kubeconfig, node, change, refused) in [
        (&of_none, "node-1", off, "its own node only"),
        (&of_node, "node-2", off, "its own node only"),
        (&of_node, "node-1", r#"{"metadata":{"labels":{"zone":"b"}}}"#, "the startup taint only"),
        (&of_node, "node-1", r#"{"spec":{"unschedulable":true}}"#, "the startup taint only"),
        (&of_node, "node-1", r#"{"spec":{"taints":[]}}"#, "the startup taint only"),
        (&of_node, "node-1", r#"{"spec":{"taints":[{"key":"mine","effect":"NoExecute"}]}}"#, "the startup taint only"),
    ] {
        let said = patch(kubeconfig, node, change)?;
        ensure!(said.contains(refused), "{node} {change}: {said:?}");
    }
    let said = patch(&of_node, "node-1", off)?;
    ensure!(said.is_empty(), "{said}");
    ensure!(api.kubectl(["get", "node", "node-1", "-o", TAINTS])? == "other");
    Ok(())
}
