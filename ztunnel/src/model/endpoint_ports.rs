//! The ports of an endpoint.

use std::fmt;
use std::iter;
use std::slice;
use std::sync::Arc;

/// From the ports of a service to the ports at an endpoint's address. Clones share the memory.
///
/// The endpoints of a service nearly always have the same ports, and a service may have thousands of both: so this is one
/// sorted block that the endpoints share, and not a tree for each.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct EndpointPorts(Arc<[(u16, u16)]>);

impl EndpointPorts {
    /// The port at the endpoint's address for a port of the service, if the endpoint serves that.
    #[must_use]
    pub fn get(&self, port: u16) -> Option<u16> {
        let found = self.0.binary_search_by_key(&port, |(from, _)| *from).ok()?;
        self.0.get(found).map(|(_, to)| *to)
    }

    /// Whether the endpoint serves a port of the service.
    #[must_use]
    pub fn serves(&self, port: u16) -> bool {
        self.get(port).is_some()
    }

    /// The ports of the service, each with the port at the endpoint's address; sorted by the first.
    pub fn iter(&self) -> iter::Copied<slice::Iter<'_, (u16, u16)>> {
        self.0.iter().copied()
    }

    /// The ports at the endpoint's address.
    pub fn targets(&self) -> impl Iterator<Item = u16> {
        self.iter().map(|(_, to)| to)
    }

    /// These ports, and the ports of another map. For a port of both, the other map counts.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        if Arc::ptr_eq(&self.0, &other.0) || other.0.is_empty() || self == other {
            return self.clone();
        }
        if self.0.is_empty() {
            return other.clone();
        }
        self.iter().chain(other).collect()
    }
}

impl FromIterator<(u16, u16)> for EndpointPorts {
    /// Of several ports at the endpoint's address for one port of the service, the last counts.
    fn from_iter<T: IntoIterator<Item = (u16, u16)>>(ports: T) -> Self {
        let mut all: Vec<(u16, u16)> = ports.into_iter().collect();
        // Stable: of equal ones the last stays the last.
        all.sort_by_key(|(from, _)| *from);
        all.dedup_by(|later, first| {
            let is_same = later.0 == first.0;
            if is_same {
                first.1 = later.1;
            }
            is_same
        });
        Self(all.into())
    }
}

impl<const N: usize> From<[(u16, u16); N]> for EndpointPorts {
    fn from(ports: [(u16, u16); N]) -> Self {
        ports.into_iter().collect()
    }
}

impl<'a> IntoIterator for &'a EndpointPorts {
    type Item = (u16, u16);
    type IntoIter = iter::Copied<slice::Iter<'a, (u16, u16)>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Debug for EndpointPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map(ports in prop::collection::vec((0u16..9, any::<u16>()), 0..20), more in prop::collection::vec((0u16..9, any::<u16>()), 0..20)) {
            let [one, other]: [EndpointPorts; 2] = [&ports, &more].map(|ports| ports.iter().copied().collect());
            let mut model: BTreeMap<u16, u16> = ports.into_iter().collect();
            for port in 0..10 {
                prop_assert_eq!(one.get(port), model.get(&port).copied());
            }
            prop_assert_eq!(one.iter().collect::<Vec<_>>(), model.clone().into_iter().collect::<Vec<_>>());
            model.extend(more);
            prop_assert_eq!(one.and(&other).iter().collect::<Vec<_>>(), model.into_iter().collect::<Vec<_>>());
        }
    }
}
