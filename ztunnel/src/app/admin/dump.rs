//! `/config_dump`: the state of the daemon, in the shape that `istioctl ztunnel-config` and Kiali read, with further keys of this
//! project. `?only=pods,certificates` answers with these parts alone.

mod config;
mod mesh;
mod policy;
mod reasons;

use std::sync::Arc;

use serde::{Serialize, Serializer, ser::SerializeMap};

pub use self::config::ConfigInfo;
use self::{
    mesh::{ServiceInfo, StateInfo, WorkloadInfo},
    policy::policies,
};
use crate::{model::local::LocalPods, pods::describe::Description};

/// A part of the dump: a key, and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::app) enum Section {
    /// Istio's: all workloads of the mesh.
    Workloads,
    /// Istio's: all services of the mesh.
    Services,
    /// Istio's: the policies, as rules for a node.
    Policies,
    /// Istio's: the pods of this node, with their connections.
    WorkloadState,
    /// Istio's: the certificates of the pods of this node.
    Certificates,
    /// Istio's: the settings.
    Config,
    /// The policies as they were written, with their origins.
    PolicyDetails,
    /// The labelled pods of this node.
    Pods,
    /// The BPF maps.
    Maps,
    /// The faults of the mesh's sources.
    Problems,
}

impl Section {
    const ALL: [Self; 10] = [
        Self::Workloads,
        Self::Services,
        Self::Policies,
        Self::WorkloadState,
        Self::Certificates,
        Self::Config,
        Self::PolicyDetails,
        Self::Pods,
        Self::Maps,
        Self::Problems,
    ];

    /// The key.
    pub(in crate::app) const fn name(self) -> &'static str {
        match self {
            Self::Workloads => "workloads",
            Self::Services => "services",
            Self::Policies => "policies",
            Self::WorkloadState => "workloadState",
            Self::Certificates => "certificates",
            Self::Config => "config",
            Self::PolicyDetails => "policyDetails",
            Self::Pods => "pods",
            Self::Maps => "maps",
            Self::Problems => "problems",
        }
    }
}

/// The sections that a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sections([bool; Section::ALL.len()]);

impl Sections {
    /// Reads a query string.
    pub(super) fn read(query: &str) -> Result<Self, String> {
        let mut sections = Self([query.is_empty(); Section::ALL.len()]);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let names = pair.strip_prefix("only=").ok_or_else(|| format!("unknown parameter; {}", usage()))?;
            // Curl and browsers may encode the comma.
            for name in names.replace("%2C", ",").replace("%2c", ",").split(',') {
                let known = Section::ALL.iter().zip(&mut sections.0).find(|(section, _)| section.name() == name);
                *known.ok_or_else(|| format!("unknown section; {}", usage()))?.1 = true;
            }
        }
        Ok(sections)
    }

    fn include(self, section: Section) -> bool {
        Section::ALL.iter().zip(self.0).any(|(one, wanted)| *one == section && wanted)
    }
}

fn usage() -> String {
    let names = Section::ALL.map(Section::name).join(", ");
    format!("write /config_dump?only=SECTION,SECTION; sections are {names}\n")
}

/// The dump.
pub(super) struct Dump {
    description: Description,
    config: Arc<ConfigInfo>,
    only: Sections,
}

impl Dump {
    /// A dump. Connections to pods get the rule that allows them by the mesh in force; this takes time, if there are many.
    pub(super) fn new(
        mut description: Description,
        config: Arc<ConfigInfo>,
        local: &LocalPods,
        only: Sections,
    ) -> Self {
        if only.include(Section::Pods) {
            reasons::add(&mut description, local);
        }
        Self { description, config, only }
    }
}

impl Serialize for Dump {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { description, config, only } = self;
        let mesh = description.policies.mesh();
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("version", description.version)?;
        map.serialize_entry("node", &description.node)?;
        map.serialize_entry("unknownNode", &description.unknown_node)?;
        map.serialize_entry("localProblem", &description.local_problem)?;
        map.serialize_entry("snapshot", &description.snapshot)?;
        map.serialize_entry("linksRestored", &description.links_restored)?;
        map.serialize_entry("tasks", &description.tasks)?;
        map.serialize_entry("pending", &description.pending)?;
        for section in Section::ALL.into_iter().filter(|section| only.include(*section)) {
            let key = section.name();
            match section {
                Section::Workloads => {
                    let all: Vec<_> = mesh.workloads().map(|one| WorkloadInfo::of(one, mesh, config)).collect();
                    map.serialize_entry(key, &all)?;
                }
                Section::Services => {
                    let all: Vec<_> = mesh.services().map(|one| ServiceInfo::of(one, mesh, config)).collect();
                    map.serialize_entry(key, &all)?;
                }
                Section::Policies => map.serialize_entry(key, &policies(mesh.policies()))?,
                Section::WorkloadState => {
                    map.serialize_entry(key, &StateInfo::of_all(&description.pods, mesh, config))?;
                }
                Section::Certificates => map.serialize_entry(key, &description.certificates)?,
                Section::Config => map.serialize_entry(key, &**config)?,
                Section::PolicyDetails => map.serialize_entry(key, &description.policies)?,
                Section::Pods => map.serialize_entry(key, &description.pods)?,
                Section::Maps => map.serialize_entry(key, &description.maps)?,
                Section::Problems => map.serialize_entry(key, &description.problems)?,
            }
        }
        map.end()
    }
}

#[cfg(test)]
mod tests;
