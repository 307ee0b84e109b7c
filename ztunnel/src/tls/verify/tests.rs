use super::{IdentityFault, LONGEST_CHAIN, Leaf, Listed, PeerOf, ServerOneOf};
use crate::{
    model::identity::SpiffeId,
    tls::test_ca::{CLIENT, TestCa, WEB, Wanted, good},
};
use rcgen::KeyUsagePurpose;
use rustls::{
    CertificateError, Error, RootCertStore, client::danger::ServerCertVerifier as _,
    server::danger::ClientCertVerifier as _,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::sync::Arc;

fn read(change: impl FnOnce(&mut Wanted)) -> Result<Leaf, IdentityFault> {
    let mut wanted = good(WEB);
    change(&mut wanted);
    Leaf::read(&TestCa::new("ca").leaf(&wanted).0)
}

#[test]
fn one_uri_is_the_identity_whatever_else_is_there() {
    let leaf = read(|wanted| wanted.dns = vec!["web.default".to_owned(), "spiffe".to_owned()]).unwrap();
    assert_eq!(leaf.identity.to_string(), WEB);
    assert!(leaf.not_after > std::time::SystemTime::now());
}

#[test]
fn no_uri_two_uris_and_other_uris_are_faults() {
    assert_eq!(read(|wanted| wanted.uris.clear()), Err(IdentityFault::Uris(0)));
    let dns_only = |wanted: &mut Wanted| {
        wanted.uris.clear();
        wanted.dns.push("web".to_owned());
    };
    assert_eq!(read(dns_only), Err(IdentityFault::Uris(0)));
    assert_eq!(read(|wanted| wanted.uris.push(WEB.to_owned())), Err(IdentityFault::Uris(2)));
    assert_eq!(read(|wanted| wanted.uris.push("https://example".to_owned())), Err(IdentityFault::Uris(2)));
    let other = read(|wanted| wanted.uris = vec!["https://example".to_owned()]);
    assert!(matches!(other, Err(IdentityFault::NotSpiffe(_))), "{other:?}");
    assert_eq!(read(|wanted| wanted.uris = vec![WEB.to_owned(); 3000]), Err(IdentityFault::Uris(3000)));
    assert!(read(|wanted| wanted.dns = vec!["a.very.long.name".to_owned(); 3000]).is_ok());
}

#[test]
fn no_certificate_however_broken_panics() {
    let (whole, _) = TestCa::new("ca").leaf(&good(WEB));
    for end in 0..whole.len() {
        assert_eq!(Leaf::read(&CertificateDer::from(&whole[..end])), Err(IdentityFault::Unreadable), "{end}");
    }
    let mut read = 0;
    for index in 0..whole.len() {
        for change in [0x01, 0x80, 0xff] {
            let mut broken = whole.to_vec();
            broken[index] ^= change;
            read += usize::from(Leaf::read(&CertificateDer::from(broken)).is_ok());
        }
    }
    assert!(read > 0, "a changed signature does not matter here");
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let garbage: Vec<u8> = (0..random.usize(..2048)).map(|_| random.u8(..)).collect();
        assert_eq!(Leaf::read(&CertificateDer::from(garbage)), Err(IdentityFault::Unreadable));
    }
}

#[test]
fn a_long_list_of_expected_identities_is_cut() {
    let many: Vec<SpiffeId> = (0..9).map(|number| format!("spiffe://td/ns/a/sa/b{number}").parse().unwrap()).collect();
    let text = Listed(&many).to_string();
    assert!(text.ends_with("spiffe://td/ns/a/sa/b2 or 6 more"), "{text}");
    assert!(Listed(&[]).to_string().starts_with("an expected identity"));
}

/// The identity fault in a refusal, if any.
fn fault(error: Error) -> Option<IdentityFault> {
    match error {
        Error::InvalidCertificate(CertificateError::Other(other)) => other.0.downcast_ref::<IdentityFault>().cloned(),
        _ => None,
    }
}

/// A peer can copy the signing certificate from our own chain; webpki would try each copy.
#[test]
fn a_chain_of_hundreds_is_refused_before_it_is_followed() {
    let (root, mut roots) = (TestCa::new("root"), RootCertStore::empty());
    let ours = root.below("between");
    roots.add(root.root()).unwrap();
    let peers = PeerOf::new(&Arc::new(roots), "cluster.local".parse().unwrap()).unwrap();
    let between = ours.good(CLIENT).chain[1].clone();
    let verify = |leaf: &CertificateDer<'_>, count| {
        peers.verify_client_cert(leaf, &vec![between.clone(); count], UnixTime::now()).map(|_good| ())
    };
    let (good_leaf, stranger) = (ours.leaf(&good(CLIENT)).0, TestCa::new("between").leaf(&good(CLIENT)).0);
    assert_eq!(verify(&good_leaf, LONGEST_CHAIN), Ok(()));
    assert_eq!(verify(&stranger, LONGEST_CHAIN), Err(CertificateError::UnknownIssuer.into()));
    for leaf in [good_leaf, stranger] {
        assert_eq!(fault(verify(&leaf, 150).unwrap_err()), Some(IdentityFault::Chain(150)));
    }
}

/// A key with another key usage signs no handshake and no certificate.
#[test]
fn speak_for_a_workload_with_a_key_that_is_for_something_else() {
    let root = TestCa::new("root");
    let mut roots = RootCertStore::empty();
    roots.add(root.root()).unwrap();
    let roots = Arc::new(roots);
    let peers = PeerOf::new(&roots, "cluster.local".parse().unwrap()).unwrap();
    let servers = ServerOneOf::new(roots, Arc::from([CLIENT.parse().unwrap()]));
    let both = |ca: &TestCa, usages: &[KeyUsagePurpose]| {
        let wanted = Wanted { usages: usages.to_vec(), ..good(CLIENT) };
        let chain = &ca.credentials(CLIENT, &wanted, &[]).chain;
        let (leaf, between, now) = (&chain[0], &chain[1..], UnixTime::now());
        let name = ServerName::try_from("nobody").unwrap();
        let as_client = peers.verify_client_cert(leaf, between, now).map(|_good| ());
        let as_server = servers.verify_server_cert(leaf, between, &name, &[], now).map(|_good| ());
        [as_client, as_server]
            .map(|verified| verified.map_err(|error| fault(error).map_or_else(String::new, |fault| fault.to_string())))
    };
    use KeyUsagePurpose::{CrlSign, DigitalSignature, KeyCertSign, KeyEncipherment};
    for fine in [&[][..], &[DigitalSignature], &[DigitalSignature, KeyEncipherment]] {
        for ca in [&root, &root.below("between"), &root.below_for("unlimited", vec![])] {
            assert_eq!(both(ca, fine), [Ok(()), Ok(())], "{fine:?}");
        }
    }
    for wrong in [&[KeyEncipherment][..], &[KeyCertSign, CrlSign]] {
        for verified in both(&root, wrong) {
            assert!(verified.unwrap_err().contains("does not allow digitalSignature"), "{wrong:?}");
        }
    }
    for verified in both(&root.below_for("mute", vec![DigitalSignature, CrlSign]), &[DigitalSignature]) {
        assert!(verified.unwrap_err().contains("does not allow keyCertSign"));
    }
}
