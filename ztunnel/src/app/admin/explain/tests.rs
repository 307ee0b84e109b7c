use std::{net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
};

use super::{LONGEST, encode, query};
use crate::{
    app::admin::{Endpoints, serve, tests::admin_of},
    control::manifests::{assemble, parse},
    explain::{Explanation, Query, explain_at},
    lifecycle::{drain, tasks::TaskCount},
    model::{identity::TrustDomain, workload::NamespacedName},
    pods::{
        describe::{Description, PodInfo, PodState},
        manager::ManagerHandle,
    },
    store::{
        publish::{self, Publisher},
        snapshot::Snapshot,
    },
};

/// Checks the result of a query string: the parsed query, or the beginning of the error.
fn check(parameters: &str, expected: Result<(&str, &str, u16), &str>) {
    let got = query(parameters).map_err(|error| error.to_string());
    match expected {
        Ok((from, to, port)) => assert_eq!(got, Ok(Query::parse(from, to, &port.to_string()).unwrap()), "{parameters}"),
        Err(error) => {
            let got = got.expect_err(parameters);
            assert!(got.starts_with(error) && !got.contains(char::is_control), "{parameters}: {got}");
        }
    }
}

#[test]
fn query_strings() {
    check("from=demo/a&to=demo/b&port=80", Ok(("demo/a", "demo/b", 80)));
    check("port=80&to=demo/b&from=demo%2Fa", Ok(("demo/a", "demo/b", 80)));
    check("&&from=fd00%3a%3A1&to=10.0.0.1&port=65535&", Ok(("fd00::1", "10.0.0.1", 65535)));
    check("from=spiffe://td/ns/a/sa/b&to=pod:demo/b&port=1", Ok(("spiffe://td/ns/a/sa/b", "pod:demo/b", 1)));

    check("", Err("the parameter from is missing"));
    check("from=demo/a&port=80", Err("the parameter to is missing"));
    check("from=demo/a&to=demo/b", Err("the parameter port is missing"));
    check("from=demo/a&to=demo/b&port=80&port=81", Err("the parameter port is given twice"));
    check("from=demo/a&from=demo/a&to=demo/b&port=80", Err("the parameter from is given twice"));
    check("from=demo/a&to=demo/b&port=80&verbose", Err("there is a parameter other than"));
    check("fr%6fm=demo/a&to=demo/b&port=80", Err("there is a parameter other than"));
    for port in ["", "0", "-1", "+80", "65536", " 80", "99999999999999999999", "８０", "%00"] {
        check(&format!("from=demo/a&to=demo/b&port={port}"), Err("port: "));
    }
    for broken in ["%", "%2", "%2G", "%+1", "%ff", "%c3%28", "a%"] {
        check(&format!("from={broken}&to=demo/b&port=80"), Err("from: not percent-encoded"));
    }
    for hostile in
        ["", "/", "demo/", "/a", "a/b/c", "Demo/a", "demo/%1b%5b2J", "demo/a%0a", "demo/a%00", "..", "demo/%E2%80%AE"]
    {
        check(&format!("from={hostile}&to=demo/b&port=80"), Err("from: "));
        check(&format!("from=demo/b&to={hostile}&port=80"), Err("to: "));
    }
    check(&format!("from={}&to=demo/b&port=80", "a".repeat(LONGEST + 1)), Err("from: not percent-encoded"));
    check(&format!("from={}&to=demo/b&port=80", "%61".repeat(LONGEST + 1)), Err("from: not percent-encoded"));
    check("from=spiffe://td/ns/a/sa/b%0d%0aX:1&to=demo/b&port=80", Err("from: "));
}

#[test]
fn what_the_command_sends_is_understood() {
    for (from, to) in [("demo/a", "service:demo/b"), ("spiffe://td/ns/a_b/sa/c", "fd00::1"), ("10.0.0.1", "pod:a/b.c")]
    {
        assert_eq!(query(&encode(from, to, "80")).unwrap(), Query::parse(from, to, "80").unwrap());
    }
    // All typed characters arrive unchanged, and the daemon refuses them by name.
    assert!(encode("a b&to=c%\n", "ü", "80").bytes().all(|byte| byte.is_ascii_graphic()));
    check(&encode("a b&to=c%\n", "demo/b", "80"), Err("from: \"a b&to=c%\\n\" is not a client"));
}

