//! Fuzz target: `istio::check::resources`.
#![cfg_attr(fuzzing, no_main)]

ztunnel_fuzz::target!(resources);
