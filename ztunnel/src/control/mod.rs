//! Where the mesh comes from: sources that build snapshots and publish them.
//!
//! [`objects`] makes the model of typed Kubernetes objects, wherever they come from. [`manifests`] makes typed objects of the
//! texts of files, and [`file`] watches a folder of them.

mod field;
pub mod file;
pub mod manifests;
pub mod objects;
mod yaml;
