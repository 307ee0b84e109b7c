//! How much of one text is read.

/// Most values of one text, with what aliases repeat; some hundred bytes each. A Pod has a few hundred, an EndpointSlice of a
/// thousand endpoints some twenty thousand.
pub(super) const MOST_VALUES: usize = 1_000_000;

/// Deepest nesting of lists and maps. No object that is read here is a tenth as deep.
pub(super) const DEEPEST: usize = 255;
