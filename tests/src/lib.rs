//! Nodes, pods and programs on the real kernel: the base of the privileged tests, the demo and the benchmarks.
//!
//! Every node and every pod is a network namespace. Nodes are connected by a wire, pods by their node's bridge, and
//! everything has IPv4 and IPv6. Nothing here leaves a trace: a [`topology::Topology`] removes what it has made when it
//! is dropped, also on a panic; the next run removes the remains of a killed run ([`names::sweep`]).
//!
//! | module | what it has |
//! |---|---|
//! | [`settings`], [`requirements`] | settings in the environment, requirements for the machine |
//! | [`wait`] | the only place that waits |
//! | [`names`], [`netns`], [`process`] | unique names and the sweep, namespaces, processes in them |
//! | [`topology`], [`footprint`] | nodes, pods, wires; the state of a pod's namespace, to compare before and after |
//! | [`mesh`] | the manifests the daemon reads |
//! | [`ca`] | the CA that the daemons share, and certificates that must be refused |
//! | [`daemon`], [`admin`], [`logs`], [`metrics`] | one daemon per node, its admin endpoint, its access log, its metrics |
//! | [`kubernetes`] | a scripted Kubernetes API on a node |
//! | [`control_plane`] | a control plane, which has the manifests and the key of the CA instead of the daemons |
//! | [`apps`] | nginx, curl, iperf3, redis, servers and clients in threads |
//! | [`testbed`], [`proof`] | all of the above put together; proofs that a connection was captured, or was not |
//! | [`policy`] | policies as text, and all evidence that a policy refused a connection |
//! | [`hbone`] | peers at a pod's HBONE port, honest and hostile |
//! | [`sockets`] | the connections of another process, with their options |
//! | [`capture`] | the packets on the wire between the nodes |
//! | [`attempt`], [`modes`] | a connect in each of the ways of applications; its end compared with and without the mesh |
//! | [`documents`] | blocks of code in documents |
//! | [`monitoring`] | the rules and dashboards of `deploy`, and a Prometheus that scrapes a testbed |
//! | [`watch`] | proof that no connection bypasses the daemon while something happens |
//! | [`cluster`], [`cgroups`] | a real Kubernetes: an API server for a test, a cluster with nodes; the cgroups of its nodes |
//! | [`demo`], [`bench`] | the demo; the cost of the mesh |

pub mod admin;
pub mod apps;
pub mod attempt;
pub mod bench;
pub mod ca;
pub mod capture;
pub mod cgroups;
pub mod cluster;
pub mod control_plane;
pub mod daemon;
pub mod demo;
pub mod documents;
pub mod footprint;
pub mod hbone;
pub mod kubernetes;
pub mod logs;
pub mod mesh;
pub mod metrics;
pub mod modes;
pub mod monitoring;
pub mod names;
pub mod netns;
pub mod policy;
pub mod process;
pub mod proof;
mod protobuf;
pub mod requirements;
pub mod settings;
pub mod sockets;
pub mod testbed;
pub mod topology;
pub mod wait;
pub mod watch;
