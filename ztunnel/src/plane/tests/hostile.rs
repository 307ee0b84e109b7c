//! Nodes, and callers without a valid token, that break the rules. Other nodes are always served.

use super::*;

/// Waits until a stream or a connection was cut for this reason.
async fn cut(plane: &Plane, reason: &str) {
    let series = format!("ztunnel_xds_cut_total{{reason=\"{reason}\"}}");
    while plane.count(&series) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Checks that another node is served.
async fn check_other(plane: &Plane) {
    let mut other = plane.stream(TOKEN_B).await;
    other.send(&request(ADDRESS));
    assert!(other.response(ADDRESS).await.1.contains("Kubernetes//Pod/demo/a"));
}

async fn with_mesh(limits: Limits) -> Plane {
    let mut plane = Plane::start(limits).await;
    plane.says("a", &[&pod("a", "node-a", "10.0.0.1")]);
    plane
}

/// Starts a control plane whose mesh is larger than any window.
async fn with_large_mesh(limits: Limits) -> Plane {
    let mut plane = Plane::start(limits).await;
    let mut pods: Vec<String> =
        (0..500).map(|it| pod(&format!("p{it}"), "node-b", &format!("10.1.{}.{}", it / 250, it % 250))).collect();
    pods.push(pod("a", "node-a", "10.0.0.1"));
    let pods: Vec<&str> = pods.iter().map(String::as_str).collect();
    plane.says("a", &pods);
    plane
}

#[tokio::test]
async fn who_has_no_token_gets_nothing() {
    let plane = with_mesh(LIMITS).await;
    let paths = [DELTA_AGGREGATED_RESOURCES, crate::istio::server::CREATE_CERTIFICATE, "/x/y"];
    for path in paths {
        for token in [None, Some(""), Some("wrong-wrong-wrong-wrong-wrong-wrong"), Some(&TOKEN_A[1..])] {
            let mut call = plane.connect().await.call(path, token).await;
            call.send(&request(ADDRESS));
            let (code, message) = call.next::<DeltaDiscoveryResponse>().await.unwrap_err();
            assert!(code == 16 && message.contains("token"), "{path} {token:?}: {message}");
            // The connection allows no second try.
            let mut connection = call.connection.unwrap();
            while std::future::poll_fn(|cx| connection.sender.poll_ready(cx)).await.is_ok() {
                tokio::task::yield_now().await;
            }
        }
    }
    let mut call = plane.connect().await.call("/x/y", Some(TOKEN_A)).await;
    assert_eq!(call.next::<DeltaDiscoveryResponse>().await.unwrap_err().0, 12);
    assert!(plane.streams.is_empty());
    check_other(&plane).await;
}

#[tokio::test]
async fn a_node_that_says_that_it_is_another_is_cut() {
    let plane = with_mesh(LIMITS).await;
    let mut stream = plane.stream(TOKEN_A).await;
    stream.send(&DeltaDiscoveryRequest { node: Some(node("node-b")), ..request(ADDRESS) });
    let (code, message) = stream.end().await;
    assert!(code == 7 && message.contains("node-a") && message.contains("node-b"), "{message}");
    check_other(&plane).await;
}

#[tokio::test]
async fn a_node_that_never_answers_is_cut() {
    let plane = with_mesh(Limits { answer_within: Duration::from_millis(200), ..LIMITS }).await;
    let mut stream = plane.stream(TOKEN_A).await;
    stream.subscribe(ADDRESS);
    let (_, names) = stream.response(ADDRESS).await;
    assert_eq!(names, "Kubernetes//Pod/demo/a");
    let (code, message) = stream.end().await;
    assert!(code == 4 && message.contains("Address"), "{message}");
    assert_eq!(plane.count("ztunnel_xds_cut_total{reason=\"no_answer\"}"), 1);
    check_other(&plane).await;
}

#[tokio::test]
async fn a_node_that_never_reads_is_cut() {
    let plane = with_large_mesh(Limits { read_within: Duration::from_millis(200), ..LIMITS }).await;
    let mut stream = plane.stream(TOKEN_A).await;
    stream.subscribe(ADDRESS);
    cut(&plane, "slow_reader").await;
    while !plane.streams.is_empty() {
        tokio::task::yield_now().await;
    }
    check_other(&plane).await;
}

#[tokio::test]
async fn large_responses_take_turns_and_small_ones_do_not_wait() {
    let plane = with_large_mesh(Limits { large_responses: (64 << 10, 1), ..LIMITS }).await;
    // This stream has the only permit for a large response, and does not read.
    let mut silent = plane.stream(TOKEN_A).await;
    silent.subscribe(ADDRESS);
    while plane.streams.shown().first().is_none_or(|stream| stream.types.is_empty()) {
        tokio::task::yield_now().await;
    }
    let mut named = plane.stream(TOKEN_B).await;
    let names = vec!["/10.0.0.1".to_owned()];
    named.send(&DeltaDiscoveryRequest { resource_names_subscribe: names, ..request(ADDRESS) });
    assert_eq!(named.response(ADDRESS).await.1, "Kubernetes//Pod/demo/a");
    let mut waiting = plane.stream(TOKEN_B).await;
    waiting.send(&request(ADDRESS));
    drop(silent);
    assert!(waiting.response(ADDRESS).await.1.contains("Kubernetes//Pod/demo/a"));
}

#[tokio::test]
async fn a_node_has_so_many_streams_and_no_more() {
    let plane = with_mesh(LIMITS).await;
    let mut streams = Vec::new();
    for _ in 0..LIMITS.streams_per_node {
        let mut stream = plane.stream(TOKEN_A).await;
        stream.subscribe(ADDRESS);
        stream.response(ADDRESS).await;
        streams.push(stream);
    }
    let (code, message) = plane.stream(TOKEN_A).await.end().await;
    assert!(code == 8 && message.contains("node-a"), "{message}");
    check_other(&plane).await;
    drop(streams.pop());
    while plane.streams.len() >= LIMITS.streams_per_node {
        tokio::task::yield_now().await;
    }
    let mut stream = plane.stream(TOKEN_A).await;
    stream.subscribe(ADDRESS);
    stream.response(ADDRESS).await;
}

#[tokio::test]
async fn a_node_that_opens_streams_again_and_again_has_to_wait() {
    let plane = with_mesh(Limits { stream_quota: (3, Duration::from_secs(3600)), ..LIMITS }).await;
    for _ in 0..3 {
        let mut stream = plane.stream(TOKEN_A).await;
        stream.subscribe(ADDRESS);
        stream.response(ADDRESS).await;
    }
    let (code, message) = plane.stream(TOKEN_A).await.end().await;
    assert!(code == 8 && message.contains("try again in"), "{message}");
    check_other(&plane).await;
}

#[tokio::test]
async fn messages_beyond_all_bounds_end_the_stream() {
    let plane = with_mesh(LIMITS).await;
    let expect = async |what: &str, code: u16, send: &dyn Fn(&mut Call)| {
        let mut stream = plane.stream(TOKEN_A).await;
        send(&mut stream);
        let ended = stream.end().await;
        assert_eq!(ended.0, code, "{what}: {}", ended.1);
    };
    expect("compressed", 12, &|stream| stream.send_raw(1, &[])).await;
    expect("garbage", 3, &|stream| stream.send_raw(0, &[0xff; 100])).await;
    expect("a long name", 8, &|stream| {
        stream.send(&DeltaDiscoveryRequest { resource_names_subscribe: vec!["n".repeat(2000)], ..request(ADDRESS) });
    })
    .await;
    expect("many names", 8, &|stream| {
        let names = (0..60_000).map(|name| name.to_string()).collect();
        stream.send(&DeltaDiscoveryRequest { resource_names_subscribe: names, ..request(ADDRESS) });
    })
    .await;
    expect("4 GiB", 8, &|stream| {
        let prefix = Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff]);
        stream.send.send_data(prefix, false).unwrap();
    })
    .await;
    expect("an end within a message", 3, &|stream| {
        stream.send.send_data(Bytes::from_static(&[0, 0, 0, 0, 9, 1]), true).unwrap();
    })
    .await;
    assert!(plane.streams.is_empty());
    check_other(&plane).await;
}

