//! Duplicate keys, and merge keys.

use std::borrow::Cow;
use std::collections::HashSet;

use super::error::Error;
use super::node::{MappingEntry, Node, Value};
use crate::control::field::FieldPath;

/// The meaning of a key that a map has twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Twice {
    IsAnError,
    LastCounts,
}

/// Makes a map of fields. `path` yields the map's own path, for errors.
pub(super) fn map<'a>(
    mut entries: Vec<MappingEntry<'a>>,
    merged: Vec<Node<'a>>,
    twice: Twice,
    path: impl FnOnce() -> FieldPath,
) -> Result<Value<'a>, Error> {
    if let Some((first, second)) = duplicate(&entries) {
        match twice {
            Twice::IsAnError => {
                let remedy = match &*second.key {
                    "apiVersion" | "kind" => "write --- between two objects",
                    _ => "remove one of the two",
                };
                let message = format!(
                    "the key is there twice, in line {} and in line {}: {remedy}",
                    first.place.0, second.place.0
                );
                return Err(Error::at(second.place, path().key(&second.key), message));
            }
            Twice::LastCounts => {
                let mut seen = HashSet::new();
                let mut kept: Vec<_> = entries.into_iter().rev().collect();
                kept.retain(|entry: &MappingEntry<'_>| seen.insert(entry.key.clone()));
                kept.reverse();
                entries = kept;
            }
        }
    }
    let mut seen: HashSet<Cow<'a, str>> = HashSet::new();
    if !merged.is_empty() {
        seen.extend(entries.iter().map(|entry| entry.key.clone()));
    }
    for node in merged {
        let place = node.place;
        let maps = match node.value {
            Value::Map(_) => vec![node],
            Value::List(nodes) => nodes,
            Value::Plain(_) | Value::Text(_) => return Err(no_map(place, path())),
        };
        for map in maps {
            let Value::Map(fields) = map.value else { return Err(no_map(map.place, path())) };
            entries.extend(fields.into_iter().filter(|field| seen.insert(field.key.clone())));
        }
    }
    Ok(Value::Map(entries))
}

fn no_map(place: (u64, u64), path: FieldPath) -> Error {
    Error::at(place, path.key("<<"), "only a map, or a list of maps, can be merged with <<")
}

fn duplicate<'e, 'a>(entries: &'e [MappingEntry<'a>]) -> Option<(&'e MappingEntry<'a>, &'e MappingEntry<'a>)> {
    // For few keys, comparing is faster than hashing.
    if entries.len() <= 8 {
        let mut numbered = entries.iter().enumerate();
        return numbered.find_map(|(index, entry)| {
            let before = entries.get(..index)?;
            Some((before.iter().find(|other| other.key == entry.key)?, entry))
        });
    }
    let mut sorted: Vec<&MappingEntry<'_>> = entries.iter().collect();
    // The sort is stable: of equal keys the first in the text stays first.
    sorted.sort_by(|one, other| one.key.cmp(&other.key));
    sorted.windows(2).find_map(|pair| match pair {
        [one, other] if one.key == other.key => Some((*one, *other)),
        _ => None,
    })
}
