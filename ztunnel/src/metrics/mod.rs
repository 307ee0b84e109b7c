//! Numbers for Prometheus: what connections did, in Istio's series and in this daemon's own.
//!
//! Data workers count with atomic additions; whoever scrapes reads. Nothing on the path of a byte comes through here.

pub mod certificates;
pub mod facts;
mod labels;
mod latency;
pub mod policy;
mod series;
pub mod traffic;
