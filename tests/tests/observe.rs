//! What the daemon reports: metrics for Prometheus, one log line for each connection, `/config_dump`, and readiness.

use std::io::Read;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use ebpf_common::HBONE_PORT;
use serde_json::Value;
use ztunnel_tests::admin;
use ztunnel_tests::apps::client::exchange;
use ztunnel_tests::apps::server::{Server, is_reset};
use ztunnel_tests::ca;
use ztunnel_tests::daemon::Daemon;
use ztunnel_tests::logs::Direction;
use ztunnel_tests::mesh::{NAMESPACE, PodManifest};
use ztunnel_tests::metrics::Metrics;
use ztunnel_tests::process::Launch;
use ztunnel_tests::proof;
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, Pod, TWO_NODES};
use ztunnel_tests::wait;

const PORT: u16 = 7000;

const OPENED: &str = "istio_tcp_connections_opened_total";
const CLOSED: &str = "istio_tcp_connections_closed_total";
const SENT: &str = "istio_tcp_sent_bytes_total";
const RECEIVED: &str = "istio_tcp_received_bytes_total";

/// The labels of every sample of Istio's TCP metrics.
const LABELS: [&str; 23] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "request_protocol",
    "response_flags",
    "connection_security_policy",
];

/// Waits until a daemon's metrics satisfy a condition.
fn eventually(daemon: &Daemon, what: &str, holds: impl Fn(&Metrics) -> bool) -> Result<Metrics> {
    wait::until(what, wait::PATIENCE, || {
        let metrics = daemon.metrics()?;
        Ok(holds(&metrics).then_some(metrics))
    })
    .with_context(|| format!("{}: {:?}", daemon.node, daemon.get("/metrics").map(|answer| answer.body)))
}

#[test]
fn a_tunnelled_connection_is_counted_by_both_reporters_under_istios_names() -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    let echo = Server::echo(bed.pod("web-b")?, bed.pod("web-b")?.at(Family::V4, PORT))?;
    proof::tunnelled(&bed, ("client-a", "web-b"), &echo, Pod::connect)?;
    let (client, web) = (ca::identity("client-a"), ca::identity("web-b"));
    for (node, reporter) in [("node-a", "source"), ("node-b", "destination")] {
        let labels = [
            ("reporter", reporter),
            ("source_workload", "client-a"),
            ("source_workload_namespace", NAMESPACE),
            ("source_principal", &client),
            ("destination_workload", "web-b"),
            ("destination_principal", &web),
            ("request_protocol", "tcp"),
            ("response_flags", "-"),
            ("connection_security_policy", "mutual_tls"),
        ];
        let daemon = bed.daemon(node)?;
        let metrics = eventually(daemon, "the closed connection", |metrics| metrics.sum(CLOSED, &labels) == 1.0)?;
        ensure!(metrics.sum(OPENED, &labels) == 1.0, "{reporter}");
        // Five bytes in each direction. For both reporters, the sent bytes are those of the server.
        ensure!(metrics.sum(SENT, &labels) == 5.0 && metrics.sum(RECEIVED, &labels) == 5.0, "{reporter}");
        for name in [OPENED, CLOSED, SENT, RECEIVED] {
            for sample in metrics.all(name, &[]) {
                let missing: Vec<_> = LABELS.iter().filter(|label| sample.label(label).is_none()).collect();
                ensure!(missing.is_empty(), "{name} lacks {missing:?}: {sample:?}");
            }
        }
        ensure!(metrics.has("istio_build"), "no istio_build");
    }
    Ok(())
}

#[test]
fn a_plaintext_connection_is_counted_as_such() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    bed.mesh.pod(&PodManifest::of(bed.pod("client-b")?).mode("none"))?;
    bed.start("node-a")?;
    bed.start("node-b")?;
    bed.enrol_only(&["client-a", "web-a", "web-b"])?;
    let echo = Server::echo(bed.pod("web-a")?, bed.pod("web-a")?.at(Family::V4, PORT))?;
    proof::inbound(&bed, "client-b", "web-a", &echo, echo.address())?;
    let labels = [
        ("reporter", "destination"),
        ("destination_workload", "web-a"),
        ("connection_security_policy", "unknown"),
        ("source_principal", "unknown"),
    ];
    eventually(bed.daemon("node-a")?, "the connection", |metrics| metrics.sum(CLOSED, &labels) == 1.0)?;
    Ok(())
}

