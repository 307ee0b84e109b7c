//! Numbers for Prometheus.

pub mod traffic;
