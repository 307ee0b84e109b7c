//! Nodes that follow the rules.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

#[tokio::test]
async fn a_node_gets_the_mesh_and_then_what_changes() {
    let mut plane = Plane::start(LIMITS).await;
    let mut stream = plane.stream(TOKEN_A).await;
    // No node is answered before there is a mesh.
    TYPES.iter().for_each(|type_url| stream.subscribe(type_url));
    plane.says("a", &[&pod("a", "node-a", "10.0.0.1"), &pod("b", "node-b", "10.0.0.2")]);
    let mut first = BTreeMap::new();
    for _ in TYPES {
        let response: DeltaDiscoveryResponse = stream.next().await.unwrap();
        stream.ack(&response);
        let names: Vec<String> = response.resources.iter().map(|resource| resource.name.clone()).collect();
        first.insert(response.type_url, names.len());
    }
    assert_eq!(first, [(ADDRESS.to_owned(), 2), (AUTHORIZATION.to_owned(), 0)].into());
    plane.says("p", &[POLICY]);
    let (policy, names) = stream.response(AUTHORIZATION).await;
    assert_eq!(names, "demo/p");
    stream.ack(&policy);
    let (address, names) = stream.response(ADDRESS).await;
    assert_eq!(names, "Kubernetes//Pod/demo/a");
    stream.nack(&address, "Kubernetes//Pod/demo/a: broken");
    // A response that the node could not use is recorded. The node still gets later changes.
    plane.says("a", &[&pod("a", "node-a", "10.0.0.1")]);
    let (address, names) = stream.response(ADDRESS).await;
    assert_eq!(names, "-Kubernetes//Pod/demo/b");
    let shown = serde_json::to_value(plane.streams.shown()).unwrap();
    assert_eq!((shown[0]["node"].as_str(), shown[1].as_str()), (Some("node-a"), None));
    assert_eq!(shown[0]["types"]["Address"]["wants"], "all");
    assert_eq!(shown[0]["types"]["Address"]["rejected"]["reason"], "Kubernetes//Pod/demo/a: broken");
    assert!(shown[0]["client"].as_str().unwrap().starts_with("ztunnel~10.0.0.1~"));
    stream.ack(&address);
    plane.says("p", &[]);
    let (_, names) = stream.response(ADDRESS).await;
    assert_eq!(names, "Kubernetes//Pod/demo/a");
    assert_eq!(plane.count("ztunnel_xds_rejected_total{type=\"Address\"}"), 1);
    assert!(plane.count("ztunnel_xds_accepted_total{type=\"Authorization\"}") >= 1);
    // The node ends the stream.
    drop(stream);
    while !plane.streams.is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_node_that_comes_back_gets_what_it_lacks() {
    let mut plane = Plane::start(LIMITS).await;
    plane.says("a", &[&pod("a", "node-a", "10.0.0.1"), &pod("b", "node-b", "10.0.0.2")]);
    let mut stream = plane.stream(TOKEN_A).await;
    stream.subscribe(ADDRESS);
    let (response, _) = stream.response(ADDRESS).await;
    let known: BTreeMap<String, String> =
        response.resources.iter().map(|resource| (resource.name.clone(), resource.version.clone())).collect();
    drop(stream);
    plane.says("a", &[&pod("a", "node-a", "10.0.0.1"), &pod("c", "node-b", "10.0.0.3")]);
    let mut other = plane.stream(TOKEN_B).await;
    other.send(&request(ADDRESS));
    // The catalogue has the change once another node gets it.
    loop {
        let (response, names) = other.response(ADDRESS).await;
        other.ack(&response);
        if names.contains("demo/c") {
            break;
        }
    }
    let mut stream = plane.stream(TOKEN_A).await;
    stream.send(&DeltaDiscoveryRequest { initial_resource_versions: known, ..request(ADDRESS) });
    let (_, names) = stream.response(ADDRESS).await;
    assert_eq!(names, "-Kubernetes//Pod/demo/b Kubernetes//Pod/demo/c");
}

#[tokio::test]
async fn a_node_that_asks_on_demand_gets_what_it_names() {
    let mut plane = Plane::start(LIMITS).await;
    plane.says("a", &[&pod("a", "node-a", "10.0.0.1"), &pod("b", "node-b", "10.0.0.2")]);
    let mut stream = plane.stream(TOKEN_A).await;
    let star = vec!["*".to_owned()];
    stream.send(&DeltaDiscoveryRequest {
        resource_names_subscribe: star.clone(),
        resource_names_unsubscribe: star,
        ..request(ADDRESS)
    });
    let on = |name: &str| DeltaDiscoveryRequest { resource_names_subscribe: vec![name.to_owned()], ..request(ADDRESS) };
    stream.send(&on("/10.0.0.2"));
    let (response, names) = stream.response(ADDRESS).await;
    assert_eq!(
        (names.as_str(), response.resources[0].aliases.as_slice()),
        ("Kubernetes//Pod/demo/b", &["/10.0.0.2".to_owned()][..])
    );
    stream.ack(&response);
    stream.send(&on("/10.0.0.9"));
    let (response, names) = stream.response(ADDRESS).await;
    assert_eq!(names, "-/10.0.0.9");
    stream.ack(&response);
    plane.says("a", &[&pod("a", "node-a", "10.0.0.9"), &pod("b", "node-b", "10.0.0.2")]);
    assert_eq!(stream.response(ADDRESS).await.1, "Kubernetes//Pod/demo/a");
}

#[tokio::test]
async fn types_that_are_not_served_are_passed_over() {
    let mut plane = Plane::start(LIMITS).await;
    plane.says("a", &[&pod("a", "node-a", "10.0.0.1")]);
    let mut stream = plane.stream(TOKEN_A).await;
    stream.send(&request("type.googleapis.com/envoy.config.listener.v3.Listener"));
    stream.subscribe(ADDRESS);
    assert_eq!(stream.response(ADDRESS).await.1, "Kubernetes//Pod/demo/a");
}

#[tokio::test]
async fn who_serves_ends_every_stream_in_order_when_it_is_told_to_stop() {
    let mut plane = Plane::start(LIMITS).await;
    plane.says("a", &[&pod("a", "node-a", "10.0.0.1")]);
    let mut streams = [plane.stream(TOKEN_A).await, plane.stream(TOKEN_B).await];
    for stream in &mut streams {
        stream.send(&request(ADDRESS));
        stream.response(ADDRESS).await;
    }
    plane.trigger.start();
    for stream in &mut streams {
        assert_eq!(stream.end().await, (14, "transport is closing".to_owned()));
    }
    drop(streams);
    plane.serving.join_all().await;
    assert!(plane.streams.is_empty());
    assert!(TcpStream::connect(plane.addr).await.is_err());
}

/// Control planes are restarted one after the other while pods come and go. A node gets the differences, and misses
/// nothing.
#[tokio::test]
async fn a_node_that_goes_from_replica_to_replica_gets_what_differs_and_misses_nothing() {
    const PODS: usize = 40;
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    let mut addresses: BTreeMap<usize, String> =
        (0..PODS).map(|number| (number, format!("10.0.0.{}", number + 1))).collect();
    let uid = |number: usize| format!("Kubernetes//Pod/demo/p{number}");
    for round in 0..6 {
        // Every replica is a new process. Replicas share nothing but the content of the mesh.
        let mut plane = Plane::start(LIMITS).await;
        let (moved, gone) = (round * 2, PODS - 1 - round);
        addresses.insert(moved, format!("10.1.{round}.1"));
        addresses.remove(&gone);
        let say = |plane: &mut Plane, addresses: &BTreeMap<usize, String>| {
            let pods = addresses.iter().map(|(number, address)| pod(&format!("p{number}"), "node-b", address));
            let pods: Vec<String> = pods.collect();
            plane.says("pods", &pods.iter().map(String::as_str).collect::<Vec<_>>());
        };
        say(&mut plane, &addresses);
        let mut stream = plane.stream(TOKEN_A).await;
        stream.send(&DeltaDiscoveryRequest { initial_resource_versions: known.clone(), ..request(ADDRESS) });
        let (first, names) = stream.response(ADDRESS).await;
        match round {
            0 => assert_eq!(first.resources.len(), PODS - 1),
            _ => assert_eq!(names, [format!("-{}", uid(gone)), uid(moved)].join(" "), "in round {round}"),
        }
        stream.ack(&first);
        // One more change while the node is connected to this replica.
        addresses.insert(moved + 1, format!("10.2.{round}.1"));
        say(&mut plane, &addresses);
        let (second, names) = stream.response(ADDRESS).await;
        assert_eq!(names, uid(moved + 1));
        for response in [first, second] {
            known.extend(response.resources.into_iter().map(|resource| (resource.name, resource.version)));
            response.removed_resources.iter().for_each(|name| drop(known.remove(name)));
        }
        assert_eq!(known.keys().cloned().collect::<BTreeSet<_>>(), addresses.keys().map(|it| uid(*it)).collect());
    }
    // A node that connects for the first time gets the same resources.
    let mut plane = Plane::start(LIMITS).await;
    let pods: Vec<String> = addresses.iter().map(|(it, address)| pod(&format!("p{it}"), "node-b", address)).collect();
    plane.says("pods", &pods.iter().map(String::as_str).collect::<Vec<_>>());
    let mut stream = plane.stream(TOKEN_A).await;
    stream.subscribe(ADDRESS);
    let (all, _) = stream.response(ADDRESS).await;
    let all: BTreeMap<String, String> = all.resources.into_iter().map(|it| (it.name, it.version)).collect();
    assert_eq!(known, all);
}
