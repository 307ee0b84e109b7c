//! Nodes, pods and programs on the real kernel: what the privileged tests, the demo and the benchmarks run on.
//!
//! Every node and every pod is a network namespace, nodes are on a wire, pods hang on their node's bridge, and
//! everything has IPv4 and IPv6. Nothing here leaves a trace: what a [`topology::Topology`] makes it removes when dropped,
//! also on a panic; what a killed run left behind the next one sweeps away ([`names::sweep`]).
//!
//! | module | what it has |
//! |---|---|
//! | [`settings`], [`requirements`] | what the environment says, what the machine must have |
//! | [`wait`] | the only place that waits |
//! | [`names`], [`netns`], [`process`] | unique names and the sweep, namespaces, processes in them |
//! | [`topology`], [`footprint`] | nodes, pods, wires; what a pod's namespace looks like, to compare before and after |
//! | [`mesh`] | the manifests the daemon reads |
//! | [`ca`] | the CA that the daemons share, and certificates that nobody should accept |
//! | [`daemon`], [`admin`], [`logs`], [`metrics`] | one daemon per node, its admin endpoint, its access log, its metrics |
//! | [`kubernetes`] | a scripted Kubernetes API on a node |
//! | [`control_plane`] | a control plane, which has the manifests and the key of the CA instead of the daemons |
//! | [`apps`] | nginx, curl, iperf3, redis, servers and clients in threads |
//! | [`testbed`], [`proof`] | all of the above put together; that a connection was captured, or was not |
//! | [`policy`] | policies as text, and all that shows that one refused a connection |
//! | [`hbone`] | peers at a pod's tunnel port, honest and hostile |
//! | [`capture`] | what was on the wire between the nodes |
//! | [`watch`] | that nothing gets past the daemon while something happens |
//! | [`cluster`], [`cgroups`] | a real Kubernetes: an API server for a test, a cluster with nodes; the cgroups of its nodes |
//! | [`demo`], [`bench`] | the demo; what the mesh costs |

pub mod admin;
pub mod apps;
pub mod bench;
pub mod ca;
pub mod capture;
pub mod cgroups;
pub mod cluster;
pub mod control_plane;
pub mod daemon;
pub mod demo;
pub mod footprint;
pub mod hbone;
pub mod kubernetes;
pub mod logs;
pub mod mesh;
pub mod metrics;
pub mod names;
pub mod netns;
pub mod policy;
pub mod process;
pub mod proof;
pub mod requirements;
pub mod settings;
pub mod testbed;
pub mod topology;
pub mod wait;
pub mod watch;
