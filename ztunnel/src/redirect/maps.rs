//! The maps from which the BPF programs know each pod. Only this module writes them.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
};

use aya::{
    Ebpf, Pod,
    maps::{HashMap as BpfHash, LpmTrie, Map, MapData, MapError, PerCpuHashMap, PerCpuValues, SockHash, lpm_trie::Key},
};
use ebpf_common::{
    CIDR_BITS_BEFORE, CidrData, Counts, Direction, ExcludedPort, Interface, Listener, LocalAddr, Pod as PodEntry,
    Verdict, cidr_data, map_addr, maps as names,
};
use ipnet::IpNet;
use nix::libc;
use thiserror::Error;

use super::{
    link::NetnsFacts,
    load::{LoadError, MapSizes},
    sys,
};
use crate::{
    model::local::Exclusions,
    net::{dial::OwnSockets, socket::Family},
};

/// Why an entry could not be written.
#[derive(Debug, Error)]
pub enum MapWriteError {
    /// The map is full.
    #[error(
        "BPF map {map} is full ({capacity} entries); take pods off this node, or stop the daemon, run `ztunnel cleanup` and \
         start it with a larger {setting}"
    )]
    Full {
        /// The map.
        map: &'static str,
        /// Its size.
        capacity: u32,
        /// The flag that makes it larger.
        setting: &'static str,
    },
    /// One pod needs more entries than a pod may have.
    #[error("{count} entries for one pod in BPF map {map}, and {limit} are allowed; raise --entries-per-pod")]
    TooMany {
        /// The map.
        map: &'static str,
        /// The number of entries that the pod needs.
        count: usize,
        /// The number of entries that a pod may have.
        limit: usize,
    },
    /// The kernel refused the entry.
    #[error("cannot write to BPF map {map}: {source}")]
    Refused {
        /// The map.
        map: &'static str,
        /// The cause.
        source: MapError,
    },
}

/// A map's use and size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapUse {
    /// The map.
    pub name: &'static str,
    /// Entries in it that this daemon wrote.
    pub used: usize,
    /// Entries for which it has room.
    pub capacity: u32,
}

/// The keys that one pod has in the maps.
#[derive(Default)]
struct PodKeys {
    addrs: Vec<LocalAddr>,
    interfaces: Vec<Interface>,
    ports: Vec<ExcludedPort>,
    cidrs: Vec<Key<CidrData>>,
    listeners: Vec<Listener>,
}

/// The maps.
pub struct Maps {
    pods: BpfHash<MapData, u64, PodEntry>,
    addrs: BpfHash<MapData, LocalAddr, u32>,
    interfaces: BpfHash<MapData, Interface, u32>,
    ports: BpfHash<MapData, ExcludedPort, u32>,
    cidrs: LpmTrie<MapData, CidrData, u32>,
    listeners: SockHash<MapData, Listener>,
    verdicts: PerCpuHashMap<MapData, u64, Counts>,
    own_sockets: Arc<ClaimedSockets>,
    sizes: MapSizes,
    written: HashMap<u64, PodKeys>,
}

/// The socket storage by which the connect hooks recognise the daemon's sockets.
#[derive(Debug)]
pub struct ClaimedSockets(OwnedFd);

impl OwnSockets for ClaimedSockets {
    fn claim(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        sys::store_on_socket(self.0.as_fd(), socket, 1)
    }
}

