//! Peers that must be refused: the alert, the label and the time of the refusal.

use super::{ids, meet, pool, say_hello};
use crate::{
    identity::Credentials,
    net::socket::reset_on_close,
    tls::{
        AcceptError, Alert, Endpoint, Fault, PeerFault, TlsStream,
        config::{Configs, Settings},
        inbound::Inbound,
        proof::Roots,
        provider::provider,
        stream::Broken,
        test_ca::{CLIENT, TestCa, WEB, Wanted, endpoint, good},
        verify::{IdentityFault, ServerOneOf},
    },
};
use rcgen::ExtendedKeyUsagePurpose;
use rustls::{
    ClientConfig, ClientConnection, Connection, RootCertStore, SupportedCipherSuite,
    crypto::{
        CryptoProvider,
        aws_lc_rs::{cipher_suite, kx_group},
    },
    version::TLS13,
};
use std::{
    future::poll_fn,
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    net::{TcpListener, TcpStream},
    time::Instant,
};

const HOUR: Duration = Duration::from_secs(3600);

/// A bad certificate: its name, its difference from a good certificate, the number of the alert, and the label of the refusal.
type Bad = (&'static str, fn(&mut Wanted), u8, &'static str);

const BAD: [Bad; 7] = [
    (
        "expired",
        |wanted| (wanted.not_before, wanted.not_after) = (SystemTime::now() - 2 * HOUR, SystemTime::now() - HOUR),
        45,
        "expired",
    ),
    (
        "not yet valid",
        |wanted| (wanted.not_before, wanted.not_after) = (SystemTime::now() + HOUR, SystemTime::now() + 2 * HOUR),
        45,
        "not_yet_valid",
    ),
    ("two SANs", |wanted| wanted.uris.push(WEB.to_owned()), 46, "san"),
    ("DNS only", |wanted| (wanted.uris, wanted.dns) = (Vec::new(), vec!["web".to_owned()]), 46, "san"),
    ("no SAN", |wanted| wanted.uris.clear(), 46, "san"),
    ("another URI", |wanted| wanted.uris = vec!["https://web".to_owned()], 46, "san"),
    ("a thousand SANs", |wanted| wanted.uris = vec![WEB.to_owned(); 1000], 46, "san"),
];

fn configs(credentials: Arc<Credentials>) -> Configs {
    let roots = Arc::new(Roots::read(&credentials.identity, &credentials.roots));
    Configs::build(credentials, roots, &Settings::default()).unwrap()
}

fn server_only(wanted: &mut Wanted) {
    wanted.purposes = vec![ExtendedKeyUsagePurpose::ServerAuth];
}

fn client_only(wanted: &mut Wanted) {
    wanted.purposes = vec![ExtendedKeyUsagePurpose::ClientAuth];
}

/// The fault that the other end reads. After it no call succeeds.
async fn heard(stream: &mut TlsStream<DuplexStream>) -> Fault {
    let error = stream.read(&mut [0; 16]).await.unwrap_err();
    assert!(stream.write(b"x").await.is_err());
    assert!(stream.flush().await.is_err() && stream.shutdown().await.is_err());
    assert!(stream.read(&mut [0; 16]).await.is_err());
    assert!(stream.fault().get().is_some());
    Fault::of(&error).unwrap().clone()
}

fn is_alert(fault: &Fault, alert: u8) -> bool {
    matches!(fault, Fault::Alert(Alert(number)) if *number == alert)
}

#[tokio::test(start_paused = true)]
async fn clients_with_bad_certificates_are_refused() {
    let ca = TestCa::new("cluster.local");
    for (name, change, alert, label) in BAD.into_iter().chain([("EKU", server_only as _, 43, "eku")]) {
        let mut wanted = good(CLIENT);
        change(&mut wanted);
        let (client, _sender) = endpoint(ca.credentials(CLIENT, &wanted, &[ca.root()]));
        let (accepted, connected) = meet(&ca.endpoint(WEB), &client, &[WEB]).await;
        assert_eq!(accepted.unwrap_err().label(), label, "{name}");
        let fault = heard(&mut connected.unwrap().0).await;
        assert!(is_alert(&fault, alert), "{name}: {fault}");
    }
}

