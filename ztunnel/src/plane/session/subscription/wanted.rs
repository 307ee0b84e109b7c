//! The names that a stream asks for, with the addresses among them in order.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use crate::plane::catalogue::address_of;

#[derive(Debug, Default)]
pub(super) struct Wanted {
    names: HashSet<Arc<str>>,
    /// Network, address, and the name. Two names may stand for one address.
    addresses: BTreeSet<(Arc<str>, IpAddr, Arc<str>)>,
}

impl Wanted {
    pub(super) fn insert(&mut self, name: &Arc<str>) {
        if self.names.insert(Arc::clone(name)) {
            self.addresses.extend(address(name));
        }
    }

    pub(super) fn remove(&mut self, name: &str) {
        if let Some(name) = self.names.take(name)
            && let Some(address) = address(&name)
        {
            self.addresses.remove(&address);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// Whether an address of a network lies in this IP block. The cost does not depend on the number of addresses.
    pub(super) fn has_address_in(&self, network: &Arc<str>, block: &IpNet) -> bool {
        let first = (Arc::clone(network), block.network(), Arc::default());
        self.addresses.range(first..).next().is_some_and(|(of, address, _)| of == network && block.contains(address))
    }
}

fn address(name: &Arc<str>) -> Option<(Arc<str>, IpAddr, Arc<str>)> {
    let (network, address) = address_of(name)?;
    Some((network.into(), address, Arc::clone(name)))
}
