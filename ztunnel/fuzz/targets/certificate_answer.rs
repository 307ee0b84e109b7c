//! Fuzz target: `identity::check::certificate_answer`.
#![cfg_attr(fuzzing, no_main)]

ztunnel_fuzz::target!(certificate_answer);
