//! Fuzz target: `istio::check::pod_report`.
#![cfg_attr(fuzzing, no_main)]

ztunnel_fuzz::target!(pod_report);
