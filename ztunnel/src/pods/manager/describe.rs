//! Describes the pods of this node, for people and for metrics.

use std::{collections::HashMap, sync::Arc};

use tokio::time::Instant;

use super::{DEAF, Manager};
use crate::{
    model::workload::NamespacedName,
    pods::{
        describe::{Description, MapInfo, PodInfo, PodState, PoliciesInfo, ProblemInfo, SnapshotInfo},
        handle::pending,
        kernel::{Kernel, Namespace as _},
        pod::Pod,
        reconcile::CannotEnrol,
        status::{PodStatus, Status},
        worker::Connections,
    },
};

impl<K: Kernel> Manager<K> {
    /// Publishes the state of the pods for readers that do not wait for an answer.
    pub(super) fn report(&self) {
        let enrolled = self.enrolled.iter().map(|(name, enrolled)| PodStatus {
            name: name.clone(),
            state: if enrolled.pod.deaf.is_so() { PodState::Refused } else { PodState::Enrolled },
            reason: enrolled.pod.deaf.is_so().then(|| DEAF.into()),
            connections_before_enrolment: enrolled.pod.connections_before,
            verdicts: self.parts.kernel.verdicts(enrolled.pod.netns.cookie()),
        });
        let refused = self.refused.iter().map(|(name, refused)| PodStatus {
            name: name.clone(),
            state: PodState::Refused,
            reason: refused
                .wanted
                .as_ref()
                .err()
                .is_none_or(CannotEnrol::is_fault)
                .then(|| refused.reason.as_str().into()),
            connections_before_enrolment: 0,
            verdicts: Vec::new(),
        });
        let status = Status {
            at: Instant::now(),
            pods: enrolled.chain(refused).collect(),
            maps: self.maps(),
            links_restored: self.parts.kernel.restored(),
        };
        self.progress.status.store(Arc::new(status));
    }

    fn maps(&self) -> Vec<MapInfo> {
        let usage = self.parts.kernel.map_usage().into_iter();
        usage.map(|map| MapInfo { name: map.name, used: map.used, capacity: map.capacity }).collect()
    }

    pub(super) async fn describe(&self) -> Description {
        let snapshot = self.parts.mesh.load();
        let mut open: HashMap<u64, Connections> = HashMap::new();
        for worker in &self.parts.workers {
            for (cookie, connections) in worker.connections().await {
                let all = open.entry(cookie).or_default();
                all.live.extend(connections.live);
                all.tunnels += connections.tunnels;
            }
        }
        let counts = snapshot.counts();
        let enrolled = self.enrolled.iter().map(|(name, enrolled)| self.describe_enrolled(name, &enrolled.pod, &open));
        let refused = self.refused.iter().map(|(name, refused)| {
            let netns = refused.wanted.as_ref().ok().map(|desired| desired.netns.path().display().to_string());
            PodInfo {
                reason: Some(refused.reason.clone()),
                netns,
                captured: self.is_captured(name, &refused.wanted),
                ..PodInfo::new(name, PodState::Refused)
            }
        });
        Description {
            version: env!("CARGO_PKG_VERSION"),
            node: self.parts.node.clone(),
            unknown_node: self.progress.unknown_node.load().as_ref().map(ToString::to_string),
            local_problem: self.progress.local_problem.load().as_ref().map(ToString::to_string),
            snapshot: SnapshotInfo {
                version: snapshot.version(),
                local_facts: self.local_facts,
                partial: snapshot.is_partial(),
                workloads: counts.workloads,
                services: counts.services,
            },
            problems: snapshot.problems().iter().map(ProblemInfo::from).collect(),
            policies: PoliciesInfo::of(Arc::clone(&snapshot)),
            pods: enrolled.chain(refused).collect(),
            maps: self.maps(),
            links_restored: self.parts.kernel.restored(),
            tasks: self.parts.tasks.alive(),
            certificates: self.parts.certificates.describe().await,
            pending: pending(&self.parts.mesh, &self.progress).into_iter().map(str::to_owned).collect(),
        }
    }

    fn describe_enrolled(&self, name: &NamespacedName, pod: &Pod<K>, open: &HashMap<u64, Connections>) -> PodInfo {
        let cookie = pod.netns.cookie();
        let verdicts = self.parts.kernel.verdicts(cookie).into_iter();
        let open = open.get(&cookie).cloned().unwrap_or_default();
        let is_deaf = pod.deaf.is_so();
        PodInfo {
            reason: is_deaf.then(|| DEAF.to_owned()),
            netns: Some(pod.netns.path().display().to_string()),
            cookie: Some(cookie.to_string()),
            captured: true,
            addresses: pod.desired.addresses.iter().map(ToString::to_string).collect(),
            connect: Some(pod.connect.name().into()),
            connections_before_enrolment: pod.connections_before,
            verdicts: verdicts.map(|(verdict, count)| (verdict.name().to_owned(), count.into())).collect(),
            identity: Some(pod.desired.identity.to_string()),
            tunnels: open.tunnels,
            connections: open.live,
            ..PodInfo::new(name, if is_deaf { PodState::Refused } else { PodState::Enrolled })
        }
    }
}
