use super::{Endpoint, Peer};
use crate::{
    identity::{
        Credentials,
        handle::{CertHandle, CertState},
    },
    model::identity::SpiffeId,
    net::buffer::BufferPool,
    tls::{
        AcceptError, ConnectError, KeyLog, Settings, TlsStream,
        test_ca::{CLIENT, TestCa, WEB, endpoint, good},
    },
};
use nix::{sys::stat::Mode, unistd::mkfifo};
use std::{os::unix::fs::PermissionsExt as _, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    sync::watch,
};

mod hostile;

pub(in crate::tls) type Accepted = Result<(TlsStream<DuplexStream>, Peer), AcceptError>;
pub(in crate::tls) type Connected = Result<(TlsStream<DuplexStream>, Peer), ConnectError>;

fn pool() -> BufferPool {
    BufferPool::new(64 << 10, 4)
}

pub(in crate::tls) fn ids(texts: &[&str]) -> Vec<SpiffeId> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// A handshake between the two; the client expects these identities.
pub(in crate::tls) async fn meet(server: &Endpoint, client: &Endpoint, expected: &[&str]) -> (Accepted, Connected) {
    let (near, far) = duplex(64 << 10);
    let (pool, expected) = (pool(), ids(expected));
    tokio::join!(server.accept(near, &pool), client.connect(far, &expected, &pool))
}

async fn say_hello(accepted: Accepted, connected: Connected) -> (Peer, Peer) {
    let ((mut server, client_peer), (mut client, server_peer)) = (accepted.unwrap(), connected.unwrap());
    client.write_all(b"ping").await.unwrap();
    client.flush().await.unwrap();
    let mut heard = [0; 4];
    server.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"ping");
    server.write_all(b"pong").await.unwrap();
    server.shutdown().await.unwrap();
    let mut heard = Vec::new();
    client.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"pong");
    (client_peer, server_peer)
}

fn assert_threads<T: Clone + Send + Sync>(_: &T) {}

#[tokio::test]
async fn both_ends_know_each_other_and_agree_on_the_best() {
    let ca = TestCa::new("root");
    let (server, client) = (ca.endpoint(WEB), ca.endpoint(CLIENT));
    assert_threads(&server);
    assert_eq!(server.identity().to_string(), WEB);
    let (accepted, connected) = meet(&server, &client, &["spiffe://cluster.local/ns/other/sa/other", WEB]).await;
    let (client_peer, server_peer) = say_hello(accepted, connected).await;
    assert_eq!((client_peer.identity.to_string().as_str(), server_peer.identity.to_string().as_str()), (CLIENT, WEB));
    for peer in [&client_peer, &server_peer] {
        assert_eq!((peer.suite, peer.group), ("TLS13_AES_128_GCM_SHA256", "X25519MLKEM768"));
    }
    assert_eq!(client_peer.expires.duration_since(std::time::SystemTime::now()).unwrap().as_secs() / 60, 59);
}

#[tokio::test]
async fn an_intermediate_is_sent_and_names_beside_the_identity_do_no_harm() {
    let root = TestCa::new("root");
    let ca = root.below("intermediate");
    let mut wanted = good(WEB);
    wanted.dns.push("web.default.svc".to_owned());
    let (server, _sender) = endpoint(ca.credentials(WEB, &wanted, &[root.root()]));
    let (accepted, connected) = meet(&server, &ca.endpoint(CLIENT), &[WEB]).await;
    say_hello(accepted, connected).await;
}

#[tokio::test]
async fn new_credentials_are_used_by_the_next_handshake_and_old_ones_are_prepared_once() {
    let (old, new) = (TestCa::new("cluster.local"), TestCa::new("cluster.local"));
    let both = [old.root(), new.root()];
    let (server, sender) = endpoint(old.credentials(WEB, &good(WEB), &both));
    let client = endpoint(old.credentials(CLIENT, &good(CLIENT), &both)).0;
    let mut prepared = Vec::new();
    for _ in 0..2 {
        let (accepted, connected) = meet(&server, &client, &[WEB]).await;
        say_hello(accepted, connected).await;
        prepared.push(server.0.configs.load_full().unwrap());
    }
    assert!(Arc::ptr_eq(&prepared[0], &prepared[1]), "not built for every handshake");

    // The server's certificate is issued by the new CA; both ends trust both CAs.
    let renewed: Arc<Credentials> = new.credentials(WEB, &good(WEB), &both);
    let leaf = renewed.chain[0].clone();
    sender.send_replace(CertState { credentials: Some(renewed), failure: None });
    let (accepted, connected) = meet(&server, &client, &[WEB]).await;
    assert_eq!(connected.as_ref().unwrap().0.tls().peer_certificates().unwrap()[0], leaf);
    say_hello(accepted, connected).await;
    let (accepted, connected) = meet(&client, &server, &[CLIENT]).await;
    say_hello(accepted, connected).await;

    // Now the server trusts the new CA only.
    sender.send_replace(CertState { credentials: Some(new.good(WEB)), failure: None });
    let (accepted, _) = meet(&server, &client, &[WEB]).await;
    assert_eq!(accepted.unwrap_err().label(), "unknown_ca");
    let (_, connected) = meet(&client, &server, &[CLIENT]).await;
    assert_eq!(connected.unwrap_err().label(), "unknown_ca");
}

