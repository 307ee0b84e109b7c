//! Finds faults in a mesh, and settings that probably differ from the author's intention.
//!
//! A pure function of one snapshot, and of declarations in manifests that are not part of it. Each family of checks has
//! a file. A check reports only what these prove, or what its words ("is known", "declares") leave open. With indexes
//! the cost grows with policies plus pods, not with their product. The codes of all findings are in one table,
//! [`Code`].

mod authentication;
mod clients;
mod code;
mod contradictions;
mod covers;
pub mod declared;
mod fields;
mod finding;
mod identities;
mod index;
mod inert;
mod membership;
mod mtls;
mod nearest;
mod network;
mod path;
mod plaintext;
mod pod;
mod ports;
mod selectors;
mod services;
mod shadows;
mod sources;
mod split;
mod suppress;

use self::declared::Declared;
use self::finding::Report;
use self::index::Mesh;
use crate::model::local::LocalPods;
use crate::store::snapshot::Snapshot;

pub use self::code::Code;
pub use self::finding::{Finding, Severity};
pub use self::suppress::{Suppression, SuppressionError, suppress};

/// All findings, the worst first, then by file and line. `local`: the local facts of the pods, as far as they are
/// known; `declared`: declarations in the manifests that are not part of the mesh.
#[must_use]
pub fn analyze(snapshot: &Snapshot, local: &LocalPods, declared: &Declared) -> Vec<Finding> {
    let mesh = Mesh::index(snapshot, local, declared);
    let mut report = Report::new(snapshot);
    sources::check(&mesh, &mut report);
    inert::check(snapshot, &mut report);
    contradictions::check(snapshot, &mut report);
    split::check(snapshot, &mut report);
    shadows::check(snapshot, &mut report);
    mtls::check(&mesh, &mut report);
    fields::check(&mesh, &mut report);
    // A missing object may be in the part of the mesh that could not be read.
    if !snapshot.is_partial() {
        if mesh.pods().is_empty() {
            without_pods(&mesh, &mut report);
        } else {
            selectors::check(&mesh, &mut report);
            identities::check(&mesh, &mut report);
            ports::check(&mesh, &mut report);
            services::check(&mesh, &mut report);
        }
        membership::check(&mesh, &mut report);
        clients::check(&mesh, &mut report);
        plaintext::check(&mesh, &mut report);
        network::check(&mesh, &mut report);
    }
    report.finish()
}

/// For manifests without any pod nothing can be said about selectors.
fn without_pods(mesh: &Mesh<'_>, report: &mut Report<'_>) {
    let policies = mesh.snapshot.policies();
    let is_empty = policies.authorization().is_empty()
        && policies.authentication().is_empty()
        && mesh.snapshot.services().len() == 0;
    if !is_empty {
        let message =
            "no pod and no template of pods is in these manifests: selectors, names and ports are not checked";
        report.of_mesh(Code::NoPods, message, "add the manifests of the workloads");
    }
}

#[cfg(test)]
mod tests;