#[tokio::test(start_paused = true)]
async fn servers_with_bad_certificates_are_refused() {
    let ca = TestCa::new("cluster.local");
    for (name, change, alert, label) in BAD.into_iter().chain([("EKU", client_only as _, 43, "eku")]) {
        let mut wanted = good(WEB);
        change(&mut wanted);
        let (server, _sender) = endpoint(ca.credentials(WEB, &wanted, &[ca.root()]));
        let (accepted, connected) = meet(&server, &ca.endpoint(CLIENT), &[WEB]).await;
        assert_eq!(connected.unwrap_err().label(), label, "{name}");
        let refused = accepted.unwrap_err();
        let told = matches!(&refused, AcceptError::Peer(PeerFault::Alert(Alert(number))) if *number == alert);
        assert!(told, "{name}: {refused}");
        assert_eq!(refused.label(), "peer_alert");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stranger_is_refused_even_if_its_ca_has_the_same_name() {
    let ca = TestCa::new("cluster.local");
    for foreign in [TestCa::new("cluster.local"), TestCa::new("another"), TestCa::new("root").below("cluster.local")] {
        // It trusts our CA, but we do not trust its CA.
        let (stranger, _sender) = endpoint(foreign.credentials(CLIENT, &good(CLIENT), &[ca.root()]));
        let (accepted, connected) = meet(&ca.endpoint(WEB), &stranger, &[WEB]).await;
        assert_eq!(accepted.unwrap_err().label(), "unknown_ca");
        assert!(is_alert(&heard(&mut connected.unwrap().0).await, 48));
        let (accepted, connected) = meet(&stranger, &ca.endpoint(WEB), &[CLIENT]).await;
        assert_eq!(connected.unwrap_err().label(), "unknown_ca");
        assert!(accepted.unwrap_err().to_string().contains("UnknownCA (48)"));
    }
}

#[tokio::test(start_paused = true)]
async fn another_trust_domain_is_refused_although_the_chain_is_good() {
    let ca = TestCa::new("cluster.local");
    let other = "spiffe://other.mesh/ns/default/sa/client";
    let (accepted, connected) = meet(&ca.endpoint(WEB), &ca.endpoint(other), &[WEB]).await;
    let error = accepted.unwrap_err();
    assert_eq!(
        (error.label(), error.to_string()),
        ("trust_domain", format!("the peer was refused: {other} is not of the trust domain cluster.local"))
    );
    assert!(is_alert(&heard(&mut connected.unwrap().0).await, 46));
    // For a client only the expected identities matter.
    let near = ca.endpoint("spiffe://other.mesh/ns/a/sa/b");
    let (accepted, connected) = meet(&ca.endpoint(other), &near, &[other]).await;
    say_hello(accepted, connected).await;
}

#[tokio::test(start_paused = true)]
async fn whoever_is_not_expected_is_refused() {
    let ca = TestCa::new("cluster.local");
    for expected in [
        &[][..],
        &["spiffe://cluster.local/ns/default/sa/other"],
        &["spiffe://cluster.local/ns/other/sa/web"],
        &["spiffe://other.mesh/ns/default/sa/web"],
    ] {
        let (accepted, connected) = meet(&ca.endpoint(WEB), &ca.endpoint(CLIENT), expected).await;
        let error = connected.unwrap_err();
        assert_eq!(error.label(), "unexpected_identity");
        assert!(error.to_string().contains(WEB), "{error}");
        assert!(expected.iter().all(|expected| error.to_string().contains(expected)), "{error}");
        assert!(accepted.unwrap_err().to_string().contains("CertificateUnknown (46)"));
    }
}

fn nobody() -> rustls_pki_types::ServerName<'static> {
    IpAddr::from([0, 0, 0, 0]).into()
}

/// A handshake with a client of another configuration: the suite or the label of the refusal, and the group or the client's
/// fault.
async fn raw(server: &Endpoint, config: ClientConfig) -> (&'static str, String) {
    let (near, far) = duplex(64 << 10);
    let connection = ClientConnection::new(Arc::new(config), nobody()).unwrap();
    let mut client = TlsStream::new(far, Connection::Client(connection), Inbound::new(&pool()));
    let pool = pool();
    let (accepted, shaken) = tokio::join!(server.accept(near, &pool), poll_fn(|cx| client.poll_handshake(cx)));
    match (accepted, shaken) {
        (Ok((_stream, peer)), Ok(())) => (peer.suite, peer.group.to_owned()),
        (Err(error), Ok(())) => (error.label(), heard(&mut client).await.to_string()),
        (Err(error), Err(Broken::Tls(fault))) => (error.label(), Fault::from(fault).to_string()),
        (Err(error), Err(_)) => (error.label(), "nothing".to_owned()),
        (Ok(_), Err(_)) => ("accepted", "nothing".to_owned()),
    }
}

fn alert(number: u8) -> String {
    format!("the peer ended the TLS connection with the alert {}", Alert(number))
}

fn expects_web(ca: &TestCa) -> Arc<ServerOneOf> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.root()).unwrap();
    Arc::new(ServerOneOf::new(Arc::new(roots), ids(&[WEB]).into()))
}

