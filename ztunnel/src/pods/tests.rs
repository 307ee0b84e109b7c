//! Two whole nodes in one process, without root. Everything except the kernel's part is the code of the daemon.

mod connections;
mod handover;
mod held;
mod held_client;
mod kernel;
mod left_alone;
mod network;
mod nodes;
mod outage;
mod thefts;
mod tunnels;

use std::{collections::BTreeMap, io::ErrorKind, pin::pin, time::Duration};

use futures_util::{FutureExt as _, poll};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use self::nodes::{MESH, Via, World, echo, eventually, is_reset};
use super::describe::PodState;
use crate::hbone::tests::local;

/// The server's application, its service, and the guest's application.
const WEB: &str = "10.0.0.2:8080";
const SERVICE: &str = "10.96.0.1:80";
const GUEST: &str = "10.0.0.3:8080";

const DENY_CLIENT: &str = "
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-client}
spec: {action: DENY, rules: [{from: [{source: {serviceAccounts: [default/client]}}]}]}
";
const ALLOW_GUEST: &str = "
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow-guest}
spec: {rules: [{from: [{source: {ipBlocks: [10.0.0.3]}}]}]}
";
const DENY_ALL: &str = "
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-all}
spec: {}
";

#[tokio::test]
async fn a_pod_is_enrolled_connects_is_cut_by_policy_and_is_released() {
    for via in Via::ALL {
        local(async {
            let world = World::via(via).await;
            let web = world.network.listen(WEB).await;
            let mut client = world.network.connect("10.0.0.1", SERVICE).await.unwrap();
            let (mut server, _) = web.accept().await.unwrap();
            echo(&mut client, &mut server).await;
            assert_eq!(
                world.network.client(&server).ip().to_string(),
                "10.0.0.1",
                "the server sees its client's address"
            );
            let [near] = &world.pod("a", "client").await.connections[..] else { panic!("not one connection") };
            assert_eq!((&*near.direction, &*near.protocol, &*near.dst), ("outbound", "HBONE", SERVICE));
            assert_eq!((near.service.as_deref(), near.actual_dst.as_deref()), (Some("default/web"), Some(WEB)));
            assert_eq!(near.peer_identity.as_deref(), Some("spiffe://cluster.local/ns/default/sa/web"));
            let [far] = &world.pod("b", "web").await.connections[..] else { panic!("not one connection") };
            assert_eq!((&*far.direction, &*far.protocol, far.bytes_received), ("inbound", "HBONE", 10));
            assert_eq!(far.peer_identity.as_deref(), Some("spiffe://cluster.local/ns/default/sa/client"));

            world.publish(&format!("{MESH}{DENY_CLIENT}")).await;
            assert!(is_reset(&mut client).await && is_reset(&mut server).await);
            eventually("the end is counted", async || !world.node("b").closed().is_empty()).await;
            assert_eq!(world.node("b").closed(), [("inbound policy_changed".to_owned(), 1)].into());
            let mut refused = world.network.connect("10.0.0.1", WEB).await.unwrap();
            assert!(is_reset(&mut refused).await);

            world.publish(&MESH.replace("istio.io/dataplane-mode: ambient}", "istio.io/dataplane-mode: none}")).await;
            assert!(!world.network.is_captured("/n/client"));
            let _direct = world.network.connect("10.0.0.1", WEB).await.unwrap();
            let tunnels = world.network.tunnels();
            let (server, _) = web.accept().await.unwrap();
            assert_eq!((world.network.client(&server).ip().to_string().as_str(), tunnels), ("10.0.0.1", 1));
        })
        .await;
    }
}

#[tokio::test]
async fn a_node_is_not_ready_while_nobody_serves_a_pod_whose_listener_was_closed() {
    local(async {
        let world = World::empty();
        world.network.keep_listeners();
        world.publish(MESH).await;
        let (web, node) = (world.network.listen(WEB).await, world.node("a"));
        assert_eq!(node.pending(), None);
        world.network.stall();
        world.network.close_listeners("/n/client");
        eventually("the pod is enrolled anew", async || world.network.stalled() > 0).await;
        assert!(node.pending().is_some_and(|why| why.contains("listeners")), "{:?}", node.pending());
        world.network.go_on();
        eventually("the node is ready", async || node.pending().is_none()).await;
        assert_eq!(world.pod("a", "client").await.state, PodState::Enrolled);
        let mut client = world.network.connect("10.0.0.1", WEB).await.unwrap();
        echo(&mut client, &mut web.accept().await.unwrap().0).await;
    })
    .await;
}

