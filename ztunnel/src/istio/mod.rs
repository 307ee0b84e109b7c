//! Istio's protocols between a node and its control plane: the messages and the two services that carry them.
//!
//! The daemon is a client of these services, a control plane is their server; both use the types of this folder. The messages
//! are written with prost's derive, so that building needs no `protoc` and no code generation. They have the fields that this
//! program reads or writes; prost skips all others. A few golden files in `golden/` pin their bytes.
//!
//! | file | package | what |
//! |---|---|---|
//! | [`discovery`] | `envoy.service.discovery.v3` | requests and responses of delta xDS |
//! | [`workload`] | `istio.workload` | workloads and services |
//! | [`security`] | `istio.security` | authorization policies |
//! | [`settings`] | `ambient.mesh.v1` | settings of the whole mesh for which Istio has no message |
//! | [`detail`] | `ambient.mesh.v1` | details of workloads, services and policies that Istio's messages lack |
//! | [`report`] | `ambient.mesh.v1` | states of the pods of a node, as the daemon reports them |
//! | [`certificate`] | `istio.v1.auth` | certificate requests |
//! | [`standard`] | `google.protobuf`, `google.rpc` | the types of Google that the others use |
//! | [`client`], [`server`] | | both ends of the two gRPC services |
//! | [`read`], [`write`](mod@write) | | from resources to the [`model`](crate::model), and back |

pub mod certificate;
pub mod check;
pub mod client;
pub mod detail;
pub mod discovery;
pub mod object;
pub mod read;
pub mod report;
pub mod security;
pub mod server;
pub mod settings;
pub mod standard;
#[cfg(test)]
mod tests;
pub mod workload;
pub mod write;

/// The longest message that either end accepts, in bytes. A mesh of 100,000 workloads takes some 40 MiB.
pub const LONGEST_MESSAGE: usize = 200 << 20;
/// The longest answer to a request for a certificate or to a report of pods, in bytes. A certificate with a bundle of a hundred roots
/// takes some 200 KiB.
pub const LONGEST_ANSWER: usize = 1 << 20;