#[tokio::test]
async fn an_unreadable_root_does_not_take_the_others_with_it() {
    let ca = TestCa::new("root");
    let roots = [vec![1, 2, 3].into(), ca.root()];
    let (server, sender) = endpoint(ca.credentials(WEB, &good(WEB), &roots));
    let (accepted, connected) = meet(&server, &ca.endpoint(CLIENT), &[WEB]).await;
    say_hello(accepted, connected).await;
    sender.send_replace(CertState { credentials: Some(ca.credentials(WEB, &good(WEB), &roots[..1])), failure: None });
    let (accepted, connected) = meet(&server, &ca.endpoint(CLIENT), &[WEB]).await;
    assert_eq!(accepted.unwrap_err().label(), "unusable_certificate");
    assert_eq!(
        connected.unwrap_err().to_string(),
        "the peer failed the TLS handshake: it refused with the alert InternalError (80)"
    );
}

#[tokio::test(start_paused = true)]
async fn without_a_certificate_the_peer_is_told_so_and_is_not_kept_waiting_for_ever() {
    let ca = TestCa::new("root");
    let (sender, state) = watch::channel(CertState::default());
    let handle = CertHandle::new(WEB.parse().unwrap(), state);
    let server = Endpoint::new(handle, Settings { deadline: Duration::from_secs(2), ..Settings::default() });
    let started = tokio::time::Instant::now();
    let (accepted, connected) = meet(&server, &ca.endpoint(CLIENT), &[WEB]).await;
    assert_eq!(started.elapsed().as_secs(), 2);
    assert_eq!(accepted.unwrap_err().label(), "no_certificate");
    assert!(connected.is_err());
    sender.send_replace(CertState { credentials: None, failure: Some("the CA is gone".into()) });
    let started = tokio::time::Instant::now();
    let (near, far) = duplex(1024);
    let error = server.connect(far, &ids(&[WEB]), &pool()).await.unwrap_err();
    assert_eq!(error.to_string(), format!("no valid certificate for {WEB}: the CA is gone"));
    let (accepted, connected) = meet(&server, &ca.endpoint(CLIENT), &[WEB]).await;
    assert_eq!(accepted.unwrap_err().label(), "no_certificate");
    assert_eq!(connected.unwrap_err().label(), "peer_alert");
    assert_eq!(started.elapsed().as_secs(), 0);
    drop(near);
}

#[tokio::test]
async fn secrets_are_logged_only_when_asked_for_and_only_for_the_owner() {
    let (ca, folder) = (TestCa::new("root"), tempfile::tempdir().unwrap());
    let path = folder.path().join("keys");
    std::fs::write(&path, "# before\n").unwrap();
    let (_sender, state) = watch::channel(CertState { credentials: Some(ca.good(WEB)), failure: None });
    let settings = Settings { key_log: Some(KeyLog::open(&path).unwrap()), ..Settings::default() };
    let server = Endpoint::new(CertHandle::new(WEB.parse().unwrap(), state), settings);
    let (accepted, connected) = meet(&server, &ca.endpoint(CLIENT), &[WEB]).await;
    say_hello(accepted, connected).await;
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("# before\n"), "it is appended to");
    for label in [
        "CLIENT_HANDSHAKE_TRAFFIC_SECRET",
        "SERVER_HANDSHAKE_TRAFFIC_SECRET",
        "CLIENT_TRAFFIC_SECRET_0",
        "SERVER_TRAFFIC_SECRET_0",
    ] {
        let line = text.lines().find(|line| line.starts_with(label)).unwrap();
        let parts: Vec<_> = line.split(' ').collect();
        assert_eq!((parts.len(), parts[1].len(), parts[2].len()), (3, 64, 64), "{line}");
    }
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(KeyLog::open(&link).is_err());
}

#[test]
fn a_key_log_is_a_file_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    mkfifo(&pipe, Mode::from_bits_truncate(0o644)).unwrap();
    assert!(KeyLog::open(&pipe).is_err(), "nobody is waited for");
    let _reader = std::fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    assert!(KeyLog::open(&pipe).unwrap_err().to_string().contains("not a regular file"));
    assert_eq!(std::fs::metadata(&pipe).unwrap().permissions().mode() & 0o777, 0o644, "its mode is as it was");
}