/// The daemon was started with another `--state`.
#[tokio::test]
async fn a_pod_that_was_captured_without_a_record_is_not_opened_when_it_can_not_be_served() {
    local(async {
        let mut world = World::new().await;
        world.network.forget_records();
        world.network.readdress("/n/client", &["10.0.0.77"]);
        world.restart("a");
        world.publish(MESH).await;
        let client = world.pod("a", "client").await;
        assert_eq!((client.state, client.captured), (PodState::Refused, true), "{client:?}");
        assert!(world.network.is_captured("/n/client"), "the pod is open");
        world.network.readdress("/n/client", &["10.0.0.1"]);
        eventually("the pod is enrolled", async || world.pod("a", "client").await.state == PodState::Enrolled).await;
        // A namespace that can belong to no pod of the mesh is released, as with a record.
        world.network.forget_records();
        world.restart("a");
        world.publish(&MESH.replace("istio.io/dataplane-mode: ambient}", "istio.io/dataplane-mode: none}")).await;
        assert!(!world.network.is_captured("/n/client"));
    })
    .await;
}

#[tokio::test]
async fn a_pod_that_another_installation_captures_after_its_enrolment_is_refused_with_the_reason() {
    local(async {
        let world = World::new().await;
        world.network.take_over("/n/client", true);
        let refused = async || world.pod("a", "client").await.state == PodState::Refused;
        eventually("the pod is refused", refused).await;
        let client = world.pod("a", "client").await;
        assert!(client.reason.is_some_and(|reason| reason.contains("another installation of ztunnel")));
        world.network.take_over("/n/client", false);
        eventually("the pod is enrolled", async || world.pod("a", "client").await.state == PodState::Enrolled).await;
    })
    .await;
}

/// A pod with CAP_NET_ADMIN can make as many routes as it likes.
#[tokio::test]
async fn a_pod_whose_namespace_keeps_the_kernel_busy_holds_no_other_up() {
    local(async {
        let world = World::new().await;
        world.network.keep_busy("/n/client");
        eventually("the daemon waits for the kernel", async || world.network.waiting() > 0).await;
        let guest = MESH
            .replace(
                "name: guest}",
                "name: guest, labels: {istio.io/dataplane-mode: ambient}, annotations: {ambient.mesh/netns: /n/guest}}",
            )
            .replace("nodeName: b, serviceAccountName: guest", "nodeName: a, serviceAccountName: guest");
        world.publish(&guest).await;
        assert_eq!(world.pod("a", "guest").await.state, PodState::Enrolled);
        // The pod is also released, although the kernel has not answered.
        world.publish(&guest.replacen("istio.io/dataplane-mode: ambient", "istio.io/dataplane-mode: none", 1)).await;
        assert!(!world.network.is_captured("/n/client") && world.network.is_captured("/n/guest"));
    })
    .await;
}

/// The mesh requires HBONE from other nodes, but the pod's own node cannot serve it.
#[tokio::test]
async fn a_pod_without_a_known_namespace_is_refused_and_never_reached_in_plaintext() {
    local(async {
        let world = World::empty();
        world.publish(&MESH.replace("annotations: {ambient.mesh/netns: /n/web}", "annotations: {}")).await;
        let web = world.pod("b", "web").await;
        assert_eq!((web.state, web.captured), (PodState::Refused, false));
        assert!(web.reason.unwrap().starts_with("the pod's network namespace is not known"));
        let application = world.network.listen(WEB).await;
        let mut client = world.network.connect("10.0.0.1", WEB).await.unwrap();
        assert!(is_reset(&mut client).await);
        assert_eq!(world.node("a").closed(), [("outbound connect_refused".to_owned(), 1)].into());
        let nobody = futures_util::future::FutureExt::now_or_never(application.accept());
        assert!(nobody.is_none(), "the application saw {nobody:?}");

        // With the annotation the pod is enrolled. Nothing else is needed.
        world.publish(MESH).await;
        let mut client = world.network.connect("10.0.0.1", WEB).await.unwrap();
        echo(&mut client, &mut application.accept().await.unwrap().0).await;
    })
    .await;
}

