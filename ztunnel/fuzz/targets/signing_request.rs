//! Fuzz target: `identity::check::signing_request`.
#![cfg_attr(fuzzing, no_main)]

ztunnel_fuzz::target!(signing_request);