#[test]
fn metrics_and_readiness_are_told_at_their_own_ports() -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    let node = &bed.topology.node("node-a")?.netns;
    for path in ["/metrics", "/stats/prometheus"] {
        let answer = admin::get_from(node, admin::METRICS, path)?;
        ensure!(answer.status == 200, "{path}: {answer:?}");
        Metrics::parse(&answer.body).with_context(|| path.to_owned())?;
    }
    ensure!(admin::get_from(node, admin::METRICS, "/config_dump")?.status == 404, "the dump is told to everyone");
    let ready = admin::get_from(node, admin::READINESS, "/healthz/ready")?;
    ensure!(ready.status == 200, "{ready:?}");
    // Prometheus and probes may use the node's address, also from another node.
    let far = &bed.topology.node("node-b")?.netns;
    let address = bed.topology.node("node-a")?.v4();
    for (port, path) in [(15020, "/metrics"), (15021, "/healthz/ready")] {
        let answer = admin::get_from(far, &format!("{address}:{port}"), path)?;
        ensure!(answer.status == 200, "{answer:?}");
    }
    Ok(())
}

#[test]
fn the_dump_shows_certificates_and_live_connections() -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    let (client, web) = (bed.pod("client-a")?, bed.pod("web-b")?);
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    let mut stream = client.connect(echo.address())?;
    exchange(&mut stream, b"hello")?;
    for (node, pod, peer, direction) in
        [("node-a", "client-a", "web-b", "outbound"), ("node-b", "web-b", "client-a", "inbound")]
    {
        let daemon = bed.daemon(node)?;
        daemon.certified(&ca::identity(pod))?;
        let dump = daemon.dump()?;
        let found = dump.certificate(&ca::identity(pod)).context("no certificate")?;
        ensure!(!found.serial().is_empty() && found.roots() == 1, "{found:?}");
        let state = dump.pod(pod).context("unknown pod")?;
        let connection = state.each_connection().next().with_context(|| format!("no connection of {pod}"))?;
        let text = |key: &str| connection.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
        ensure!(text("protocol") == "HBONE" && text("direction").eq_ignore_ascii_case(direction), "{connection}");
        ensure!(text("peerIdentity") == ca::identity(peer), "{connection}");
        ensure!(connection.to_string().contains(&echo.address().to_string()), "{connection}");
        let bytes = (connection.get("bytesSent").and_then(Value::as_u64), connection.get("bytesReceived"));
        ensure!(bytes.0 == Some(5) && bytes.1.and_then(Value::as_u64) == Some(5), "{connection}");
    }
    Ok(())
}

/// No application listens at the destination. Only the destination's node knows that, and it tells the client's node, where
/// people read the log.
#[test]
fn the_clients_node_logs_why_the_servers_node_refused() -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    let target = bed.pod("web-b")?.at(Family::V4, 7999);
    let mut stream = bed.pod("client-a")?.connect(target)?;
    let own = stream.local_addr()?;
    let end = stream.read(&mut [0; 1]);
    ensure!(end.as_ref().is_err_and(is_reset), "a reset should come, not {end:?}");
    let out = bed.daemon("node-a")?.wait_connection(Direction::Outbound, own, target)?;
    let error = out.error.clone().with_context(|| out.line.to_string())?;
    ensure!(error.contains("refused by the destination") || error.contains("connect_refused"), "{error}");
    ensure!(out.sent == 0 && out.received == 0, "{}", out.line);
    let inbound = bed.daemon("node-b")?.wait_access("the line of the server's node", |line| {
        line.direction == Direction::Inbound && line.asked() == target
    })?;
    ensure!(inbound.error.is_some() && inbound.field("src.identity") == ca::identity("client-a"), "{}", inbound.line);
    eventually(bed.daemon("node-a")?, "the failure", |metrics| {
        metrics.sum("istio_tcp_connections_failed_total", &[("reporter", "source"), ("response_flags", "CONNECT")])
            >= 1.0
    })?;
    Ok(())
}

#[test]
fn every_line_of_the_log_is_json_with_istios_keys() -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    let echo = Server::echo(bed.pod("web-b")?, bed.pod("web-b")?.at(Family::V6, PORT))?;
    proof::tunnelled(&bed, ("client-a", "web-b"), &echo, Pod::connect)?;
    for node in ["node-a", "node-b"] {
        let log = std::fs::read_to_string(bed.daemon(node)?.output())?;
        let mut access = 0;
        for line in log.lines() {
            let value: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            for key in ["level", "time", "scope", "message"] {
                ensure!(value.get(key).is_some_and(Value::is_string), "no {key}: {line}");
            }
            access += usize::from(value.get("scope").and_then(Value::as_str) == Some("access"));
        }
        ensure!(access == 1, "{node} logged {access} connections instead of one");
    }
    Ok(())
}

