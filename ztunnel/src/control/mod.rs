//! Where the mesh comes from: sources that build snapshots and publish them.

pub mod file;
pub mod manifests;
