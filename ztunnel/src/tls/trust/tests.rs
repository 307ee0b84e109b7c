use super::until;
use crate::{
    net::buffer::BufferPool,
    tls::{
        Endpoint, Peer, Settings,
        endpoint::tests::{ids, meet},
        proof::{Distrust, Proof, Role, Roots, Shown},
        test_ca::{CLIENT, TestCa, WEB, endpoint, good},
    },
};
use futures_util::FutureExt as _;
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{io::duplex, pin};

const HOUR: Duration = Duration::from_secs(3600);

/// The peers that the server and the client have authenticated.
async fn proved(server: &Endpoint, client: &Endpoint) -> (Peer, Peer) {
    let (accepted, connected) = meet(server, client, &[WEB]).await;
    (accepted.unwrap().1, connected.unwrap().1)
}

#[tokio::test]
async fn a_peer_is_trusted_as_long_as_its_root_is() {
    let (old, new) = (TestCa::new("old"), TestCa::new("new"));
    for ca in [&old, &old.below("intermediate"), &old.below("upper").below("lower")] {
        let (server, server_certificate) = endpoint(ca.good(WEB));
        let (client, client_certificate) = endpoint(ca.good(CLIENT));
        let (client_peer, server_peer) = proved(&server, &client).await;
        let sides =
            [(&server, &server_certificate, WEB, &client_peer), (&client, &client_certificate, CLIENT, &server_peer)];
        for (end, certificate, identity, peer) in sides {
            let distrusted = end.distrusted(peer);
            pin!(distrusted);
            assert_eq!(distrusted.as_mut().now_or_never(), None);
            certificate.send_replace(ca.trusting(identity, &[&old]));
            assert_eq!(distrusted.as_mut().now_or_never(), None, "a renewed certificate");
            certificate.send_replace(ca.trusting(identity, &[&new, &old]));
            assert_eq!(distrusted.as_mut().now_or_never(), None, "one more root");
            certificate.send_replace(ca.trusting(identity, &[&old]));
            assert_eq!(
                (distrusted.as_mut().now_or_never(), end.still_trusts(peer)),
                (None, Ok(())),
                "another's root less"
            );
            certificate.send_replace(ca.trusting(identity, &[&new]));
            let gone = Distrust::Root(webpki::Error::UnknownIssuer);
            assert_eq!(end.still_trusts(peer), Err(gone.clone()));
            assert_eq!(distrusted.now_or_never(), Some(gone.clone()));
            assert_eq!(end.distrusted(peer).now_or_never(), Some(gone), "a change from before one watches");
        }
    }
}

#[tokio::test]
async fn another_root_of_the_same_name_is_another_root() {
    let (ca, namesake) = (TestCa::new("root"), TestCa::new("root"));
    let (server, certificate) = endpoint(ca.good(WEB));
    let (peer, _) = proved(&server, &ca.endpoint(CLIENT)).await;
    certificate.send_replace(ca.trusting(WEB, &[&namesake]));
    assert!(matches!(server.distrusted(&peer).now_or_never(), Some(Distrust::Root(_))));
}

#[tokio::test]
async fn who_could_get_no_certificate_any_more_trusts_whom_it_trusted() {
    let ca = TestCa::new("root");
    let (server, certificate) = endpoint(ca.good(WEB));
    let (peer, _) = proved(&server, &ca.endpoint(CLIENT)).await;
    certificate.send_modify(|state| state.failure = Some("the CA is away".into()));
    assert_eq!((server.distrusted(&peer).now_or_never(), server.still_trusts(&peer)), (None, Ok(())));
    drop(certificate);
    assert_eq!(server.distrusted(&peer).now_or_never(), None, "nor without news for ever");
}

/// The check is made as of the handshake; a verification as of now would fail because of the expiry.
#[test]
fn expiry_is_no_matter_of_trust() {
    let (ca, other) = (TestCa::new("root"), TestCa::new("other"));
    let then = SystemTime::now() - 2 * HOUR;
    let mut wanted = good(CLIENT);
    (wanted.not_before, wanted.not_after) = (then - HOUR, then + HOUR);
    let roots = |of: &TestCa| Arc::new(Roots::read(&ids(&[WEB])[0], &[of.root()].into()));
    let chain = vec![ca.leaf(&wanted).0];
    let proof = |at| {
        let chain = chain.clone();
        Proof::new(Shown { chain, role: Role::Client, at, roots: roots(&ca), own_root: None })
    };
    assert_eq!(proof(then).check(&roots(&ca)), Ok(()));
    assert!(matches!(proof(SystemTime::now()).check(&roots(&ca)), Err(Distrust::Root(_))));
    assert_eq!(proof(then).check(&roots(&other)), Err(Distrust::Root(webpki::Error::UnknownIssuer)));
}

