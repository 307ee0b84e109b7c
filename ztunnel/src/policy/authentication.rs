//! Whether clients of a workload must have an identity, and which PeerAuthentication requires it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::model::policy::{MtlsMode, PeerAuthentication, Scope};
use crate::model::workload::{NamespacedName, Workload};
use crate::store::policies::lacking;
use crate::store::snapshot::Snapshot;

/// Whether clients must have an identity. The default applies without any PeerAuthentication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mode {
    /// The mode at ports without an entry of their own.
    pub mode: MtlsMode,
    /// The PeerAuthentication that sets this mode. `None`: no PeerAuthentication does.
    pub from: Option<NamespacedName>,
    /// The modes of ports that have an entry of their own.
    pub ports: BTreeMap<u16, MtlsMode>,
    /// The PeerAuthentication that has the entries for ports.
    pub ports_from: Option<NamespacedName>,
}

impl Default for Mode {
    fn default() -> Self {
        Self { mode: MtlsMode::Permissive, from: None, ports: BTreeMap::new(), ports_from: None }
    }
}

impl Mode {
    /// The mode at a port, the PeerAuthentication that sets it, and whether that is an entry for this port.
    #[must_use]
    pub fn at(&self, port: u16) -> (MtlsMode, Option<&NamespacedName>, bool) {
        match self.ports.get(&port) {
            Some(mode) => (*mode, self.ports_from.as_ref(), true),
            None => (self.mode, self.from.as_ref(), false),
        }
    }

    /// The PeerAuthentications that require an identity, at all ports or at some ports.
    pub fn strict(&self) -> impl Iterator<Item = &NamespacedName> {
        let general = self.from.iter().filter(|_| self.mode == MtlsMode::Strict);
        general.chain(self.ports_from.iter().filter(|_| self.ports.values().any(|mode| *mode == MtlsMode::Strict)))
    }
}

/// How large the scope of a PeerAuthentication is. Smaller scopes come later and take precedence.
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

/// How a PeerAuthentication contributes to the mode of a workload, or why it does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Counts {
    /// Its mode applies, or its entry for the port.
    Decides,
    /// It sets no mode, so the larger scope decides.
    Inherits,
    /// A PeerAuthentication with a smaller scope decides.
    Overridden(NamespacedName),
    /// Another PeerAuthentication of the same level takes precedence: it is older, or as old and first by name.
    Younger(NamespacedName),
    /// The workload does not have this label.
    Lacks {
        /// Its key.
        key: String,
        /// Its value.
        value: String,
    },
    /// It has a selector and is in the root namespace: it applies to no workload.
    SelectorInRoot,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Decides => f.write_str("decides"),
            Self::Inherits => f.write_str("sets no mode (UNSET): the larger scope decides"),
            Self::Overridden(by) => write!(f, "overridden by {by}"),
            Self::Younger(than) => write!(f, "is ignored: {than} is older, or comes first by name"),
            Self::Lacks { key, value } => write!(f, "does not apply: the pod has no label {key}={value}"),
            Self::SelectorInRoot => f.write_str("is ignored: it has a selector and is in the root namespace"),
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
    /// How it contributes.
    pub counts: Counts,
}

/// The mode at a port of a workload, and all PeerAuthentications that were considered for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authentication {
    /// The mode at the port.
    pub mode: MtlsMode,
    /// The port whose entry of `portLevelMtls` sets the mode. `None`: no entry does.
    pub port: Option<u16>,
    /// The PeerAuthentication that sets the mode. `None`: no PeerAuthentication does.
    pub from: Option<NamespacedName>,
    /// All PeerAuthentications for the mesh or in the workload's namespace: the largest level first, then by name.
    pub considered: Vec<ConsideredAuthentication>,
}

/// The mode of a workload. `candidates`: the PeerAuthentications that may apply to it.
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

/// Whether clients of a workload must have an identity, and which PeerAuthentications require it.
#[must_use]
pub fn mode(snapshot: &Snapshot, workload: &Workload) -> Mode {
    resolve(snapshot.policies().authenticating(workload), workload)
}

/// Why clients of a workload must have an identity at a port, or need none.
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

/// The policy of each level that takes precedence.
#[derive(Default)]
struct Chosen<'a> {
    mesh: Option<&'a Arc<PeerAuthentication>>,
    namespace: Option<&'a Arc<PeerAuthentication>>,
    workload: Option<&'a Arc<PeerAuthentication>>,
}

impl<'a> Chosen<'a> {
    /// Of several policies of a level, the oldest takes precedence, then the first by name. A policy without a date is older
    /// than all.
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

/// The level of a policy, and whether it applies to the workload. `None`: it is for another namespace.
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
