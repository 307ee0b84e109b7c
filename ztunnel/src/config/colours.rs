//! Whether whoever runs a command wants words in colours, as the environment tells.

use std::env;

/// Not with the variable `NO_COLOR`, nor on a terminal that can show none.
#[must_use]
pub fn are_wanted() -> bool {
    let is_set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
    !is_set("NO_COLOR") && env::var_os("TERM").is_none_or(|term| term != "dumb")
}
