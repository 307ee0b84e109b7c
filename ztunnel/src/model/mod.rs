//! The terms of the program: addresses, workloads, services, close reasons. This folder uses no sockets, clocks or formats.

pub mod addr;
pub mod cause;
pub mod close;
pub mod endpoint_ports;
pub mod flow;
pub mod gateway;
pub mod identity;
pub mod labels;
pub mod local;
pub mod locality;
pub mod name;
pub mod netns;
pub mod node_pods;
pub mod origin;
pub mod policy;
pub mod problem;
pub mod service;
pub mod workload;
