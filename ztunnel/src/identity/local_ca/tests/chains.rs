//! CAs that were made elsewhere: all forms of keys, chains of several lengths, names that rcgen can't encode.

use std::time::SystemTime;

use aws_lc_rs::{
    encoding::{AsDer as _, EcPrivateKeyRfc5915Der},
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair},
};
use rcgen::{
    BasicConstraints, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256, RsaKeySize,
    SignatureAlgorithm,
};
use rustls_pki_types::CertificateDer;
use x509_parser::asn1_rs::{Any, FromDer as _, Integer, OctetString, Sequence, Tag, ToDer as _};

use super::{HOUR, HandMade, lay_out, params, read, sign};
use crate::identity::{
    certificate::{self, to_pem},
    local_ca::der,
    x509::KeyType,
};

fn pem(label: &str, der: &[u8]) -> String {
    ::pem::encode(&::pem::Pem::new(label, der))
}

/// All forms in which OpenSSL writes a key of this algorithm.
fn forms(key: &KeyPair, algorithm: &'static SignatureAlgorithm) -> Vec<String> {
    let pkcs8 = key.serialized_der();
    let mut forms = vec![pem("PRIVATE KEY", pkcs8)];
    if *algorithm == PKCS_RSA_SHA256 {
        // A PKCS#8 key consists of a version, an algorithm and the PKCS#1 key.
        let (_, content) = Sequence::from_der(pkcs8).unwrap();
        let (rest, _) = Integer::from_der(&content.content).unwrap();
        let (rest, _) = Sequence::from_der(rest).unwrap();
        let (_, inner) = OctetString::from_der(rest).unwrap();
        forms.push(pem("RSA PRIVATE KEY", inner.as_ref()));
    } else {
        let signing = if *algorithm == PKCS_ECDSA_P256_SHA256 {
            &ECDSA_P256_SHA256_ASN1_SIGNING
        } else {
            &ECDSA_P384_SHA384_ASN1_SIGNING
        };
        let pair = EcdsaKeyPair::from_pkcs8(signing, pkcs8).unwrap();
        let sec1: EcPrivateKeyRfc5915Der<'_> = pair.private_key().as_der().unwrap();
        forms.push(pem("EC PRIVATE KEY", sec1.as_ref()));
        // The section that `openssl ecparam -genkey` writes before the key.
        let named = pem("EC PARAMETERS", &[6, 8, 42, 134, 72, 206, 61, 3, 1, 7]);
        forms.push(named + &pem("EC PRIVATE KEY", sec1.as_ref()));
    }
    forms
}

#[test]
fn keys_of_every_form_sign() {
    let rsa = || KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    let ec = |algorithm| KeyPair::generate_for(algorithm).unwrap();
    for (key, algorithm, kind) in [
        (ec(&PKCS_ECDSA_P256_SHA256), &PKCS_ECDSA_P256_SHA256, KeyType::P256),
        (ec(&PKCS_ECDSA_P384_SHA384), &PKCS_ECDSA_P384_SHA384, KeyType::P384),
        (rsa(), &PKCS_RSA_SHA256, KeyType::Rsa(2048)),
    ] {
        let root = params("root", BasicConstraints::Unconstrained).self_signed(&key).unwrap().pem();
        for key in forms(&key, algorithm) {
            let dir = tempfile::tempdir().unwrap();
            lay_out(dir.path(), [&root, &root, &key, &root]);
            assert_eq!(read(dir.path()).unwrap().certificate.key_type, kind);
            let credentials = sign(dir.path(), HOUR);
            certificate::verify(&credentials.chain, &credentials.roots, SystemTime::now()).unwrap();
        }
    }
}

#[test]
fn the_chain_is_sent_without_the_root() {
    let root = HandMade::root(params("root", BasicConstraints::Unconstrained));
    let middle = root.sub(params("middle", BasicConstraints::Constrained(1)));
    let ca = middle.sub(params("ca", BasicConstraints::Constrained(0)));
    let key = ca.key.serialize_pem();
    for chain in [
        format!("{}{}", ca.pem, middle.pem),
        // As Istio's Makefile writes it.
        format!("{}{}{}", ca.pem, middle.pem, root.pem),
        // Without the CA, and with the text around it that `openssl x509 -text` writes.
        format!("Certificate:\n    Data:\n{}\n", middle.pem),
    ] {
        let dir = tempfile::tempdir().unwrap();
        lay_out(dir.path(), [&root.pem, &ca.pem, &key, &chain]);
        let credentials = sign(dir.path(), HOUR);
        let sent: Vec<_> = credentials.chain.iter().skip(1).map(to_pem).collect();
        assert_eq!(sent, [ca.pem.clone(), middle.pem.clone()]);
        assert_eq!(credentials.roots.iter().map(to_pem).collect::<Vec<_>>(), std::slice::from_ref(&root.pem));
        certificate::verify(&credentials.chain, &credentials.roots, SystemTime::now()).unwrap();
    }
    // A self-signed CA needs no chain.
    let dir = tempfile::tempdir().unwrap();
    lay_out(dir.path(), [&root.pem, &root.pem, &root.key.serialize_pem(), ""]);
    assert_eq!(sign(dir.path(), HOUR).chain.len(), 1);
}

#[test]
fn an_issuers_name_is_kept_to_the_byte() {
    // C=DE in a PrintableString, DC=example, DC=com in IA5Strings, two OU; one OU has two values.
    let element = |tag, content: &[u8]| Any::from_tag_and_data(tag, content).to_der_vec().unwrap();
    let attribute = |oid: &[u8], tag, text: &str| {
        element(Tag::Sequence, &[element(Tag::Oid, oid), element(tag, text.as_bytes())].concat())
    };
    let domain = [9, 146, 38, 137, 147, 242, 44, 100, 1, 25];
    let unit = [85, 4, 11];
    let set = |parts: &[Vec<u8>]| element(Tag::Set, &parts.concat());
    let name = element(
        Tag::Sequence,
        &[
            set(&[attribute(&[85, 4, 6], Tag::PrintableString, "DE")]),
            set(&[attribute(&domain, Tag::Ia5String, "example")]),
            set(&[attribute(&domain, Tag::Ia5String, "com")]),
            set(&[attribute(&unit, Tag::Utf8String, "one")]),
            set(&[attribute(&unit, Tag::Utf8String, "a"), attribute(&unit, Tag::Utf8String, "b")]),
        ]
        .concat(),
    );
    let key = KeyPair::generate().unwrap();
    let made = params("replaced", BasicConstraints::Unconstrained).self_signed(&key).unwrap();
    // The subject is the sixth field.
    let with_subject = der::with_field(made.der(), 5, &name, |_| Ok(Vec::new())).unwrap();
    let root = to_pem(&CertificateDer::from(der::sign(&with_subject, &name, &key).unwrap()));
    let dir = tempfile::tempdir().unwrap();
    lay_out(dir.path(), [&root, &root, &key.serialize_pem(), &root]);
    let ca = read(dir.path()).unwrap();
    assert_eq!(ca.certificate.subject_der, name);
    assert!(ca.certificate.is_self_issued());
    let credentials = sign(dir.path(), HOUR);
    let leaf = certificate::Certificate::parse(credentials.chain[0].clone()).unwrap();
    assert_eq!(leaf.issuer, ca.certificate.subject);
    assert!(leaf.issuer.contains("example") && leaf.issuer.contains("com"), "{}", leaf.issuer);
    certificate::verify(&credentials.chain, &credentials.roots, SystemTime::now()).unwrap();
}
