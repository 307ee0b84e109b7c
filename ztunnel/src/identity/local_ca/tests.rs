mod broken;
mod chains;
mod requests;
mod rotation;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::Barrier,
    time::{Duration, SystemTime},
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use x509_parser::{extensions::GeneralName, parse_x509_certificate};

use super::{
    CaError,
    authority::Authority,
    create::{self, NewCa},
    layout,
};
use crate::{
    identity::{
        Credentials,
        certificate::{self, Certificate},
    },
    model::identity::{SpiffeId, TrustDomain},
};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

fn new_ca() -> NewCa {
    NewCa { trust_domain: TrustDomain::default(), ttl: NewCa::TTL }
}

fn id() -> SpiffeId {
    "spiffe://cluster.local/ns/default/sa/web".parse().unwrap()
}

fn read(dir: &Path) -> Result<Authority, CaError> {
    Authority::read(dir, &TrustDomain::default(), SystemTime::now())
}

fn sign(dir: &Path, ttl: Duration) -> Credentials {
    read(dir).unwrap().issue(&id(), ttl, SystemTime::now()).unwrap()
}

/// A CA that a test makes by hand, with all that is needed to sign other certificates.
struct HandMade {
    params: CertificateParams,
    key: KeyPair,
    pem: String,
}

fn params(name: &str, constraints: BasicConstraints) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = (SystemTime::now() - HOUR).into();
    params.not_after = (SystemTime::now() + DAY).into();
    params.use_authority_key_identifier_extension = true;
    params
}

impl HandMade {
    fn root(params: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { params, key, pem }
    }

    fn sign(&self, params: CertificateParams, key: KeyPair) -> Self {
        let issuer = Issuer::from_params(&self.params, &self.key);
        let pem = params.signed_by(&key, &issuer).unwrap().pem();
        Self { params, key, pem }
    }

    fn sub(&self, params: CertificateParams) -> Self {
        self.sign(params, KeyPair::generate().unwrap())
    }
}

/// Writes the files of a CA's directory: roots, CA, key, chain.
fn lay_out(dir: &Path, contents: [&str; 4]) {
    for (name, content) in layout::FILES.iter().zip(contents) {
        fs::write(dir.join(name), content).unwrap();
    }
}

#[test]
fn a_new_ca_is_complete_and_its_key_is_its_owners_alone() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("a/b");
    assert!(create::ensure(&dir, &new_ca()).unwrap());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&dir), mode(&dir.join(layout::KEY))), (0o700, 0o600));
    assert_eq!(layout::key_mode(&dir).unwrap(), 0o600);
    let mut names: Vec<_> =
        fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"]);
    let ca = read(&dir).unwrap();
    assert!(ca.certificate.subject.contains("O=cluster.local"), "{}", ca.certificate.subject);
    assert!(ca.intermediates.is_empty() && ca.roots == [ca.certificate.clone()]);
    assert!(!create::ensure(&dir, &new_ca()).unwrap());
    assert_eq!(read(&dir).unwrap().certificate, ca.certificate);
    assert!(matches!(create::init(&dir, &new_ca()), Err(CaError::Exists { .. })));
}

#[test]
fn an_empty_directory_with_what_a_crash_left_gets_a_ca() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("lost+found")).unwrap();
    fs::write(dir.path().join(".ztunnel-ca-key.pem-0123"), "half a key").unwrap();
    assert!(create::ensure(dir.path(), &new_ca()).unwrap());
    assert!(!dir.path().join(".ztunnel-ca-key.pem-0123").exists());
    read(dir.path()).unwrap();
}

#[test]
fn of_many_that_create_at_once_one_does() {
    let parent = tempfile::tempdir().unwrap();
    for round in 0..10 {
        let dir = parent.path().join(round.to_string());
        let barrier = Barrier::new(8);
        let create = || {
            barrier.wait();
            let made = create::ensure(&dir, &new_ca()).unwrap();
            (made, read(&dir).unwrap().certificate.serial)
        };
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(create)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(results.iter().filter(|(made, _)| *made).count(), 1);
        assert!(results.iter().all(|(_, serial)| *serial == results[0].1), "{results:?}");
    }
}

