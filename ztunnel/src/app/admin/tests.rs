//! The answers to scrapes, also while the manager is blocked.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use clap::Parser as _;
use ebpf_common::Verdict;
use prometheus_client::registry::Registry;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
};

use super::{Admin, Endpoints, dump::ConfigInfo, places_of_dumps, serve};
use crate::{
    app::{
        log::{levels_of_nothing, lost_lines},
        standing::Standing,
    },
    config::{Args, Command},
    control::remote::Contact,
    flow::events::{ConnectionEvent, Events},
    identity::cache::Certificates,
    lifecycle::{drain, tasks::TaskCount},
    metrics::traffic::Traffic,
    model::{flow::Direction, workload::NamespacedName},
    net::memory::Budget,
    pods::{
        describe::{Description, PodState},
        manager::ManagerHandle,
        status::{PodStatus, Status},
    },
    store::publish::{self, Reader},
};

/// The endpoints of a daemon with this manager and mesh.
pub(super) fn admin_of(manager: ManagerHandle, mesh: Reader) -> Admin {
    let mut registry = Registry::default();
    let traffic = Traffic::register(&mut registry, Duration::from_secs(900), "Kubernetes".into());
    let words = ["ztunnel", "run", "--node", "node-a", "--mesh", "/mesh"];
    let Command::Run(args) = Args::try_parse_from(words).unwrap().command else { panic!("not run") };
    Admin {
        manager,
        mesh,
        registry,
        certificates: Certificates::of_nobody(),
        tasks: TaskCount::default(),
        carried: Vec::new(),
        lost: lost_lines(),
        budget: Budget::default(),
        traffic,
        events: Events::new(16, 2),
        levels: levels_of_nothing(),
        config: Arc::new(ConfigInfo::of(&args)),
        dumping: places_of_dumps(),
        explaining: super::explain::places(),
        start_window: tokio::sync::watch::channel(None).1,
        control_plane: None,
        state: None,
    }
}

