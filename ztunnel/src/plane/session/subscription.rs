//! The resources of one type that a stream wants, and those that it has.

mod wanted;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use tokio::time::Instant;

use self::wanted::Wanted;
use super::messages::{ALL, Content, MOST_NAMES, Request, SessionError, Wants, content_of};
use crate::plane::catalogue::{Catalogue, Kind, Resource, Shelf};

#[derive(Debug)]
pub(super) struct Subscription {
    interest: Interest,
    /// The first response for the current interest was made.
    is_begun: bool,
    /// Until the first response: the content, by name, of the resources that the node has from an earlier stream.
    known: BTreeMap<String, Option<u64>>,
    /// Names that were asked for and not answered yet.
    asked: BTreeSet<Arc<str>>,
    /// Names of resources that the node has from an earlier stream and that are gone.
    untold: Vec<Arc<str>>,
    /// The version from which on the names in `untold` may be sent as removed.
    untold_since: u64,
    /// Changes up to this version have been sent.
    changed: u64,
    /// Removals up to this version have been sent.
    gone: u64,
    /// The node has answered all changes up to this version. A response that leaves later changes out does not count: it also leaves out
    /// a resource that has changed before and after its version.
    taken: u64,
    sent: Option<Sent>,
}

/// A response without an answer.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    nonce: String,
    pub(super) at: Instant,
    pub(super) version: u64,
    /// Once the response is answered, the node has all changes up to this version.
    completes: u64,
    holds: Option<u64>,
}

#[derive(Debug)]
enum Interest {
    Everything,
    Names {
        /// Names that are asked for.
        wanted: Wanted,
        /// Names of resources that were sent.
        has: HashSet<Arc<str>>,
    },
}

impl Subscription {
    /// Starts with the first request of a type on a stream.
    pub(super) fn begin(request: Request) -> Result<Self, SessionError> {
        let Request { subscribe, unsubscribe, known, .. } = request;
        let is_star = |name: &String| name == ALL;
        let wants_all = subscribe.is_empty() && unsubscribe.is_empty() || subscribe.iter().any(is_star);
        let interest = match wants_all && !unsubscribe.iter().any(is_star) {
            true => Interest::Everything,
            false => Interest::Names { wanted: Wanted::default(), has: HashSet::new() },
        };
        let mut begun = Self {
            interest,
            is_begun: false,
            known: BTreeMap::new(),
            asked: BTreeSet::new(),
            untold: Vec::new(),
            untold_since: 0,
            changed: 0,
            gone: 0,
            taken: 0,
            sent: None,
        };
        begun.want(subscribe.into_iter().filter(|name| !is_star(name)))?;
        begun.want(known.keys().cloned())?;
        begun.known = known.into_iter().map(|(name, version)| (name, content_of(&version))).collect();
        Ok(begun)
    }

    /// Applies a later request.
    pub(super) fn change(&mut self, subscribe: Vec<String>, unsubscribe: &[String]) -> Result<(), SessionError> {
        let is_star = |name: &String| name == ALL;
        match &mut self.interest {
            Interest::Everything if unsubscribe.iter().any(is_star) => {
                self.interest = Interest::Names { wanted: Wanted::default(), has: HashSet::new() };
            }
            Interest::Names { .. } if subscribe.iter().any(is_star) && !unsubscribe.iter().any(is_star) => {
                self.interest = Interest::Everything;
                self.is_begun = false;
                self.asked.clear();
            }
            Interest::Everything => {}
            Interest::Names { wanted, has } => {
                for name in unsubscribe {
                    wanted.remove(name);
                    has.remove(name.as_str());
                }
            }
        }
        self.want(subscribe.into_iter().filter(|name| !is_star(name)))
    }

    fn want(&mut self, names: impl Iterator<Item = String>) -> Result<(), SessionError> {
        let Interest::Names { wanted, .. } = &mut self.interest else { return Ok(()) };
        for name in names {
            let name: Arc<str> = name.into();
            wanted.insert(&name);
            self.asked.insert(name);
            if wanted.len() > MOST_NAMES || self.asked.len() > MOST_NAMES {
                return Err(SessionError::TooManyNames);
            }
        }
        Ok(())
    }

    pub(super) fn wants(&self) -> Wants {
        match &self.interest {
            Interest::Everything => Wants::Everything,
            Interest::Names { wanted, .. } => Wants::Names(wanted.len()),
        }
    }

    /// The response that is not answered yet.
    pub(super) fn sent(&self) -> Option<&Sent> {
        self.sent.as_ref()
    }

    /// Applies an answer. Returns the response that it answers, if that is the last one.
    pub(super) fn answered(&mut self, nonce: &str) -> Option<Sent> {
        let sent = self.sent.take_if(|sent| sent.nonce == nonce)?;
        self.taken = sent.completes;
        Some(sent)
    }

