//! Duplicate keys, and merge keys.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use super::error::Error;
use super::node::{MappingEntry, Node, TextPosition, Value};
use crate::control::field::FieldPath;

/// A field of a map that is not part of the tree: its key is there again, or it cannot be merged.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::control) struct LeftOut<'a> {
    /// What is wrong, with the path of the field.
    pub(in crate::control) error: Error,
    /// The value of the field.
    pub(in crate::control) value: Node<'a>,
}

/// The most fields that are left out of one text.
const MOST_LEFT_OUT: usize = 1024;

/// Makes a map of fields. `path` yields the map's own path, for errors.
///
/// `left_out` collects the fields that are left out: if a key is there several times, the last one counts. `None`: such
/// a field is an error.
pub(super) fn map<'a>(
    mut entries: Vec<MappingEntry<'a>>,
    merged: Vec<Node<'a>>,
    mut left_out: Option<&mut Vec<LeftOut<'a>>>,
    path: impl Fn() -> FieldPath,
) -> Result<Value<'a>, Error> {
    if let Some((first, second)) = duplicate(&entries) {
        let strict = twice(&second.key, first.place, second.place, &path());
        match &mut left_out {
            None => return Err(strict),
            Some(left_out) => {
                entries = last_of_each(entries, left_out, &path());
                if left_out.len() > MOST_LEFT_OUT {
                    return Err(strict);
                }
            }
        }
    }
    let mut seen: HashSet<Cow<'a, str>> = HashSet::new();
    if !merged.is_empty() {
        seen.extend(entries.iter().map(|entry| entry.key.clone()));
    }
    for node in merged {
        let maps = match node.value {
            Value::List(nodes) => nodes,
            Value::Map(_) | Value::Plain(_) | Value::Text(_) => vec![node],
        };
        for map in maps {
            let Value::Map(fields) = map.value else {
                let error = no_map(map.place, path());
                match &mut left_out {
                    Some(left_out) if left_out.len() < MOST_LEFT_OUT => left_out.push(LeftOut { error, value: map }),
                    _ => return Err(error),
                }
                continue;
            };
            entries.extend(fields.into_iter().filter(|field| seen.insert(field.key.clone())));
        }
    }
    Ok(Value::Map(entries))
}

/// The last entry of each key, in the order of the text. The others are left out.
fn last_of_each<'a>(
    entries: Vec<MappingEntry<'a>>,
    left_out: &mut Vec<LeftOut<'a>>,
    path: &FieldPath,
) -> Vec<MappingEntry<'a>> {
    let mut last = HashMap::new();
    for (index, entry) in entries.iter().enumerate() {
        last.insert(entry.key.clone(), (index, entry.place));
    }
    let mut kept = Vec::with_capacity(last.len());
    for (index, entry) in entries.into_iter().enumerate() {
        match last.get(&entry.key) {
            Some((last, place)) if *last != index => {
                if left_out.len() <= MOST_LEFT_OUT {
                    let error = twice(&entry.key, entry.place, *place, path);
                    left_out.push(LeftOut { error, value: entry.value });
                }
            }
            _ => kept.push(entry),
        }
    }
    kept
}

fn twice(key: &str, first: TextPosition, second: TextPosition, path: &FieldPath) -> Error {
    let remedy = match key {
        "apiVersion" | "kind" => "write --- between two objects",
        _ => "remove one of the two",
    };
    let message = format!("the key is there twice, in line {} and in line {}: {remedy}", first.0, second.0);
    Error::at(second, path.clone().key(key), message)
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
