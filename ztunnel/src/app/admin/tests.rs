//! The answers to scrapes, also while the manager is blocked.

use std::{net::SocketAddr, sync::Arc};

use ebpf_common::Verdict;
use prometheus_client::registry::Registry;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
};

use super::{Admin, Endpoints, serve};
use crate::{
    app::log::lost_lines,
    control::remote::Contact,
    identity::cache::Certificates,
    lifecycle::{drain, tasks::TaskCount},
    model::workload::NamespacedName,
    net::memory::Budget,
    pods::{
        describe::{Description, PodState},
        manager::ManagerHandle,
        status::{PodStatus, Status},
    },
    store::publish,
};

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
        manager,
        mesh,
        registry: Registry::default(),
        certificates: Certificates::of_nobody(),
        tasks: TaskCount::default(),
        carried: Vec::new(),
        lost: lost_lines(),
        budget: Budget::default(),
        explaining: super::explain::places(),
        start_window: tokio::sync::watch::channel(Some("the plugin is not installed".to_owned())).1,
        control_plane: Some(Contact::default()),
        state: None,
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
