//! Finds what is wrong, or likely not meant, in a mesh.
//!
//! Pure, of one snapshot. Each family of checks has a file; a check says only what the snapshot proves, or what its words
//! ("is known", "declares") leave open. Indexes make the cost follow policies and pods, not their product.

mod authentication;
mod clients;
mod contradictions;
mod covers;
mod finding;
mod identities;
mod index;
mod inert;
mod membership;
mod mtls;
mod nearest;
mod path;
mod ports;
mod selectors;
mod services;
mod shadows;
mod sources;

use self::finding::Report;
use self::index::Mesh;
use crate::model::local::LocalPods;
use crate::store::snapshot::Snapshot;

pub use self::finding::{Finding, Severity};

/// All findings, the worst first, then by file and line. `local`: the local facts of the pods, as far as they are known.
#[must_use]
pub fn analyze(snapshot: &Snapshot, local: &LocalPods) -> Vec<Finding> {
    let mesh = Mesh::index(snapshot, local);
    let mut report = Report::new(snapshot);
    sources::check(snapshot, &mut report);
    inert::check(snapshot, &mut report);
    contradictions::check(snapshot, &mut report);
    shadows::check(snapshot, &mut report);
    mtls::check(&mesh, &mut report);
    // What can't be found may stand in the part of the mesh that could not be read.
    if !snapshot.is_partial() {
        selectors::check(&mesh, &mut report);
        identities::check(&mesh, &mut report);
        ports::check(&mesh, &mut report);
        services::check(&mesh, &mut report);
        membership::check(&mesh, &mut report);
        clients::check(&mesh, &mut report);
    }
    report.finish()
}

#[cfg(test)]
mod tests;
