use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use tokio::time::{sleep, timeout};

use super::{CHAIN, CertFiles, KEY, ROOTS};
use crate::{
    identity::{
        Credentials,
        certificate::{key_to_pem, to_pem},
        local_ca::{
            authority::Authority,
            create::{self, NewCa},
        },
        source::{CertSource as _, SourceError},
    },
    lifecycle::tasks::TaskCount,
    model::{
        cause::causes,
        identity::{SpiffeId, TrustDomain},
    },
};

const HOUR: Duration = Duration::from_secs(3600);
/// Longer than it takes to notice a change.
const A_WHILE: Duration = Duration::from_secs(10);

fn id(account: &str) -> SpiffeId {
    SpiffeId::new(TrustDomain::default(), "default", account)
}

/// A new CA.
fn ca() -> Authority {
    let dir = tempfile::tempdir().unwrap();
    create::init(dir.path(), &NewCa { trust_domain: TrustDomain::default(), ttl: NewCa::TTL }).unwrap();
    Authority::read(dir.path(), &TrustDomain::default(), SystemTime::now()).unwrap()
}

fn put(dir: &Path, credentials: &Credentials) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join(CHAIN), credentials.chain.iter().map(to_pem).collect::<String>()).unwrap();
    fs::write(dir.join(KEY), key_to_pem(&credentials.key)).unwrap();
}

fn put_roots(dir: &Path, credentials: &Credentials) {
    fs::write(dir.join(ROOTS), credentials.roots.iter().map(to_pem).collect::<String>()).unwrap();
}

fn issue(ca: &Authority, account: &str) -> Credentials {
    ca.issue(&id(account), HOUR, SystemTime::now()).unwrap()
}

fn why(result: Result<Credentials, SourceError>) -> String {
    causes(&result.unwrap_err())
}

