//! Fuzz target: `wire::check::forwarded`.
#![cfg_attr(fuzzing, no_main)]

ztunnel_fuzz::target!(forwarded);
