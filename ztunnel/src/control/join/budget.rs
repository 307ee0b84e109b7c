//! The memory on every node that the services of one namespace may take. A few short objects can take much: each host
//! of a ServiceEntry gets all lists of the entry, each Service gets all pods that it selects, and each endpoint may have
//! each port of its service.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::model::service::ServiceKind;
use crate::store::change::ServiceKey;

/// The limit for the units of all services of a namespace: an address or endpoint is one, counted for each service that
/// has it. A namespace of 3,000 pods, more than Kubernetes is tested with, may have each of them behind 30 services.
const MOST: usize = 100_000;

/// The memory of a unit, in bytes.
const UNIT: usize = 256;

/// The lists of a service besides its addresses and endpoints. Here the hosts of a ServiceEntry share them, but nodes get
/// them from the control plane once for each host.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lists {
    pub(super) ports: usize,
    pub(super) identities: usize,
    pub(super) namespaces: usize,
    pub(super) labels: usize,
}

impl Lists {
    /// The cost of the lists. Short lists cost nothing in addition to the service.
    pub(super) const fn cost(self) -> usize {
        (64 * self.ports + 128 * self.identities + 48 * self.namespaces + 64 * self.labels) / UNIT
    }
}

/// The cost of an endpoint with this many ports.
pub(super) const fn endpoint(ports: usize) -> usize {
    1 + 4 * ports / UNIT
}

/// The costs of the services, by namespace.
#[derive(Debug)]
pub(super) struct Budget {
    most: usize,
    namespaces: HashMap<Arc<str>, Ledger>,
}

#[derive(Debug, Default)]
struct Ledger {
    total: usize,
    /// In the order in which they are accepted.
    costs: BTreeMap<(ServiceKind, ServiceKey), usize>,
    /// The services that exceed the budget.
    over: BTreeSet<ServiceKey>,
}

/// By how much a namespace exceeds its budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Excess {
    /// The cost of all its services.
    pub(super) total: usize,
    /// The number of services that exceed the budget.
    pub(super) services: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self::of(MOST)
    }
}

impl Budget {
    pub(super) fn of(most: usize) -> Self {
        Self { most, namespaces: HashMap::new() }
    }

    /// The budget of each namespace.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// Sets the cost of a service; 0: the service is gone. A key has a cost for one kind only.
    pub(super) fn enter(&mut self, kind: ServiceKind, key: &ServiceKey, cost: usize) {
        let ledger = self.namespaces.entry(Arc::clone(&key.namespace)).or_default();
        for other in [ServiceKind::Kubernetes, ServiceKind::Entry] {
            ledger.total -= ledger.costs.remove(&(other, key.clone())).unwrap_or_default();
        }
        if cost > 0 {
            ledger.total += cost;
            ledger.costs.insert((kind, key.clone()), cost);
        }
    }

    /// Determines again which services of a namespace exceed the budget. Returns the services for which that has
    /// changed.
    pub(super) fn settle(&mut self, namespace: &Arc<str>) -> Vec<ServiceKey> {
        let Some(ledger) = self.namespaces.get_mut(namespace) else { return Vec::new() };
        let mut over = BTreeSet::new();
        if ledger.total > self.most {
            let mut total = 0;
            for ((_, key), cost) in &ledger.costs {
                // A smaller service after it may still fit.
                if total + cost > self.most {
                    over.insert(key.clone());
                } else {
                    total += cost;
                }
            }
        }
        let changed = ledger.over.symmetric_difference(&over).cloned().collect();
        ledger.over = over;
        if ledger.costs.is_empty() {
            self.namespaces.remove(namespace);
        }
        changed
    }

    /// Whether a service exceeds the budget.
    pub(super) fn is_over(&self, key: &ServiceKey) -> bool {
        self.namespaces.get(&key.namespace).is_some_and(|ledger| ledger.over.contains(key))
    }

    /// By how much a namespace exceeds its budget, with the first service that exceeds it.
    pub(super) fn excess(&self, namespace: &str) -> Option<(&ServiceKey, Excess)> {
        let ledger = self.namespaces.get(namespace)?;
        let excess = Excess { total: ledger.total, services: ledger.over.len() };
        ledger.over.first().map(|first| (first, excess))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ServiceKey {
        ServiceKey { namespace: "evil".into(), hostname: name.into() }
    }

    #[test]
    fn what_is_too_much_is_the_last_in_order_and_comes_back_when_there_is_a_place() {
        let (mut budget, namespace) = (Budget::default(), "evil".into());
        for name in ["a", "b", "c"] {
            budget.enter(ServiceKind::Entry, &key(name), MOST / 2);
        }
        assert_eq!(budget.settle(&namespace), [key("c")]);
        assert!(budget.is_over(&key("c")) && !budget.is_over(&key("b")));
        let excess = Excess { total: MOST / 2 * 3, services: 1 };
        assert_eq!(budget.excess("evil"), Some((&key("c"), excess)));
        budget.enter(ServiceKind::Kubernetes, &key("z"), 1);
        assert_eq!(budget.settle(&namespace), [key("b")], "services of Kubernetes come first");
        budget.enter(ServiceKind::Kubernetes, &key("z"), 0);
        budget.enter(ServiceKind::Kubernetes, &key("a"), 1);
        assert_eq!(budget.settle(&namespace), [key("b")]);
        assert_eq!(budget.excess("evil").unwrap().1.services, 1);
        for name in ["a", "b", "c"] {
            budget.enter(ServiceKind::Entry, &key(name), 0);
        }
        assert_eq!(budget.settle(&namespace), [key("c")]);
        assert!(budget.namespaces.is_empty());
    }
}
