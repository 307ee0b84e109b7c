//! The lines and columns of fields.
//!
//! The text is read again for it, and nothing of it is kept: a file of thousands of objects may have something wrong in each.

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess};
use serde_saphyr::{Location, Spanned};

use super::options::searching;
use super::shape::{self, Shape};
use crate::control::field::{FieldPath, Step};

/// A line and a column, each counted from 1.
type Place = (u64, u64);

/// Where each field of a text is. For one that is missing, it is the innermost field around it that is there; for one that is
/// null, the key. `None` where there is nothing on the path.
pub(in crate::control) fn locate(text: &str, fields: &[FieldPath]) -> Vec<Option<Place>> {
    let mut found = vec![None; fields.len()];
    let mut sought: Vec<Sought<'_>> =
        fields.iter().enumerate().map(|(number, field)| Sought { number, steps: field.steps() }).collect();
    // The longest first, so that none is on the way to another: a value is either gone into, or its place is asked.
    while let Some(length) = sought.iter().map(|one| one.steps.len()).max().filter(|length| *length > 0) {
        let now: Vec<Sought<'_>> = sought.iter().filter(|one| one.steps.len() == length).copied().collect();
        let seed = Search { sought: now, found: &mut found };
        // What is found before an error counts. An error is only possible where the limits of both readings differ.
        let _read_before = serde_saphyr::with_deserializer_from_str_with_options(text, searching(), |deserializer| {
            seed.deserialize(deserializer)
        });
        sought.retain_mut(|one| {
            if one.steps.len() == length {
                one.steps = one.steps.split_last().map_or(&[], |(_, before)| before);
            }
            found.get(one.number).is_some_and(Option::is_none)
        });
    }
    found
}

/// A field, and how it is reached from here.
#[derive(Clone, Copy)]
struct Sought<'a> {
    number: usize,
    steps: &'a [Step],
}

/// Looks for fields below a value. There is at least one, and all are as deep.
struct Search<'a, 'f> {
    sought: Vec<Sought<'a>>,
    found: &'f mut [Option<Place>],
}

impl<'a> Search<'a, '_> {
    /// Those of the fields that are on the way of this step.
    fn below(&self, is_on_the_way: impl Fn(&Step) -> bool) -> Vec<Sought<'a>> {
        let next = |one: &Sought<'a>| {
            let (first, steps) = one.steps.split_first()?;
            is_on_the_way(first).then_some(Sought { number: one.number, steps })
        };
        self.sought.iter().filter_map(next).collect()
    }

    fn note(&mut self, sought: &[Sought<'_>], location: &Location) {
        for one in sought {
            if let Some(found) = self.found.get_mut(one.number) {
                *found = Some((location.line(), location.column()));
            }
        }
    }
}

fn are_here(sought: &[Sought<'_>]) -> bool {
    sought.iter().all(|one| one.steps.is_empty())
}

impl<'de> DeserializeSeed<'de> for Search<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        shape::any(self, deserializer)
    }
}

impl<'de> Shape<'de> for Search<'_, '_> {
    type Value = ();

    fn leaf(self) {}

    fn map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let below = self.below(|step| matches!(step, Step::Key(wanted) if **wanted == *key.value));
            if below.is_empty() {
                map.next_value::<IgnoredAny>()?;
            } else if are_here(&below) {
                let value = map.next_value::<Spanned<Option<IgnoredAny>>>()?;
                let place = if value.value.is_some() { &value.referenced } else { &key.referenced };
                self.note(&below, place);
            } else {
                map.next_value_seed(Search { sought: below, found: self.found })?;
            }
        }
        Ok(())
    }

    fn list<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        for number in 0.. {
            let below = self.below(|step| *step == Step::Index(number));
            let is_over = if below.is_empty() {
                list.next_element::<IgnoredAny>()?.is_none()
            } else if are_here(&below) {
                let item = list.next_element::<Spanned<IgnoredAny>>()?;
                if let Some(item) = &item {
                    self.note(&below, &item.referenced);
                }
                item.is_none()
            } else {
                list.next_element_seed(Search { sought: below, found: self.found })?.is_none()
            };
            if is_over {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{FieldPath, Place, locate};

    const TEXT: &str = "# a comment\nspec:\n  rules:\n  - from: [{}, {source: }]\n    to:\n  - null\nmetadata: {annotations: {a/b: c, 80: d}}\n";

    #[test]
    fn fields_are_found_whole_or_in_part() {
        let rules = || FieldPath::of("spec.rules");
        let annotations = || FieldPath::of("metadata.annotations");
        let table: [(FieldPath, Option<Place>); 13] = [
            (FieldPath::of("spec"), Some((3, 3))),
            (rules(), Some((4, 5))),
            (rules().index(0).key("from"), Some((4, 11))),
            (rules().index(0).key("from").index(0), Some((4, 12))),
            (rules().index(0).key("from").index(0).key("source").key("principals"), Some((4, 12))),
            (rules().index(0).key("from").index(1).key("source"), Some((4, 17))),
            (rules().index(0).key("from").index(2), Some((4, 11))),
            (rules().index(0).key("to"), Some((5, 5))),
            (rules().index(1), Some((6, 5))),
            (rules().key("key"), Some((4, 5))),
            (annotations().key("a/b"), Some((7, 31))),
            (annotations().key("80"), Some((7, 38))),
            (FieldPath::of("status"), None),
        ];
        let (fields, places): (Vec<_>, Vec<_>) = table.into_iter().unzip();
        assert_eq!(locate(TEXT, &fields), places);
        for (field, place) in fields.iter().zip(places) {
            assert_eq!(locate(TEXT, std::slice::from_ref(field)), [place], "{field}");
        }
    }

    #[test]
    fn what_is_no_yaml_has_no_fields() {
        assert_eq!(locate("a: [", &[FieldPath::of("b"), FieldPath::default()]), [None, None]);
        assert_eq!(locate("", &[FieldPath::of("b")]), [None]);
    }
}
