//! A user who may write a Pod may name any network namespace and any address in it. That does not make them the pod's.

use std::time::Duration;

use super::nodes::{MESH, World};
use crate::pods::describe::PodState;

/// A pod that sorts before the others, so that it is handled first.
fn thief(annotation: &str, address: &str) -> String {
    format!(
        "
---
apiVersion: v1
kind: Pod
metadata:
  name: thief
  namespace: attacker
  labels: {{istio.io/dataplane-mode: ambient}}
  annotations: {{{annotation}}}
spec: {{nodeName: b, serviceAccountName: thief, containers: []}}
status: {{podIPs: [{{ip: {address}}}]}}
"
    )
}

/// Checks that the thief is refused, and that the reason has all of these words.
async fn refused(world: &World, pod: &str, words: &[&str]) {
    let found = world.pod("b", pod).await;
    let reason = found.reason.unwrap_or_default();
    assert_eq!(found.state, PodState::Refused, "{pod}: {reason}");
    for word in words {
        assert!(reason.contains(word), "{pod}: {reason:?} without {word:?}");
    }
}

async fn web_keeps_its_namespace(world: &World) {
    let web = world.pod("b", "web").await;
    assert_eq!((web.state, web.reason), (PodState::Enrolled, None));
    assert_eq!(web.identity.as_deref(), Some("spiffe://cluster.local/ns/default/sa/web"));
    assert_eq!(web.netns.as_deref(), Some("/n/web"));
}

#[tokio::test(start_paused = true)]
async fn serve_an_enrolled_pod_under_the_identity_of_a_thief_at_once_or_after_a_restart() {
    crate::hbone::tests::local(async {
        let mut world = World::new().await;
        world.network.alias("/n/web", "/n/alias");
        // With the pod's address, and with the path of the pod, or another path to the same namespace.
        for path in ["/n/web", "/n/alias"] {
            let stolen = format!("{MESH}{}", thief(&format!("ambient.mesh/netns: {path}"), "10.0.0.2"));
            world.publish_with_problems(&stolen).await;
            refused(&world, "thief", &["pod attacker/thief", path, "pod default/web", "ambient.mesh/netns"]).await;
            web_keeps_its_namespace(&world).await;

            world.restart("b");
            world.publish_with_problems(&stolen).await;
            refused(&world, "thief", &["pod attacker/thief", path, "pod default/web", "ambient.mesh/netns"]).await;
            web_keeps_its_namespace(&world).await;
            world.publish(MESH).await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn capture_a_pod_outside_of_the_mesh() {
    crate::hbone::tests::local(async {
        let world = World::new().await;
        world.network.alias("/n/guest", "/n/alias");
        let annotated = MESH.replace("{name: guest}", "{name: guest, annotations: {ambient.mesh/netns: /n/guest}}");
        for (mesh, words) in [
            // The other pod is known by its path or, if its manifest names none, by its address.
            (&*annotated, ["pod default/guest names the same network namespace", "ambient.mesh/netns"]),
            (MESH, ["10.0.0.3 is claimed by", "default/guest"]),
        ] {
            let stolen = format!("{mesh}{}", thief("ambient.mesh/netns: /n/alias", "10.0.0.3"));
            world.publish_with_problems(&stolen).await;
            refused(&world, "thief", &words).await;
            assert!(!world.network.is_captured("/n/guest"));
            tokio::time::sleep(Duration::from_secs(40)).await;
            refused(&world, "thief", &words).await;
            assert!(!world.network.is_captured("/n/guest"), "nor when it is tried again");
            world.publish(MESH).await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn have_a_namespace_that_another_pod_names_as_well_when_nobody_is_on_record() {
    crate::hbone::tests::local(async {
        let world = World::empty();
        world.network.alias("/n/web", "/n/alias");
        let stolen = format!("{MESH}{}", thief("ambient.mesh/netns: /n/alias", "10.0.0.2"));
        world.publish_with_problems(&stolen).await;
        refused(&world, "thief", &["/n/alias", "pod default/web names the same network namespace"]).await;
        refused(&world, "web", &["/n/web", "pod attacker/thief names the same network namespace"]).await;
        assert!(!world.network.is_captured("/n/web"));

        world.publish(MESH).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        web_keeps_its_namespace(&world).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn add_the_address_of_another_pod_to_an_own_namespace() {
    crate::hbone::tests::local(async {
        let world = World::new().await;
        world.network.readdress("/n/web", &["10.0.0.2", "10.0.0.3"]);
        let more = MESH.replace("podIPs: [{ip: 10.0.0.2}]", "podIPs: [{ip: 10.0.0.2}, {ip: 10.0.0.3}]");
        assert_ne!(world.publish_with_problems(&more).await, []);
        refused(&world, "web", &["10.0.0.3 is claimed by", "default/guest"]).await;
        assert!(world.pod("b", "web").await.captured, "it stays closed");
        world.publish(MESH).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        web_keeps_its_namespace(&world).await;
    })
    .await;
}

/// The opposite case: a pod that claims the address of another pod can't cause the other pod to be closed at the next
/// restart.
#[tokio::test(start_paused = true)]
async fn close_an_enrolled_pod_by_claiming_its_address() {
    crate::hbone::tests::local(async {
        let mut world = World::new().await;
        let claimed = format!("{MESH}{}", thief("x: y", "10.0.0.2"));
        assert_ne!(world.publish_with_problems(&claimed).await, []);
        web_keeps_its_namespace(&world).await;
        world.restart("b");
        world.publish_with_problems(&claimed).await;
        web_keeps_its_namespace(&world).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_namespace_goes_on_to_another_pod_when_its_own_is_gone() {
    crate::hbone::tests::local(async {
        let mut world = World::new().await;
        world.restart("b");
        let renamed = MESH.replace("name: web\n  labels", "name: successor\n  labels");
        assert_ne!(renamed, MESH);
        world.publish(&renamed).await;
        let successor = world.pod("b", "successor").await;
        assert_eq!((successor.state, successor.reason), (PodState::Enrolled, None));
    })
    .await;
}