    /// The node has answered all changes up to this version.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    pub(super) fn expects_everything(&self) -> bool {
        !self.is_begun && matches!(self.interest, Interest::Everything)
    }

    /// Whether the next response has to be complete: no resource may be held back.
    pub(super) fn needs_all(&self) -> bool {
        self.expects_everything() || !self.asked.is_empty()
    }

    /// Whether removals were forgotten before they were sent.
    pub(super) fn has_missed(&self, shelf: &Shelf) -> bool {
        self.is_begun && self.gone < shelf.forgotten()
    }

    /// Workloads up to this version do not depend on policies that the node has not answered yet; `None`: workloads of
    /// no version do.
    pub(super) fn holds(&self, kind: Kind, catalogue: &Catalogue) -> Option<u64> {
        let in_flight = self.sent.as_ref().and_then(|sent| sent.holds);
        let pending = || {
            let mut changed = catalogue.shelf(kind).changed(self.changed, catalogue.version());
            changed.next().map(|(record, _)| record.since)
        };
        in_flight.or_else(pending)
    }

    /// The resources that are new or different up to a version. They count as sent.
    pub(super) fn upserts(&mut self, shelf: &Shelf, until: u64) -> Content {
        let until = until.max(self.changed);
        let content = match &mut self.interest {
            Interest::Everything if self.is_begun => {
                if !self.untold.is_empty() {
                    // The node gets these resources again. If they are removed once more, that is a removal of its own,
                    // with a later version.
                    let again: HashSet<_> =
                        shelf.changed(self.changed, until).map(|(record, _)| &record.name).collect();
                    self.untold.retain(|name| !again.contains(name));
                }
                newer(shelf, self.changed, until)
            }
            Interest::Everything => {
                let resources = shelf.all().filter(|(name, resource)| differs(&self.known, name, resource));
                let resources: Vec<_> = resources.map(|(_, resource)| resource.encoded.clone()).collect();
                let untold = self.known.keys().filter(|name| shelf.get(name).is_none());
                self.untold = untold.map(|name| Arc::from(name.as_str())).collect();
                self.untold_since = until;
                let holds = (!resources.is_empty()).then_some(0);
                Content { resources, is_first: true, holds, ..Content::default() }
            }
            Interest::Names { wanted, has } => {
                let asked = std::mem::take(&mut self.asked);
                let from = if self.is_begun { self.changed } else { until };
                named(shelf, (from, until), &asked, wanted, has, &self.known)
            }
        };
        if !self.is_begun {
            self.is_begun = true;
            self.gone = until;
            self.known = BTreeMap::new();
        }
        self.changed = until;
        content
    }

    /// Adds the removals since the last call that belong to changes up to a version.
    pub(super) fn removals(&mut self, shelf: &Shelf, until: u64, removed: &mut Vec<Arc<str>>) {
        if self.untold_since <= until {
            // Some of these resources may exist again.
            removed.extend(self.untold.drain(..).filter(|name| shelf.get(name).is_none()));
        }
        for record in shelf.gone(self.gone, until).take_while(|record| record.until <= until) {
            let was_sent = match &mut self.interest {
                Interest::Everything => true,
                Interest::Names { has, .. } => has.remove(&record.name),
            };
            if was_sent {
                removed.push(Arc::clone(&record.name));
            }
            self.gone = self.gone.max(record.until.min(until));
        }
    }

    /// Records that a response was sent. `version`: the version of the catalogue from which the response was made.
    pub(super) fn send(&mut self, nonce: &str, version: u64, at: Instant, holds: Option<u64>) {
        let completes = if self.changed >= version { version } else { self.taken };
        self.sent = Some(Sent { nonce: nonce.to_owned(), at, version, completes, holds });
    }

    /// Records that nothing is due from a catalogue of this version.
    pub(super) fn rest(&mut self, version: u64) {
        if self.changed >= version {
            self.taken = version;
        }
    }
}

fn newer(shelf: &Shelf, after: u64, until: u64) -> Content {
    let mut holds = None;
    let changed = shelf.changed(after, until);
    let resources = changed.map(|(record, resource)| {
        holds.get_or_insert(record.since);
        resource.encoded.clone()
    });
    let resources = resources.collect();
    Content { resources, holds, ..Content::default() }
}

/// Answers the names in `asked`, and adds the changes of resources that were asked for earlier.
fn named(
    shelf: &Shelf,
    (after, until): (u64, u64),
    asked: &BTreeSet<Arc<str>>,
    wanted: &Wanted,
    has: &mut HashSet<Arc<str>>,
    known: &BTreeMap<String, Option<u64>>,
) -> Content {
    let found = shelf.asked_for(asked);
    let mut content = Content { removed: found.missing, ..Content::default() };
    let mut due = found.names;
    let mut seen: HashSet<&Arc<str>> = HashSet::new();
    due.retain(|name| seen.insert(name));
    let is_wanted = |name: &Arc<str>, resource: &Resource, has: &HashSet<Arc<str>>| {
        has.contains(name)
            || wanted.contains(name)
            || resource.aliases.iter().any(|alias| wanted.contains(alias))
            || resource.ranges.iter().any(|(network, range)| wanted.has_address_in(network, range))
    };
    let mut later = Vec::new();
    for (record, resource) in shelf.changed(after, until) {
        content.holds.get_or_insert(record.since);
        if is_wanted(&record.name, resource, has) {
            due.extend(Some(&record.name).filter(|name| seen.insert(name)));
        } else if !resource.services.is_empty() {
            later.push((&record.name, resource));
        }
    }
    has.extend(due.iter().map(|name| Arc::clone(name)));
    // A workload that has become an endpoint of a service that was asked for.
    for (name, resource) in later {
        if resource.services.iter().any(|service| has.contains(service)) && seen.insert(name) {
            due.push(name);
            has.insert(Arc::clone(name));
        }
    }
    let due = due.into_iter().filter_map(|name| Some((name, shelf.get(name)?)));
    content.resources = due
        .filter(|(name, resource)| differs(known, name, resource))
        .map(|(_, resource)| resource.encoded.clone())
        .collect();
    content
}

/// Whether the node has this resource not at all or with another content.
fn differs(known: &BTreeMap<String, Option<u64>>, name: &str, resource: &Resource) -> bool {
    known.get(name) != Some(&Some(resource.content))
}
