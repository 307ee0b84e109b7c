//! Lists of bounded length: an author of manifests must not be able to fill the memory of every node. And maps in which
//! a key occurs once, in any spelling.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};

/// At most `MOST` entries. More are an error, which is found before they are stored.
#[derive(Debug)]
pub(super) struct Bounded<T, const MOST: usize>(Vec<T>);

impl<T, const MOST: usize> Bounded<T, MOST> {
    pub(super) fn as_slice(&self) -> &[T] {
        &self.0
    }
}

/// The entries; empty if the list is missing.
pub(super) fn entries<T, const MOST: usize>(list: Option<&Bounded<T, MOST>>) -> &[T] {
    list.map(Bounded::as_slice).unwrap_or_default()
}

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for Bounded<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(BoundedVisitor(PhantomData))
    }
}

struct BoundedVisitor<T, const MOST: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for BoundedVisitor<T, MOST> {
    type Value = Bounded<T, MOST>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MOST} entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = list.next_element()? {
            if entries.len() == MOST {
                return Err(de::Error::custom(format_args!(
                    "the list has more than {MOST} entries, the most that is read"
                )));
            }
            entries.push(entry);
        }
        Ok(Bounded(entries))
    }
}

/// A map with texts as keys. To YAML `80` and `"80"` are two keys; here the second one is an error and does not replace
/// the first.
#[derive(Debug)]
pub(super) struct Unique<T>(pub(super) BTreeMap<String, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Unique<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(UniqueVisitor(PhantomData))
    }
}

struct UniqueVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for UniqueVisitor<T> {
    type Value = Unique<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = BTreeMap::new();
        while let Some((key, value)) = map.next_entry::<String, T>()? {
            if entries.contains_key(&key) {
                return Err(de::Error::custom(format_args!("{key:?} is there twice: remove one of the two")));
            }
            entries.insert(key, value);
        }
        Ok(Unique(entries))
    }
}
