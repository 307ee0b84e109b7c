//! A real Kubernetes on this machine: an API server for a test, and a cluster with nodes.
//!
//! The programs are Kubernetes' own, built from Go modules (`tests/cluster/`), and Debian's etcd, container runtime and CNI
//! plugins. `cargo xtask cluster` and `cargo xtask test cluster` build and unpack them into a cache outside of the tree;
//! nothing is installed on the machine. Without them a test of this tier fails with `NOT RUN` and the remedy.
//!
//! # How to write a test
//!
//! The name of its file in `tests/tests` begins with `cluster_`, and each test has the attribute
//! `#[ignore = "needs the programs of Kubernetes: cargo xtask test cluster"]`: `cargo xtask test cluster [FILTER]` runs the
//! ignored tests of exactly these files, and the tier `privileged` leaves them out.
//!
//! ```no_run
//! use ztunnel_tests::cluster::ApiServer;
//!
//! # fn main() -> anyhow::Result<()> {
//! let api = ApiServer::start()?; // etcd and kube-apiserver in a network namespace of their own; both end when it is dropped
//! api.namespace("demo")?; // with the service account `default`, without which the API server refuses pods
//! api.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: a, namespace: demo}, data: {key: value}}")?;
//! let value = api.kubectl(["get", "configmap", "a", "-n", "demo", "-o", "jsonpath={.data.key}"])?;
//! assert_eq!(value, "value");
//! # Ok(())
//! # }
//! ```
//!
//! - A program in the API server's namespace reaches it by [`ApiServer::kubeconfig`], or by [`ApiServer::url`], the roots
//!   [`ApiServer::roots`] and a token: [`api::ADMIN_TOKEN`], or that of a service account ([`ApiServer::service_account_token`]).
//!   Start it with `Launch::new(..).inside(api.netns())`.
//! - A node of a [`crate::topology::Topology`] reaches it after [`ApiServer::attach`].
//! - An API server without nodes runs no pods: create pods with `spec.nodeName`, and write their status with
//!   [`ApiServer::pod_status`].
//! - Controllers run only after [`ApiServer::start_with_controllers`]. Without them a deleted namespace stays, a
//!   Deployment has no pods, and the aggregated cluster roles (`view`, `edit`, `admin`) are empty.
//! - [`Cluster::start`] starts nodes as well, with kubelets and containers. It takes some ten seconds.
//! - [`ApiServer::stop`] stops the API server, and [`ApiServer::resume`] starts it again with the same state.

pub mod api;
pub mod calls;
pub mod chart;
pub mod demo;
pub mod images;
pub mod leftovers;
pub mod load;
pub mod mesh;
pub mod node;
pub mod nodes;
pub mod oci;
pub mod pki;
pub mod plane;
pub mod programs;

pub use api::ApiServer;
pub use nodes::Cluster;