impl Maps {
    /// Takes the maps out of a loaded object.
    ///
    /// # Errors
    /// When a map is missing or of another type.
    pub fn take(object: &mut Ebpf, sizes: MapSizes) -> Result<Self, LoadError> {
        let mut take = |name: &'static str| {
            let missing = MapError::InvalidName { name: name.to_owned() };
            object.take_map(name).ok_or(LoadError::Map { name, source: missing })
        };
        fn typed<M: TryFrom<Map, Error = MapError>>(name: &'static str, map: Map) -> Result<M, LoadError> {
            map.try_into().map_err(|source| LoadError::Map { name, source })
        }
        Ok(Self {
            pods: typed(names::PODS, take(names::PODS)?)?,
            addrs: typed(names::LOCAL_ADDRS, take(names::LOCAL_ADDRS)?)?,
            interfaces: typed(names::INTERFACES, take(names::INTERFACES)?)?,
            ports: typed(names::EXCLUDED_PORTS, take(names::EXCLUDED_PORTS)?)?,
            cidrs: typed(names::EXCLUDED_CIDRS, take(names::EXCLUDED_CIDRS)?)?,
            listeners: typed(names::LISTENERS, take(names::LISTENERS)?)?,
            verdicts: typed(names::VERDICTS, take(names::VERDICTS)?)?,
            own_sockets: Arc::new(ClaimedSockets(own_sockets(take(names::OWN_SOCKETS)?)?)),
            sizes,
            written: HashMap::new(),
        })
    }

    /// The greatest number of addresses, and of interfaces, of one pod.
    #[must_use]
    pub fn per_pod_limit(&self) -> usize {
        self.sizes.per_pod_limit()
    }

    /// The handle by which the data path claims its sockets.
    #[must_use]
    pub fn own_sockets(&self) -> Arc<ClaimedSockets> {
        Arc::clone(&self.own_sockets)
    }

    /// Forgets the entries that this daemon has written, because another daemon may have changed them. The next change
    /// of a pod's entries reads them from the maps.
    pub fn forget_written(&mut self) {
        self.written.clear();
    }

    /// Makes room for a pod's verdicts and tells `steer` the number of workers. Sockets are not captured yet.
    ///
    /// # Errors
    /// The map is full.
    pub fn add_pod(&mut self, cookie: u64, workers: u32) -> Result<(), MapWriteError> {
        self.written.entry(cookie).or_default();
        if self.verdicts.get(&cookie, 0).is_err() {
            let cpus = aya::util::nr_cpus().unwrap_or(1);
            let zeros = PerCpuValues::try_from(vec![Counts::default(); cpus])
                .map_err(|source| MapWriteError::Refused { map: names::VERDICTS, source: MapError::IoError(source) })?;
            let result = self.verdicts.insert(cookie, zeros, 0);
            result.map_err(|source| self.refused(names::VERDICTS, source))?;
        }
        // A pod that an earlier daemon has captured stays captured while its listeners are replaced. If it had fewer
        // workers, `steer` does not use the further workers before they have listeners.
        let captured = self.pods.get(&cookie, 0).ok().filter(|pod| pod.flags != 0 && pod.workers > 0);
        let entry = captured
            .map_or(PodEntry { flags: 0, workers }, |pod| PodEntry { workers: pod.workers.min(workers), ..pod });
        self.set_pod(cookie, entry)
    }

    /// Captures the pod's connects, in the IP families that it has.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn capture(&mut self, cookie: u64, workers: u32, facts: &NetnsFacts) -> Result<(), MapWriteError> {
        let speaks = |family, flag| if facts.speaks(family) { flag } else { 0 };
        let families = speaks(Family::V4, PodEntry::SPEAKS_V4) | speaks(Family::V6, PodEntry::SPEAKS_V6);
        self.set_pod(cookie, PodEntry { flags: PodEntry::CAPTURE_OUTBOUND | families, workers })
    }

    /// Stops the capture of the pod's connects.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn stop_capture(&mut self, cookie: u64, workers: u32) -> Result<(), MapWriteError> {
        self.set_pod(cookie, PodEntry { flags: 0, workers })
    }

    fn set_pod(&mut self, cookie: u64, entry: PodEntry) -> Result<(), MapWriteError> {
        let result = self.pods.insert(cookie, entry, 0);
        result.map_err(|source| self.refused(names::PODS, source))
    }

    /// Updates the addresses and interfaces of the pod's network namespace.
    ///
    /// # Errors
    /// A map is full. Nothing was added to that map then.
    pub fn set_facts(&mut self, cookie: u64, facts: &NetnsFacts) -> Result<(), MapWriteError> {
        let addrs: Vec<_> = facts.addresses.iter().map(|ip| LocalAddr { cookie, addr: map_addr(*ip) }).collect();
        let interfaces: Vec<_> =
            facts.interfaces.iter().map(|interface| Interface { cookie, index: u64::from(interface.index) }).collect();
        let mut known = self.written.remove(&cookie).unwrap_or_default();
        let addrs = replace(&mut self.addrs, &mut known.addrs, addrs, |key| key.cookie == cookie);
        let interfaces = replace(&mut self.interfaces, &mut known.interfaces, interfaces, |key| key.cookie == cookie);
        self.written.insert(cookie, known);
        addrs.map_err(|source| self.refused(names::LOCAL_ADDRS, source))?;
        interfaces.map_err(|source| self.refused(names::INTERFACES, source))
    }

    /// Replaces the pod's exclusions.
    ///
    /// # Errors
    /// There are too many, or a map is full. Then the pod has no exclusions.
    pub fn set_exclusions(&mut self, cookie: u64, exclusions: &Exclusions) -> Result<(), MapWriteError> {
        let result = self.try_set_exclusions(cookie, exclusions);
        if result.is_err() && *exclusions != Exclusions::default() {
            self.try_set_exclusions(cookie, &Exclusions::default())?;
        }
        result
    }

    fn try_set_exclusions(&mut self, cookie: u64, exclusions: &Exclusions) -> Result<(), MapWriteError> {
        let directions =
            [(Direction::Outbound, &exclusions.outbound_ports), (Direction::Inbound, &exclusions.inbound_ports)];
        let key = |direction, port| ExcludedPort { cookie, direction: direction as u32, port: u32::from(port) };
        let ports =
            directions.into_iter().flat_map(|(direction, ports)| ports.iter().map(move |port| key(direction, port)));
        let every_port = exclusions.all_inbound.then(|| key(Direction::Inbound, ExcludedPort::EVERY));
        let ports: Vec<_> = ports.chain(every_port).collect();
        let cidrs: Vec<_> = exclusions.outbound_cidrs.iter().map(|cidr| cidr_key(cookie, cidr)).collect();
        let limit = self.sizes.per_pod_limit();
        for (map, count) in [(names::EXCLUDED_PORTS, ports.len()), (names::EXCLUDED_CIDRS, cidrs.len())] {
            if count > limit {
                return Err(MapWriteError::TooMany { map, count, limit });
            }
        }
        let mut known = self.written.remove(&cookie).unwrap_or_default();
        let ports = replace(&mut self.ports, &mut known.ports, ports, |key| key.cookie == cookie);
        let is_of_pod = |key: &Key<CidrData>| key.data().starts_with(&cookie.to_be_bytes());
        let cidrs = replace(&mut self.cidrs, &mut known.cidrs, cidrs, is_of_pod);
        self.written.insert(cookie, known);
        ports.map_err(|source| self.refused(names::EXCLUDED_PORTS, source))?;
        cidrs.map_err(|source| self.refused(names::EXCLUDED_CIDRS, source))
    }

    /// Registers a listener, in place of the former one.
    ///
    /// # Errors
    /// The map is full.
    pub fn set_listener(&mut self, key: Listener, socket: BorrowedFd<'_>) -> Result<(), MapWriteError> {
        let result = self.listeners.insert(key, socket.as_raw_fd(), 0);
        result.map_err(|source| self.refused(names::LISTENERS, source))?;
        let listeners = &mut self.written.entry(key.cookie).or_default().listeners;
        if !listeners.contains(&key) {
            listeners.push(key);
        }
        Ok(())
    }

    /// Removes all entries of a pod. The entry that captures its connects is removed first.
    pub fn remove_pod(&mut self, cookie: u64) {
        remove(self.pods.remove(&cookie));
        for key in keys_of(self.listeners.keys(), |key| key.cookie == cookie) {
            remove(self.listeners.remove(&key));
        }
        for key in keys_of(self.addrs.keys(), |key| key.cookie == cookie) {
            remove(self.addrs.remove(&key));
        }
        for key in keys_of(self.interfaces.keys(), |key| key.cookie == cookie) {
            remove(self.interfaces.remove(&key));
        }
        for key in keys_of(self.ports.keys(), |key| key.cookie == cookie) {
            remove(self.ports.remove(&key));
        }
        for key in keys_of(self.cidrs.keys(), |key: &Key<CidrData>| key.data().starts_with(&cookie.to_be_bytes())) {
            remove(self.cidrs.remove(&key));
        }
        remove(self.verdicts.remove(&cookie));
        self.written.remove(&cookie);
    }

    /// All cookies in the maps, also those that an earlier daemon wrote.
    #[must_use]
    pub fn known_pods(&self) -> Vec<u64> {
        self.pods.keys().filter_map(Result::ok).collect()
    }

    /// The pod's verdicts, summed over the CPUs, in the order of [`Verdict::ALL`].
    #[must_use]
    pub fn verdicts(&self, cookie: u64) -> Vec<(Verdict, u64)> {
        let counts = self.verdicts.get(&cookie, 0).ok();
        let sum = |verdict: Verdict| {
            let cpus = counts.iter().flat_map(|cpus| cpus.iter());
            cpus.filter_map(|counts| counts.by_verdict.get(verdict as usize)).sum()
        };
        Verdict::ALL.into_iter().map(|verdict| (verdict, sum(verdict))).collect()
    }

    /// Use and size of each map.
    #[must_use]
    pub fn usage(&self) -> Vec<MapUse> {
        let sum = |count: fn(&PodKeys) -> usize| self.written.values().map(count).sum();
        let used = |name| match name {
            names::LOCAL_ADDRS => sum(|keys| keys.addrs.len()),
            names::INTERFACES => sum(|keys| keys.interfaces.len()),
            names::EXCLUDED_PORTS => sum(|keys| keys.ports.len()),
            names::EXCLUDED_CIDRS => sum(|keys| keys.cidrs.len()),
            names::LISTENERS => sum(|keys| keys.listeners.len()),
            _ => self.written.len(),
        };
        let entries = self.sizes.entries().into_iter();
        entries.map(|(name, capacity)| MapUse { name, used: used(name), capacity }).collect()
    }

    fn refused(&self, map: &'static str, source: MapError) -> MapWriteError {
        let full = matches!(&source, MapError::SyscallError(error)
            if matches!(error.io_error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)));
        if full {
            let capacity = self.sizes.entries().into_iter().find(|(name, _)| *name == map).map_or(0, |(_, size)| size);
            let per_pod =
                [names::LOCAL_ADDRS, names::INTERFACES, names::EXCLUDED_PORTS, names::EXCLUDED_CIDRS].contains(&map);
            let setting = if per_pod { "--entries-per-pod" } else { "--max-pods" };
            return MapWriteError::Full { map, capacity, setting };
        }
        MapWriteError::Refused { map, source }
    }
}

