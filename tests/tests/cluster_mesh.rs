//! A control plane that reads its mesh from a real API server.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use ztunnel_tests::cluster::ApiServer;
use ztunnel_tests::cluster::plane::{self, Plane};
use ztunnel_tests::wait;

/// A cluster with a workload, a service and policies.
const WORLD: &str = r#"
{apiVersion: v1, kind: Node, metadata: {name: node-1, labels: {topology.kubernetes.io/zone: z1, topology.kubernetes.io/region: r1}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: demo, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: default, namespace: demo}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: demo, labels: {app: web}, annotations: {ambient.mesh/netns: not-absolute}},
 spec: {nodeName: node-1, containers: [{name: c, image: none, ports: [{name: http, containerPort: 8080}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: client, namespace: demo}, spec: {nodeName: node-1, containers: [{name: c, image: none}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: demo},
 spec: {clusterIP: 10.96.7.7, selector: {app: web}, ports: [{port: 80, targetPort: http}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, ports: [{name: "", port: 8080, protocol: TCP}],
 metadata: {name: web-1, namespace: demo, labels: {kubernetes.io/service-name: web}},
 endpoints: [{addresses: [10.244.1.5], conditions: {ready: true}, targetRef: {kind: Pod, name: web, namespace: demo}}]}
"#;

const ISTIO: &str = r#"
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: out, namespace: demo},
 spec: {hosts: [out.example.com], addresses: [192.0.2.1], resolution: STATIC, exportTo: ['.'],
        ports: [{number: 443, name: tls, protocol: TLS}], endpoints: [{address: 192.0.2.9}]}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: let-in, namespace: demo},
 spec: {rules: [{from: [{source: {ipBlocks: [10.0.0.0/8]}}]}]}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: strict, namespace: demo}, spec: {mtls: {mode: STRICT}}}
"#;

fn status(address: &str) -> String {
    let ready = json!([{"type": "Ready", "status": "True"}]);
    json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": ready}).to_string()
}

fn world(api: &ApiServer) -> Result<()> {
    api.apply(WORLD)?;
    api.pod_status("demo", "web", &status("10.244.1.5"))?;
    api.pod_status("demo", "client", &status("10.244.1.6"))
}

/// Flags for a control plane that reads tokens from a file instead of the API, and its authority from a folder.
struct Own {
    tokens: String,
    ca: String,
}

impl Own {
    fn of(api: &ApiServer) -> Result<Self> {
        let tokens = plane::tokens(api.folder())?.display().to_string();
        Ok(Self { tokens, ca: api.folder().join("ca").display().to_string() })
    }

    fn flags(&self) -> [&str; 4] {
        ["--node-tokens", &self.tokens, "--ca-dir", &self.ca]
    }
}

fn resources(shown: &Value, of: &str) -> u64 {
    shown.pointer(&format!("/resources/{of}")).and_then(Value::as_u64).unwrap_or_default()
}

fn problems(shown: &Value) -> Vec<String> {
    let problems = shown["problems"].as_array().cloned().unwrap_or_default();
    problems.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn standing<'a>(shown: &'a Value, resource: &str) -> Option<&'a Value> {
    shown["kubernetes"].as_array()?.iter().find(|known| known["resource"] == resource)
}

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn the_mesh_of_objects_is_that_of_the_same_objects_in_a_folder() -> Result<()> {
    let api = ApiServer::start()?;
    plane::prepare(&api, true)?;
    world(&api)?;
    api.apply(ISTIO)?;
    let own = Own::of(&api)?;
    let plane = Plane::start(&api, 0, &own.flags())?;
    let shown = plane.until(&api, "all objects", |shown| resources(shown, "Address") >= 4)?;
    // The same objects, as kubectl prints them.
    let folder = api.folder().join("mesh");
    fs::create_dir_all(&folder)?;
    for kind in [
        "nodes",
        "namespaces",
        "pods",
        "services",
        "endpointslices",
        "serviceentries",
        "authorizationpolicies",
        "peerauthentications",
    ] {
        fs::write(folder.join(format!("{kind}.json")), api.kubectl(["get", kind, "-A", "-o", "json"])?)?;
    }
    let second = Plane::on_folder(&api, 1, &folder, &own.flags())?;
    let expected = second.until(&api, "the folder's objects", |shown| resources(shown, "Address") >= 4)?;
    ensure!(shown["resources"] == expected["resources"], "{shown:#}\n{expected:#}");
    let [of_api, of_folder] = [&shown, &expected].map(problems);
    // Objects in a folder may name network namespaces. For objects of an API the annotation is not read.
    ensure!(of_api.is_empty(), "{of_api:?}");
    ensure!(of_folder.len() == 1 && of_folder.concat().contains("the path is not absolute"), "{of_folder:?}");
    let bytes = |plane: &Plane| -> Result<BTreeSet<String>> {
        let text = plane.metrics(&api)?;
        // The size of `Object` includes the origin of the object, which differs between folder and API.
        let same = |line: &&str| line.starts_with("ztunnel_xds_resource_bytes{") && !line.contains("\"Object\"");
        Ok(text.lines().filter(same).map(str::to_owned).collect())
    };
    let [of_api, of_folder] = [bytes(&plane)?, bytes(&second)?];
    ensure!(of_api == of_folder && of_api.len() >= 2, "{of_api:?} {of_folder:?}");
    Ok(())
}

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn an_api_server_that_goes_and_comes_back_costs_a_new_list_and_no_object() -> Result<()> {
    let mut api = ApiServer::start()?;
    plane::prepare(&api, true)?;
    world(&api)?;
    api.apply(ISTIO)?;
    let own = Own::of(&api)?;
    let plane = Plane::start(&api, 0, &own.flags())?;
    let before = plane.until(&api, "all objects", |shown| resources(shown, "Address") >= 4)?;
    api.stop()?;
    plane.until(&api, "the failure to be told", |shown| {
        standing(shown, "pods").is_some_and(|pods| pods["state"] == "failing") && !problems(shown).is_empty()
    })?;
    let readiness = plane.readiness(&api)?;
    ensure!(readiness.is_ready && readiness.text.contains("pods not up to date since 20"), "{readiness:?}");
    let away = plane.nodes(&api)?;
    ensure!(away["resources"] == before["resources"] && away["version"] == before["version"], "{away:#}");
    ensure!(plane.metrics(&api)?.contains("ztunnel_kubernetes_synced{resource=\"pods\"} 0"));
    api.resume()?;
    let back = plane.until(&api, "everything up to date", |shown| {
        problems(shown).is_empty() && standing(shown, "pods").is_some_and(|pods| pods["state"] == "synced")
    })?;
    ensure!(back["resources"] == before["resources"] && back["version"] == before["version"], "{back:#}");
    api.apply("{apiVersion: v1, kind: Pod, metadata: {name: new, namespace: demo}, spec: {nodeName: node-1, containers: [{name: c, image: none}]}}")?;
    api.pod_status("demo", "new", &status("10.244.1.7"))?;
    plane.until(&api, "the new pod", |shown| resources(shown, "Address") == resources(&before, "Address") + 1)?;
    // The resource versions that the control plane knew are too old for an API server that has just started.
    ensure!(plane.log().contains("Expired"), "{}", plane.log());
    Ok(())
}

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn a_missing_right_is_named_and_nothing_is_served_without_it() -> Result<()> {
    let api = ApiServer::start()?;
    plane::prepare(&api, true)?;
    world(&api)?;
    let role = plane::RBAC.replace("[authorizationpolicies, peerauthentications]", "[peerauthentications]");
    ensure!(role != plane::RBAC, "the rule has another text");
    api.apply(&role)?;
    let own = Own::of(&api)?;
    let mut plane = Plane::launch(&api, 0, &own.flags())?;
    let told = wait::until_true("the missing right to be told", wait::PATIENCE, || {
        let Ok(readiness) = plane.readiness(&api) else { return Ok(false) };
        ensure!(!readiness.is_ready, "{readiness:?}");
        Ok(readiness.text.contains(
            "apiGroups: [\"security.istio.io\"], resources: [\"authorizationpolicies\"], verbs: [\"list\", \"watch\"]",
        ))
    });
    told.with_context(|| plane.log())?;
    let shown = plane.nodes(&api)?;
    ensure!(shown["served"] == false && resources(&shown, "Address") == 0, "{shown:#}");
    api.apply(plane::RBAC)?;
    plane.until_ready(&api)
}

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn istios_types_may_come_later_and_an_unreadable_policy_keeps_its_last_version() -> Result<()> {
    let api = ApiServer::start()?;
    plane::prepare(&api, false)?;
    world(&api)?;
    let own = Own::of(&api)?;
    let plane = Plane::start(&api, 0, &own.flags())?;
    let shown = plane.nodes(&api)?;
    ensure!(
        standing(&shown, "authorizationpolicies.security.istio.io").is_some_and(|known| known["state"] == "absent"),
        "{shown:#}"
    );
    plane::crds(&api)?;
    api.apply(ISTIO)?;
    // The control plane looks for the definitions every half a minute.
    let shown = plane.until(&api, "the policies", |shown| resources(shown, "Authorization") >= 2)?;
    let before = (resources(&shown, "Authorization"), shown["version"].clone());
    api.apply(&ISTIO.replace("10.0.0.0/8", "10.0.0.0/99"))?;
    let shown = plane.until(&api, "the problem", |shown| !problems(shown).is_empty())?;
    let told = problems(&shown).concat();
    ensure!(told.contains("AuthorizationPolicy demo/let-in: spec.rules[0].from[0].source.ipBlocks[0]"), "{told}");
    ensure!(told.ends_with("the last valid version of the object stays in force"), "{told}");
    ensure!((resources(&shown, "Authorization"), shown["version"].clone()) == before, "{shown:#}");
    api.apply(ISTIO)?;
    plane.until(&api, "no problem", |shown| problems(shown).is_empty())?;
    Ok(())
}