#[tokio::test]
async fn a_message_that_never_ends_is_cut() {
    let plane = with_mesh(Limits { request_within: Duration::from_millis(200), ..LIMITS }).await;
    for length in [5, 100_000_u32] {
        let mut stream = plane.stream(TOKEN_A).await;
        let mut start = vec![0];
        start.extend(length.to_be_bytes());
        start.push(1);
        stream.send.send_data(start.into(), false).unwrap();
        assert_eq!(stream.end().await.0, 4);
    }
    check_other(&plane).await;
}

#[tokio::test]
async fn a_connection_without_a_call_is_closed() {
    let plane = with_mesh(Limits { idle: Duration::from_millis(100), ..LIMITS }).await;
    let mut connection = plane.connect().await;
    while std::future::poll_fn(|cx| connection.sender.poll_ready(cx)).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(plane.count("ztunnel_xds_cut_total{reason=\"idle\"}"), 1);
    check_other(&plane).await;
}

#[tokio::test]
async fn one_address_takes_so_many_connections_and_no_more() {
    let plane = with_mesh(Limits { connections_per_address: 2, ..LIMITS }).await;
    let first = [plane.connect().await, plane.connect().await];
    let mut more = TcpStream::connect(plane.addr).await.unwrap();
    let read = tokio::io::AsyncReadExt::read(&mut more, &mut [0; 1]).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    drop(first);
}

#[tokio::test]
async fn the_stream_of_a_token_that_is_taken_away_is_ended() {
    let plane = with_mesh(LIMITS).await;
    let mut stream = plane.stream(TOKEN_A).await;
    stream.subscribe(ADDRESS);
    let (response, _) = stream.response(ADDRESS).await;
    stream.ack(&response);
    write_token(&plane.tokens(), "node-a", "cccccccccccccccccccccccccccccccccccc");
    let (code, message) = stream.end().await;
    assert!(code == 16 && message.contains("token"), "{message}");
    check_other(&plane).await;
}
