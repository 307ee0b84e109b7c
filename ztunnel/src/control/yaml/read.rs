//! A text to a value, or to an error with its place.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::{DeserializeOwned, DeserializeSeed};
use serde_saphyr::{DefaultMessageFormatter, MessageFormatter, Spanned};

use super::options::options;
use super::path::path_at;
use crate::control::field::FieldPath;

/// Why a text can't be read.
#[derive(Debug)]
pub(in crate::control) struct Error {
    /// Line and column, each counted from 1.
    pub(in crate::control) place: Option<(u64, u64)>,
    /// The field there.
    pub(in crate::control) field: Option<FieldPath>,
    /// What is wrong.
    pub(in crate::control) message: String,
}

/// A value and the line where it begins, counted from 1.
#[derive(Debug)]
pub(in crate::control) struct Marked<T> {
    pub(in crate::control) value: T,
    pub(in crate::control) line: u64,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Marked<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value, referenced, .. } = Spanned::deserialize(deserializer)?;
        Ok(Self { value, line: referenced.line() })
    }
}

/// Reads a text of one document.
pub(in crate::control) fn read<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    serde_saphyr::from_str_with_options(text, options()).map_err(|error| explain(text, &error))
}

/// Reads a text of one document as a seed says.
pub(in crate::control) fn read_seed<'de, S: DeserializeSeed<'de>>(text: &'de str, seed: S) -> Result<S::Value, Error> {
    serde_saphyr::with_deserializer_from_str_with_options(text, options(), |deserializer| {
        seed.deserialize(deserializer)
    })
    .map_err(|error| explain(text, &error))
}

fn explain(text: &str, error: &serde_saphyr::Error) -> Error {
    let place = error.location().map(|location| (location.line(), location.column()));
    let field = place.and_then(|(line, column)| path_at(text, line, column));
    Error { place, field, message: message(error) }
}

/// The error's own words: place and excerpt are told otherwise, and control characters must not reach a log.
fn message(error: &serde_saphyr::Error) -> String {
    let mut inner = error.without_snippet();
    while let serde_saphyr::Error::AliasError { error, .. } = inner {
        inner = error.without_snippet();
    }
    let text: Cow<'_, str> = DefaultMessageFormatter.format_message(inner);
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { clean.extend(c.escape_default()) } else { clean.push(c) }
    }
    clean
}