#[tokio::test(start_paused = true)]
async fn no_certificate_no_alpn_and_the_wrong_alpn_are_refused() {
    let ca = TestCa::new("cluster.local");
    let server = ca.endpoint(WEB);
    let ours = configs(ca.good(CLIENT));
    let ours = || ClientConfig::clone(&ours.client(&ids(&[WEB])));
    for offered in [Vec::new(), vec![b"http/1.1".to_vec()]] {
        let mut config = ours();
        config.alpn_protocols = offered;
        assert_eq!(raw(&server, config).await, ("no_alpn", alert(120)));
    }
    let mut nameless = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(expects_web(&ca))
        .with_no_client_auth();
    nameless.alpn_protocols = vec![b"h2".to_vec()];
    assert_eq!(raw(&server, nameless).await, ("no_client_certificate", alert(116)));
    assert_eq!(raw(&server, ours()).await, ("TLS13_AES_128_GCM_SHA256", "X25519MLKEM768".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_client_with_istios_preferences_gets_them_and_chacha_is_refused() {
    let ca = TestCa::new("cluster.local");
    let ask = async |suites: &[SupportedCipherSuite]| {
        let istio = Arc::new(CryptoProvider {
            cipher_suites: suites.to_vec(),
            kx_groups: vec![kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1, kx_group::X25519MLKEM768],
            ..CryptoProvider::clone(&provider())
        });
        let credentials = ca.good(CLIENT);
        let mut config = ClientConfig::builder_with_provider(istio)
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(expects_web(&ca))
            .with_client_auth_cert(credentials.chain.clone(), credentials.key.clone_key())
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        raw(&ca.endpoint(WEB), config).await
    };
    let both = [cipher_suite::TLS13_AES_256_GCM_SHA384, cipher_suite::TLS13_AES_128_GCM_SHA256];
    // Negotiation of the cipher suite. The client's first key share is of another group than the server asks for.
    assert_eq!(ask(&both).await, ("TLS13_AES_256_GCM_SHA384", "X25519MLKEM768".to_owned()));
    assert_eq!(ask(&[cipher_suite::TLS13_CHACHA20_POLY1305_SHA256]).await, ("protocol", alert(40)));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_speak_h2_or_tls_is_refused() {
    let ca = TestCa::new("cluster.local");
    let (near, far) = duplex(64 << 10);
    let mut config = rustls::ServerConfig::clone(&configs(ca.good(WEB)).server);
    config.alpn_protocols.clear();
    let connection = rustls::ServerConnection::new(Arc::new(config)).unwrap();
    let mut server = TlsStream::new(near, Connection::Server(connection), Inbound::new(&pool()));
    let (client, pool, expected) = (ca.endpoint(CLIENT), pool(), ids(&[WEB]));
    let serve = async {
        assert!(poll_fn(|cx| server.poll_handshake(cx)).await.is_ok());
        server.read(&mut [0; 1]).await.unwrap()
    };
    let (read, connected) = tokio::join!(serve, client.connect(far, &expected, &pool));
    assert_eq!((read, connected.unwrap_err().label()), (0, "no_alpn"), "and it has said goodbye");

    let (mut near, far) = duplex(64 << 10);
    near.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    assert_eq!(client.connect(far, &expected, &pool).await.unwrap_err().label(), "not_tls");
    // A ServerHello of TLS 1.2.
    let (mut near, far) = duplex(64 << 10);
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0xc0, 0x2b, 0]);
    let message = [&[2, 0][..], &with_length(&body)].concat();
    near.write_all(&[&[22, 3, 3][..], &with_length(&message)].concat()).await.unwrap();
    assert_eq!(client.connect(far, &expected, &pool).await.unwrap_err().label(), "protocol_version");
    let mut answer = Vec::new();
    near.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer.last_chunk(), Some(&[21, 3, 3, 0, 2, 2, 70]));
    let (near, far) = duplex(64 << 10);
    drop(near);
    assert_eq!(client.connect(far, &expected, &pool).await.unwrap_err().label(), "io");
}

/// Sends bytes and then nothing. Returns the label of the refusal, the answer, and the time that it took. In paused time it
/// takes no time unless all tasks wait.
async fn send(server: &Endpoint, bytes: &[u8]) -> (&'static str, Vec<u8>, Duration) {
    let (near, mut far) = duplex(256 << 10);
    far.write_all(bytes).await.unwrap();
    let started = Instant::now();
    let mut answer = Vec::new();
    // The peer closes after it has read the reason.
    let read = async {
        far.read_to_end(&mut answer).await.unwrap();
        drop(far);
    };
    let pool = pool();
    let (refused, ()) = tokio::join!(server.accept(near, &pool), read);
    (refused.unwrap_err().label(), answer, started.elapsed())
}

fn told(number: u8) -> Vec<u8> {
    vec![21, 3, 3, 0, 2, 2, number]
}

fn hello() -> Vec<u8> {
    let configs = configs(TestCa::new("ca").good(CLIENT));
    let mut bytes = Vec::new();
    ClientConnection::new(configs.client(&[]), nobody()).unwrap().write_tls(&mut bytes).unwrap();
    bytes
}

fn with_length(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

/// A ClientHello as `openssl s_client -tls1_2 -alpn h2` sends it, shortened.
fn hello_of_tls12() -> Vec<u8> {
    let extension = |kind: u8, body: &[u8]| [&[0, kind][..], &with_length(body)].concat();
    let extensions = [
        extension(10, &[0, 2, 0, 23]),
        extension(11, &[1, 0]),
        extension(13, &[0, 4, 4, 3, 8, 4]),
        extension(16, &[0, 3, 2, b'h', b'2']),
    ]
    .concat();
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 4, 0xc0, 0x2b, 0xc0, 0x2f, 1, 0]);
    body.extend(with_length(&extensions));
    let message = [&[1, 0][..], &with_length(&body)].concat();
    [&[22, 3, 1][..], &with_length(&message)].concat()
}

