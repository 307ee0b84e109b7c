//! The kinds of workloads of Kubernetes in a namespace of the mesh, under STRICT: stable names, headless Services, node ports, the end of a pod,
//! evictions, sidecars and probes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ztunnel_tests::cluster::mesh::{Mesh, Pod};
use ztunnel_tests::cluster::{Cluster, images};
use ztunnel_tests::{settings, wait};

const NAMESPACE: &str = "work";
const IDENTITY: &str = "spiffe://cluster.local/ns/work/sa/default";
const NODES: [&str; 2] = ["node-1", "node-2"];

/// How long a pod that has to end still serves, in its preStop hook.
const LAST: u64 = 8;

const STRICT: &str = "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: strict, namespace: work}, \
                      spec: {mtls: {mode: STRICT}}}";

const WEB: &str = "mkdir /tmp/www; hostname >/tmp/www/index.html; exec httpd -f -p 8080 -h /tmp/www";

/// A pod that serves, on a node, with more fields of its container and of its specification.
fn serving(name: &str, node: &str, script: &str, container: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {NAMESPACE}, labels: {{app: {name}}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
{spec}
  containers:
  - name: main
    image: {image}
    imagePullPolicy: IfNotPresent
    command: [/bin/sh, -c, '{script}']
{container}
",
        image = images::BUSYBOX
    )
}

/// A StatefulSet of two pods with a headless Service.
fn stateful() -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: db, namespace: {NAMESPACE}}}
spec: {{clusterIP: None, selector: {{app: db}}, ports: [{{port: 8080}}]}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: db, namespace: {NAMESPACE}}}
spec:
  serviceName: db
  replicas: 2
  selector: {{matchLabels: {{app: db}}}}
  template:
    metadata: {{labels: {{app: db}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: {}
        imagePullPolicy: IfNotPresent
        command: [/bin/sh, -c, '{WEB}']
        readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}
",
        images::BUSYBOX
    )
}

/// A pod of the mesh that is ready.
fn ready(cluster: &Cluster, mesh: &Mesh<'_>, name: &str) -> Result<Pod> {
    let api = cluster.api();
    let waited =
        api.try_kubectl(["wait", "-n", NAMESPACE, "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"])?;
    if !waited.success {
        let described = api.try_kubectl(["describe", "pod", "-n", NAMESPACE, name])?.stdout;
        anyhow::bail!("{name} is not ready: {}\n{described}", waited.stderr);
    }
    let lines = "jsonpath={.status.podIP} {.spec.nodeName}";
    let text = api.kubectl(["get", "pod", "-n", NAMESPACE, name, "-o", lines])?;
    let (address, node) = text.split_once(' ').context("no address")?;
    let pod = Pod {
        namespace: NAMESPACE.to_owned(),
        name: name.to_owned(),
        address: address.to_owned(),
        node: node.to_owned(),
    };
    mesh.wait_for(&pod, "enrolled")?;
    Ok(pod)
}

/// The answer to a request is the name of the server, and the request was carried with both identities.
fn carried(cluster: &Cluster, mesh: &Mesh<'_>, client: &Pod, server: &Pod) -> Result<()> {
    let answer = cluster.fetch(client, &format!("http://{}:8080/", server.address))?;
    ensure!(answer.as_ref() == Ok(&server.name), "{answer:?} answers, not {server:?}");
    let line = mesh.logged(&client.node, &server.address, |line| line.get("dst.hbone_addr").is_some())?;
    let is_named = |end: &str| line.get(end).is_some_and(|identity| identity == IDENTITY);
    ensure!(is_named("src.identity") && is_named("dst.identity"), "{line}");
    Ok(())
}

