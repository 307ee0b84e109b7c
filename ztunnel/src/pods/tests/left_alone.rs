//! Pods whose traffic is not captured, in both directions or in one.

use super::{
    DENY_ALL, WEB,
    nodes::{MESH, World, echo, eventually, is_reset},
};
use crate::{hbone::tests::local, pods::describe::PodState};

const NETNS: &str = "{ambient.mesh/netns: /n/web}";

/// The mesh, with one more annotation of `web`.
fn with(annotation: &str) -> String {
    let annotated = MESH.replace(NETNS, &format!("{{ambient.mesh/netns: /n/web, {annotation}}}"));
    assert_ne!(annotated, MESH);
    annotated
}

#[tokio::test]
async fn a_pod_with_a_sidecar_is_released_and_spoken_to_in_plaintext() {
    local(async {
        let world = World::new().await;
        assert!(world.network.is_captured("/n/web"));
        world.publish(&with("sidecar.istio.io/status: '{}'")).await;
        let web = world.pod("b", "web").await;
        assert_eq!((web.state, web.captured), (PodState::Refused, false));
        assert!(web.reason.unwrap().starts_with("the pod has its own sidecar proxy (istio-proxy)"));
        assert!(!world.network.is_captured("/n/web"), "it is not closed");
        let listener = world.network.listen(WEB).await;
        let mut client = world.network.connect("10.0.0.1", WEB).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        echo(&mut client, &mut server).await;
        assert_eq!(world.network.tunnels(), 0);
        world.publish(MESH).await;
        assert_eq!(world.pod("b", "web").await.state, PodState::Enrolled);
    })
    .await;
}

#[tokio::test]
async fn where_inbound_capture_is_bypassed_policy_is_enforced_on_tunnels_only() {
    let bypass = with("ambient.istio.io/bypass-inbound-capture: 'true'");
    local(async {
        let world = World::empty();
        world.publish(&bypass).await;
        let web = world.network.listen(WEB).await;
        let mut client = world.network.connect("10.0.0.1", WEB).await.unwrap();
        let (mut server, _) = web.accept().await.unwrap();
        echo(&mut client, &mut server).await;
        assert_eq!(world.network.tunnels(), 1);
        world.publish(&format!("{bypass}{DENY_ALL}")).await;
        assert!(is_reset(&mut client).await && is_reset(&mut server).await);
        let mut plain = world.network.connect("10.0.0.3", WEB).await.unwrap();
        let (mut direct, _) = web.accept().await.unwrap();
        echo(&mut plain, &mut direct).await;
    })
    .await;
}

#[tokio::test]
async fn a_daemon_that_nobody_follows_gives_every_pod_back() {
    local(async {
        let world = World::new().await;
        let listener = world.network.listen(WEB).await;
        let mut carried = world.network.connect("10.0.0.1", WEB).await.unwrap();
        let (mut accepted, _) = listener.accept().await.unwrap();
        echo(&mut carried, &mut accepted).await;
        assert_eq!(world.network.tunnels(), 1);
        world.node("b").leave();
        // Connections that the daemon carried cannot continue: they were opened inside the mesh.
        assert!(is_reset(&mut accepted).await);
        eventually("web is released", async || !world.network.is_captured("/n/web")).await;
    })
    .await;
}
