//! The API server of the cluster tests: each test has its own, a client outside can use it, and it is removed completely.

use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ztunnel_tests::cluster::{ApiServer, api, leftovers};
use ztunnel_tests::names::Prefix;
use ztunnel_tests::topology::{ONE_NODE, Topology};
use ztunnel_tests::wait;

const POD: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "demo"},
    "spec": {"nodeName": "node-1", "containers": [{"name": "web", "image": "none"}]}}"#;

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn a_pod_without_a_node_keeps_its_status_while_the_api_server_is_away() -> Result<()> {
    let mut api = ApiServer::start()?;
    api.namespace("demo")?;
    api.apply(POD)?;
    api.pod_status("demo", "web", r#"{"phase": "Running", "podIP": "10.244.1.5", "podIPs": [{"ip": "10.244.1.5"}]}"#)?;
    let address = ["get", "pod", "web", "-n", "demo", "-o", "jsonpath={.status.podIP} {.spec.serviceAccountName}"];
    ensure!(api.kubectl(address)? == "10.244.1.5 default");
    api.stop()?;
    ensure!(!api.try_kubectl(address)?.success, "kubectl succeeds without an API server");
    api.resume()?;
    ensure!(api.kubectl(address)? == "10.244.1.5 default");
    Ok(())
}

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn a_service_account_may_do_only_what_it_was_given() -> Result<()> {
    let api = ApiServer::start()?;
    api.namespace("demo")?;
    let token = api.service_account_token("demo", "default", "https://kubernetes.default.svc.cluster.local")?;
    let kubeconfig = api.kubeconfig_for("default", &token)?;
    let refused = api.try_kubectl_as(&kubeconfig, ["get", "pods", "-n", "demo"])?;
    ensure!(!refused.success && refused.stderr.contains("Forbidden"), "{refused:?}");
    api.kubectl(["create", "role", "pods", "-n", "demo", "--verb=get,list", "--resource=pods"])?;
    api.kubectl(["create", "rolebinding", "pods", "-n", "demo", "--role=pods", "--serviceaccount=demo:default"])?;
    // The API server's authorizer watches the objects, so the role binding takes effect a moment later.
    wait::until_true("the role binding is in force", wait::PATIENCE, || {
        Ok(api.try_kubectl_as(&kubeconfig, ["get", "pods", "-n", "demo"])?.success)
    })
}

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn a_node_of_the_topology_reaches_it() -> Result<()> {
    let api = ApiServer::start()?;
    let topology = Topology::new(ONE_NODE)?;
    let node = &topology.node("node-a")?.netns;
    let connect = || node.run(|| TcpStream::connect_timeout(&api::ADDRESS, Duration::from_secs(5)));
    ensure!(connect()?.is_err(), "a node reaches an API server to which it is not attached");
    let address = api.attach(node)?;
    let local = connect()?.context("the node does not reach the API server")?.local_addr()?;
    ensure!(local.ip() == address, "{local}");
    Ok(())
}

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn two_are_strangers_and_nothing_is_left_of_either() -> Result<()> {
    let (first, second) = (ApiServer::start()?, ApiServer::start()?);
    first.namespace("demo")?;
    ensure!(second.try_kubectl(["get", "namespace", "demo"])?.stderr.contains("NotFound"), "they share an etcd");
    let prefixes: Vec<Prefix> = [&first, &second].map(|api| api.prefix().clone()).to_vec();
    let names: Vec<String> = leftovers::found(&prefixes[0])?;
    ensure!(names.iter().filter(|name| name.starts_with("process")).count() == 2, "{names:?}");
    let panicked = std::panic::catch_unwind(move || {
        let _removed = second;
        panic!("on purpose");
    });
    ensure!(panicked.is_err());
    drop(first);
    for prefix in &prefixes {
        let left = leftovers::found(prefix)?;
        ensure!(left.is_empty(), "{left:?}");
    }
    Ok(())
}