#[tokio::test]
async fn a_node_is_not_ready_before_it_has_the_facts_of_its_own_pods() {
    local(async {
        let world = World::empty();
        assert_eq!(world.node("a").pending(), Some("mesh"));
        world.publish_without_local_facts(MESH);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(world.node("a").pending(), Some("local facts of the pods"));
        assert!(world.node("a").describe().await.pods.is_empty(), "nothing is concluded from what is not known yet");
        world.publish(MESH).await;
        assert_eq!(world.node("a").pending(), None);
    })
    .await;
}

#[tokio::test]
async fn a_node_of_another_name_than_the_meshs_is_told_which_one_it_may_be() {
    local(async {
        let world = World::new().await;
        assert_eq!(world.node("b").describe().await.unknown_node, None);
        world.publish(&MESH.replace("nodeName: b", "nodeName: b.internal")).await;
        let unknown = world.node("b").describe().await.unknown_node.unwrap();
        assert!(unknown.contains("\"b\"") && unknown.contains("--node"), "{unknown}");
        // A Node without pods is enough.
        let node = "---\napiVersion: v1\nkind: Node\nmetadata: {name: b}\n";
        world.publish(&format!("{}{node}", MESH.replace("nodeName: b", "nodeName: b.internal"))).await;
        assert_eq!(world.node("b").describe().await.unknown_node, None);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_node_is_not_ready_while_what_captures_is_gone() {
    local(async {
        let world = World::new().await;
        assert_eq!(world.node("a").pending(), None);
        for gone in [true, false] {
            world.network.unhook(gone);
            // The manager checks this every second.
            tokio::time::sleep(Duration::from_secs(2)).await;
            let pending = world.node("a").pending();
            assert_eq!(pending.is_some_and(|pending| pending.contains("BPF links")), gone, "{pending:?}");
            assert_eq!(world.node("b").pending().is_some(), gone, "both have the same kernel here");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_loses_its_namespace_is_closed_until_it_is_back() {
    local(async {
        let world = World::new().await;
        let web = world.network.listen(WEB).await;
        let mut client = world.network.connect("10.0.0.1", WEB).await.unwrap();
        let (mut server, _) = web.accept().await.unwrap();
        echo(&mut client, &mut server).await;
        world.network.unmount("/n/client");
        // The manager checks the namespaces every second.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let closed = world.pod("a", "client").await;
        assert_eq!((closed.state, closed.captured), (PodState::Refused, true));
        assert!(closed.reason.unwrap().starts_with("cannot open network namespace /n/client"));
        assert!(is_reset(&mut client).await && is_reset(&mut server).await);
        for to in [WEB, GUEST] {
            let error = world.network.connect("10.0.0.1", to).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "nothing gets out of a closed pod");
        }
        world.publish(&MESH.replace("/n/client", "/n/elsewhere")).await;
        assert_eq!(world.pod("a", "client").await.state, PodState::Refused);
        assert!(world.network.is_captured_anywhere("default/client"), "only the label opens it");
    })
    .await;
}

#[tokio::test]
async fn no_policy_is_enforced_at_an_excluded_port_and_the_tunnel_leads_there_all_the_same() {
    const EXCLUDE: &str = "{ambient.mesh/netns: /n/web, traffic.ambient.mesh/exclude-inbound-ports: '8080'}";
    local(async {
        let world = World::empty();
        let excluded = format!("{MESH}{DENY_ALL}").replace("{ambient.mesh/netns: /n/web}", EXCLUDE);
        world.publish(&excluded).await;
        let web = world.network.listen(WEB).await;
        let mut client = world.network.connect("10.0.0.1", WEB).await.unwrap();
        let (mut server, _) = web.accept().await.unwrap();
        echo(&mut client, &mut server).await;
        assert_eq!(world.network.tunnels(), 1);
        let mut plain = world.network.connect("10.0.0.3", WEB).await.unwrap();
        let (mut direct, _) = web.accept().await.unwrap();
        echo(&mut plain, &mut direct).await;
        // As soon as the traffic is not excluded any more, policy decides about the connections through the daemon.
        world.publish(&format!("{MESH}{DENY_ALL}")).await;
        assert!(is_reset(&mut client).await && is_reset(&mut server).await);
        echo(&mut plain, &mut direct).await;
    })
    .await;
}

/// Probes are recognised by their socket on the node, not by an address, and by the port, which may change at any time.
#[tokio::test]
async fn the_kubelet_gets_through_where_a_probe_is_and_nobody_else_does() {
    const STRICT: &str = "
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
";
    const NODE: &str = "192.168.0.2";
    local(async {
        let world = World::empty();
        let strict = format!("{MESH}{STRICT}");
        let probe = "containers: [{name: c, livenessProbe: {tcpSocket: {port: 8080}}}]";
        world.publish(&strict.replace("containers: []", probe)).await;
        let web = world.network.listen(WEB).await;
        // The recheck after the publication may cut a probe that is not known as a probe yet. The kubelet tries again.
        eventually("a probe gets through", async || {
            let mut kubelet = world.network.connect_from_node(NODE, WEB).await.unwrap();
            let mut heard = [0; 5];
            let asked = async {
                kubelet.write_all(b"alive").await?;
                let (mut probed, _) = web.accept().await?;
                probed.read_exact(&mut heard).await?;
                probed.write_all(b"sound").await?;
                kubelet.read_exact(&mut [0; 5]).await
            };
            tokio::time::timeout(Duration::from_secs(1), asked).await.is_ok_and(|asked| asked.is_ok())
        })
        .await;
        let mut liar = world.network.connect_from_outside(NODE, WEB).await.unwrap();
        assert!(is_reset(&mut liar).await);
        assert_eq!(world.node("b").closed().get("inbound denied"), Some(&1));

        world.publish(&strict).await;
        let mut kubelet = world.network.connect_from_node(NODE, WEB).await.unwrap();
        assert!(is_reset(&mut kubelet).await, "it has no probe there any more");
    })
    .await;
}

/// A pod may keep the manager busy for long. Meanwhile metrics show the last report.
#[tokio::test]
async fn the_last_report_is_there_while_the_manager_is_blocked_by_a_pod() {
    local(async {
        let world = World::new().await;
        // Each answer of the manager comes with a report.
        let _now = world.node("b").describe().await;
        world.network.stall();
        let guest = "metadata: {name: guest}";
        let ambient = "metadata: {name: guest, labels: {istio.io/dataplane-mode: ambient}, annotations: {ambient.mesh/netns: /n/guest}}";
        assert!(MESH.contains(guest));
        let mesh = MESH.replace(guest, ambient);
        let mut published = pin!(world.publish(&mesh));
        eventually("the guest's enrolment waits", async || {
            poll!(published.as_mut()).is_pending() && world.network.stalled() == 1
        })
        .await;
        assert!(world.node("b").describe().now_or_never().is_none(), "the manager is not blocked");
        let named = |node: &str| -> Vec<(String, PodState)> {
            world.node(node).status().pods.iter().map(|pod| (pod.name.to_string(), pod.state)).collect()
        };
        assert_eq!(named("b"), [("default/web".to_owned(), PodState::Enrolled)]);
        world.network.go_on();
        published.await;
        let _now = world.node("b").describe().await;
        assert_eq!(named("b").len(), 2);
    })
    .await;
}

/// For Prometheus, a series that begins with 1 has not increased.
#[tokio::test]
async fn policies_have_series_before_they_decide_anything() {
    local(async {
        let world = World::new().await;
        let mesh = format!("{MESH}{DENY_CLIENT}{ALLOW_GUEST}");
        world.publish(&mesh).await;
        let of = |node: &str| -> BTreeMap<String, u64> { world.node(node).series("ztunnel_policy_decisions_total") };
        eventually("the series of the policies", async || of("b").len() == 4).await;
        let zero = |names: [&str; 4]| names.map(|name| (name.to_owned(), 0));
        let expected = zero([
            "AuthorizationPolicy default deny-client denied",
            "AuthorizationPolicy default deny-client cut",
            "none default  denied",
            "none default  cut",
        ]);
        assert_eq!(of("b"), expected.clone().into());
        assert_eq!(of("a"), expected.into(), "node a has a pod of the namespace as well");
        world.publish(MESH).await;
        eventually("the policy's series to go", async || of("b").keys().all(|name| name.starts_with("none"))).await;
    })
    .await;
}