/// Starts two nodes, the mesh, and a client in a namespace of the mesh whose policy is STRICT.
fn start(cluster: &Cluster) -> Result<(Mesh<'_>, Pod)> {
    let mesh = Mesh::install(cluster, &settings::daemon_image()?, &["controlPlane.replicas=1"])?;
    let api = cluster.api();
    api.apply(&format!(
        "{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}, labels: {{istio.io/dataplane-mode: ambient}}}}}}\n---\n{STRICT}"
    ))?;
    let client = serving("client", NODES[0], WEB, "", "");
    wait::until_true("the pod is accepted", wait::PATIENCE, || Ok(api.apply(&client).is_ok()))?;
    let client = ready(cluster, &mesh, "client")?;
    Ok((mesh, client))
}

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn stable_names_services_and_evictions() -> Result<()> {
    let cluster = Cluster::start(2)?;
    let (mesh, client) = start(&cluster)?;
    let api = cluster.api();

    // A StatefulSet: a pod comes back with its name and another address. All addresses of the headless Service are in the mesh.
    api.apply(&stateful())?;
    cluster.rolled_out(NAMESPACE, "statefulset/db")?;
    let first = ready(&cluster, &mesh, "db-0")?;
    carried(&cluster, &mesh, &client, &first)?;
    api.kubectl(["delete", "pod", "-n", NAMESPACE, "db-0"])?;
    wait::until_true("the pod has another address", wait::PATIENCE * 4, || {
        let pods = cluster.pods(NAMESPACE, "app=db")?;
        Ok(pods.iter().any(|pod| pod.name == "db-0" && !pod.address.is_empty() && pod.address != first.address))
    })?;
    cluster.rolled_out(NAMESPACE, "statefulset/db")?;
    let pods = [ready(&cluster, &mesh, "db-0")?, ready(&cluster, &mesh, "db-1")?];
    let slices = ["get", "endpointslices", "-n", NAMESPACE, "-l", "kubernetes.io/service-name=db"];
    wait::until_true("the headless Service has both addresses", wait::PATIENCE * 2, || {
        let addresses =
            api.kubectl(slices.into_iter().chain(["-o", "jsonpath={.items[*].endpoints[*].addresses[0]}"]))?;
        Ok(pods.iter().all(|pod| addresses.split(' ').any(|address| address == pod.address)))
    })?;
    for pod in &pods {
        carried(&cluster, &mesh, &client, pod)?;
    }

    // A Service without addresses of its own changes nothing for the others, and is no fault.
    api.apply(&format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: outside, namespace: {NAMESPACE}}}, spec: {{type: ExternalName, externalName: example.com}}}}"
    ))?;
    // The address of a Service, and a port of the nodes for it.
    api.apply(&images::web("web", NAMESPACE, 2))?;
    api.apply(&format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: web, namespace: {NAMESPACE}}}, \
         spec: {{type: NodePort, selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080, nodePort: 30080}}]}}}}"
    ))?;
    cluster.rolled_out(NAMESPACE, "deployment/web")?;
    let names: Vec<_> = cluster.pods(NAMESPACE, "app=web")?.into_iter().map(|pod| pod.name).collect();
    let address = api.kubectl(["get", "service", "-n", NAMESPACE, "web", "-o", "jsonpath={.spec.clusterIP}"])?;
    let page = |url: &str| cluster.fetch(&client, url);
    wait::until_true("the Service answers through the mesh", wait::PATIENCE * 2, || {
        Ok(page(&format!("http://{address}/"))?.is_ok_and(|name| names.contains(&name)))
    })?;
    // The nodes carry a connection to a port of theirs, in plaintext: STRICT refuses it, also that of a pod of the mesh.
    let node_port = format!("http://{}:30080/", ztunnel_tests::cluster::node::address(2));
    ensure!(page(&node_port)?.is_err(), "a connection to a node port got an answer in spite of STRICT");
    api.kubectl(["delete", "peerauthentication", "-n", NAMESPACE, "strict"])?;
    wait::until_true("the node port answers without STRICT", wait::PATIENCE * 2, || {
        Ok(page(&node_port)?.is_ok_and(|name| names.contains(&name)))
    })?;
    api.apply(STRICT)?;
    wait::until_true("STRICT is in force again", wait::PATIENCE, || Ok(page(&node_port)?.is_err()))?;

    // All pods of a node are evicted, but those of the DaemonSet. Those that replace them are in the mesh.
    let evicted = [
        "drain",
        NODES[1],
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--pod-selector=app in (db)",
        "--timeout=60s",
    ];
    api.kubectl(evicted)?;
    cluster.rolled_out(NAMESPACE, "statefulset/db")?;
    for name in ["db-0", "db-1"] {
        let pod = ready(&cluster, &mesh, name)?;
        ensure!(pod.node == NODES[0], "{pod:?} is on the node that was drained");
        carried(&cluster, &mesh, &client, &pod)?;
    }
    api.kubectl(["uncordon", NODES[1]])?;
    let problems = ztunnel_tests::admin::ConfigDump::fetch(&cluster.node(NODES[0])?.netns)?;
    ensure!(problems.problems().is_empty(), "{:?}", problems.problems());
    mesh.uninstall()
}

