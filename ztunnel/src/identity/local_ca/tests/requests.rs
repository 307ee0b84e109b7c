//! Remote requests: which are certified, and which are refused.

use rcgen::{
    CertificateParams, DistinguishedName, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SanType,
};
use rustls_pki_types::{CertificateSigningRequestDer, pem::PemObject as _};

use super::{
    super::{
        authority::Certified,
        request::{LARGEST_REQUEST, RequestError, SigningRequest},
    },
    *,
};

fn wanted(uris: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
    params
}

fn pem_of(params: &CertificateParams) -> String {
    let key = KeyPair::generate().unwrap();
    params.serialize_request(&key).unwrap().pem().unwrap()
}

fn refused(params: &CertificateParams) -> RequestError {
    SigningRequest::parse(pem_of(params).as_bytes()).unwrap_err()
}

fn certify(dir: &Path, pem: &str, ttl: Duration) -> Result<Certified, CaError> {
    read(dir).unwrap().certify(&SigningRequest::parse(pem.as_bytes()).unwrap(), &id(), ttl, SystemTime::now())
}

#[test]
fn a_request_gets_a_certificate_for_its_key_that_says_what_the_ca_decides() {
    let dir = tempfile::tempdir().unwrap();
    create::ensure(dir.path(), &new_ca()).unwrap();
    for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params = wanted(&[&id().to_string()]);
        params.distinguished_name.push(DnType::CommonName, "somebody");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        let certified = certify(dir.path(), &pem, HOUR).unwrap();
        certificate::verify(&certified.chain, &certified.roots, SystemTime::now()).unwrap();
        let leaf = Certificate::parse(certified.chain[0].clone()).unwrap();
        assert_eq!((leaf.identity().unwrap(), leaf.subject.as_str(), leaf.is_ca), (id(), "", false));
        assert_eq!(leaf.public_key, key.public_key_raw());
        assert_eq!((leaf.serial, leaf.not_after), (certified.serial, certified.not_after));
        assert!(certified.not_after <= SystemTime::now() + HOUR);
    }
    // A request without a name is accepted for any identity that its sender is entitled to.
    certify(dir.path(), &pem_of(&wanted(&[])), HOUR).unwrap();
}

#[test]
fn a_request_for_a_ca_or_another_name_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    create::ensure(dir.path(), &new_ca()).unwrap();
    let mut ca = wanted(&[&id().to_string()]);
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    assert_eq!(refused(&ca), RequestError::Ca);
    let mut signer = wanted(&[&id().to_string()]);
    signer.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    assert_eq!(refused(&signer), RequestError::Ca);
    let mut dns = wanted(&[]);
    dns.subject_alt_names = vec![SanType::DnsName("istiod.istio-system.svc".try_into().unwrap())];
    assert_eq!(refused(&dns), RequestError::Extension);
    for others in [&["spiffe://cluster.local/ns/default/sa/other"][..], &[&id().to_string(), "spiffe://a/ns/b/sa/c"]] {
        let error = certify(dir.path(), &pem_of(&wanted(others)), HOUR).unwrap_err();
        assert!(matches!(&error, CaError::Request(RequestError::Name { .. })), "{error}");
        assert!(error.to_string().ends_with("the certificate is for spiffe://cluster.local/ns/default/sa/web alone"));
    }
}

#[test]
fn a_request_that_proves_no_key_is_refused() {
    let good = pem_of(&wanted(&[]));
    let der = CertificateSigningRequestDer::from_pem_slice(good.as_bytes()).unwrap().to_vec();
    let as_pem = |der: Vec<u8>| pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", der));
    let parse = |pem: &str| SigningRequest::parse(pem.as_bytes());
    parse(&as_pem(der.clone())).unwrap();
    // If any bit is changed, the request is refused, or it is for the same key.
    let key = format!("{:?}", parse(&good).unwrap());
    for position in 0..der.len() {
        let mut other = der.clone();
        other[position] ^= 1;
        let parsed = parse(&as_pem(other));
        assert!(parsed.is_err() || format!("{:?}", parsed.unwrap()) == key, "{position}");
    }
    let ed25519 = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let ed25519 = wanted(&[]).serialize_request(&ed25519).unwrap().pem().unwrap();
    assert_eq!(parse(&ed25519).unwrap_err(), RequestError::Algorithm);
    assert_eq!(parse("").unwrap_err(), RequestError::Pem);
    assert_eq!(parse(&good.repeat(2)).unwrap_err(), RequestError::Pem);
    assert_eq!(parse(&as_pem(vec![0x30, 0x82])).unwrap_err(), RequestError::Der);
    assert_eq!(parse(&as_pem([der, vec![0]].concat())).unwrap_err(), RequestError::Der);
    assert_eq!(parse(&"x".repeat(LARGEST_REQUEST + 1)).unwrap_err(), RequestError::TooLarge);
}

#[test]
fn a_server_certificate_has_the_names_that_clients_ask_for() {
    let dir = tempfile::tempdir().unwrap();
    create::ensure(dir.path(), &new_ca()).unwrap();
    let authority = read(dir.path()).unwrap();
    let names = ["istiod.istio-system.svc".to_owned(), "127.0.0.1".to_owned()];
    let server = authority.issue_server(&names, HOUR, SystemTime::now()).unwrap();
    let (_, parsed) = parse_x509_certificate(&server.certified.chain[0]).unwrap();
    let found = &parsed.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(found, &[GeneralName::DNSName("istiod.istio-system.svc"), GeneralName::IPAddress(&[127, 0, 0, 1])]);
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && !usage.client_auth);
    assert!(authority.issue_server(&["istiöd".to_owned()], HOUR, SystemTime::now()).is_err());
}
