//! The maps, shared with the daemon by name, and the two values that it writes into the object before loading.
//!
//! The sizes here are placeholders: the daemon sets each map's size from its configuration.

use aya_ebpf::{
    Global,
    btf_maps::{HashMap, LpmTrie, PerCpuHashMap, SkStorage, SockHash},
    macros::btf_map,
};
use ebpf_common::{CidrData, Counts, ExcludedPort, Interface, Listener, LocalAddr, Pod};

#[btf_map]
pub(crate) static PODS: HashMap<u64, Pod, 1> = HashMap::new();

#[btf_map]
pub(crate) static LOCAL_ADDRS: HashMap<LocalAddr, u32, 1> = HashMap::new();

#[btf_map]
pub(crate) static INTERFACES: HashMap<Interface, u32, 1> = HashMap::new();

#[btf_map]
pub(crate) static EXCLUDED_PORTS: HashMap<ExcludedPort, u32, 1> = HashMap::new();

#[btf_map]
pub(crate) static EXCLUDED_CIDRS: LpmTrie<CidrData, u32, 1> = LpmTrie::new();

#[btf_map]
pub(crate) static LISTENERS: SockHash<Listener, 1> = SockHash::new();

#[btf_map]
pub(crate) static VERDICTS: PerCpuHashMap<u64, Counts, 1> = PerCpuHashMap::new();

#[btf_map]
pub(crate) static OWN_SOCKETS: SkStorage<u32> = SkStorage::new();

/// The netns cookie of the pod that this copy of `steer` serves: the helper that would tell does not exist there.
#[unsafe(no_mangle)]
pub(crate) static COOKIE: Global<u64> = Global::new(0);

/// Not 0: the kernel has `bpf_set_retval` for connect hooks. Where it is 0 the call is dead code, which the verifier drops.
#[unsafe(no_mangle)]
pub(crate) static CAN_SET_RETVAL: Global<u32> = Global::new(0);
