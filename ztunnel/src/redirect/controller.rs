//! Enrols and releases pods, in an order that never leaves a pod half enrolled.
//!
//! Enrolment has these steps: record the former state of the namespace on disk, set sysctls, routes and rules, write
//! the maps, register the listeners, attach `steer`, and only then mark the pod's connects. A release has the opposite
//! order. When a step fails, the steps before it are undone, unless the pod was captured before: then it stays
//! captured, and is closed. A pod of the mesh is closed whenever it cannot be served. It is released only when the mesh
//! no longer wants it.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    net::IpAddr,
    os::fd::AsFd as _,
    sync::Arc,
};

use ebpf_common::{Listener, Verdict};
use thiserror::Error;
use tracing::{error, info, warn};

use super::{
    captured::Captured,
    cgroup::{self, CgroupError},
    foreign::{self, ForeignError},
    hooks::{HOOKS, Hooks},
    link::{LinkError, NetnsFacts, NetnsLink},
    load::{LoadError, Loader, MapSizes},
    logs,
    maps::{MapUse, MapWriteError, Maps},
    pins::{PinDir, PinError},
    record::{self, Holder, Record, RecordError, Records},
    routes, survey,
    sysctl::{self, SysctlError},
};
use crate::{
    lifecycle::tasks::{TaskCount, TaskSet},
    model::{local::Exclusions, workload::NamespacedName},
    net::{
        dial::OwnSockets,
        netns::{Netns, NetnsError},
        syn::SynSource,
    },
};

/// Why the controller could not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// Pins can't be used.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// The programs could not be loaded or attached.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// There is no cgroup v2 root.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Records can't be kept.
    #[error(transparent)]
    Records(#[from] RecordError),
}

