use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType, IsCa, KeyPair,
    SanType,
};
use x509_parser::{
    certification_request::X509CertificationRequest,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer as _,
};

use super::{Request, RequestError};
use crate::model::{cause::causes, identity::SpiffeId};

const HOUR: Duration = Duration::from_secs(3600);

fn identity() -> SpiffeId {
    "spiffe://cluster.local/ns/demo/sa/web".parse().unwrap()
}

fn ca(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// The answer of an authority to a request, after a change to the certificate.
fn sign(ca: &CertifiedIssuer<'_, KeyPair>, request: &str, change: impl FnOnce(&mut CertificateParams)) -> String {
    let mut request = CertificateSigningRequestParams::from_pem(request).unwrap();
    let params = &mut request.params;
    (params.not_before, params.not_after) = ((SystemTime::now() - HOUR).into(), (SystemTime::now() + HOUR).into());
    params.is_ca = IsCa::ExplicitNoCa;
    change(params);
    request.signed_by(ca).unwrap().pem()
}

#[test]
fn a_request_has_a_new_key_no_subject_and_one_critical_name() {
    let (_, one) = Request::new(identity()).unwrap();
    let (_, other) = Request::new(identity()).unwrap();
    let der = |text: &str| pem::parse(text).unwrap();
    let (one, other) = (der(&one), der(&other));
    assert_eq!(one.tag(), "CERTIFICATE REQUEST");
    let (_, one) = X509CertificationRequest::from_der(one.contents()).unwrap();
    let (_, other) = X509CertificationRequest::from_der(other.contents()).unwrap();
    let info = &one.certification_request_info;
    assert_ne!(info.subject_pki.raw, other.certification_request_info.subject_pki.raw);
    assert_eq!(info.subject.iter().count(), 0);
    let extensions: Vec<_> = one.requested_extensions().unwrap().collect();
    let [ParsedExtension::SubjectAlternativeName(names)] = extensions.as_slice() else { panic!("{extensions:?}") };
    assert_eq!(names.general_names, [GeneralName::URI("spiffe://cluster.local/ns/demo/sa/web")]);
    // OBJECT IDENTIFIER 2.5.29.17, BOOLEAN TRUE.
    let critical = [0x06, 0x03, 0x55, 0x1d, 0x11, 0x01, 0x01, 0xff];
    assert!(info.raw.windows(critical.len()).any(|bytes| bytes == critical));
}

#[test]
fn an_answer_is_taken_with_intermediates_and_several_roots() {
    let (root, other) = (ca("root"), ca("other"));
    let (request, text) = Request::new(identity()).unwrap();
    let leaf = sign(&root, &text, |_| {});
    let roots = format!("{}{}", root.pem(), other.pem());
    let credentials = request.accept(&[leaf.clone(), other.pem(), roots], SystemTime::now()).unwrap();
    assert_eq!((credentials.identity, credentials.roots.len()), (identity(), 2));
    assert_eq!(credentials.chain.len(), 1, "a root is not sent to peers");
}

#[test]
fn an_answer_that_is_not_what_was_asked_for_is_refused() {
    let (root, other) = (ca("root"), ca("other"));
    let accept = |answer: &dyn Fn(&str) -> Vec<String>| {
        let (request, text) = Request::new(identity()).unwrap();
        let error = request.accept(&answer(&text), SystemTime::now()).unwrap_err();
        causes(&error)
    };
    let signed = |change: fn(&mut CertificateParams)| accept(&|text| vec![sign(&root, text, change), root.pem()]);
    let rename = |params: &mut CertificateParams| {
        params.subject_alt_names = vec![SanType::URI("spiffe://cluster.local/ns/demo/sa/other".try_into().unwrap())];
    };
    assert_eq!(signed(rename), "the certificate is for spiffe://cluster.local/ns/demo/sa/other");
    let nameless = |params: &mut CertificateParams| params.subject_alt_names.clear();
    assert!(signed(nameless).starts_with("the certificate has no identity"));
    let authority = |params: &mut CertificateParams| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    assert!(signed(authority).contains("a CA certificate"));
    let expired = |params: &mut CertificateParams| params.not_after = (SystemTime::now() - HOUR / 2).into();
    assert!(signed(expired).starts_with("the certificate cannot be used now: it has expired"));
    let early = |params: &mut CertificateParams| params.not_before = (SystemTime::now() + HOUR / 2).into();
    assert!(signed(early).contains("is the clock right?"));
    let (_, foreign) = Request::new(identity()).unwrap();
    assert_eq!(accept(&|_| vec![sign(&root, &foreign, |_| {}), root.pem()]), "the certificate is for another key");
    let untrusted = accept(&|text| vec![sign(&root, text, |_| {}), other.pem()]);
    assert!(untrusted.starts_with("the certificate does not lead to the roots of the answer"), "{untrusted}");
    assert!(accept(&|text| vec![sign(&root, text, |_| {})]).starts_with("the answer has 1 PEM texts"));
    assert!(accept(&|_| Vec::new()).starts_with("the answer has 0 PEM texts"));
    assert!(accept(&|_| vec!["x".into(), root.pem()]).contains("no certificate"));
    assert!(matches!(
        Request::new(identity()).unwrap().0.accept(&[root.pem(), String::new()], SystemTime::now()),
        Err(RequestError::Empty)
    ));
}

/// If any byte of a certificate is changed or missing, the answer is refused, and nothing panics.
#[test]
fn an_answer_with_any_byte_changed_is_refused() {
    let ca = ca("root");
    let roots = ca.pem();
    let answer = |change: &dyn Fn(&mut Vec<u8>)| {
        let (asked, request) = Request::new(identity()).unwrap();
        let mut der = pem::parse(sign(&ca, &request, |_| {})).unwrap().into_contents();
        change(&mut der);
        let leaf = pem::encode(&pem::Pem::new("CERTIFICATE", der));
        asked.accept(&[leaf, roots.clone()], SystemTime::now())
    };
    answer(&|_| {}).unwrap();
    let length = pem::parse(sign(&ca, &Request::new(identity()).unwrap().1, |_| {})).unwrap().contents().len();
    // The length of a signature differs by a few bytes from one to the next.
    for position in 0..length - 4 {
        for bit in [0, 7] {
            let flipped = answer(&|der| der[position] ^= 1 << bit);
            assert!(flipped.is_err(), "bit {bit} of byte {position}");
        }
        assert!(answer(&|der| der.truncate(position)).is_err(), "{position} bytes");
    }
}