/// A daemon whose manager does not answer: the address of its admin endpoints, and the requests to the manager.
async fn blocked() -> (SocketAddr, mpsc::Receiver<oneshot::Sender<Description>>) {
    let pod = PodStatus {
        name: NamespacedName::new("demo", "web"),
        state: PodState::Enrolled,
        reason: None,
        connections_before_enrolment: 2,
        verdicts: vec![(Verdict::Captured, 7)],
    };
    let (_publisher, mesh) = publish::channel();
    let (manager, asked) = ManagerHandle::of_blocked(mesh.clone(), Status { pods: vec![pod], ..Status::unknown() });
    let admin = Arc::new(Admin {
        start_window: tokio::sync::watch::channel(Some("the plugin is not installed".to_owned())).1,
        control_plane: Some(Contact::default()),
        ..admin_of(manager, mesh)
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (open, opened) = drain::channel();
    #[expect(clippy::disallowed_methods, reason = "it ends with the test")]
    tokio::spawn(async move {
        serve(listener, Endpoints::Admin, admin, TaskCount::default(), opened).await;
        drop(open);
    });
    (address, asked)
}

/// Sends a request with this header, and returns the whole answer.
async fn get(address: SocketAddr, path: &str, header: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n{header}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_scrape_does_not_wait_for_a_manager_that_is_blocked() {
    let (address, mut asked) = blocked().await;
    let dump = get(address, "/config_dump", "");
    let scrape = async {
        // The manager receives the request, but does not answer.
        let unanswered = asked.recv().await.unwrap();
        let text = get(address, "/metrics", "").await;
        drop(unanswered);
        text
    };
    let (dump, text) = tokio::join!(dump, scrape);
    assert!(dump.starts_with("HTTP/1.1 503 "), "{dump}");
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    for line in [
        r#"ztunnel_pods{state="enrolled"} 1"#,
        r#"ztunnel_bpf_verdicts_total{pod_namespace="demo",pod_name="web",verdict="captured"} 7"#,
        "ztunnel_connections_before_enrolment 2",
        "ztunnel_ready 0",
        "ztunnel_start_window 1",
        "ztunnel_control_plane_lost 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} not in {text}");
    }
    assert!(text.contains("\nztunnel_pods_report_age_seconds "), "{text}");
}

#[tokio::test]
async fn each_format_of_metrics_is_named_and_is_what_it_is_named() {
    let (address, _asked) = blocked().await;
    let openmetrics = "Accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5\r\n";
    let table = [
        ("", "text/plain; version=0.0.4; charset=utf-8", "# TYPE ztunnel_bpf_verdicts_total counter"),
        (
            "Accept: text/plain\r\n",
            "text/plain; version=0.0.4; charset=utf-8",
            "# TYPE ztunnel_bpf_verdicts_total counter",
        ),
        (
            openmetrics,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            "# TYPE ztunnel_bpf_verdicts counter",
        ),
    ];
    for (accept, kind, line) in table {
        let answer = get(address, "/metrics", accept).await;
        assert!(answer.contains(&format!("content-type: {kind}\r\n")), "{accept}: {answer}");
        assert!(answer.lines().any(|found| found == line) && answer.ends_with("# EOF\n"), "{accept}: {answer}");
    }
}

/// A daemon that is stopping, with these endpoints, and the order to close them.
async fn stopping() -> (SocketAddr, Arc<Admin>, drain::DrainTrigger) {
    let (_publisher, mesh) = publish::channel();
    let admin = Arc::new(admin_of(ManagerHandle::of_nobody(mesh.clone()), mesh));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (close, closed) = drain::channel();
    let served = Arc::clone(&admin);
    #[expect(clippy::disallowed_methods, reason = "it ends with the test")]
    tokio::spawn(async move { serve(listener, Endpoints::Admin, served, TaskCount::default(), closed).await });
    (address, admin, close)
}

/// Sends a request without a body. Returns the status and the body.
async fn send(address: SocketAddr, method: &str, path: &str, header: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{header}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().to_owned(), body.to_owned())
}

#[tokio::test]
async fn the_status_does_not_wait_for_the_manager_and_says_what_to_do_first() {
    let (address, admin, _close) = stopping().await;
    let (status, body) = send(address, "GET", "/status", "").await;
    assert_eq!(status, "200");
    let standing: Standing = serde_json::from_str(&body).unwrap();
    assert!(!standing.healthy && !standing.ready, "{body}");
    assert_eq!((&*standing.node, &*standing.findings[0].code), ("node-a", "ZtunnelNotReady"));
    admin.traffic.handshake_failed(Direction::Inbound, "not_yet_valid");
    let (_, body) = send(address, "GET", "/status", "").await;
    assert!(body.contains("ZtunnelClockWrong"), "{body}");
}

#[tokio::test]
async fn levels_are_changed_as_istios_tools_do_it() {
    let (address, admin, _close) = stopping().await;
    let told = |levels: &str| ("200".to_owned(), format!("current log level is {levels}\n"));
    assert_eq!(send(address, "GET", "/logging", "").await, told("info"));
    assert_eq!(send(address, "POST", "/logging", "").await, told("info"));
    assert_eq!(send(address, "POST", "/logging?level=debug", "").await, told("debug"));
    assert_eq!(send(address, "POST", "/logging?level=access:warning", "").await, told("debug,access=warn"));
    assert_eq!(send(address, "POST", "/logging?level=info&reset", "").await, told("info"));
    for (method, query, header, expected) in [
        ("GET", "?level=debug", "", "405"),
        ("PUT", "?level=debug", "", "405"),
        ("POST", "?level=loud", "", "400"),
        ("POST", "?levels=debug", "", "400"),
        ("POST", "?level=debug", "Origin: http://evil.example\r\n", "403"),
    ] {
        let (status, body) = send(address, method, &format!("/logging{query}"), header).await;
        assert_eq!(status, expected, "{method} {query}: {body}");
    }
    assert_eq!(admin.levels.current(), "info");
}

#[tokio::test]
async fn events_come_while_they_happen_and_end_with_the_endpoints() {
    let (address, admin, close) = stopping().await;
    let mut readers = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /events?denied HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut lines = BufReader::new(stream).lines();
        while !lines.next_line().await.unwrap().unwrap().contains("\"started\"") {}
        readers.push(lines);
    }
    let (status, body) = send(address, "GET", "/events", "").await;
    assert_eq!(status, "503", "{body}");
    assert!(send(address, "GET", "/events?form=x", "").await.0 == "400");
    let event = |reason: &'static str| ConnectionEvent { reason: Some(reason.into()), ..ConnectionEvent::default() };
    admin.events.publish(event("complete"));
    admin.events.publish(event("denied"));
    for lines in &mut readers {
        let line = loop {
            let line = lines.next_line().await.unwrap().unwrap();
            if line.starts_with('{') {
                break line;
            }
        };
        assert!(line.contains("\"type\":\"connection\"") && line.contains("\"reason\":\"denied\""), "{line}");
    }
    close.start();
    for mut lines in readers {
        // The last chunk, then the end of the connection.
        while lines.next_line().await.unwrap().is_some() {}
    }
    assert!(!admin.events.is_read());
}
