//! Fuzz target: `wire::check::traceparent`.
#![cfg_attr(fuzzing, no_main)]

ztunnel_fuzz::target!(traceparent);