fn cidr_key(cookie: u64, cidr: &IpNet) -> Key<CidrData> {
    const MAPPED_BITS: u32 = 96;
    let bits = u32::from(cidr.prefix_len()) + if cidr.addr().is_ipv4() { MAPPED_BITS } else { 0 };
    Key::new(CIDR_BITS_BEFORE + bits, cidr_data(cookie, &map_addr(cidr.network())))
}

/// A map that is used as a set of keys, with the operations that the update of one pod's keys needs.
trait KeySet<K> {
    fn put(&mut self, key: &K) -> Result<(), MapError>;
    fn take(&mut self, key: &K) -> Result<(), MapError>;
    fn all(&self, fits: &dyn Fn(&K) -> bool) -> Vec<K>;
}

impl<K: Pod> KeySet<K> for BpfHash<MapData, K, u32> {
    fn put(&mut self, key: &K) -> Result<(), MapError> {
        self.insert(key, 1, 0)
    }

    fn take(&mut self, key: &K) -> Result<(), MapError> {
        self.remove(key)
    }

    fn all(&self, fits: &dyn Fn(&K) -> bool) -> Vec<K> {
        keys_of(self.keys(), fits)
    }
}

impl KeySet<Key<CidrData>> for LpmTrie<MapData, CidrData, u32> {
    fn put(&mut self, key: &Key<CidrData>) -> Result<(), MapError> {
        self.insert(key, 1, 0)
    }