const MESH: &str = "
{apiVersion: v1, kind: Pod, metadata: {namespace: demo, name: a}, spec: {containers: []}, status: {podIP: 10.0.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: demo, name: b}, spec: {containers: []}, status: {podIP: 10.0.0.2}}
";

fn mesh() -> Snapshot {
    let file: Arc<str> = "mesh.yaml".into();
    let assembled = assemble([(&file, &parse(&file, MESH).unwrap())], &TrustDomain::default());
    Snapshot::build(1, assembled.workloads, assembled.services, assembled.problems)
}

/// The admin listener and the metrics listener of a daemon that is stopping, and the publisher of its mesh.
async fn listeners() -> (SocketAddr, SocketAddr, Publisher) {
    let (publisher, mesh) = publish::channel();
    let manager = ManagerHandle::of_nobody(mesh.clone());
    let admin = Arc::new(admin_of(manager, mesh));
    let mut addresses = Vec::new();
    for endpoints in [Endpoints::Admin, Endpoints::Metrics] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        addresses.push(listener.local_addr().unwrap());
        let admin = Arc::clone(&admin);
        let (open, opened) = drain::channel();
        #[expect(clippy::disallowed_methods, reason = "it ends with the test")]
        tokio::spawn(async move {
            serve(listener, endpoints, admin, TaskCount::default(), opened).await;
            drop(open);
        });
    }
    (addresses[0], addresses[1], publisher)
}

/// The status and body of an answer.
async fn get(address: SocketAddr, method: &str, target: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn one_is_explained_at_a_time_and_the_others_do_not_wait_for_long() {
    let (publisher, mesh) = publish::channel();
    publisher.publish(self::mesh());
    let manager = ManagerHandle::of_nobody(mesh.clone());
    let admin = admin_of(manager, mesh);
    let question = Some("from=demo/a&to=demo/b&port=80");
    let place = Arc::clone(&admin.explaining).acquire_owned().await.unwrap();
    let error = super::answer(&admin.mesh, &admin.manager, &admin.explaining, question).await.unwrap_err();
    assert!(matches!(error, super::ExplainError::Busy), "{error}");
    drop(place);
    assert!(super::answer(&admin.mesh, &admin.manager, &admin.explaining, question).await.is_ok());
    assert_eq!(admin.explaining.available_permits(), super::AT_ONCE);
}

#[tokio::test]
async fn the_admin_listener_explains_and_no_other() {
    let (admin, metrics, publisher) = listeners().await;
    let good = "/explain?from=demo%2Fa&to=demo/b&port=80";
    let (status, body) = get(admin, "GET", good).await;
    assert!(status == 503 && body.starts_with("the mesh has not been read yet"), "{status} {body}");

    publisher.publish(mesh());
    let (status, body) = get(admin, "GET", good).await;
    let explanation: Explanation = serde_json::from_str(&body).unwrap();
    assert!(status == 200 && explanation.is_allowed(), "{status} {body}");
    assert!(explanation.reason.starts_with("NO POLICY IS ENFORCED: Pod demo/b"), "{body}");
    assert!(explanation.warnings.iter().any(|one| one.contains("busy or stopping")), "{body}");

    for (method, target, expected, said) in [
        ("GET", "/explain", 400, "the parameter from is missing"),
        ("GET", "/explain?from=demo/a&to=demo/c&port=80", 400, "to: the mesh has no Pod or Service demo/c"),
        ("GET", "/explain?from=demo/a&to=demo/b&port=80&port=80", 400, "the parameter port is given twice"),
        ("GET", "/explain?from=%1b[2J&to=demo/b&port=80", 400, "from: \"\\u{1b}[2J\" is not a client"),
        ("GET", "/explain?from=%zz&to=demo/b&port=80", 400, "from: not percent-encoded"),
        ("POST", good, 405, "GET only"),
        ("GET", "/explain/", 404, "not found"),
        ("GET", "/", 200, "/explain\n"),
    ] {
        let (status, body) = get(admin, method, target).await;
        assert!(status == expected && body.contains(said), "{method} {target}: {status} {body}");
        assert!(!body.contains('\u{1b}'), "{body:?}");
    }
    let (status, _) = get(admin, "GET", &format!("/explain?from={}", "a".repeat(20_000))).await;
    assert!((400..500).contains(&status), "{status}");
    assert_eq!(get(metrics, "GET", good).await.0, 404);
    assert!(!get(metrics, "GET", "/").await.1.contains("explain"));
}

/// Silent connections must not block the readiness probes of the kubelet or the scrapes of Prometheus.
#[tokio::test]
async fn silent_connections_shut_no_scrape_out() {
    let (admin, metrics, _publisher) = listeners().await;
    for address in [admin, metrics] {
        let mut silent = Vec::new();
        for number in 0..9 * 28_u8 {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::from(([127, 0, 0, 2 + number % 9], 0))).unwrap();
            silent.push(socket.connect(address).await.unwrap());
        }
        assert_eq!(get(address, "GET", "/").await.0, 200);
    }
}

