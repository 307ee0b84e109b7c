//! Reacts to changes in the network namespaces of enrolled pods.

use std::{net::IpAddr, sync::Arc};

use arc_swap::ArcSwap;
use tokio::time::Instant;
use tracing::{Span, warn};

use super::{
    Manager, RETRY_FIRST, RETRY_MOST,
    namespace::{Found, Looked, Watch, has_all},
    node,
    state::Enrolled,
};
use crate::{
    lifecycle::tasks::TaskSet,
    model::{cause::causes, workload::NamespacedName},
    pods::{
        kernel::{Kernel, Link as _, Namespace as _},
        pod::{Pod, PodError},
    },
    redirect::{EnrolError, ForeignError},
};

impl<K: Kernel> Manager<K> {
    /// Starts the task that reads a pod's namespace after every change in it. The task belongs to the pod: however long
    /// its namespace keeps the kernel busy, no other pod waits.
    pub(super) fn watch(&self, name: &NamespacedName, pod: &Pod<K>, addresses: &Arc<ArcSwap<Vec<IpAddr>>>) -> TaskSet {
        let watch = Watch {
            pod: name.clone(),
            cookie: pod.netns.cookie(),
            link: pod.link.clone(),
            limit: self.parts.kernel.per_pod_limit(),
            addresses: Arc::clone(addresses),
            found: self.changed.0.clone(),
        };
        let mut tasks = TaskSet::new(self.parts.tasks.clone());
        tasks.spawn(Span::none(), watch.run());
        tasks
    }

    /// Reacts to a change in a pod's namespace.
    pub(super) async fn follow(&mut self, found: Found) {
        let Found { pod: name, cookie, looked } = found;
        // The pod may be enrolled in another namespace by now.
        let Some(mut enrolled) = self.enrolled.remove(&name) else { return };
        if enrolled.pod.netns.cookie() != cookie {
            self.enrolled.insert(name, enrolled);
            return;
        }
        let pod = &mut enrolled.pod;
        let result = match looked {
            Ok(Looked { addresses, .. }) if *addresses != pod.desired.addresses => {
                // The pod has other addresses by now, so its namespace is read again.
                pod.link.changed().notify_one();
                Ok(())
            }
            Ok(Looked { facts, .. }) if !has_all(&facts, &pod.desired.addresses) => {
                // The owner of the namespace has to be proved again. Until then, no connection may use the pod's
                // identity.
                let desired = pod.desired.clone();
                self.enrolled.insert(name.clone(), enrolled);
                self.close(&name).await;
                return self
                    .enrol_again(&name, desired, "the pod's network namespace lost an address of the pod")
                    .await;
            }
            Ok(Looked { facts, routes, .. }) => node(&mut self.parts).follow(&name, pod, facts, routes).await,
            Err(error) => Err(error.into()),
        };
        match result {
            Ok(()) => drop(self.unfollowed.remove(&name)),
            // Another installation has the pod's connections now. The pod must not be reported as served.
            Err(PodError::Enrol(EnrolError::Foreign(ForeignError::Captured(_)))) => {
                let desired = enrolled.pod.desired.clone();
                self.enrolled.insert(name.clone(), enrolled);
                self.close(&name).await;
                return self.try_enrol(&name, desired, RETRY_FIRST).await;
            }
            Err(error) => self.follow_later(&name, &mut enrolled, &error),
        }
        self.enrolled.insert(name, enrolled);
    }

    pub(super) fn follow_later(&mut self, name: &NamespacedName, enrolled: &mut Enrolled<K>, error: &PodError) {
        warn!(pod = %name, error = causes(error), "cannot follow a change in the pod's network namespace; trying again");
        let pause = self.unfollowed.get(name).map_or(RETRY_FIRST, |(_, pause)| (*pause * 2).min(RETRY_MOST));
        self.unfollowed.insert(name.clone(), (Instant::now() + pause, pause));
        // Netlink is opened again, in case its sockets are the cause.
        match self.parts.kernel.link(&enrolled.pod.netns) {
            Ok(link) => enrolled.pod.link = link,
            Err(error) => warn!(pod = %name, error = causes(&error), "cannot open a new netlink socket"),
        }
        enrolled.following = self.watch(name, &enrolled.pod, &enrolled.addresses);
    }

    /// Has the namespaces read again whose last change could not be followed, when their pause is over.
    pub(super) fn follow_due(&mut self, now: Instant) {
        self.unfollowed.retain(|name, _| self.enrolled.contains_key(name));
        for (name, (at, pause)) in self.unfollowed.iter_mut().filter(|(_, (at, _))| *at <= now) {
            *at = now + *pause;
            self.enrolled.get(name).into_iter().for_each(|enrolled| enrolled.pod.link.changed().notify_one());
        }
    }

    /// Has every namespace read again, each by the task of its pod.
    pub(super) fn resync(&mut self) {
        // This also retries releases that failed the last time.
        self.others_due = true;
        self.enrolled.values().for_each(|enrolled| enrolled.pod.link.changed().notify_one());
    }
}
