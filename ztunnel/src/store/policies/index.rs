//! Finds the rules that may match a connection, without evaluating the others.
//!
//! A rule is indexed by one of its clauses: the one whose keys the fewest rules share. All clauses must match, so a connection
//! without any of these keys can't match the rule. A clause without keys (for example with `notPrincipals` alone) can't be used
//! for the index. A rule without a usable clause is evaluated for each connection.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;

use ipnet::IpNet;

use super::keys::{Key, Popularity};
use crate::model::policy::Rule;

/// Up to this number of rules are evaluated one by one, because that is faster than hashing.
const FEW: usize = 3;

/// The properties of a connection that are looked up.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The client's identity: the text of the principal, its namespace and its service account.
    pub source: Option<Source<'a>>,
    /// The client's address, canonical.
    pub source_ip: IpAddr,
    /// The workload's address and port, canonical.
    pub destination: SocketAddr,
}

/// A client's identity.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// `TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`.
    pub principal: &'a str,
    /// The namespace.
    pub namespace: &'a str,
    /// The service account.
    pub service_account: &'a str,
}

/// Positions of rules in their list, ascending.
type Bucket = Vec<u32>;
type Texts = HashMap<Box<str>, Bucket>;

/// The index of rules by their keys.
#[derive(Debug, Default)]
pub(super) struct Index {
    always: Bucket,
    keyed: Option<Box<Keyed>>,
}

#[derive(Debug, Default)]
struct Keyed {
    identity: Bucket,
    principals: Texts,
    /// Here and below there is one map for each length in use, so a look-up takes as many steps as there are lengths.
    prefixes: BTreeMap<usize, Texts>,
    suffixes: BTreeMap<usize, Texts>,
    /// By namespace, then by name.
    accounts: HashMap<Box<str>, Texts>,
    namespaces: Texts,
    sources: BTreeMap<u8, HashMap<IpNet, Bucket>>,
    destinations: BTreeMap<u8, HashMap<IpNet, Bucket>>,
    ports: HashMap<u16, Bucket>,
}

impl Index {
    pub(super) fn new<'a>(rules: impl ExactSizeIterator<Item = Option<&'a Rule>> + Clone) -> Self {
        let mut index = Self::default();
        if rules.len() <= FEW {
            index.always = (0..).zip(rules).map(|(position, _)| position).collect();
            return index;
        }
        let popularity = Popularity::of(rules.clone().flatten());
        let mut keyed = Keyed::default();
        for (position, rule) in (0..).zip(rules) {
            match rule.and_then(|rule| popularity.rarest(rule)) {
                Some(keys) => keys.into_iter().for_each(|key| add(keyed.bucket(key), position)),
                None => index.always.push(position),
            }
        }
        index.keyed = Some(Box::new(keyed));
        index
    }

    /// Yields the lists of rules that may match, until `visit` stops it.
    pub(super) fn candidates(
        &self,
        facts: &Facts<'_>,
        mut visit: impl FnMut(&[u32]) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        visit(&self.always)?;
        self.keyed.as_ref().map_or(ControlFlow::Continue(()), |keyed| keyed.candidates(facts, &mut visit))
    }
}

fn add(bucket: &mut Bucket, position: u32) {
    if bucket.last() != Some(&position) {
        bucket.push(position);
    }
}

impl Keyed {
    fn bucket(&mut self, key: Key<'_>) -> &mut Bucket {
        match key {
            Key::Identity => &mut self.identity,
            Key::Principal(text) => self.principals.entry(text.into()).or_default(),
            Key::Prefix(text) => self.prefixes.entry(text.len()).or_default().entry(text.into()).or_default(),
            Key::Suffix(text) => self.suffixes.entry(text.len()).or_default().entry(text.into()).or_default(),
            Key::Account { namespace, name } => {
                self.accounts.entry(namespace.into()).or_default().entry(name.into()).or_default()
            }
            Key::Namespace(text) => self.namespaces.entry(text.into()).or_default(),
            Key::Source(net) => self.sources.entry(net.prefix_len()).or_default().entry(net).or_default(),
            Key::Destination(net) => self.destinations.entry(net.prefix_len()).or_default().entry(net).or_default(),
            Key::Port(port) => self.ports.entry(port).or_default(),
        }
    }

    fn candidates(&self, facts: &Facts<'_>, visit: &mut impl FnMut(&[u32]) -> ControlFlow<()>) -> ControlFlow<()> {
        let mut look = |found: Option<&Bucket>| found.map_or(ControlFlow::Continue(()), |bucket| visit(bucket));
        if !self.ports.is_empty() {
            look(self.ports.get(&facts.destination.port()))?;
        }
        for (nets, address) in [(&self.sources, facts.source_ip), (&self.destinations, facts.destination.ip())] {
            for (length, of_length) in nets {
                // The length is too large for an IPv4 address.
                let Ok(net) = IpNet::new(address, *length) else { continue };
                look(of_length.get(&net.trunc()))?;
            }
        }
        if !self.namespaces.is_empty() {
            look(self.namespaces.get(facts.source.map_or("", |source| source.namespace)))?;
        }
        let Some(source) = facts.source else { return ControlFlow::Continue(()) };
        look(Some(&self.identity))?;
        if !self.principals.is_empty() {
            look(self.principals.get(source.principal))?;
        }
        for (length, prefixes) in &self.prefixes {
            look(source.principal.get(..*length).and_then(|prefix| prefixes.get(prefix)))?;
        }
        for (length, suffixes) in &self.suffixes {
            let start = source.principal.len().checked_sub(*length);
            let suffix = start.and_then(|start| source.principal.get(start..));
            look(suffix.and_then(|suffix| suffixes.get(suffix)))?;
        }
        if !self.accounts.is_empty() {
            let of_namespace = self.accounts.get(source.namespace);
            look(of_namespace.and_then(|accounts| accounts.get(source.service_account)))?;
        }
        ControlFlow::Continue(())
    }
}