/// A pod with an init container, a native sidecar, and probes of all kinds.
fn with_sidecar(server: &str) -> String {
    let image = images::BUSYBOX;
    let spec = format!(
        "  initContainers:
  - name: early
    image: {image}
    imagePullPolicy: IfNotPresent
    command: [/bin/sh, -c, 'exec timeout 5 wget -q -O /dev/null http://{server}:8080/']
  - name: sidecar
    image: {image}
    imagePullPolicy: IfNotPresent
    restartPolicy: Always
    command: [/bin/sh, -c, 'mkdir /tmp/www; echo sidecar >/tmp/www/index.html; exec httpd -f -p 8081 -h /tmp/www']
    startupProbe: {{httpGet: {{path: /, port: 8081}}, periodSeconds: 1}}
    livenessProbe: {{httpGet: {{path: /, port: 8081}}, periodSeconds: 1, failureThreshold: 1}}
  - name: late
    image: {image}
    imagePullPolicy: IfNotPresent
    command: [/bin/sh, -c, 'timeout 5 wget -q -O /dev/null http://127.0.0.1:8081/ && exec timeout 5 wget -q -O /dev/null http://{server}:8080/']"
    );
    let probes = "    startupProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
    readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1, failureThreshold: 1}
    livenessProbe: {exec: {command: [/bin/sh, -c, 'wget -q -O /dev/null http://127.0.0.1:8080/']}, periodSeconds: 1, failureThreshold: 2}";
    serving("sidecar", NODES[1], WEB, probes, &spec)
}

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn sidecars_probes_and_the_end_of_a_pod() -> Result<()> {
    let cluster = Cluster::start(2)?;
    let (mesh, client) = start(&cluster)?;
    let api = cluster.api();

    // Init containers connect before and after the sidecar has started.
    api.apply(&with_sidecar(&client.address))?;
    let pod = ready(&cluster, &mesh, "sidecar")?;
    carried(&cluster, &mesh, &client, &pod)?;
    let codes = "jsonpath={.status.initContainerStatuses[?(@.name!=\"sidecar\")].state.terminated.exitCode}";
    let codes = api.kubectl(["get", "pod", "-n", NAMESPACE, "sidecar", "-o", codes])?;
    ensure!(codes == "0 0", "the init containers have ended with {codes}");
    let answer = cluster.fetch(&client, &format!("http://{}:8081/", pod.address))?;
    ensure!(answer.as_deref() == Ok("sidecar"), "{answer:?}");
    // A probe that fails once ends a container or the readiness.
    let begun = Instant::now();
    let state = "jsonpath={.status.containerStatuses[0].ready} {.status.containerStatuses[0].restartCount} {.status.initContainerStatuses[?(@.name==\"sidecar\")].restartCount}";
    while begun.elapsed() < Duration::from_secs(6) {
        let state = api.kubectl(["get", "pod", "-n", NAMESPACE, "sidecar", "-o", state])?;
        ensure!(state == "true 0 0", "a probe has failed: {state}");
    }

    // A pod that has to end serves in its hook: open connections and new ones.
    let counts = "nc -ll -p 9001 -e sh /tmp/count";
    let script = format!(
        "mkdir /tmp/www; hostname >/tmp/www/index.html; echo \"while :; do echo n; sleep 0.1; done\" >/tmp/count; \
         {counts} & exec httpd -f -p 8080 -h /tmp/www"
    );
    let hook = format!("    lifecycle: {{preStop: {{exec: {{command: [/bin/sleep, \"{LAST}\"]}}}}}}");
    let ends = serving("ends", NODES[1], &script, &hook, "")
        .replace("terminationGracePeriodSeconds: 1\n", &format!("terminationGracePeriodSeconds: {}\n", LAST + 5));
    api.apply(&ends)?;
    let ends = ready(&cluster, &mesh, "ends")?;
    let reader = serving("reader", NODES[0], &format!("nc {} 9001; echo over; exec sleep 3600", ends.address), "", "");
    api.apply(&reader)?;
    ready(&cluster, &mesh, "reader")?;
    let read = || -> Result<usize> {
        let log = api.kubectl(["logs", "-n", NAMESPACE, "reader"])?;
        Ok(if log.contains("over") { 0 } else { log.lines().count() })
    };
    wait::until_true("the connection is open", wait::PATIENCE, || Ok(read()? > 10))?;
    api.kubectl(["delete", "pod", "-n", NAMESPACE, "ends", "--wait=false"])?;
    let begun = Instant::now();
    let mut last = read()?;
    while begun.elapsed() < Duration::from_secs(LAST - 3) {
        let now = wait::until("the open connection goes on", Duration::from_secs(2), || {
            let now = read()?;
            Ok((now > last).then_some(now))
        })?;
        last = now;
        carried(&cluster, &mesh, &client, &ends).context("a new connection while the pod ends")?;
    }
    wait::until_true("the connection has ended with the pod", wait::PATIENCE * 2, || Ok(read()? == 0))?;
    mesh.wait_for(&ends, "absent")?;
    mesh.uninstall()
}
