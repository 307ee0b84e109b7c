//! All resources that are served. Each resource is encoded once, for all nodes that get it, and is found by the version
//! of its last change.
//!
//! A node that gets everything is described by one number: the version of the catalogue that it has. The node lacks the
//! resources that have changed since, each in its latest state, however long the node was away. So no queue grows for a
//! slow reader, and the cost of a change depends on the size of the change only.

mod blocks;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    ops::Bound,
    sync::Arc,
};

use bytes::Bytes;
use ipnet::IpNet;

use self::blocks::Blocks;
pub use self::blocks::address_of;

/// A type of resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Workloads and services.
    Address,
    /// Policies.
    Authorization,
    /// Settings of the whole mesh.
    Settings,
    /// Objects for which Istio has no message, and policies as they were written.
    Object,
}

impl Kind {
    /// All types.
    pub const ALL: [Self; 4] = [Self::Address, Self::Authorization, Self::Settings, Self::Object];
    /// Types of policies. A workload depends on them.
    pub const POLICIES: [Self; 2] = [Self::Object, Self::Authorization];

    /// For logs and labels.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Address => "Address",
            Self::Authorization => "Authorization",
            Self::Settings => "Settings",
            Self::Object => "Object",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A resource in the form in which it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// A field `resources` of a response: key, length, the resource.
    pub encoded: Bytes,
    /// Derived from the content, so that every replica gives the same content the same version.
    pub content: u64,
    /// Other names by which it is asked for: `network/address`.
    pub aliases: Box<[Arc<str>]>,
    /// Names of the services that have the workload as an endpoint. A node that asks for a service gets its workloads,
    /// too.
    pub services: Box<[Arc<str>]>,
    /// IP blocks of a service, each with its network. Nodes ask for single addresses in them.
    pub ranges: Box<[(Arc<str>, IpNet)]>,
}

/// A resource that exists from now on, or (`None`) is gone.
#[derive(Clone, Debug)]
pub struct Change {
    /// Its type.
    pub kind: Kind,
    /// Its name.
    pub name: Arc<str>,
    /// Its new state.
    pub resource: Option<Resource>,
}

/// Records that a resource has changed, or is gone.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its name.
    pub name: Arc<str>,
    /// The catalogue's version before the batch of changes to which this one belongs.
    pub since: u64,
    /// The catalogue's version after that batch.
    pub until: u64,
}

/// The answer of [`Shelf::asked_for`].
#[derive(Debug, Default)]
pub struct Found<'a> {
    /// The names of the resources. A workload is there once for each of its services, and once more if its own name was asked for.
    pub names: Vec<&'a Arc<str>>,
    /// The names and aliases that stand for no resource.
    pub missing: Vec<Arc<str>>,
}

#[derive(Debug)]
struct CatalogueEntry {
    resource: Resource,
    /// The version of its last change.
    at: u64,
}

/// The resources of one type.
#[derive(Debug, Default)]
pub struct Shelf {
    entries: HashMap<Arc<str>, CatalogueEntry>,
    /// One for each entry, by the version of its last change.
    changed: BTreeMap<u64, Record>,
    /// Removals, by the version of the removal.
    gone: BTreeMap<u64, Record>,
    gone_at: HashMap<Arc<str>, u64>,
    /// Removals up to this version have been forgotten.
    forgotten: u64,
    aliases: HashMap<Arc<str>, HashSet<Arc<str>>>,
    behind: HashMap<Arc<str>, HashSet<Arc<str>>>,
    around: Blocks,
    bytes: usize,
}

/// All resources.
#[derive(Debug, Default)]
pub struct Catalogue {
    version: u64,
    address: Shelf,
    authorization: Shelf,
    settings: Shelf,
    object: Shelf,
    /// There is a mesh. Before that no node gets an answer: an empty answer would say that the mesh is empty.
    is_complete: bool,
}

/// At least this number of removals is remembered, whatever the number of resources.
const REMEMBERED: usize = 4096;

impl Catalogue {
    /// The version. It increases by one with every resource that changes.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Whether there is a mesh to be served.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// The resources of a type.
    #[must_use]
    pub fn shelf(&self, kind: Kind) -> &Shelf {
        match kind {
            Kind::Address => &self.address,
            Kind::Authorization => &self.authorization,
            Kind::Settings => &self.settings,
            Kind::Object => &self.object,
        }
    }

    /// Applies a batch of changes. A change that leaves a resource as it was is ignored. Returns the number of the
    /// others.
    pub fn apply(&mut self, changes: Vec<Change>, is_complete: bool) -> usize {
        self.is_complete |= is_complete;
        let changes: Vec<Change> = changes.into_iter().filter(|change| self.is_news(change)).collect();
        let (since, count) = (self.version, changes.len());
        let until = since + count as u64;
        for (at, change) in (since + 1..).zip(changes) {
            let shelf = match change.kind {
                Kind::Address => &mut self.address,
                Kind::Authorization => &mut self.authorization,
                Kind::Settings => &mut self.settings,
                Kind::Object => &mut self.object,
            };
            shelf.set(at, Record { name: change.name, since, until }, change.resource);
        }
        self.version = until;
        count
    }