#[tokio::test(start_paused = true)]
async fn what_is_no_handshake_of_tls13_is_refused_at_once() {
    let (server, at_once) = (TestCa::new("cluster.local").endpoint(WEB), Duration::ZERO);
    assert_eq!(send(&server, &hello_of_tls12()).await, ("protocol_version", told(70), at_once));
    for text in [&b"GET / HTTP/1.1\r\nHost: web\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[0xff; 64]] {
        assert_eq!(send(&server, text).await, ("not_tls", told(50), at_once));
    }
    let mut garbled = hello();
    garbled[60..].fill(0xee);
    let (label, answer, took) = send(&server, &garbled).await;
    assert_eq!((label, answer.len(), took), ("protocol", 7, at_once));
    let whole = hello();
    for seed in 0..300 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut bytes = whole.clone();
        for _ in 0..random.usize(1..4) {
            let index = random.usize(..bytes.len());
            bytes[index] = random.u8(..);
        }
        let (label, ..) = send(&server, &bytes).await;
        assert!(["protocol", "not_tls", "protocol_version", "no_alpn", "deadline"].contains(&label), "{seed}: {label}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_first_message_without_end_is_refused() {
    let server = TestCa::new("cluster.local").endpoint(WEB);
    // Its header says that it is 65,535 bytes long, which rustls would accept.
    let mut endless = vec![22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff];
    endless.resize(5 + 0x4000, 0);
    endless.extend([22, 3, 3, 0x40, 0]);
    endless.resize(2 * (5 + 0x4000), 0);
    assert_eq!(send(&server, &endless).await, ("protocol", told(50), Duration::ZERO));
    // The header of this one says that it is 16 MB long.
    endless[6] = 0xff;
    assert_eq!(send(&server, &endless).await, ("protocol", told(50), Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn whoever_is_silent_is_left_after_the_deadline() {
    let ca = TestCa::new("cluster.local");
    let (server, pool, whole) = (ca.endpoint(WEB), pool(), hello());
    for bytes in [&[][..], &whole[..3], &whole[..whole.len() / 2], &whole] {
        let (label, answer, took) = send(&server, bytes).await;
        assert_eq!((label, took.as_secs()), ("deadline", 5));
        assert_eq!(answer.is_empty(), bytes.len() < whole.len(), "only a whole message is answered");
    }
    let (near, far) = duplex(64 << 10);
    let started = Instant::now();
    let error = ca.endpoint(CLIENT).connect(far, &ids(&[WEB]), &pool).await.unwrap_err();
    assert_eq!((error.label(), started.elapsed().as_secs()), ("deadline", 5));
    drop(near);
    // A peer that reads nothing can't delay the alert beyond the deadline either.
    let (near, mut far) = duplex(4);
    let started = Instant::now();
    let (accepted, _) = tokio::join!(server.accept(near, &pool), far.write_all(b"GET / HTTP/1.1\r\n\r\n"));
    assert_eq!((accepted.unwrap_err().label(), started.elapsed().as_secs()), ("not_tls", 5));
}

#[test]
fn the_reason_in_a_certificate_error_survives_rustls() {
    let fault = IdentityFault::TrustDomain { found: CLIENT.parse().unwrap(), own: "other".parse().unwrap() };
    let fault = PeerFault::from(rustls::Error::from(fault));
    assert_eq!(fault.to_string(), format!("{CLIENT} is not of the trust domain other"));
    assert_eq!(fault.label(), "trust_domain");
}

#[tokio::test]
async fn a_client_without_the_hybrid_key_exchange_gets_its_own() {
    let ca = TestCa::new("cluster.local");
    let credentials = ca.good(CLIENT);
    let old = Arc::new(CryptoProvider {
        kx_groups: vec![kx_group::SECP256R1, kx_group::X25519],
        ..CryptoProvider::clone(&provider())
    });
    let mut config = ClientConfig::builder_with_provider(old)
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(expects_web(&ca))
        .with_client_auth_cert(credentials.chain.clone(), credentials.key.clone_key())
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    assert_eq!(raw(&ca.endpoint(WEB), config).await.1, "secp256r1");
}

/// This needs a real socket: only there an early close destroys the alert.
#[tokio::test]
async fn a_refused_client_that_writes_late_still_reads_why() {
    let ca = TestCa::new("cluster.local");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let near = listener.accept().await.unwrap().0;
    reset_on_close(&near);
    let (server, pool) = (ca.endpoint(WEB), pool());
    let refuse = async {
        // The connection is dropped, as in the data path.
        let refused = server.accept(near, &pool).await.unwrap_err();
        assert_eq!(refused.label(), "not_tls");
    };
    let client = async {
        far.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        far.readable().await.unwrap();
        // The server sends nothing more after this.
        far.write_all(b"Host: web\r\n\r\n").await.unwrap();
        let mut alert = Vec::new();
        far.read_to_end(&mut alert).await.unwrap();
        assert!(alert.starts_with(&[0x15, 3]), "{alert:?}");
        drop(far);
    };
    tokio::join!(refuse, client);
}
