//! The state of each followed type of objects, for status, readiness and metrics.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::control::kubernetes::resource::ResourceType;

/// The state of one followed type of objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeStanding {
    /// The type.
    pub resource: ResourceType,
    /// The state.
    pub state: State,
    /// The beginning of the state.
    pub since: SystemTime,
    /// The number of objects in force.
    pub objects: usize,
    /// The number of failures, by the label of the reason.
    pub failures: BTreeMap<&'static str, u64>,
    is_listed: bool,
}

/// How a type is followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The type has not been listed yet.
    Waiting,
    /// The objects are up to date.
    Synced,
    /// The API server does not have the type.
    Absent,
    /// The type can't be followed, for this reason.
    Failing(String),
}

impl State {
    /// The name in JSON and metrics.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Synced => "synced",
            Self::Absent => "absent",
            Self::Failing(_) => "failing",
        }
    }
}

/// The states of all types of a mesh. Clones share them.
#[derive(Debug, Clone)]
pub struct Followed(Arc<Mutex<Vec<TypeStanding>>>);

impl Followed {
    pub(super) fn new(types: impl IntoIterator<Item = ResourceType>) -> Self {
        let since = SystemTime::now();
        let waiting = |resource| TypeStanding {
            resource,
            state: State::Waiting,
            since,
            objects: 0,
            failures: BTreeMap::new(),
            is_listed: false,
        };
        Self(Arc::new(Mutex::new(types.into_iter().map(waiting).collect())))
    }

    fn types(&self) -> MutexGuard<'_, Vec<TypeStanding>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state of each type.
    #[must_use]
    pub fn shown(&self) -> Vec<TypeStanding> {
        self.types().clone()
    }

    fn with<T>(&self, resource: &ResourceType, change: impl FnOnce(&mut TypeStanding) -> T) -> Option<T> {
        self.types().iter_mut().find(|known| known.resource == *resource).map(change)
    }

    /// Records that a type is up to date. Returns whether it failed before.
    pub(super) fn synced(&self, resource: &ResourceType, objects: usize) -> bool {
        let failed = self.with(resource, |known| {
            (known.objects, known.is_listed) = (objects, true);
            let failed = matches!(known.state, State::Failing(_));
            known.turn(State::Synced);
            failed
        });
        failed.unwrap_or(false)
    }

    pub(super) fn absent(&self, resource: &ResourceType) {
        self.with(resource, |known| {
            (known.objects, known.is_listed) = (0, true);
            known.turn(State::Absent);
        });
    }

    pub(super) fn failed(&self, resource: &ResourceType, why: String, label: &'static str) {
        self.with(resource, |known| {
            *known.failures.entry(label).or_default() += 1;
            // The beginning of the state stays at the first of several failures in a row.
            match &mut known.state {
                State::Failing(text) => *text = why,
                _ => known.turn(State::Failing(why)),
            }
        });
    }

    pub(super) fn counts(&self, resource: &ResourceType, objects: usize) {
        self.with(resource, |known| known.objects = objects);
    }

    /// Whether each type has been listed at least once, or does not exist.
    pub(super) fn is_listed(&self) -> bool {
        self.types().iter().all(|known| known.is_listed)
    }

    /// The types that can't be followed now, and why.
    pub(super) fn failing(&self) -> impl Iterator<Item = (ResourceType, String)> {
        let failing = |known: TypeStanding| match known.state {
            State::Failing(why) => Some((known.resource, why)),
            _ => None,
        };
        self.shown().into_iter().filter_map(failing)
    }
}

impl TypeStanding {
    fn turn(&mut self, state: State) {
        if self.state != state {
            (self.state, self.since) = (state, SystemTime::now());
        }
    }
}
