//! Whether the environment asks for coloured output.

use std::env;

/// Not if the variable `NO_COLOR` is set, or if the terminal does not support colours.
#[must_use]
pub fn are_wanted() -> bool {
    let is_set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
    !is_set("NO_COLOR") && env::var_os("TERM").is_none_or(|term| term != "dumb")
}
