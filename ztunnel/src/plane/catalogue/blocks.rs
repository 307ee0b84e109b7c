//! The names of resources by their IP blocks. A look-up costs one step for each length of a prefix, however many blocks there are.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

/// An address that a node asks for: `network/address`.
#[must_use]
pub fn address_of(name: &str) -> Option<(&str, IpAddr)> {
    let (network, address) = name.rsplit_once('/')?;
    Some((network, address.parse().ok()?))
}

/// Names by network, length of the prefix, and block.
#[derive(Debug, Default)]
pub(super) struct Blocks(HashMap<Arc<str>, BTreeMap<u8, Names>>);

type Names = HashMap<IpNet, BTreeSet<Arc<str>>>;

impl Blocks {
    pub(super) fn insert(&mut self, ranges: &[(Arc<str>, IpNet)], name: &Arc<str>) {
        for (network, range) in ranges {
            let lengths = self.0.entry(Arc::clone(network)).or_default();
            let names = lengths.entry(range.prefix_len()).or_default();
            names.entry(range.trunc()).or_default().insert(Arc::clone(name));
        }
    }

    pub(super) fn remove(&mut self, ranges: &[(Arc<str>, IpNet)], name: &Arc<str>) {
        for (network, range) in ranges {
            let Some(lengths) = self.0.get_mut(network) else { continue };
            let Some(blocks) = lengths.get_mut(&range.prefix_len()) else { continue };
            if let Some(names) = blocks.get_mut(&range.trunc()) {
                names.remove(name);
                if names.is_empty() {
                    blocks.remove(&range.trunc());
                }
            }
            if blocks.is_empty() {
                lengths.remove(&range.prefix_len());
            }
            if lengths.is_empty() {
                self.0.remove(network);
            }
        }
    }

    /// The names of the resources with a block in which an address lies, if `name` is `network/address`.
    pub(super) fn around(&self, name: &str) -> impl Iterator<Item = &Arc<str>> {
        let found = address_of(name).and_then(|(network, address)| Some((self.0.get(network)?, address)));
        found
            .into_iter()
            .flat_map(|(lengths, address)| {
                lengths.iter().filter_map(move |(length, blocks)| {
                    let block = IpNet::new(address, *length).ok()?;
                    blocks.get(&block.trunc())
                })
            })
            .flatten()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
