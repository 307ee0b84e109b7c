//! Fuzz target: `wire::check::connect_request`.
#![cfg_attr(fuzzing, no_main)]

ztunnel_fuzz::target!(connect_request);