/// The conditions in the status of a policy.
fn conditions(api: &ApiServer, kind: &str, name: &str) -> Result<Value> {
    let policy: Value = serde_json::from_str(&api.kubectl(["get", kind, name, "-n", "demo", "-o", "json"])?)?;
    Ok(policy.pointer("/status/conditions").cloned().unwrap_or_default())
}

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn the_status_of_a_policy_says_whether_it_is_enforced_as_it_is_written() -> Result<()> {
    let api = ApiServer::start()?;
    plane::prepare(&api, true)?;
    world(&api)?;
    api.apply(ISTIO)?;
    let http = |method: &str| {
        format!(
            "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: http, namespace: demo}}, \
             spec: {{rules: [{{to: [{{operation: {{{method}}}}}]}}]}}}}"
        )
    };
    api.apply(&http("methods: [GET]"))?;
    // A condition of another controller.
    let theirs = r#"{"status": {"conditions": [{"type": "Theirs", "status": "True"}]}}"#;
    api.kubectl([
        "patch",
        "authorizationpolicy",
        "let-in",
        "-n",
        "demo",
        "--subresource=status",
        "--type=merge",
        "-p",
        theirs,
    ])?;
    let own = Own::of(&api)?;
    let _replicas = [Plane::start(&api, 0, &own.flags())?, Plane::start(&api, 1, &own.flags())?];
    let until = |kind: &str, name: &str, status: &str, reason: &str, generation: u64| {
        wait::until_true(&format!("the status of {name} to be {status}"), wait::PATIENCE, || {
            let all = conditions(&api, kind, name)?;
            let own = all.as_array().and_then(|all| all.iter().find(|it| it["type"] == "ZtunnelAccepted")).cloned();
            let own = own.unwrap_or_default();
            Ok(own["status"] == status && own["reason"] == reason && own["observedGeneration"] == generation)
        })
    };
    until("authorizationpolicy", "let-in", "True", "Accepted", 1)?;
    until("peerauthentication", "strict", "True", "Accepted", 1)?;
    until("authorizationpolicy", "http", "False", "UnsupportedValue", 1)?;
    let all = conditions(&api, "authorizationpolicy", "let-in")?;
    ensure!(all.as_array().is_some_and(|all| all.len() == 2 && all[0]["type"] == "Theirs"), "{all:#}");
    api.apply(&http("ports: ['80']"))?;
    until("authorizationpolicy", "http", "True", "Accepted", 2)?;
    api.kubectl([
        "wait",
        "--for=condition=ZtunnelAccepted",
        "authorizationpolicy/http",
        "-n",
        "demo",
        "--timeout=10s",
    ])?;
    Ok(())
}

