//! The manager's side of a handover to another daemon: its effect on pods and connections until the manager has ended.

use tokio::net::TcpStream;

use super::{
    DENY_ALL, WEB,
    nodes::{MESH, World, echo, eventually, is_reset},
};
use crate::{hbone::tests::local, pods::handover::Orders};

/// The mesh without the pod of the server.
fn without_web() -> String {
    let left = MESH.replace("{istio.io/dataplane-mode: ambient, app: web}", "{app: web}");
    assert_ne!(left, MESH);
    left
}

/// The manager of node `b` hands over, while it has a connection. Returns the two applications' ends of the connection.
async fn handed_over(world: &World) -> (Orders, TcpStream, TcpStream) {
    let web = world.network.listen(WEB).await;
    let client = world.network.connect("10.0.0.1", WEB).await.unwrap();
    let (server, _) = web.accept().await.unwrap();
    let orders = world.node("b").orders();
    orders.freeze().await.unwrap();
    assert!(orders.retire().await);
    (orders, client, server)
}

#[tokio::test]
async fn a_manager_that_has_stopped_changes_serves_and_continues_after_an_abort() {
    local(async {
        let world = World::new().await;
        let web = world.network.listen(WEB).await;
        let orders = world.node("b").orders();
        let frozen = orders.freeze().await.unwrap();
        assert_eq!((frozen.pods, frozen.connections_before.len()), (1, 0));
        let mut client = world.network.connect("10.0.0.1", WEB).await.unwrap();
        let (mut server, _) = web.accept().await.unwrap();
        echo(&mut client, &mut server).await;
        // During the freeze policies are still applied. The rest of the change waits.
        let resumed = async {
            assert!(is_reset(&mut server).await);
            assert!(world.node("b").pending().is_some());
            orders.resume().await;
        };
        let mesh = format!("{MESH}{DENY_ALL}");
        tokio::join!(world.publish(&mesh), resumed);
        assert_eq!(world.node("b").pending(), None);
        world.publish(MESH).await;
        let mut client = world.network.connect("10.0.0.1", WEB).await.unwrap();
        let (mut server, _) = web.accept().await.unwrap();
        echo(&mut client, &mut server).await;
        // The order to retire is valid only after the order to freeze.
        assert!(!orders.retire().await && !world.node("b").is_gone());
    })
    .await;
}

#[tokio::test]
async fn a_manager_that_has_handed_over_serves_its_connections_and_ends_with_the_last_one() {
    local(async {
        let world = World::new().await;
        let (orders, mut client, mut server) = handed_over(&world).await;
        assert_eq!(world.node("b").pending(), Some("shutdown"));
        echo(&mut client, &mut server).await;
        drop((client, server));
        eventually("the manager has ended", async || world.node("b").is_gone()).await;
        assert!(orders.freeze().await.is_none());
    })
    .await;
}

#[tokio::test]
async fn a_manager_that_has_handed_over_applies_changes_of_policies_and_pods() {
    for mesh in [format!("{MESH}{DENY_ALL}"), without_web()] {
        local(async {
            let world = World::new().await;
            let (_orders, mut client, mut server) = handed_over(&world).await;
            echo(&mut client, &mut server).await;
            let cut = async { assert!(is_reset(&mut server).await) };
            tokio::select! {
                // This never completes: it waits for a manager that does not enrol pods any more.
                () = world.publish(&mesh) => panic!("the manager still follows the mesh"),
                () = cut => {}
            }
            eventually("the manager has ended", async || world.node("b").is_gone()).await;
        })
        .await;
    }
}
