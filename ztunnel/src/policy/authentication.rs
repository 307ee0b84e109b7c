//! Whether clients of a workload must have an identity, and which PeerAuthentication says so.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::model::policy::{MtlsMode, PeerAuthentication, Scope};
use crate::model::workload::{NamespacedName, Workload};
use crate::store::policies::lacking;
use crate::store::snapshot::Snapshot;

/// Whether clients must have an identity. The default is what holds without any PeerAuthentication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mode {
    /// At ports that are not told apart.
    pub mode: MtlsMode,
    /// The PeerAuthentication that says so; none: nobody does.
    pub from: Option<NamespacedName>,
    /// At ports that are.
    pub ports: BTreeMap<u16, MtlsMode>,
    /// The PeerAuthentication that tells them apart.
    pub ports_from: Option<NamespacedName>,
}

impl Default for Mode {
    fn default() -> Self {
        Self { mode: MtlsMode::Permissive, from: None, ports: BTreeMap::new(), ports_from: None }
    }
}

impl Mode {
    /// What holds at a port, who says so, and whether it does of this port.
    #[must_use]
    pub fn at(&self, port: u16) -> (MtlsMode, Option<&NamespacedName>, bool) {
        match self.ports.get(&port) {
            Some(mode) => (*mode, self.ports_from.as_ref(), true),
            None => (self.mode, self.from.as_ref(), false),
        }
    }

    /// The PeerAuthentications that require an identity, at all ports or at some.
    pub fn strict(&self) -> impl Iterator<Item = &NamespacedName> {
        let general = self.from.iter().filter(|_| self.mode == MtlsMode::Strict);
        general.chain(self.ports_from.iter().filter(|_| self.ports.values().any(|mode| *mode == MtlsMode::Strict)))
    }
}

/// How much a PeerAuthentication is meant for. The closer come later and win.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// The mesh.
    Mesh,
    /// A namespace.
    Namespace,
    /// Workloads with certain labels.
    Workload,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mesh => "mesh",
            Self::Namespace => "namespace",
            Self::Workload => "workload",
        })
    }
}

/// How a PeerAuthentication takes part in what holds for a workload, or why it does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Counts {
    /// Its mode holds, or its entry for the port does.
    Decides,
    /// It leaves it to the larger levels.
    Inherits,
    /// One of a closer level decides.
    Overridden(NamespacedName),
    /// There is an older one of its level, or one that is as old and comes before it by name.
    Younger(NamespacedName),
    /// The workload has not this label.
    Lacks {
        /// Its key.
        key: String,
        /// Its value.
        value: String,
    },
    /// A selector in the root namespace: no workload is meant.
    SelectorInRoot,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Decides => f.write_str("decides"),
            Self::Inherits => f.write_str("says nothing (UNSET), the larger scope decides"),
            Self::Overridden(by) => write!(f, "overridden by {by}"),
            Self::Younger(than) => write!(f, "does not count beside {than}, which is older or comes first by name"),
            Self::Lacks { key, value } => write!(f, "does not apply: the pod has no label {key}={value}"),
            Self::SelectorInRoot => f.write_str("does not count: it has a selector and stands in the root namespace"),
        }
    }
}

/// A PeerAuthentication that was considered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsideredAuthentication {
    /// The policy.
    pub policy: Arc<PeerAuthentication>,
    /// Its level.
    pub level: Level,
    /// Whether it counts.
    pub counts: Counts,
}

/// How it comes that clients must have an identity at a port, or need not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authentication {
    /// What holds at the port.
    pub mode: MtlsMode,
    /// The entry of `portLevelMtls` that says so, if one does.
    pub port: Option<u16>,
    /// The PeerAuthentication that says so; none: nobody does.
    pub from: Option<NamespacedName>,
    /// All that are meant for the mesh or stand in the workload's namespace, the largest level first, then by name.
    pub considered: Vec<ConsideredAuthentication>,
}

