//! All faults of a CA's directory: the error names the file and the remedy.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use nix::{sys::stat::Mode, unistd::mkfifo};
use rcgen::{BasicConstraints, IsCa, KeyPair, KeyUsagePurpose};

use super::{CaError, HOUR, HandMade, create, lay_out, layout, new_ca, params, read};
use crate::model::cause::causes;

fn why(dir: &Path) -> String {
    causes(&read(dir).unwrap_err())
}

/// A directory with a valid CA, and that CA.
fn good() -> (tempfile::TempDir, HandMade) {
    let dir = tempfile::tempdir().unwrap();
    let root = HandMade::root(params("root", BasicConstraints::Unconstrained));
    lay_out(dir.path(), [&root.pem, &root.pem, &root.key.serialize_pem(), &root.pem]);
    read(dir.path()).unwrap();
    (dir, root)
}

#[test]
fn a_missing_file_is_named_and_nothing_is_made_in_its_place() {
    for name in layout::FILES {
        let (dir, _) = good();
        fs::remove_file(dir.path().join(name)).unwrap();
        assert!(why(dir.path()).contains(name));
        let error = create::ensure(dir.path(), &new_ca()).unwrap_err();
        assert!(matches!(&error, CaError::Incomplete { missing, .. } if *missing == [name]), "{error}");
        assert!(error.to_string().contains("or empty the directory"), "{error}");
        assert!(!dir.path().join(name).exists());
    }
}

#[test]
fn a_directory_without_a_ca_is_told_from_a_broken_one() {
    let dir = tempfile::tempdir().unwrap();
    assert!(why(dir.path()).contains("ztunnel ca init"));
    assert!(why(&dir.path().join("nowhere")).contains("ztunnel ca init"));
    fs::write(dir.path().join("notes.txt"), "").unwrap();
    let error = create::ensure(dir.path(), &new_ca()).unwrap_err();
    assert!(matches!(&error, CaError::Foreign { found, .. } if found == "notes.txt"), "{error}");
    let error = create::ensure(&dir.path().join("notes.txt"), &new_ca()).unwrap_err();
    assert!(causes(&error).contains("notes.txt"), "{error}");
}

#[test]
fn content_that_makes_no_sense_is_named() {
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let cut = "-----BEGIN CERTIFICATE-----\nAAAA\n";
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (name, content, said) in [
        (layout::ROOTS, "", "holds no certificate"),
        (layout::CERTIFICATE, "", "holds no certificate"),
        (layout::KEY, "", "holds no private key"),
        (layout::KEY, encrypted, "unencrypted"),
        (layout::ROOTS, cut, "is not PEM"),
        (layout::CHAIN, cut, "is not PEM"),
        (layout::ROOTS, garbage, "certificate that cannot be parsed"),
        (layout::CERTIFICATE, garbage, "certificate that cannot be parsed"),
        (layout::CHAIN, garbage, "certificate that cannot be parsed"),
        (layout::CERTIFICATE, "\0\u{1}", "holds no certificate"),
    ] {
        let (dir, _) = good();
        fs::write(dir.path().join(name), content).unwrap();
        let why = why(dir.path());
        assert!(why.contains(name) && why.contains(said), "{name}, {said}: {why}");
    }
}

#[test]
fn what_is_no_file_or_no_certificate_in_size_is_not_read() {
    let (dir, _) = good();
    let path = dir.path().join(layout::ROOTS);
    fs::remove_file(&path).unwrap();
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    assert!(why(dir.path()).contains("root-cert.pem is not a regular file"));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(why(dir.path()).contains("root-cert.pem is not a regular file"));
    fs::remove_dir(&path).unwrap();
    fs::write(&path, vec![b'a'; (1 << 20) + 1]).unwrap();
    assert!(why(dir.path()).contains("root-cert.pem is larger than 1024 KiB"));
}