/// Why a pod was not enrolled.
#[derive(Debug, Error)]
pub enum EnrolError {
    /// The former state could not be read or recorded.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A map refused an entry.
    #[error(transparent)]
    Map(#[from] MapWriteError),
    /// `steer` or a guard could not be loaded or attached.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Another installation captures the pod, or it is not known whether one does.
    #[error(transparent)]
    Foreign(#[from] ForeignError),
    /// A sysctl could not be set.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// Routes or rules could not be set.
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// A pod to enrol.
pub struct Enrolment<'a, N = Netns, L = NetnsLink> {
    /// The pod.
    pub name: &'a NamespacedName,
    /// Its network namespace.
    pub netns: &'a N,
    /// Netlink of the namespace.
    pub link: &'a L,
    /// Addresses and interfaces of the namespace.
    pub facts: &'a NetnsFacts,
    /// The pod's addresses in the mesh.
    pub addresses: &'a [IpAddr],
    /// Ports and IP blocks that are not captured.
    pub exclusions: &'a Exclusions,
    /// The listeners, with their keys in the map.
    pub listeners: Vec<(Listener, &'a std::net::TcpListener)>,
}

/// Owner of programs, maps, pins and records.
pub struct Controller {
    loader: Loader,
    maps: Maps,
    records: Records,
    workers: u32,
    hooks: Hooks,
    captured: HashMap<u64, Captured>,
    restored: u64,
    /// Cookies of captured namespaces without a record, once the log has reported them.
    unrecorded: HashSet<u64>,
    _logs: TaskSet,
}

impl Controller {
    /// Loads the programs and attaches the connect hooks, or takes over the pinned ones. Needs a runtime, and prepared
    /// directories.
    ///
    /// # Errors
    /// See [`StartError`]. Objects that were pinned before stay as they were.
    pub fn start(
        pins: PinDir,
        records: Records,
        sizes: MapSizes,
        workers: u32,
        verbose: bool,
        tasks: TaskCount,
    ) -> Result<Self, StartError> {
        let mut loader = Loader::new(pins, sizes, verbose);
        let mut object = loader.load(0)?;
        loader.hold_maps()?;
        let hooks = Hooks::attach(&mut object, cgroup::open_root()?, loader.pins())?;
        let mut logs_tasks = TaskSet::new(tasks);
        if verbose && let Err(reason) = logs::follow(&mut object, &mut logs_tasks) {
            warn!(reason, "the log of the BPF programs can't be read");
        }
        let maps = Maps::take(&mut object, sizes)?;
        let captured = HashMap::new();
        Ok(Self {
            loader,
            maps,
            records,
            workers,
            hooks,
            captured,
            restored: 0,
            unrecorded: HashSet::new(),
            _logs: logs_tasks,
        })
    }

    /// Restores this daemon's state after another daemon has begun to take over, and may have changed records, maps and
    /// hooks. The pods have to be enrolled again.
    ///
    /// # Errors
    /// A step has failed. The other steps have been done.
    pub fn regain(&mut self) -> Result<(), StartError> {
        self.maps.forget_written();
        let records = self.records.reread();
        self.hooks.attach_again(self.loader.pins())?;
        Ok(records?)
    }

    /// Closes the handles of all attached programs, and removes nothing: another daemon has them now.
    pub fn retire(&mut self) {
        self.captured.clear();
        self.hooks.let_go();
    }

    /// The handle by which the data path claims its sockets.
    #[must_use]
    pub fn own_sockets(&self) -> Arc<dyn OwnSockets> {
        self.maps.own_sockets()
    }

    /// Enrols a pod, or takes over a pod that is captured already. Returns the exclusions that are in force: none, if
    /// they do not fit into the maps.
    ///
    /// # Errors
    /// See [`EnrolError`]. The pod is then not captured. If it was captured when this daemon started, it stays captured
    /// and is closed.
    pub async fn enrol(&mut self, pod: &Enrolment<'_>) -> Result<Exclusions, EnrolError> {
        let cookie = pod.netns.cookie();
        // On an error nothing is undone: the connections that the other installation captures need its rules and
        // routes.
        self.refuse_foreign(pod.netns)?;
        let was_captured = self.has_captured(cookie);
        let result = self.try_enrol(pod).await;
        match &result {
            _ if was_captured => {}
            Err(_) => self.release(pod.netns, Some(pod.link)).await,
            Ok(_) => begin_anew(pod),
        }
        result
    }

    fn refuse_foreign(&self, netns: &Netns) -> Result<(), ForeignError> {
        let cookie = netns.cookie();
        let steering = self.captured.get(&cookie).and_then(Captured::steering);
        let held = self.hooks.programs().chain(steering);
        foreign::refuse(self.loader.pins(), held, self.hooks.cgroup(), netns, cookie)
    }

    async fn try_enrol(&mut self, pod: &Enrolment<'_>) -> Result<Exclusions, EnrolError> {
        let cookie = pod.netns.cookie();
        self.record(pod)?;
        self.maps.add_pod(cookie, self.workers)?;
        let excluded = match self.maps.set_exclusions(cookie, pod.exclusions) {
            Ok(()) => pod.exclusions.clone(),
            Err(error) => {
                error!(
                    pod = %pod.name, %error,
                    "cannot apply the exclusions of the pod; all its connections are captured"
                );
                Exclusions::default()
            }
        };
        // This comes before the maps get listeners and devices: from then on, the connects of a pod that was captured
        // are allowed to proceed.
        sysctl::enable(pod.netns)?;
        routes::ensure(pod.link, pod.facts, pod.addresses).await?;
        self.maps.set_facts(cookie, pod.facts)?;
        for (key, listener) in &pod.listeners {
            self.maps.set_listener(*key, listener.as_fd())?;
        }
        self.captured.insert(cookie, Captured::attach(&self.loader, pod.netns, &pod.facts.interfaces)?);
        self.maps.capture(cookie, self.workers, pod.facts)?;
        Ok(excluded)
    }

    /// Records to which pod the namespace belongs now, and its state before any daemon changed it.
    fn record(&mut self, pod: &Enrolment<'_>) -> Result<(), EnrolError> {
        let cookie = pod.netns.cookie();
        let before = self.records.of(cookie);
        let sysctls = match before {
            Some(record) => record.sysctls.clone(),
            None => {
                let mut sysctls = sysctl::read(pod.netns)?;
                if self.has_captured(cookie) {
                    // The record is lost, and a daemon has set the current values.
                    sysctls.iter_mut().for_each(|saved| saved.value = "0".to_owned());
                }
                sysctls
            }
        };
        let addresses = pod.addresses.to_vec();
        let (pod, netns) = (pod.name.to_string(), pod.netns.path().to_owned());
        let record = Record { pod, cookie, netns, addresses, boot: record::this_boot()?, sysctls };
        if before != Some(&record) {
            self.records.keep(record)?;
        }
        Ok(())
    }

    /// Follows a change in the pod's network namespace: addresses that came or went, interfaces, rules that someone
    /// removed, an IP family that needs listeners. A failed step does not stop the others. `routes`: the result of
    /// [`routes::ensure`], which the caller runs first. A pod's namespace may keep the kernel busy with that step, and
    /// the controller must not wait for any pod.
    ///
    /// # Errors
    /// The first failure; see [`EnrolError`].
    pub fn follow(&mut self, pod: &Enrolment<'_>, routes: Result<(), LinkError>) -> Result<(), EnrolError> {
        let cookie = pod.netns.cookie();
        // Another installation may have come after the enrolment. If the kernel does not tell, the other steps are
        // still done.
        let foreign = self.refuse_foreign(pod.netns);
        if let Err(error @ ForeignError::Captured(_)) = foreign {
            return Err(error.into());
        }
        // The path of the namespace may have changed.
        let record = self.record(pod);
        let sysctls = sysctl::enable(pod.netns);
        let links = match self.captured.entry(cookie) {
            Entry::Occupied(mut captured) => {
                captured.get_mut().follow(&self.loader, pod.netns, &pod.facts.interfaces, &mut self.restored)
            }
            Entry::Vacant(vacant) => Captured::attach(&self.loader, pod.netns, &pod.facts.interfaces).map(|captured| {
                vacant.insert(captured);
            }),
        };
        let facts = if routes.is_ok() && links.is_ok() {
            self.maps.set_facts(cookie, pod.facts)
        } else {
            self.maps.set_facts(cookie, &pod.facts.without_devices())
        };
        for (key, listener) in &pod.listeners {
            self.maps.set_listener(*key, listener.as_fd())?;
        }
        // This uses the current IP families of the pod. Connects of a family that the pod has lost are refused, as the
        // kernel would refuse them.
        let capture = self.maps.capture(cookie, self.workers, pod.facts);
        record?;
        sysctls?;
        routes?;
        links?;
        facts?;
        foreign?;
        Ok(capture?)
    }

    /// Holds the connects of a pod that is enrolled until the daemon has reached their destinations, and returns the source of
    /// their SYNs; or ends that. `None`: connects are accepted early.
    ///
    /// # Errors
    /// When the program cannot be loaded, attached or removed. An earlier `hold` stays.
    pub fn hold(&mut self, netns: &Netns, wanted: bool) -> Result<Option<Box<dyn SynSource>>, LoadError> {
        let Some(captured) = self.captured.get_mut(&netns.cookie()) else { return Ok(None) };
        if wanted && self.loader.guards() {
            return captured.hold(&self.loader, netns).map(Some);
        }
        captured.release_syns(&self.loader).map(|()| None)
    }

    /// Updates the addresses of a namespace that is captured and closed: an address that the namespace has lost is no
    /// longer its own, and a connect to it leads out of the pod.
    pub fn refresh_closed(&mut self, netns: &Netns, facts: &NetnsFacts) {
        if self.has_captured(netns.cookie()) {
            log_failure("update the addresses of a closed pod", self.maps.set_facts(netns.cookie(), facts));
        }
    }

    /// The greatest number of addresses, and of interfaces, of one pod that are recorded.
    #[must_use]
    pub fn per_pod_limit(&self) -> usize {
        self.maps.per_pod_limit()
    }

    /// Changes the exclusions, from the next connection on.
    ///
    /// # Errors
    /// A map is full.
    pub fn set_exclusions(&mut self, cookie: u64, exclusions: &Exclusions) -> Result<(), EnrolError> {
        Ok(self.maps.set_exclusions(cookie, exclusions)?)
    }

    /// Stops the capture of new connections of the pod, in both directions. Routes and sysctls stay, so that open
    /// connections can still be reset.
    pub fn detach(&mut self, cookie: u64) {
        if let Err(error) = self.maps.stop_capture(cookie, self.workers) {
            warn!(%error, "cannot stop the capture of a pod's connects");
        }
        self.unlink(cookie);
    }

    /// Detaches the programs from a pod.
    fn unlink(&mut self, cookie: u64) {
        self.captured.remove(&cookie);
        log_failure("detach", self.loader.pins().remove_pod(cookie));
    }

    /// Checks that all programs and maps of the capture are still attached and pinned, and restores those that somebody
    /// has removed.
    ///
    /// # Errors
    /// The first object that cannot be restored. Pods may be open then.
    pub fn mend(&mut self) -> Result<(), LoadError> {
        let maps = self.loader.repin().map(|repinned| self.restored += repinned);
        let mut result = maps.and(self.hooks.mend(&mut self.restored));
        for captured in self.captured.values_mut() {
            result = result.and(captured.mend(&self.loader, &mut self.restored));
        }
        result
    }

    /// The number of links and pins that somebody had removed and that were restored.
    #[must_use]
    pub fn restored(&self) -> u64 {
        self.restored
    }

    /// Undoes an enrolment, or the steps of it that were done. Failures are logged, and the other steps are still done.
    /// State that could not be restored stays on record.
    pub async fn release(&mut self, netns: &Netns, link: Option<&NetnsLink>) {
        let cookie = netns.cookie();
        self.detach(cookie);
        let restored = restore(netns, link, &self.records).await;
        self.maps.remove_pod(cookie);
        if restored {
            log_failure("forget", self.records.forget(cookie));
        }
    }

    /// Releases all captured pods except those for which `keep` returns true. `keep` gets the pod, as `namespace/name`,
    /// and its cookie. If an earlier daemon kept its records elsewhere, only the cookie is known.
    pub async fn release_others(&mut self, keep: impl Fn(Option<&str>, u64) -> bool, tasks: &TaskCount) {
        let (kept, others): (Vec<_>, Vec<_>) =
            self.records.all().cloned().partition(|record| keep(Some(&record.pod), record.cookie));
        for record in others {
            self.release_record(&record, tasks).await;
        }
        let pinned = self.loader.pins().pods().unwrap_or_default();
        let unknown: Vec<_> = pinned
            .into_iter()
            .chain(self.maps.known_pods())
            .filter(|cookie| !kept.iter().any(|record| record.cookie == *cookie))
            .collect();
        for cookie in unknown {
            if keep(None, cookie) {
                self.tell_of_unrecorded(cookie);
            } else {
                self.forget(cookie);
            }
        }
        log_failure("remove the pins of another layout", self.loader.pins().remove_other_layouts());
    }

    /// Logs once that a namespace is captured which may belong to a pod of the mesh, but that no record names the pod.
    fn tell_of_unrecorded(&mut self, cookie: u64) {
        if self.unrecorded.insert(cookie) {
            warn!(
                cookie,
                "a network namespace is captured by an earlier daemon, and --state has no record of it: it \
                 stays captured, and its connections are refused, until its pod is enrolled again; if \
                 --state was changed, start the daemon with the directory that it had before, or run \
                 `ztunnel cleanup` with that directory"
            );
        }
    }

    /// Releases the namespaces that are on record for a pod, except those that another pod has by now.
    pub async fn release_recorded(&mut self, pod: &NamespacedName, is_taken: impl Fn(u64) -> bool, tasks: &TaskCount) {
        let name = pod.to_string();
        let of_pod = self.records.all().filter(|record| record.pod == name && !is_taken(record.cookie));
        for record in of_pod.cloned().collect::<Vec<_>>() {
            self.release_record(&record, tasks).await;
        }
    }

    async fn release_record(&mut self, record: &Record, tasks: &TaskCount) {
        info!(pod = record.pod, netns = %record.netns.display(), "releasing a pod that left the mesh");
        match open_recorded(record, tasks) {
            Recorded::Open(netns, link) => self.release(&netns, link.as_ref()).await,
            Recorded::Gone => self.forget(record.cookie),
            Recorded::Unknown(error) => {
                warn!(
                    pod = record.pod, %error,
                    "the pod is released, but its routes, rules and sysctls are not restored yet; trying again"
                );
                self.detach(record.cookie);
                self.maps.remove_pod(record.cookie);
            }
        }
    }

    /// Whether a pod is captured. If an earlier daemon has captured it, it is closed until it is enrolled again.
    #[must_use]
    pub fn has_captured(&self, cookie: u64) -> bool {
        self.captured.contains_key(&cookie) || self.loader.pins().pod(cookie).exists()
    }

    /// The pod that is on record for a namespace.
    #[must_use]
    pub fn holder(&self, cookie: u64) -> Option<Holder> {
        let record = self.records.of(cookie)?;
        Some(Holder { pod: record.pod.clone(), addresses: record.addresses.clone() })
    }

    /// Cookies that are on record for a pod.
    #[must_use]
    pub fn recorded(&self, pod: &NamespacedName) -> Vec<u64> {
        let name = pod.to_string();
        self.records.all().filter(|record| record.pod == name).map(|record| record.cookie).collect()
    }

    /// The pod's verdicts so far.
    #[must_use]
    pub fn verdicts(&self, cookie: u64) -> Vec<(Verdict, u64)> {
        self.maps.verdicts(cookie)
    }

    /// Use and size of each map.
    #[must_use]
    pub fn map_usage(&self) -> Vec<MapUse> {
        self.maps.usage()
    }

    fn forget(&mut self, cookie: u64) {
        self.unlink(cookie);
        self.maps.remove_pod(cookie);
        log_failure("forget", self.records.forget(cookie));
    }
}

/// Releases everything that is pinned and recorded, without a daemon. Returns the number of released pods.
///
/// # Errors
/// When the records can't be read or the pins not removed.
pub async fn clean_up(pins: &PinDir, records: &mut Records, tasks: &TaskCount) -> Result<usize, StartError> {
    for (name, _) in HOOKS {
        pins.remove(&pins.hook(name))?;
    }
    let recorded: Vec<_> = records.all().cloned().collect();
    for record in &recorded {
        pins.remove_pod(record.cookie)?;
        match open_recorded(record, tasks) {
            Recorded::Open(netns, link) => {
                restore(&netns, link.as_ref(), records).await;
            }
            Recorded::Gone => {}
            Recorded::Unknown(error) => warn!(pod = record.pod, %error, "cannot restore the pod's routes and sysctls"),
        }
        records.forget(record.cookie)?;
    }
    pins.remove_all()?;
    Ok(recorded.len())
}

/// Resets connects from before the enrolment that have no answer yet. The application then connects again, inside the
/// mesh.
fn begin_anew(pod: &Enrolment<'_>) {
    match survey::cut_unanswered(pod.netns) {
        Ok(0) => {}
        Ok(cut) => info!(pod = %pod.name, cut, "reset the connects that had no answer when the pod was enrolled"),
        Err(error) => warn!(
            pod = %pod.name, %error,
            "cannot reset the connects that had no answer when the pod was enrolled; they will time out"
        ),
    }
}

/// The current state of the namespace of a record.
enum Recorded {
    Open(Netns, Option<NetnsLink>),
    Gone,
    /// The state is not known now.
    Unknown(NetnsError),
}

fn open_recorded(record: &Record, tasks: &TaskCount) -> Recorded {
    match Netns::open(&record.netns) {
        Ok(netns) if netns.cookie() == record.cookie => {
            let link = NetnsLink::open(&netns, tasks.clone());
            let link = link.inspect_err(|error| warn!(%error, "cannot restore the routes of a released pod")).ok();
            Recorded::Open(netns, link)
        }
        Ok(_) | Err(NetnsError::NotANetns { .. }) => Recorded::Gone,
        Err(NetnsError::Open { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Recorded::Gone,
        Err(error) => Recorded::Unknown(error),
    }
}

/// Restores the state of the namespace from before the enrolment. Returns whether all of it was restored.
async fn restore(netns: &Netns, link: Option<&NetnsLink>, records: &Records) -> bool {
    let routes = match link {
        Some(link) => log_failure("restore the routes", routes::remove(link).await),
        None => false,
    };
    let record = records.of(netns.cookie());
    let sysctls =
        record.is_none_or(|record| log_failure("restore the sysctls", sysctl::restore(netns, &record.sysctls)));
    routes && sysctls
}

/// Logs a failure. Returns whether there was none.
fn log_failure<E: std::error::Error>(what: &str, result: Result<(), E>) -> bool {
    match result {
        Ok(()) => true,
        Err(error) => {
            warn!(what, %error, "a step of releasing a pod failed");
            false
        }
    }
}