#[tokio::test(start_paused = true)]
async fn each_identity_has_its_directory_and_one_may_lie_flat() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (ca(), ca());
    let source = CertFiles::open(dir.path().to_owned(), TaskCount::default());
    let (flat, own, foreign) = (issue(&one, "flat"), issue(&one, "own"), issue(&other, "foreign"));
    put(dir.path(), &flat);
    put_roots(dir.path(), &flat);
    put(&dir.path().join("default/own"), &own);
    put(&dir.path().join("default/foreign"), &foreign);
    put_roots(&dir.path().join("default/foreign"), &foreign);
    for expected in [&flat, &own, &foreign] {
        let found = source.issue(&expected.identity).await.unwrap();
        assert_eq!((&found.serial, &found.roots), (&expected.serial, &expected.roots));
        assert_eq!((found.not_before, found.not_after), (expected.not_before, expected.not_after));
        assert_eq!(found.key, expected.key);
    }
    let text = why(source.issue(&id("nobody")).await);
    assert!(text.contains("it must have exactly one URI name, spiffe://cluster.local/ns/default/sa/nobody"), "{text}");
    fs::remove_file(dir.path().join(CHAIN)).unwrap();
    let text = why(source.issue(&id("nobody")).await);
    assert!(text.contains("default/nobody") && text.contains("put cert-chain.pem and key.pem into"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (ca(), ca());
    let place = dir.path().join("default/a");
    let source = CertFiles::open(dir.path().to_owned(), TaskCount::default());
    let good = issue(&one, "a");
    let expired = one.issue(&id("a"), HOUR, SystemTime::now() - 2 * HOUR).unwrap();
    let cases: [(&str, &dyn Fn()); 8] = [
        ("cert-chain.pem can't be used: it must have exactly one URI name", &|| put(&place, &issue(&one, "b"))),
        ("cert-chain.pem can't be used: it has expired at 2", &|| put(&place, &expired)),
        ("key.pem can't be used: it is not the key of", &|| {
            fs::write(place.join(KEY), key_to_pem(&issue(&one, "a").key)).unwrap();
        }),
        ("cannot read ", &|| fs::remove_file(place.join(KEY)).unwrap()),
        ("root-cert.pem", &|| fs::remove_file(dir.path().join(ROOTS)).unwrap()),
        ("it does not lead to a root in", &|| put_roots(dir.path(), &issue(&other, "a"))),
        ("is not PEM", &|| fs::write(place.join(CHAIN), "-----BEGIN CERTIFICATE-----\nAA").unwrap()),
        ("holds no certificate", &|| fs::write(place.join(CHAIN), "").unwrap()),
    ];
    for (said, break_it) in cases {
        put(&place, &good);
        put_roots(dir.path(), &good);
        source.issue(&id("a")).await.unwrap();
        break_it();
        let text = why(source.issue(&id("a")).await);
        assert!(text.contains(said), "{said}: {text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_name_is_one_too_many() {
    let dir = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = [id("a"), id("b")].map(|id| SanType::URI(id.to_string().try_into().unwrap())).to_vec();
    let made = params.self_signed(&key).unwrap().pem();
    for (name, content) in [(CHAIN, &made), (ROOTS, &made), (KEY, &key.serialize_pem())] {
        fs::write(dir.path().join(name), content).unwrap();
    }
    let source = CertFiles::open(dir.path().to_owned(), TaskCount::default());
    for account in ["a", "b"] {
        assert!(why(source.issue(&id(account)).await).contains("exactly one URI name"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_never_leads_out_of_the_directory() {
    let parent = tempfile::tempdir().unwrap();
    let source = CertFiles::open(parent.path().join("inside"), TaskCount::default());
    for (namespace, account) in [("..", "x"), ("a", ".."), ("/", "x"), ("a/b", "x"), ("", "x"), ("a", "."), ("a", "b/")]
    {
        let identity = SpiffeId::new(TrustDomain::default(), namespace, account);
        assert!(why(source.issue(&identity).await).contains("can't be a directory's name"), "{identity}");
    }
}

#[tokio::test(start_paused = true)]
async fn changes_of_what_was_asked_for_are_news() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ca();
    let source = CertFiles::open(dir.path().to_owned(), TaskCount::default());
    let mut generation = source.generation();
    let first = issue(&ca, "a");
    put_roots(dir.path(), &first);
    assert!(why(source.issue(&id("a")).await).contains("there is no certificate"));
    // The files are created later.
    put(&dir.path().join("default/a"), &first);
    timeout(A_WHILE, generation.changed()).await.unwrap().unwrap();
    assert_eq!(source.issue(&id("a")).await.unwrap().serial, first.serial);
    // Reading the files is no change, nor are files that nobody requested.
    put(&dir.path().join("default/b"), &issue(&ca, "b"));
    sleep(A_WHILE).await;
    assert!(!generation.has_changed().unwrap());
    let second = issue(&ca, "a");
    put(&dir.path().join("default/a"), &second);
    timeout(A_WHILE, generation.changed()).await.unwrap().unwrap();
    assert_eq!(source.issue(&id("a")).await.unwrap().serial, second.serial);
    put_roots(dir.path(), &issue(&self::ca(), "a"));
    timeout(A_WHILE, generation.changed()).await.unwrap().unwrap();
}

/// A reader between the change and the next poll must not hide the change from others.
#[tokio::test(start_paused = true)]
async fn a_change_that_one_has_read_is_news_for_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ca();
    let source = CertFiles::open(dir.path().to_owned(), TaskCount::default());
    let mut generation = source.generation();
    generation.borrow_and_update();
    for account in ["a", "b"] {
        put(&dir.path().join("default").join(account), &issue(&ca, account));
    }
    let roots: String = issue(&ca, "a").roots.iter().map(to_pem).collect();
    fs::write(dir.path().join(ROOTS), &roots).unwrap();
    source.issue(&id("a")).await.unwrap();
    let more: String = issue(&self::ca(), "a").roots.iter().map(to_pem).collect();
    fs::write(dir.path().join(ROOTS), roots + &more).unwrap();
    assert_eq!(source.issue(&id("b")).await.unwrap().roots.len(), 2);
    timeout(A_WHILE, generation.changed()).await.unwrap().unwrap();
    assert_eq!(source.issue(&id("a")).await.unwrap().roots.len(), 2);
    sleep(A_WHILE).await;
    assert!(!generation.has_changed().unwrap() || *generation.borrow_and_update() == 2, "it is news once");
}

#[tokio::test(start_paused = true)]
async fn a_chain_ends_with_the_first_of_its_certificates() {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let dir = tempfile::tempdir().unwrap();
    let (now, day) = (SystemTime::now(), SystemTime::now() + DAY);
    let authority = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = (now - HOUR).into();
        params
    };
    let root = CertifiedIssuer::self_signed(authority("root"), KeyPair::generate().unwrap()).unwrap();
    let mut params = authority("between");
    params.not_after = (now + HOUR).into();
    let between = CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &root).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(id("a").to_string().try_into().unwrap())];
    params.not_after = day.into();
    let leaf = params.signed_by(&key, &between).unwrap();
    let files = [(CHAIN, leaf.pem() + &between.pem()), (KEY, key.serialize_pem()), (ROOTS, root.pem())];
    for (name, content) in files {
        fs::write(dir.path().join(name), content).unwrap();
    }
    let source = CertFiles::open(dir.path().to_owned(), TaskCount::default());
    let found = source.issue(&id("a")).await.unwrap();
    assert!(found.is_valid(now) && found.not_after <= now + HOUR, "{found:?}");
}
