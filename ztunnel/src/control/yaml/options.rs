//! How texts are read.

use serde_saphyr::{DuplicateKeyPolicy, Options};

/// How deep a text may be to be explained. No Kubernetes object that is read here is half as deep, and every level takes
/// some 30 KiB of stack without optimisation.
const DEEPEST: usize = 32;

/// How many values a text may hold to be explained; a hundred bytes each are allocated for it.
const LARGEST: usize = 250_000;

/// Duplicate keys are errors and the limits on aliases stay as they are by default; the limits on size are raised to
/// what manifests fit into 16 MiB.
pub(super) fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 10_000_000,
            max_nodes: 4_000_000,
        },
        with_snippet: false,
    }
}

/// To look for a field: a duplicate key may be the very error to be explained.
pub(super) fn searching() -> Options {
    let mut options = options();
    options.duplicate_keys = DuplicateKeyPolicy::LastWins;
    options
}

/// To look for a field with all of the text in memory.
pub(super) fn explaining() -> Options {
    let mut options = searching();
    if let Some(budget) = &mut options.budget {
        budget.max_depth = DEEPEST;
        budget.max_nodes = LARGEST;
    }
    options.alias_limits.max_total_replayed_events = LARGEST;
    options
}