#[tokio::test]
async fn a_connection_outlives_its_certificates_or_not_as_it_was_told() {
    let ca = TestCa::new("root");
    let (server, _sender) = endpoint(ca.good(WEB));
    let strict = Endpoint::new(server.certificate().clone(), Settings { cut_expired: true, ..Settings::default() });
    let (mut peer, _) = proved(&server, &ca.endpoint(CLIENT)).await;
    for end in [&server, &strict] {
        assert_eq!((end.distrusted(&peer).now_or_never(), end.outdated(&peer).now_or_never()), (None, None));
    }
    peer.expires = SystemTime::now();
    assert_eq!(server.distrusted(&peer).now_or_never(), None);
    assert_eq!(strict.distrusted(&peer).now_or_never(), Some(Distrust::Expired));
    for end in [&server, &strict] {
        assert_eq!(end.outdated(&peer).now_or_never(), Some(()));
    }
}

#[tokio::test]
async fn what_was_made_with_a_certificate_of_another_root_is_outdated() {
    let (old, new) = (TestCa::new("root"), TestCa::new("root"));
    let (server, server_certificate) = endpoint(old.good(WEB));
    let (client, client_certificate) = endpoint(old.good(CLIENT));
    let (client_peer, server_peer) = proved(&server, &client).await;
    let sides =
        [(&server, &server_certificate, WEB, &client_peer), (&client, &client_certificate, CLIENT, &server_peer)];
    for (end, certificate, identity, peer) in sides {
        let outdated = end.outdated(peer);
        pin!(outdated);
        assert_eq!(outdated.as_mut().now_or_never(), None);
        certificate.send_replace(old.below("intermediate").trusting(identity, &[&new, &old]));
        assert_eq!(outdated.as_mut().now_or_never(), None, "the same root, by another way");
        certificate.send_replace(new.trusting(identity, &[&new, &old]));
        assert_eq!((outdated.now_or_never(), end.distrusted(peer).now_or_never()), (Some(()), None));
        assert_eq!(end.outdated(peer).now_or_never(), Some(()), "a change from before one watches");
    }
    let (client_peer, server_peer) = proved(&server, &client).await;
    for (end, peer) in [(&server, &client_peer), (&client, &server_peer)] {
        assert_eq!(end.outdated(peer).now_or_never(), None, "and the next one is not");
    }
}

#[tokio::test]
async fn the_first_certificate_of_both_chains_that_ends_ends_the_connection() {
    let root = TestCa::new("root");
    let (soon, sooner) = (SystemTime::now() + HOUR / 4, SystemTime::now() + HOUR / 8);
    let (web_ca, client_ca) = (root.below_until("short", soon), root.below_until("shorter", sooner).below("long"));
    for (web, client, end) in [(&web_ca, &root, soon), (&root, &client_ca, sooner), (&web_ca, &client_ca, sooner)] {
        let peers = proved(&web.endpoint(WEB), &client.endpoint(CLIENT)).await;
        for peer in [peers.0, peers.1] {
            // Certificates have whole seconds.
            let early = end.duration_since(peer.expires).unwrap();
            assert!(early < Duration::from_secs(1), "{early:?}");
        }
    }
}

#[tokio::test]
async fn what_proved_a_peer_gets_into_no_log() {
    let ca = TestCa::new("root");
    let (server, client) = (ca.endpoint(WEB), ca.endpoint(CLIENT));
    let (near, far) = duplex(64 << 10);
    let (pool, expected) = (BufferPool::new(64 << 10, 4), ids(&[WEB]));
    let (accepted, _connected) = tokio::join!(server.accept(near, &pool), client.connect(far, &expected, &pool));
    let shown = format!("{:?}", accepted.unwrap().1);
    assert!(shown.contains("certificates: 1, ..") && shown.len() < 500, "{shown}");
}

#[tokio::test]
async fn an_end_is_waited_for_by_the_wall_clock() {
    until(SystemTime::UNIX_EPOCH).await;
    let end = SystemTime::now() + Duration::from_millis(30);
    until(end).await;
    assert!(SystemTime::now() >= end);
}