#[test]
fn text_lines_are_as_istios() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    for node in ["node-a", "node-b"] {
        bed.start_with(node, |options| options.arguments = ["--log-format", "text"].map(String::from).into())?;
    }
    bed.enrol()?;
    let echo = Server::echo(bed.pod("web-b")?, bed.pod("web-b")?.at(Family::V4, PORT))?;
    let mut stream = bed.pod("client-a")?.connect(echo.address())?;
    let own = stream.local_addr()?;
    exchange(&mut stream, b"hello")?;
    drop(stream);
    let daemon = bed.daemon("node-a")?;
    let line = wait::until("the line", wait::PATIENCE, || {
        Ok(daemon.lines_with(&["connection complete", &own.to_string()])?.into_iter().next())
    })?;
    let fields: Vec<&str> = line.split('\t').collect();
    let [time, level, target, message, rest @ ..] = fields.as_slice() else { anyhow::bail!("no tabs: {line}") };
    ensure!(time.ends_with('Z') && (*level, *target, *message) == ("info", "access", "connection complete"), "{line}");
    let rest = rest.join(" ");
    let web = bed.pod("web-b")?.v4;
    for words in [
        format!("src.addr={own}"),
        format!("src.identity=\"{}\"", ca::identity("client-a")),
        format!("dst.addr={web}:{HBONE_PORT}"),
        format!("dst.hbone_addr={web}:{PORT}"),
        format!("dst.identity=\"{}\"", ca::identity("web-b")),
        "direction=\"outbound\"".to_owned(),
        "bytes_sent=5".to_owned(),
        "bytes_recv=5".to_owned(),
    ] {
        ensure!(rest.contains(&words), "no {words} in {line}");
    }
    // On the other node, the same fields have the address of the HBONE connection and the requested destination.
    let far = bed.daemon("node-b")?;
    let line = wait::until("the line of the other node", wait::PATIENCE, || {
        Ok(far.lines_with(&["connection complete", "direction=\"inbound\""])?.into_iter().next())
    })?;
    for words in [format!("dst.addr={web}:{HBONE_PORT}"), format!("dst.hbone_addr={web}:{PORT}")] {
        ensure!(line.contains(&words), "no {words} in {line}");
    }
    Ok(())
}

/// Standard output is a pipe that is not read: lines that do not fit are dropped and counted, and the pods are not affected.
#[test]
fn a_reader_of_the_log_that_stalls_stops_nobody() -> Result<()> {
    let bed = Testbed::new(TWO_NODES)?;
    let folder = bed.topology.folder.join("stalled");
    std::fs::create_dir_all(&folder)?;
    let pipe = folder.join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU)?;
    // Opened for reading as well, because the daemon's open would wait for a reader. The pipe is never read.
    let _held = std::fs::File::options().read(true).write(true).open(&pipe)?;
    let pins = bed.topology.prefix.pins("node-a").display().to_string();
    let (mesh, state) = (bed.mesh.folder().display().to_string(), folder.display().to_string());
    let ca = bed.authority.folder().display().to_string();
    let binary = ztunnel_tests::settings::daemon_binary()?.display().to_string();
    let node = &bed.topology.node("node-a")?.netns;
    let arguments =
        ["run", "--node", "node-a", "--mesh", &mesh, "--state", &state, "--bpf-pin", &pins, "--ca-dir", &ca];
    let _daemon = Launch::new(&binary).args(arguments).inside(node).log_to(&pipe).start()?;
    for pod in ["client-a", "web-a"] {
        bed.mesh.pod(&PodManifest::of(bed.pod(pod)?).mode("ambient"))?;
    }
    let enrolled = || admin::ConfigDump::fetch(node).is_ok_and(|dump| dump.enrolled() == 2);
    wait::until_true("both pods to be enrolled", wait::PATIENCE, || Ok(enrolled()))?;
    let echo = Server::echo(bed.pod("web-a")?, bed.pod("web-a")?.at(Family::V4, PORT))?;
    // Two lines of some 500 bytes for each connection: far more than a pipe and a queue hold.
    for number in 0..10_000 {
        let target: SocketAddr = echo.address();
        let mut stream = bed.pod("client-a")?.connect(target)?;
        exchange(&mut stream, b"hello").with_context(|| format!("connection {number}"))?;
        ztunnel_tests::apps::server::reset(stream)?;
    }
    let metrics = Metrics::parse(&admin::get_from(node, admin::METRICS, "/metrics")?.body)?;
    let lost = metrics.sum("ztunnel_log_lines_lost_total", &[]);
    println!("{lost} lines were lost");
    Ok(())
}
