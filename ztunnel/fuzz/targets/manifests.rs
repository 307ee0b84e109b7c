//! Fuzz target: `control::manifests::check::manifests`.
#![cfg_attr(fuzzing, no_main)]

ztunnel_fuzz::target!(manifests);