    fn is_news(&self, change: &Change) -> bool {
        self.shelf(change.kind).entries.get(&change.name).map(|entry| &entry.resource) != change.resource.as_ref()
    }
}

impl Shelf {
    fn set(&mut self, at: u64, record: Record, resource: Option<Resource>) {
        let name = Arc::clone(&record.name);
        if let Some(before) = self.entries.remove(&name) {
            self.changed.remove(&before.at);
            self.bytes -= before.resource.encoded.len();
            leave(&mut self.aliases, &before.resource.aliases, &name);
            leave(&mut self.behind, &before.resource.services, &name);
            self.around.remove(&before.resource.ranges, &name);
        }
        if let Some(gone) = self.gone_at.remove(&name) {
            self.gone.remove(&gone);
        }
        match resource {
            Some(resource) => {
                self.bytes += resource.encoded.len();
                join(&mut self.aliases, &resource.aliases, &name);
                join(&mut self.behind, &resource.services, &name);
                self.around.insert(&resource.ranges, &name);
                self.changed.insert(at, record);
                self.entries.insert(name, CatalogueEntry { resource, at });
            }
            None => {
                self.gone.insert(at, record);
                self.gone_at.insert(name, at);
                self.forget();
            }
        }
    }

    /// Forgets the oldest removals. A node that has not been told of them has to start again.
    fn forget(&mut self) {
        while self.gone.len() > REMEMBERED.max(self.entries.len()) {
            let Some((at, record)) = self.gone.pop_first() else { return };
            self.gone_at.remove(&record.name);
            self.forgotten = at;
        }
    }

    /// The number of resources.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no resources.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of all resources in a message.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Removals up to this version have been forgotten.
    #[must_use]
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// The resource of a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Resource> {
        self.entries.get(name).map(|entry| &entry.resource)
    }

    /// All resources, in no order.
    pub fn all(&self) -> impl Iterator<Item = (&Arc<str>, &Resource)> {
        self.entries.iter().map(|(name, entry)| (name, &entry.resource))
    }

    /// Resources whose last change is later than one version and not later than another, in the order of changes.
    pub fn changed(&self, after: u64, until: u64) -> impl Iterator<Item = (&Record, &Resource)> {
        let records = between(&self.changed, after, until);
        records.filter_map(|record| Some((record, self.get(&record.name)?)))
    }

    /// Resources that were removed later than one version and not later than another, in the order of changes.
    pub fn gone(&self, after: u64, until: u64) -> impl Iterator<Item = &Record> {
        between(&self.gone, after, until)
    }

    /// The names of the resources that these names and aliases stand for. The service of an address comes with the workloads behind
    /// it. Each service is looked into once, however many of the names stand for it.
    #[must_use]
    pub fn asked_for<'a, 'n>(&'a self, names: impl IntoIterator<Item = &'n Arc<str>>) -> Found<'a> {
        let (mut found, mut seen) = (Found::default(), HashSet::new());
        for name in names {
            let own = self.entries.get_key_value(name).map(|(name, _)| name);
            let by_alias = self.aliases.get(name).into_iter().flatten();
            let mut direct = own.into_iter().chain(by_alias).chain(self.around.around(name)).peekable();
            if direct.peek().is_none() {
                found.missing.push(Arc::clone(name));
            }
            found.names.extend(direct.filter(|name| seen.insert(*name)));
        }
        let behind = found.names.iter().filter_map(|name| self.behind.get(*name)).flatten();
        let behind: Vec<_> = behind.collect();
        found.names.extend(behind);
        found
    }
}

fn between(records: &BTreeMap<u64, Record>, after: u64, until: u64) -> impl Iterator<Item = &Record> {
    // `range` panics when a range ends before it begins.
    let until = until.max(after);
    records
        .range((Bound::Excluded(after), Bound::Included(until.max(after + 1))))
        .filter_map(move |(at, record)| (*at <= until).then_some(record))
}

fn join(index: &mut HashMap<Arc<str>, HashSet<Arc<str>>>, keys: &[Arc<str>], name: &Arc<str>) {
    for key in keys {
        index.entry(Arc::clone(key)).or_default().insert(Arc::clone(name));
    }
}

fn leave(index: &mut HashMap<Arc<str>, HashSet<Arc<str>>>, keys: &[Arc<str>], name: &Arc<str>) {
    for key in keys {
        if let Some(names) = index.get_mut(key) {
            names.remove(name);
            if names.is_empty() {
                index.remove(key);
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