#[test]
fn files_that_do_not_belong_together_are_named() {
    let (dir, root) = good();
    let other = HandMade::root(params("other", BasicConstraints::Unconstrained));
    let key = root.key.serialize_pem();
    lay_out(dir.path(), [&root.pem, &root.pem, &other.key.serialize_pem(), &root.pem]);
    let text = why(dir.path());
    assert!(text.contains("ca-key.pem can't be used: it is not the key of") && text.contains("ca-cert.pem"), "{text}");
    lay_out(dir.path(), [&other.pem, &root.pem, &key, &root.pem]);
    let text = why(dir.path());
    assert!(text.contains("ca-cert.pem can't be used") && text.contains("root-cert.pem"), "{text}");
    // An intermediate of the chain is missing.
    let middle = root.sub(params("middle", BasicConstraints::Unconstrained));
    let ca = middle.sub(params("ca", BasicConstraints::Unconstrained));
    lay_out(dir.path(), [&root.pem, &ca.pem, &ca.key.serialize_pem(), &ca.pem]);
    assert!(why(dir.path()).contains("cert-chain.pem"));
    lay_out(dir.path(), [&root.pem, &ca.pem, &ca.key.serialize_pem(), &format!("{}{}", ca.pem, middle.pem)]);
    read(dir.path()).unwrap();
    // A CA above allows no CA below the next one.
    let narrow = root.sub(params("narrow", BasicConstraints::Constrained(0)));
    let ca = narrow.sub(params("ca", BasicConstraints::Unconstrained));
    lay_out(dir.path(), [&root.pem, &ca.pem, &ca.key.serialize_pem(), &format!("{}{}", ca.pem, narrow.pem)]);
    let text = why(dir.path());
    assert!(text.contains("PathLenConstraintViolated"), "{text}");
}

#[test]
fn a_certificate_that_may_not_sign_or_not_now_is_named() {
    let root = HandMade::root(params("root", BasicConstraints::Unconstrained));
    let mut leaf = params("leaf", BasicConstraints::Unconstrained);
    leaf.is_ca = IsCa::ExplicitNoCa;
    let mut usage = params("usage", BasicConstraints::Unconstrained);
    usage.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let mut expired = params("expired", BasicConstraints::Unconstrained);
    expired.not_after = (SystemTime::now() - Duration::from_secs(1)).into();
    let mut early = params("early", BasicConstraints::Unconstrained);
    early.not_before = (SystemTime::now() + HOUR).into();
    for (params, said) in [
        (leaf, "it is not a CA certificate"),
        (usage, "keyCertSign"),
        (expired, "it has expired at 2"),
        (early, "is the clock right?"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let made = root.sub(params.clone());
        lay_out(dir.path(), [&root.pem, &made.pem, &made.key.serialize_pem(), &made.pem]);
        let text = why(dir.path());
        assert!(text.contains("ca-cert.pem can't be used") && text.contains(said), "{said}: {text}");
        // The same fault in a CA above.
        let ca = made.sub(super::params("ca", BasicConstraints::Unconstrained));
        lay_out(dir.path(), [&root.pem, &ca.pem, &ca.key.serialize_pem(), &format!("{}{}", ca.pem, made.pem)]);
        let text = why(dir.path());
        assert!(text.contains("cert-chain.pem can't be used") && text.contains(said), "{said}: {text}");
    }
}

#[test]
fn a_kind_of_key_that_not_every_peer_knows_is_refused() {
    let root = HandMade::root(params("root", BasicConstraints::Unconstrained));
    for algorithm in [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P521_SHA512] {
        let dir = tempfile::tempdir().unwrap();
        let ca = root.sign(params("ca", BasicConstraints::Unconstrained), KeyPair::generate_for(algorithm).unwrap());
        lay_out(dir.path(), [&root.pem, &ca.pem, &ca.key.serialize_pem(), &ca.pem]);
        let text = why(dir.path());
        assert!(text.contains("ca-key.pem can't be used") && text.contains("EC P-256, EC P-384 or RSA"), "{text}");
    }
}