#[test]
#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]
fn ten_thousand_pods_are_listed_in_pages() -> Result<()> {
    const PODS: usize = 10_000;
    let api = ApiServer::start()?;
    plane::prepare(&api, true)?;
    api.apply(WORLD)?;
    let started = Instant::now();
    many_pods(&api, PODS)?;
    let written = started.elapsed();
    let own = Own::of(&api)?;
    let started = Instant::now();
    let plane = Plane::start(&api, 0, &own.flags())?;
    let shown = plane.until(&api, "all pods", |shown| resources(shown, "Address") as usize >= PODS)?;
    let listed = started.elapsed();
    let status = fs::read_to_string(format!("/proc/{}/status", plane.id()))?;
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
    println!(
        "{PODS} pods: written in {written:.1?}, served {listed:.1?} after the start; resident {}, at most {}",
        field("VmRSS:"),
        field("VmHWM:")
    );
    ensure!(standing(&shown, "pods").is_some_and(|pods| pods["objects"].as_u64() >= Some(PODS as u64)), "{shown:#}");
    let kib: u64 = field("VmHWM:").trim_end_matches(" kB").parse()?;
    ensure!(kib < 300 * 1024, "{kib} KiB for {PODS} pods");
    Ok(())
}

/// Creates pods with a status directly in etcd, in the format of the API server. The API server takes some hundred objects a
/// second, and etcd some thousand.
fn many_pods(api: &ApiServer, count: usize) -> Result<()> {
    const AT_ONCE: usize = 100;
    let filler: Vec<Value> =
        (0..20).map(|n| json!({"name": format!("VARIABLE_{n}"), "value": "x".repeat(200)})).collect();
    let pod = |n: usize| {
        let address = format!("10.{}.{}.{}", 128 + n / 60_000, n / 250 % 250, n % 250 + 1);
        let conditions = json!([{"type": "Ready", "status": "True"}]);
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("p{n}"), "namespace": "demo", "uid": format!("00000000-0000-4000-8000-{n:012}"),
                "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"app": format!("a{}", n % 200)},
                "managedFields": [{"manager": "kubelet", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
                    "fieldsV1": {"f:spec": {"f:containers": {"x".repeat(1500): {}}}}}]},
            "spec": {"nodeName": format!("node-{}", n % 50), "serviceAccountName": "default", "restartPolicy": "Always",
                "containers": [{"name": "c", "image": "none", "env": filler}]},
            "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": conditions}})
    };
    for first in (0..count).step_by(AT_ONCE) {
        let puts: Vec<Value> = (first..count.min(first + AT_ONCE))
            .map(|n| {
                let key = STANDARD.encode(format!("/registry/pods/demo/p{n}"));
                json!({"requestPut": {"key": key, "value": STANDARD.encode(pod(n).to_string())}})
            })
            .collect();
        let answer = post(api, &json!({"success": puts}).to_string())?;
        ensure!(answer.contains("\"succeeded\":true"), "etcd answered {answer}");
    }
    Ok(())
}

/// Sends a transaction to etcd.
fn post(api: &ApiServer, body: &str) -> Result<String> {
    let head = format!(
        "POST /v3/kv/txn HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    api.netns().run(|| -> Result<String> {
        let mut stream = TcpStream::connect("127.0.0.1:2379")?;
        stream.set_read_timeout(Some(wait::PATIENCE))?;
        stream.write_all((head + body).as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })?
}
