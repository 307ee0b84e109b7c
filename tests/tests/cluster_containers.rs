//! A cluster with nodes: pods run and reach each other across nodes, and nothing is left at the end.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use ztunnel_tests::cluster::{Cluster, images, leftovers};
use ztunnel_tests::wait;

const NAMESPACE: &str = "demo";

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn pods_on_two_nodes_reach_each_other_and_nothing_is_left() -> Result<()> {
    let cluster = Cluster::start(2)?;
    let prefix = cluster.api().prefix().clone();
    cluster.api().apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}}}}}"))?;
    cluster.api().apply(&images::web("web", NAMESPACE, 2))?;
    cluster.rolled_out(NAMESPACE, "deployment/web")?;
    let lines = "jsonpath={range .items[*]}{.metadata.name} {.status.podIP} {.spec.nodeName}\n{end}";
    let pods = cluster.api().kubectl(["get", "pods", "-n", NAMESPACE, "-o", lines])?;
    let pods: Vec<Vec<&str>> = pods.lines().map(|line| line.split(' ').collect()).collect();
    let [client, server] = pods.as_slice() else { anyhow::bail!("two pods, not {pods:?}") };
    ensure!(client[2] != server[2], "both pods are on {}", client[2]);
    let answer = cluster.exec(NAMESPACE, client[0], &["wget", "-qO-", &format!("http://{}:8080/", server[1])])?;
    ensure!(answer == server[0], "{} answers, not {}", answer, server[0]);
    ensure!(leftovers::found(&prefix)?.iter().any(|thing| thing.starts_with("cgroup")), "the nodes have no cgroups");
    drop(cluster);
    let left = leftovers::found(&prefix)?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn a_service_account_reaches_the_api_server_from_a_pod() -> Result<()> {
    let cluster = Cluster::start(1)?;
    let api = cluster.api();
    api.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}}}}}"))?;
    let pod = format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: client, namespace: {NAMESPACE}}}, spec: {{containers: [{{name: client, \
         image: \"{}\", imagePullPolicy: IfNotPresent, command: [/bin/sleep, \"3600\"]}}]}}}}",
        images::BUSYBOX
    );
    // The controller creates the service account `default` of a new namespace a moment later.
    wait::until_true("the pod is accepted", wait::PATIENCE, || Ok(api.apply(&pod).is_ok()))?;
    api.kubectl(["wait", "pod/client", "-n", NAMESPACE, "--for=condition=Ready", "--timeout=50s"])?;
    let command = "test -s /var/run/secrets/kubernetes.io/serviceaccount/token && \
                   nc -w 5 $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT </dev/null && echo reached";
    ensure!(cluster.exec(NAMESPACE, "client", &["sh", "-c", command])? == "reached");
    Ok(())
}

/// If a process that started a cluster is killed, the next process removes the remains.
#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn what_a_killed_run_leaves_is_removed() -> Result<()> {
    let mut run = Command::new(std::env::current_exe()?);
    run.args(["--exact", "pods_on_two_nodes_reach_each_other_and_nothing_is_left", "--ignored"]);
    let mut run = run.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn()?;
    let begin = format!("zt-{}x", run.id());
    let groups = || ztunnel_tests::cgroups::named(&begin);
    let started = wait::until_true("the second node is there", leftovers::PATIENCE * 3, || {
        Ok(groups().iter().any(|path| path.ends_with(format!("{begin}1-node-2"))))
    });
    run.kill()?;
    run.wait()?;
    started.context("the run that is to be killed does not start")?;
    wait::until_true("what the killed run has left is gone", leftovers::PATIENCE, || {
        ztunnel_tests::names::sweep();
        let namespaces = std::fs::read_dir(ztunnel_tests::netns::FOLDER)?.flatten();
        let is_ours = |name: std::ffi::OsString| name.to_string_lossy().starts_with(&begin);
        let folder = std::path::Path::new(ztunnel_tests::names::FOLDER_ROOT).join(format!("{begin}1"));
        Ok(groups().is_empty() && !namespaces.map(|entry| entry.file_name()).any(is_ours) && !folder.exists())
    })
}
