//! Where the mesh comes from: sources that build snapshots and publish them.
//!
//! Every source implements [`MeshSource`](source::MeshSource). For sources of Kubernetes objects, [`objects`] reads what each typed
//! object says, and [`join`] relates the objects and yields what has changed. The folder of manifests is the first of them:
//! [`manifests`] makes typed objects of the texts of files, and [`file`](mod@file) watches a folder of them. What manifests say
//! beside the mesh is [`declared`], for `analyze`.

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
