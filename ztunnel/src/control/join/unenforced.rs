//! Objects of kinds that are not enforced here. They are only reported.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::table::{Key, Provenance, Said, Table, Voice};
use crate::control::objects::{Body, Object, Unenforced};
use crate::model::origin::Origin;
use crate::model::problem::{Problem, Severity};
use crate::model::workload::NamespacedName;

/// The objects by kind, since objects of several kinds may have one name.
#[derive(Debug, Default)]
pub(super) struct Tables(BTreeMap<Unenforced, Table<()>>);

impl Tables {
    /// Replaces the objects that a voice gives for a key. Returns the kinds for which anything has changed.
    pub(super) fn replace(&mut self, key: &Key, voice: &Arc<Voice>, said: &[(Origin, Body)]) -> Vec<Unenforced> {
        let mut changed = Vec::new();
        for kind in Unenforced::named(key.0) {
            let of_kind = said.iter().filter(|(_, body)| *body == Body::Unenforced(kind));
            let place = |origin: &Origin| Provenance { voice: Arc::clone(voice), origin: origin.clone() };
            let said = of_kind.map(|(origin, _)| Said { place: place(origin), body: () }).collect();
            if self.0.entry(kind).or_default().replace(&key.1, voice, said).is_some() {
                changed.push(kind);
            }
        }
        changed
    }

    /// The objects that a voice gives for a key.
    pub(super) fn said(&self, (kind, name): &Key, voice: &Voice) -> Vec<Object> {
        let tables = Unenforced::named(kind).filter_map(|kind| Some((kind, self.0.get(&kind)?)));
        let objects = tables.flat_map(|(kind, table)| {
            table.of(name, voice).map(move |said| Object {
                name: name.clone(),
                origin: said.place.origin.clone(),
                body: Body::Unenforced(kind),
            })
        });
        objects.collect()
    }

    /// The place of the object that counts. Of kinds with one name, the first that has such an object counts.
    pub(super) fn place(&self, (kind, name): &Key) -> Option<&Provenance> {
        let mut tables = Unenforced::named(kind).filter_map(|kind| self.0.get(&kind));
        tables.find_map(|table| table.get(name)).map(|said| &said.place)
    }

    /// One problem for all objects of a kind in a namespace, at the first of them by name.
    pub(super) fn problem(&self, kind: Unenforced, namespace: &Arc<str>) -> Option<Problem> {
        let table = self.0.get(&kind)?;
        let mut names = table.names_in(namespace);
        let first: &NamespacedName = names.next()?;
        let more = match names.count() {
            0 => String::new(),
            more => format!(" (and {more} more of namespace {namespace})"),
        };
        let object = Some(format!("{} of namespace {namespace}", kind.name()));
        let message = format!("has no effect in this daemon{more}: {}", kind.by_whom());
        let origin = table.get(first)?.place.origin.clone();
        Some(Problem { origin, object, message, severity: Severity::Info })
    }
}
