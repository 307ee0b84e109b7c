//! Metrics for Prometheus: the traffic of connections, in Istio's series and in this daemon's own. The name, help and labels of
//! every metric are in this folder.
//!
//! Data workers count with atomic additions; a scrape only reads. No code here runs for each byte. Values that are not counted
//! here but read at a scrape are registered by [`state`] and [`process`].

pub mod facts;
pub mod fetches;
mod labels;
mod latency;
pub mod policy;
pub mod process;
mod reasons;
mod series;
pub mod state;
pub mod text;
pub mod traffic;