/// What holds for a workload, of policies that may be meant for it.
pub(super) fn resolve<'a>(
    candidates: impl IntoIterator<Item = &'a Arc<PeerAuthentication>>,
    workload: &Workload,
) -> Mode {
    let chosen = Chosen::of(candidates, workload);
    let mut mode = Mode::default();
    for policy in [chosen.mesh, chosen.namespace, chosen.workload].into_iter().flatten() {
        if let Some(set) = policy.mode {
            mode.mode = set;
            mode.from = Some(policy.name.clone());
        }
    }
    if let Some(policy) = chosen.workload {
        mode.ports = policy.ports.iter().filter_map(|(port, mode)| Some((*port, (*mode)?))).collect();
        mode.ports_from = (!mode.ports.is_empty()).then(|| policy.name.clone());
    }
    mode
}

/// Whether clients of a workload must have an identity, and which PeerAuthentications say so.
#[must_use]
pub fn mode(snapshot: &Snapshot, workload: &Workload) -> Mode {
    resolve(snapshot.policies().authenticating(workload), workload)
}

/// How it comes that clients of a workload must have an identity at a port, or need not.
#[must_use]
pub fn authentication(snapshot: &Snapshot, workload: &Workload, port: u16) -> Authentication {
    let all = snapshot.policies().authentication();
    let resolved = resolve(all, workload);
    let chosen = Chosen::of(all, workload);
    let (mode, from, by_port) = resolved.at(port);
    let mut considered: Vec<ConsideredAuthentication> = all
        .iter()
        .filter_map(|policy| {
            let (level, meant) = level_of(policy, workload)?;
            let counts = match (meant, chosen.at(level)) {
                (Err(why), _) => why,
                (Ok(()), Some(first)) if !Arc::ptr_eq(first, policy) => Counts::Younger(first.name.clone()),
                (Ok(()), _) if from == Some(&policy.name) => Counts::Decides,
                (Ok(()), _) if policy.mode.is_none() => Counts::Inherits,
                (Ok(()), _) => from.map_or(Counts::Inherits, |from| Counts::Overridden(from.clone())),
            };
            Some(ConsideredAuthentication { policy: Arc::clone(policy), level, counts })
        })
        .collect();
    considered.sort_by_key(|considered| considered.level);
    Authentication { mode, port: by_port.then_some(port), from: from.cloned(), considered }
}

/// The one policy of each level that counts.
#[derive(Default)]
struct Chosen<'a> {
    mesh: Option<&'a Arc<PeerAuthentication>>,
    namespace: Option<&'a Arc<PeerAuthentication>>,
    workload: Option<&'a Arc<PeerAuthentication>>,
}

impl<'a> Chosen<'a> {
    /// Of several of a level the oldest, then the first by name; one without a date is older than all.
    fn of(candidates: impl IntoIterator<Item = &'a Arc<PeerAuthentication>>, workload: &Workload) -> Self {
        let mut chosen = Self::default();
        for policy in candidates {
            let Some((level, Ok(()))) = level_of(policy, workload) else { continue };
            let best = match level {
                Level::Mesh => &mut chosen.mesh,
                Level::Namespace => &mut chosen.namespace,
                Level::Workload => &mut chosen.workload,
            };
            let age = |policy: &'a Arc<PeerAuthentication>| (policy.created, &policy.name);
            if best.is_none_or(|best| age(policy) < age(best)) {
                *best = Some(policy);
            }
        }
        chosen
    }

    fn at(&self, level: Level) -> Option<&'a Arc<PeerAuthentication>> {
        match level {
            Level::Mesh => self.mesh,
            Level::Namespace => self.namespace,
            Level::Workload => self.workload,
        }
    }
}

/// The level of a policy, and whether the workload is meant; `None`: it is for another namespace.
fn level_of(policy: &PeerAuthentication, workload: &Workload) -> Option<(Level, Result<(), Counts>)> {
    let own = &workload.name.namespace;
    match &policy.scope {
        Scope::Mesh => Some((Level::Mesh, Ok(()))),
        Scope::Namespace(namespace) => (namespace == own).then_some((Level::Namespace, Ok(()))),
        Scope::Selector { namespace: None, .. } => Some((Level::Workload, Err(Counts::SelectorInRoot))),
        Scope::Selector { namespace: Some(namespace), labels } => (namespace == own).then(|| {
            let missing = lacking(labels, &workload.labels);
            let why = |(key, value): (&str, &str)| Counts::Lacks { key: key.to_owned(), value: value.to_owned() };
            (Level::Workload, missing.map_or(Ok(()), |missing| Err(why(missing))))
        }),
        Scope::Services(_) => None,
    }
}