/// The daemon of `node-a` has enrolled only one of its pods.
#[test]
fn pods_that_the_daemon_does_not_serve_are_told_as_such() {
    let manifests = ["open", "refused", "closed", "waiting", "elsewhere"].iter().zip(1..).map(|(name, number)| {
        let node = if *name == "elsewhere" { "node-b" } else { "node-a" };
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{namespace: demo, name: {name}, labels: {{istio.io/dataplane-mode: ambient}}, \
             annotations: {{ambient.mesh/netns: /n}}}}, spec: {{nodeName: {node}, containers: []}}, status: {{podIP: 10.0.0.{number}}}}}"
        )
    });
    let manifests = manifests.collect::<Vec<_>>().join("\n---\n");
    let file: Arc<str> = "mesh.yaml".into();
    let mesh = assemble([(&file, &parse(&file, &manifests).unwrap())], &TrustDomain::default());
    let local = mesh.local;
    let snapshot = Snapshot::build(1, mesh.workloads, mesh.services, mesh.problems);
    let pod = |name: &str, state, captured, reason: Option<&str>| PodInfo {
        captured,
        reason: reason.map(str::to_owned),
        ..PodInfo::new(&NamespacedName::new("demo", name), state)
    };
    let now = Description {
        node: "node-a".to_owned(),
        pods: vec![
            pod("open", PodState::Enrolled, true, None),
            pod("refused", PodState::Refused, false, Some("its namespace is gone")),
            pod("closed", PodState::Refused, true, Some("it lost an address")),
        ],
        ..Description::default()
    };
    let node = super::node_state(&now);
    let table = [
        ("elsewhere", "open", true, ""),
        (
            "elsewhere",
            "refused",
            false,
            "no HBONE connection to it can be opened: its node refuses it: its namespace is gone",
        ),
        ("elsewhere", "closed", false, "no HBONE connection to it can be opened: its node has closed it"),
        ("elsewhere", "waiting", false, "its node has not enrolled it yet"),
        ("10.9.9.9", "closed", false, "connections to it are reset: its node has closed it"),
        ("10.9.9.9", "refused", true, "NO POLICY IS ENFORCED: Pod demo/refused is not captured"),
        ("closed", "open", false, "Pod demo/closed: its node has closed it, so that all its connections fail"),
        ("open", "elsewhere", true, ""),
    ];
    for (from, to, is_allowed, said) in table {
        let from = if from.contains('.') { from.to_owned() } else { format!("demo/{from}") };
        let query = Query::parse(&from, &format!("demo/{to}"), "80").unwrap();
        let explanation = explain_at(&snapshot, &local, Some(&node), &query).unwrap();
        assert_eq!(explanation.is_allowed(), is_allowed, "{from} {to}: {}", explanation.reason);
        assert!(explanation.reason.contains(said), "{from} {to}: {}", explanation.reason);
    }
    // A pod that is not captured proves no identity.
    let query = Query::parse("demo/refused", "demo/open", "80").unwrap();
    let explanation = explain_at(&snapshot, &local, Some(&node), &query).unwrap();
    assert!(
        !explanation.from.captured && explanation.from.state.contains("its namespace is gone"),
        "{}",
        explanation.from.state
    );
}
