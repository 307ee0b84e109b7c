//! Limits for one text.

/// The most values of one text, counting repetitions by aliases. A value takes some hundred bytes. A Pod has a few
/// hundred values, an EndpointSlice with a thousand endpoints some twenty thousand.
pub(super) const MOST_VALUES: usize = 1_000_000;

/// The deepest nesting of lists and maps. Objects that are read here are less than a tenth as deep.
pub(super) const DEEPEST: usize = 255;
