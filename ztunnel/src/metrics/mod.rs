//! Numbers for Prometheus: what connections did, in Istio's series and in this daemon's own. Every metric has its name, help and
//! labels in this folder.
//!
//! Data workers count with atomic additions; whoever scrapes reads. Nothing on the path of a byte comes through here. What is
//! not counted here but read when somebody scrapes is registered by [`state`] and [`process`].

pub mod facts;
mod labels;
mod latency;
pub mod policy;
pub mod process;
mod reasons;
mod series;
pub mod state;
pub mod text;
pub mod traffic;