    fn take(&mut self, key: &Key<CidrData>) -> Result<(), MapError> {
        self.remove(key)
    }

    fn all(&self, fits: &dyn Fn(&Key<CidrData>) -> bool) -> Vec<Key<CidrData>> {
        keys_of(self.keys(), fits)
    }
}

/// Replaces a pod's keys `known` by `wanted`, and updates `known`. If `known` is empty, the map is searched, because an
/// earlier daemon may have left keys. Keys that are not wanted are removed first, whether or not there is room for the
/// new keys: every key lets traffic bypass the daemon. If a new key finds no room, the new keys are removed again.
fn replace<K: Pod>(
    map: &mut impl KeySet<K>,
    known: &mut Vec<K>,
    wanted: Vec<K>,
    is_of_pod: impl Fn(&K) -> bool,
) -> Result<(), MapError> {
    let has = |keys: &[K], key: &K| keys.iter().any(|other| bytes_of(other) == bytes_of(key));
    let present = if known.is_empty() { map.all(&is_of_pod) } else { std::mem::take(known) };
    let (kept, stale): (Vec<K>, Vec<K>) = present.into_iter().partition(|key| has(&wanted, key));
    for key in &stale {
        remove(map.take(key));
    }
    *known = kept;
    let mut added: Vec<&K> = Vec::new();
    for key in wanted.iter().filter(|key| !has(known, key)) {
        if let Err(error) = map.put(key) {
            for key in added {
                remove(map.take(key));
            }
            return Err(error);
        }
        added.push(key);
    }
    *known = wanted;
    Ok(())
}

