//! Fuzz target: `wire::check::authority`.
#![cfg_attr(fuzzing, no_main)]

ztunnel_fuzz::target!(authority);
