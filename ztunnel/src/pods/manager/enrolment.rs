//! Enrols, updates, closes and releases pods.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::time::Instant;
use tracing::{error, info};

use super::{
    Manager, RETRY_FIRST, RETRY_MOST, node,
    state::{Enrolled, Refused},
};
use crate::{
    model::{cause::causes, workload::NamespacedName},
    pods::{
        claims::{Claims, Named},
        kernel::{Kernel, Namespace as _},
        pod::{Node, PodError, UpdateError},
        reconcile::{CannotEnrol, Desired, Wanted},
    },
    store::snapshot::Snapshot,
};

impl<K: Kernel> Manager<K> {
    /// Releases captured pods that are no pods of the mesh any more. A pod of the mesh that can't be served stays
    /// captured.
    pub(super) async fn release_others(&mut self, partial: bool) {
        // A file that could never be read may contain pods that an earlier daemon has captured. They stay closed until
        // the file can be read.
        if partial || !self.others_due {
            return;
        }
        let taken = self.taken();
        let cookie_of = |name| self.enrolled.get(name).map(|enrolled| enrolled.pod.netns.cookie());
        let wanted: HashMap<_, _> = self.wanted.keys().map(|name| (name.to_string(), cookie_of(name))).collect();
        let is_wanted = |pod: &str, cookie| wanted.get(pod).is_some_and(|own| own.is_none_or(|own| own == cookie));
        let unserved = self.unserved();
        let may_be_wanted = |cookie| unserved.as_ref().is_none_or(|cookies| cookies.contains(&cookie));
        let keep = |pod: Option<&str>, cookie| {
            taken.contains(&cookie) || pod.map_or_else(|| may_be_wanted(cookie), |pod| is_wanted(pod, cookie))
        };
        self.parts.kernel.release_others(keep).await;
        self.others_due = false;
    }

    /// Cookies of the namespaces of pods of the mesh that are not enrolled. `None`: the namespace of one of them is not
    /// known.
    fn unserved(&self) -> Option<HashSet<u64>> {
        let of_pod = |refused: &Refused| match &refused.wanted {
            Ok(desired) => Some(Some(self.parts.kernel.open(&desired.netns).ok()?.cookie())),
            Err(reason) => reason.leaves_alone().then_some(None),
        };
        let cookies: Option<Vec<Option<u64>>> = self.refused.values().map(of_pod).collect();
        Some(cookies?.into_iter().flatten().collect())
    }

    /// Whether a pod that is not enrolled is captured. This follows from the records, or from the capture of its
    /// namespace.
    pub(super) fn is_captured(&self, name: &NamespacedName, wanted: &Wanted) -> bool {
        let kernel = &self.parts.kernel;
        let in_namespace =
            |desired: &Desired| kernel.open(&desired.netns).is_ok_and(|netns| kernel.has_captured(netns.cookie()));
        !kernel.recorded(name).is_empty() || wanted.as_ref().is_ok_and(in_namespace)
    }

    pub(super) async fn try_enrol(&mut self, name: &NamespacedName, desired: Desired, pause: Duration) {
        let before = self.refused.remove(name).map(|refused| refused.reason);
        let mesh = self.parts.mesh.load();
        let claims = claims(&mesh, &self.named, &self.enrolled, &self.wanted);
        let taken_over = self.taken_over.as_ref();
        let result = Node { taken_over, ..node(&mut self.parts) }.enrol(name, &desired, &claims).await;
        match result {
            Ok(pod) => {
                let own = pod.netns.cookie();
                self.others_due |= self.parts.kernel.recorded(name).iter().any(|cookie| *cookie != own);
                let addresses = Arc::new(ArcSwap::from_pointee(pod.desired.addresses.clone()));
                let following = self.watch(name, &pod, &addresses);
                self.enrolled.insert(name.clone(), Enrolled { pod, following, addresses });
            }
            Err(error) => {
                let reason = causes(&error);
                let wanted = Ok(desired);
                let captured = self.is_captured(name, &wanted);
                if before.as_deref() == Some(reason.as_str()) {
                    // It has been logged.
                } else if error.is_ending() {
                    info!(
                        pod = %name, reason, captured,
                        "pod refused: its network namespace is gone, because the pod has ended"
                    );
                } else {
                    error!(pod = %name, reason, captured, "pod refused: it is not enrolled; captured pods are closed");
                }
                // A closed pod waits for its enrolment, so its pause stays short.
                let next = if captured { RETRY_FIRST } else { (pause * 2).min(RETRY_MOST) };
                let retry = Some((Instant::now() + pause, next));
                let is_claimed = matches!(error, PodError::Claim(_));
                self.refused.insert(name.clone(), Refused { reason, wanted, retry, is_claimed });
            }
        }
    }