fn bytes_of<K: Pod>(key: &K) -> &[u8] {
    // SAFETY: a Pod may be seen as bytes, and these are as many as it has.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(key).cast(), size_of::<K>()) }
}

/// The matching keys, collected before the map changes.
fn keys_of<K: Pod>(keys: impl Iterator<Item = Result<K, MapError>>, fits: impl Fn(&K) -> bool) -> Vec<K> {
    keys.filter_map(Result::ok).filter(|key| fits(key)).collect()
}

/// Logs a failed removal. It is no failure if the entry does not exist any more.
fn remove(result: Result<(), MapError>) {
    let Err(error) = result else { return };
    let gone = matches!(&error, MapError::KeyNotFound)
        || matches!(&error, MapError::SyscallError(error) if error.io_error.raw_os_error() == Some(libc::ENOENT));
    if !gone {
        tracing::warn!(%error, "cannot remove an entry from a BPF map");
    }
}

fn own_sockets(map: Map) -> Result<OwnedFd, LoadError> {
    let refused = |source| LoadError::Map { name: names::OWN_SOCKETS, source };
    let Map::SkStorage(data) = map else {
        return Err(refused(MapError::InvalidMapType { map_type: 0 }));
    };
    data.fd().as_fd().try_clone_to_owned().map_err(|error| refused(MapError::IoError(error)))
}

#[cfg(test)]
mod tests {
    use super::{cidr_key, map_addr};

    #[test]
    fn a_prefix_counts_the_cookie_and_the_mapping() {
        let v4 = cidr_key(1, &"10.0.0.0/8".parse().unwrap());
        assert_eq!(v4.prefix_len(), 64 + 32 + 96 + 8);
        let v6 = cidr_key(1, &"fd00::/16".parse().unwrap());
        assert_eq!(v6.prefix_len(), 64 + 32 + 16);
        assert!(v4.data().starts_with(&[0, 0, 0, 0, 0, 0, 0, 1]) && v6.data().ends_with(&[0; 8]));
    }

    #[test]
    fn mapped_addresses_are_one_with_ipv4() {
        assert_eq!(map_addr("::ffff:10.0.0.1".parse().unwrap()), map_addr("10.0.0.1".parse().unwrap()));
    }
}
