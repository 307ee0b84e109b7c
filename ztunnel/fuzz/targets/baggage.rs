//! Fuzz target: `wire::check::baggage`.
#![cfg_attr(fuzzing, no_main)]

ztunnel_fuzz::target!(baggage);
