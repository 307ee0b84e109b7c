//! Objects of one kind by name, as their voices give them. Of several objects with one name the first counts.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::origin::Origin;
use crate::model::problem::{Problem, Severity};
use crate::model::workload::NamespacedName;

/// The key of an object: its kind and its name.
pub(super) type Key = (&'static str, NamespacedName);

/// A source of objects: a file, or an API server. Voices that have disappeared come after all others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Voice {
    /// The voice has disappeared, and its objects stay in force.
    pub is_gone: bool,
    /// Its name.
    pub name: Arc<str>,
}

impl Voice {
    /// A voice that exists.
    pub fn of(name: impl Into<Arc<str>>) -> Self {
        Self { is_gone: false, name: name.into() }
    }
}

/// The source of an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Provenance {
    pub(super) voice: Arc<Voice>,
    pub(super) origin: Origin,
}

impl Provenance {
    pub(super) fn problem(&self, object: String, message: String) -> Problem {
        Problem { origin: self.origin.clone(), object: Some(object), message, severity: Severity::Error }
    }
}

/// An object and its source.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Said<T> {
    pub(super) place: Provenance,
    pub(super) body: T,
}

/// The objects of one kind.
#[derive(Debug)]
pub(super) struct Table<T>(BTreeMap<NamespacedName, Contenders<T>>);

/// The objects of one name.
#[derive(Debug)]
struct Contenders<T> {
    first: Said<T>,
    /// In ascending order of place.
    others: Vec<Said<T>>,
}

/// The object that counts has changed, or its place has.
#[derive(Debug)]
pub(super) struct Replaced<T> {
    pub(super) before: Option<T>,
    pub(super) after: Option<T>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> Contenders<T> {
    fn all(self) -> impl Iterator<Item = Said<T>> {
        std::iter::once(self.first).chain(self.others)
    }

    /// `None` if `all` is empty.
    fn of(mut all: Vec<Said<T>>) -> Option<Self> {
        all.sort_by(|one, other| one.place.cmp(&other.place));
        let mut all = all.into_iter();
        Some(Self { first: all.next()?, others: all.collect() })
    }
}

impl<T: Clone + PartialEq> Table<T> {
    /// Replaces the objects that a voice gives for a name. `None`: the object that counts and its place are the same as
    /// before.
    pub(super) fn replace(&mut self, name: &NamespacedName, voice: &Voice, said: Vec<Said<T>>) -> Option<Replaced<T>> {
        let known = self.0.remove(name);
        let before = known.as_ref().map(|contenders| contenders.first.clone());
        let others = known.into_iter().flat_map(Contenders::all).filter(|one| *one.place.voice != *voice);
        let mut all: Vec<Said<T>> = others.collect();
        all.extend(said);
        let contenders = Contenders::of(all);
        let after = contenders.as_ref().map(|contenders| contenders.first.clone());
        self.0.extend(contenders.map(|contenders| (name.clone(), contenders)));
        (before != after).then(|| Replaced { before: before.map(|said| said.body), after: after.map(|said| said.body) })
    }

    /// The object of this name that counts. The caller may share its parts with others, but must not change its
    /// meaning.
    pub(super) fn body_mut(&mut self, name: &NamespacedName) -> Option<&mut T> {
        self.0.get_mut(name).map(|contenders| &mut contenders.first.body)
    }

    /// The object of this name that counts.
    pub(super) fn get(&self, name: &NamespacedName) -> Option<&Said<T>> {
        self.0.get(name).map(|contenders| &contenders.first)
    }

    /// The objects of this name that do not count.
    pub(super) fn others(&self, name: &NamespacedName) -> &[Said<T>] {
        self.0.get(name).map(|contenders| contenders.others.as_slice()).unwrap_or_default()
    }

    /// The objects of this name that a voice gives.
    pub(super) fn of<'a>(&'a self, name: &NamespacedName, voice: &'a Voice) -> impl Iterator<Item = &'a Said<T>> {
        let all = self
            .0
            .get(name)
            .into_iter()
            .flat_map(|contenders| [&contenders.first].into_iter().chain(&contenders.others));
        all.filter(move |said| *said.place.voice == *voice)
    }

    /// The objects that count, by name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&NamespacedName, &Said<T>)> {
        self.0.iter().map(|(name, contenders)| (name, &contenders.first))
    }

    /// The names of the objects in a namespace.
    pub(super) fn names_in<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a NamespacedName> {
        let first = NamespacedName::new(namespace, "");
        self.0.range(first..).map(|(name, _)| name).take_while(move |name| *name.namespace == *namespace)
    }
}
