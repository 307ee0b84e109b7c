//! Properties that hold for any text that is given as a manifest: run by the fuzz target, and on its seeds.

use std::sync::Arc;

use super::{Known, assemble, read_again};
use crate::model::identity::TrustDomain;
use crate::model::policy::{PolicySet, Scope};
use crate::store::snapshot::Snapshot;

/// Every object of a text becomes part of a mesh, or is reported with its place. The result is the same each time,
/// ordered, and does not depend on what is known from before.
///
/// # Panics
/// When a property does not hold.
pub fn manifests(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (first, second): (Arc<str>, Arc<str>) = ("a.yaml".into(), "b.yaml".into());
    let (content, known) = read_again(&first, &text, &Known::default());
    assert_eq!(read_again(&first, &text, &known).0, content);
    let lines = text.split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']).count() + 1;
    for fault in &content.faults {
        let error = &fault.error;
        assert!(error.line.is_some_and(|line| usize::try_from(line).is_ok_and(|line| line <= lines)), "{error}");
        assert!(!error.to_string().contains(char::is_control), "{error:?}");
    }
    let mesh = assemble([(&first, &content), (&second, &content)], &TrustDomain::default());
    assert!(mesh.problems.is_sorted());
    for problem in &mesh.problems {
        assert!(!problem.to_string().contains(char::is_control), "{problem:?}");
    }
    check_policies(&mesh.policies);
    let again = assemble([(&first, &content), (&second, &content)], &TrustDomain::default());
    assert_eq!(mesh, again);
    let counts = (mesh.policies.authorization.len(), mesh.policies.authentication.len());
    let snapshot = Snapshot::build(1, mesh.workloads, mesh.services, mesh.problems).with_policies(mesh.policies);
    let policies = snapshot.policies();
    assert_eq!((policies.authorization().len(), policies.authentication().len()), counts);
}

fn check_policies(policies: &PolicySet) {
    let names = policies.authorization.iter().map(|policy| &policy.name);
    assert!(names.is_sorted());
    assert!(policies.authentication.is_sorted_by_key(|policy| &policy.name));
    for policy in &policies.authorization {
        if let Scope::Selector { labels, .. } = &policy.scope {
            assert!(!labels.is_empty(), "{policy:?}");
        }
        for found in policy.rules.iter().flat_map(|rule| &rule.clauses).flat_map(|clause| &clause.matches) {
            let sources = found.source_ips.iter().chain(&found.not_source_ips);
            for net in sources.chain(&found.destination_ips).chain(&found.not_destination_ips) {
                assert!(net.addr() == net.network() && net.addr().to_canonical() == net.addr(), "{net}");
            }
            assert!(!found.destination_ports.iter().chain(&found.not_destination_ports).any(|port| *port == 0));
        }
    }
}