#[test]
fn a_workloads_certificate_is_as_istios() {
    let dir = tempfile::tempdir().unwrap();
    create::ensure(dir.path(), &new_ca()).unwrap();
    let before = SystemTime::now();
    let credentials = sign(dir.path(), HOUR);
    assert_eq!(credentials.chain.len(), 1, "the root is not sent");
    let (rest, leaf) = parse_x509_certificate(&credentials.chain[0]).unwrap();
    assert!(rest.is_empty());
    assert_eq!(leaf.subject().iter().count(), 0);
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical);
    assert!(matches!(
        names.value.general_names.as_slice(),
        [GeneralName::URI("spiffe://cluster.local/ns/default/sa/web")]
    ));
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature() && usage.value.key_encipherment());
    assert!(!usage.value.key_cert_sign());
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.client_auth && extended.server_auth && !extended.any);
    let basic = leaf.basic_constraints().unwrap().unwrap();
    assert!(basic.critical && !basic.value.ca);
    let ca = read(dir.path()).unwrap().certificate;
    assert_eq!(leaf.issuer().as_raw(), ca.subject_der);
    let text = format!("{:?}", leaf.extensions());
    assert!(text.contains("AuthorityKeyIdentifier") && text.contains("SubjectKeyIdentifier"), "{text}");
    let parsed = Certificate::parse(credentials.chain[0].clone()).unwrap();
    assert_eq!((parsed.identity().unwrap(), parsed.key_type.to_string()), (id(), "EC P-256".to_owned()));
    assert_eq!((parsed.not_before, parsed.not_after), (credentials.not_before, credentials.not_after));
    assert_eq!(parsed.serial, credentials.serial);
    let backdated = before.duration_since(credentials.not_before).unwrap();
    assert!((119..=122).contains(&backdated.as_secs()), "{backdated:?}");
    let rest = credentials.not_after.duration_since(before).unwrap();
    assert!((3598..=3602).contains(&rest.as_secs()), "{rest:?}");
    certificate::verify(&credentials.chain, &credentials.roots, SystemTime::now()).unwrap();
    // The key belongs to the certificate.
    let key = KeyPair::try_from(&credentials.key).unwrap();
    assert_eq!(key.public_key_raw(), parsed.public_key);
}

#[test]
fn every_certificate_has_its_own_key_and_serial_number() {
    let dir = tempfile::tempdir().unwrap();
    create::ensure(dir.path(), &new_ca()).unwrap();
    let ca = read(dir.path()).unwrap();
    let issued: Vec<_> = (0..50).map(|_| ca.issue(&id(), HOUR, SystemTime::now()).unwrap()).collect();
    let count = |text: &dyn Fn(&Credentials) -> Vec<u8>| {
        issued.iter().map(text).collect::<std::collections::BTreeSet<_>>().len()
    };
    assert_eq!(count(&|it| it.serial.clone().into_bytes()), 50);
    assert_eq!(count(&|it| it.key.secret_der().to_vec()), 50);
    // 128 bits have 38 or 39 decimal digits, rarely far fewer.
    assert!(issued.iter().all(|it| it.serial.len() >= 30), "{issued:?}");
}

#[test]
fn no_certificate_outlives_its_ca() {
    let dir = tempfile::tempdir().unwrap();
    create::ensure(dir.path(), &NewCa { ttl: HOUR, ..new_ca() }).unwrap();
    let ca = read(dir.path()).unwrap();
    let end = ca.certificate.not_after;
    assert_eq!(sign(dir.path(), DAY).not_after, end);
    assert_eq!(sign(dir.path(), Duration::MAX).not_after, end);
    let error = ca.issue(&id(), DAY, end).unwrap_err();
    assert!(matches!(&error, CaError::Unfit { path, .. } if path.ends_with(layout::CERTIFICATE)), "{error:?}");
}
