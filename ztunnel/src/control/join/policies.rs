//! Policies: the workloads that each selects. That depends on which namespace is the root.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::services::note;
use super::table::{Provenance, Replaced};
use super::{Joiner, Subject};
use crate::control::objects::{AuthorizationManifest, PeerAuthenticationManifest, Target};
use crate::model::labels::Labels;
use crate::model::origin::Origin;
use crate::model::policy::{Action, AuthorizationPolicy, PeerAuthentication, Scope};
use crate::model::workload::NamespacedName;
use crate::store::change::Change;

/// The services that a policy names.
pub(super) fn targets(policy: &AuthorizationManifest) -> &[NamespacedName] {
    match &policy.target {
        Target::Labels(_) => &[],
        Target::Services(services) => services,
    }
}

impl Joiner {
    pub(super) fn authorization_replaced(
        &mut self,
        name: &NamespacedName,
        replaced: &Replaced<Arc<AuthorizationManifest>>,
    ) {
        for (policy, is_in) in [(&replaced.before, false), (&replaced.after, true)] {
            for service in policy.iter().flat_map(|policy| targets(policy)) {
                note(&mut self.targeting, service.clone(), name.clone(), is_in);
            }
        }
        self.dirty.authorization.insert(name.clone());
        self.dirty.subjects.insert(Subject::Authorization(name.clone()));
    }

    /// Joins again the policies that are marked.
    pub(super) fn join_policies(&mut self, changes: &mut Vec<Change>) {
        if self.dirty.authorization.is_empty() && self.dirty.authentication.is_empty() {
            return;
        }
        let root_namespace = self.root_namespace();
        for name in std::mem::take(&mut self.dirty.authorization) {
            changes.push(match self.authorization.get(&name) {
                Some(said) => {
                    let policy = authorization(&name, &said.place, &said.body, &root_namespace);
                    Change::Authorization(Arc::new(policy))
                }
                None => Change::AuthorizationGone(name),
            });
        }
        for name in std::mem::take(&mut self.dirty.authentication) {
            let said = self.authentication.get(&name);
            let policy = said.and_then(|said| authentication(&name, &said.place, &said.body, &root_namespace));
            changes.push(match policy {
                Some(policy) => Change::Authentication(Arc::new(policy)),
                None => Change::AuthenticationGone(name),
            });
        }
    }

    /// The AuthorizationPolicies in force that name services, each with its origin and the services.
    pub fn targeted(&self) -> impl Iterator<Item = (&NamespacedName, Origin, &[NamespacedName])> {
        let in_force =
            self.authorization.iter().filter(|(_, said)| !said.body.dry_run && said.body.action != Action::Audit);
        let targeted = in_force.map(|(name, said)| (name, said.place.origin.clone(), targets(&said.body)));
        targeted.filter(|(_, _, services)| !services.is_empty())
    }

    /// Whether the service has a selector: then its pods are known without a slice.
    pub fn has_selector(&self, service: &NamespacedName) -> bool {
        self.services.get(service).is_some_and(|service| !service.body.selector.is_empty())
    }
}

pub(super) fn scope(namespace: &Arc<str>, labels: &Labels, root_namespace: &str) -> Scope {
    match (**namespace == *root_namespace, labels.is_empty()) {
        (true, true) => Scope::Mesh,
        (false, true) => Scope::Namespace(Arc::clone(namespace)),
        (true, false) => Scope::Selector { namespace: None, labels: labels.clone() },
        (false, false) => Scope::Selector { namespace: Some(Arc::clone(namespace)), labels: labels.clone() },
    }
}

fn authorization(
    name: &NamespacedName,
    place: &Provenance,
    manifest: &AuthorizationManifest,
    root_namespace: &str,
) -> AuthorizationPolicy {
    AuthorizationPolicy {
        name: name.clone(),
        origin: place.origin.clone(),
        scope: match &manifest.target {
            Target::Labels(labels) => scope(&name.namespace, labels, root_namespace),
            Target::Services(services) => Scope::Services(services.clone()),
        },
        action: manifest.action,
        dry_run: manifest.dry_run,
        rules: manifest.rules.clone(),
    }
}

/// `None` for a PeerAuthentication with a selector in the root namespace: it has no effect there.
pub(super) fn authentication(
    name: &NamespacedName,
    place: &Provenance,
    manifest: &PeerAuthenticationManifest,
    root_namespace: &str,
) -> Option<PeerAuthentication> {
    let scope = scope(&name.namespace, &manifest.selector, root_namespace);
    if matches!(scope, Scope::Selector { namespace: None, .. }) {
        return None;
    }
    let is_of_workloads = matches!(scope, Scope::Selector { .. });
    Some(PeerAuthentication {
        name: name.clone(),
        origin: place.origin.clone(),
        created: manifest.created,
        scope,
        mode: manifest.mode,
        ports: if is_of_workloads { manifest.ports.clone() } else { BTreeMap::new() },
    })
}