    /// Enrols a pod that was closed because of a change in its namespace, after the pause of its [`Relapses`].
    pub(super) async fn enrol_again(&mut self, name: &NamespacedName, desired: Desired, cause: &str) {
        let now = Instant::now();
        let pause = self.relapses.pause(name, now);
        if pause.is_zero() {
            self.look_at_names();
            return self.try_enrol(name, desired, RETRY_FIRST).await;
        }
        let reason = format!("{cause} repeatedly; the daemon enrols the pod again after {} s", pause.as_secs());
        error!(pod = %name, reason, captured = true, "pod refused: it is not enrolled; captured pods are closed");
        let retry = Some((now + pause, RETRY_FIRST));
        self.refused.insert(name.clone(), Refused { reason, wanted: Ok(desired), retry, is_claimed: false });
    }

    pub(super) fn refuse(&mut self, name: &NamespacedName, reason: CannotEnrol) {
        if reason.leaves_alone() {
            info!(pod = %name, %reason, "pod refused: the daemon changes nothing in the pod");
        } else if reason == CannotEnrol::NotInMesh
            || matches!(reason, CannotEnrol::NoNetns(_)) && self.parts.local.is_passing(name)
        {
            info!(pod = %name, %reason, "pod refused: it is not enrolled yet");
        } else {
            error!(pod = %name, %reason, "pod refused: it is not enrolled");
        }
        let (reason, wanted) = (reason.to_string(), Err(reason));
        self.refused.insert(name.clone(), Refused { reason, wanted, retry: None, is_claimed: false });
    }

    /// Closes a pod that is enrolled: it stays captured, and every connection is refused.
    pub(super) async fn close(&mut self, name: &NamespacedName) {
        if let Some(Enrolled { pod, following, .. }) = self.enrolled.remove(name) {
            drop(following);
            node(&mut self.parts).close(&pod.netns).await;
            info!(pod = %name, "pod closed: it stays captured, and its connections are refused");
        }
    }

    /// Changes a pod in place if possible, so that its connections stay open.
    pub(super) async fn update(&mut self, name: &NamespacedName, desired: Desired) {
        let Some(mut enrolled) = self.enrolled.remove(name) else {
            // It was refused. The change may have removed the reason.
            return self.try_enrol(name, desired, RETRY_FIRST).await;
        };
        let mesh = self.parts.mesh.load();
        let claims = claims(&mesh, &self.named, &self.enrolled, &self.wanted);
        enrolled.addresses.store(Arc::new(desired.addresses.clone()));
        match node(&mut self.parts).update(name, &mut enrolled.pod, &desired, &claims).await {
            Ok(()) => info!(pod = %name, "pod changed in place"),
            Err(UpdateError::NotYet(error)) => self.follow_later(name, &mut enrolled, &error),
            Err(UpdateError::Anew(error)) => {
                info!(pod = %name, reason = causes(&error), "the pod can't be changed in place");
                self.enrolled.insert(name.clone(), enrolled);
                self.close(name).await;
                return self.try_enrol(name, desired, RETRY_FIRST).await;
            }
        }
        self.enrolled.insert(name.clone(), enrolled);
    }

    pub(super) async fn release(&mut self, name: &NamespacedName) {
        self.refused.remove(name);
        if let Some(Enrolled { pod, following, .. }) = self.enrolled.remove(name) {
            // The task would restore the rules and routes that are removed now.
            drop(following);
            node(&mut self.parts).release(&pod.netns, &pod.link).await;
            info!(pod = %name, "pod released");
        }
        // The pod may be closed, or may have been captured in another namespace before.
        let taken = self.taken();
        self.parts.kernel.release_recorded(name, &taken).await;
    }

    /// Releases every pod, because no daemon will serve them.
    pub(super) async fn release_all(&mut self) {
        for name in self.enrolled.keys().cloned().collect::<Vec<_>>() {
            self.release(&name).await;
        }
        self.refused.clear();
        self.parts.kernel.release_others(|_, _| false).await;
    }

    /// Cookies of the namespaces of enrolled pods.
    fn taken(&self) -> HashSet<u64> {
        self.enrolled.values().map(|enrolled| enrolled.pod.netns.cookie()).collect()
    }
}

fn claims<'a, K: Kernel>(
    mesh: &'a Snapshot,
    named: &'a Named,
    enrolled: &'a BTreeMap<NamespacedName, Enrolled<K>>,
    wanted: &'a BTreeMap<NamespacedName, Wanted>,
) -> Claims<'a> {
    let enrolled = enrolled.iter().map(|(name, enrolled)| (name, enrolled.pod.netns.cookie())).collect();
    Claims { mesh, named, enrolled, wanted }
}
