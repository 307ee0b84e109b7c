//! Sources of the mesh: they build snapshots and publish them.
//!
//! Every source implements [`MeshSource`](source::MeshSource). For sources of Kubernetes objects, [`objects`] reads
//! each typed object, and [`join`] relates the objects and yields the changes. One such source is the folder of
//! manifests: [`manifests`] makes typed objects of the texts of files, and [`file`](mod@file) watches a folder of them.
//! Declarations in manifests that are not part of the mesh are in [`declared`], for `analyze`.

mod backoff;
pub mod declared;
mod field;
pub mod file;
pub mod join;
pub mod kubernetes;
pub mod manifests;
pub mod objects;
pub mod remote;
pub mod source;
mod yaml;
