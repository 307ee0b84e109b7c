//! The lists contain every label that the rest of the program counts.

use std::{collections::BTreeSet, fs, path::Path};

use super::{of_abuse, of_handshake};
use crate::model::flow::Direction;

/// The string literals behind `mark`, in the functions of a source file that begin with `function`.
fn labels(source: &str, function: &str, mark: &str) -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(source);
    let text = fs::read_to_string(&path).unwrap();
    let bodies = text.split(function).skip(1).map(|rest| rest.split("\n    }\n").next().unwrap());
    let found = bodies.flat_map(|body| body.split(mark).skip(1).filter_map(|rest| rest.split('"').next()));
    let found: BTreeSet<String> = found.map(ToOwned::to_owned).collect();
    assert!(!found.is_empty(), "{source} has no label in {function}");
    found
}

fn listed(reasons: impl Iterator<Item = &'static str>) -> BTreeSet<String> {
    reasons.map(ToOwned::to_owned).collect()
}

#[test]
fn every_reason_of_a_failed_handshake_is_listed_and_no_other() {
    let mut labels_of_tls = labels("tls/error.rs", "fn label(", "=> \"");
    labels_of_tls.extend(labels("tls/verify.rs", "fn label(", "=> \""));
    assert_eq!(listed(of_handshake(Direction::Outbound)), labels_of_tls);
    labels_of_tls.extend(labels("flow/admission.rs", "fn label(", "=> \""));
    labels_of_tls.extend(labels("flow/admission.rs", "pub const LABEL", "= \""));
    assert_eq!(listed(of_handshake(Direction::Inbound)), labels_of_tls);
}

#[test]
fn every_kind_of_abuse_is_listed_and_no_other() {
    assert_eq!(listed(of_abuse(Direction::Inbound)), labels("hbone/server.rs", "fn abuse(&self)", "Some(\""));
    assert_eq!(listed(of_abuse(Direction::Outbound)), labels("hbone/client.rs", "fn abuse(&self)", "some(\""));
}
