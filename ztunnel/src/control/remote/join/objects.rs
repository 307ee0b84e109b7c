//! Policies as written by users, and services that are hidden from clients.

use std::collections::HashMap;
use std::sync::Arc;

use crate::istio::read::{ObjectFacts, ServiceExactly};
use crate::model::policy::{AuthorizationPolicy, PeerAuthentication};
use crate::store::change::{Change, ServiceKey};

/// Objects, by the names of their resources.
#[derive(Debug, Default)]
pub(super) struct Objects {
    by_name: HashMap<Arc<str>, Object>,
    services: HashMap<ServiceKey, Arc<str>>,
}

#[derive(Debug)]
enum Object {
    Authorization(Arc<AuthorizationPolicy>),
    Authentication(Arc<PeerAuthentication>),
    Service(ServiceKey, Box<ServiceExactly>),
}

/// The effect of an added or removed object on the mesh.
pub(super) enum Effect {
    /// A policy has changed.
    Policy(Change),
    /// A service may have changed.
    Service(ServiceKey),
    /// The mesh has not changed.
    Nothing,
}

impl Objects {
    /// Adds or replaces an object.
    pub(super) fn put(&mut self, name: &Arc<str>, facts: ObjectFacts) -> Effect {
        let (object, effect) = match facts {
            ObjectFacts::Authorization(policy) => {
                let policy = Arc::new(policy);
                (Object::Authorization(Arc::clone(&policy)), Effect::Policy(Change::Authorization(policy)))
            }
            ObjectFacts::Authentication(policy) => {
                let policy = Arc::new(policy);
                (Object::Authentication(Arc::clone(&policy)), Effect::Policy(Change::Authentication(policy)))
            }
            ObjectFacts::Service(facts) => {
                let Some(exactly) = facts.exactly else { return Effect::Nothing };
                let key = ServiceKey::of(&facts.service);
                self.services.insert(key.clone(), Arc::clone(name));
                (Object::Service(key.clone(), exactly), Effect::Service(key))
            }
        };
        self.by_name.insert(Arc::clone(name), object);
        effect
    }

    /// Removes an object.
    pub(super) fn remove(&mut self, name: &str) -> Effect {
        match self.by_name.remove(name) {
            Some(Object::Authorization(policy)) => Effect::Policy(Change::AuthorizationGone(policy.name.clone())),
            Some(Object::Authentication(policy)) => Effect::Policy(Change::AuthenticationGone(policy.name.clone())),
            Some(Object::Service(key, _)) => {
                self.services.remove(&key);
                Effect::Service(key)
            }
            None => Effect::Nothing,
        }
    }

    /// A service that is hidden from clients.
    pub(super) fn service(&self, key: &ServiceKey) -> Option<&ServiceExactly> {
        match self.by_name.get(self.services.get(key)?)? {
            Object::Service(_, exactly) => Some(exactly),
            Object::Authorization(_) | Object::Authentication(_) => None,
        }
    }

    /// The services that are hidden from clients.
    pub(super) fn services(&self) -> impl Iterator<Item = &ServiceKey> {
        self.services.keys()
    }

    /// All policies.
    pub(super) fn policies(&self) -> impl Iterator<Item = Change> {
        self.by_name.values().filter_map(|object| match object {
            Object::Authorization(policy) => Some(Change::Authorization(Arc::clone(policy))),
            Object::Authentication(policy) => Some(Change::Authentication(Arc::clone(policy))),
            Object::Service(..) => None,
        })
    }
}
