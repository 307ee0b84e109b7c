//! Fuzz target: `wire::check::refusal`.
#![cfg_attr(fuzzing, no_main)]

ztunnel_fuzz::target!(refusal);
