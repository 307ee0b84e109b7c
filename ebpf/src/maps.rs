//! The maps, shared with the daemon by name; look-ups that several programs need; and the two values that the daemon
//! writes into the object before it loads it.
//!
//! The sizes here are placeholders: the daemon sets the size of each map from its configuration.

use aya_ebpf::{
    Global,
    bindings::bpf_sock,
    btf_maps::{HashMap, LpmTrie, PerCpuHashMap, RingBuf, SkStorage, SockHash},
    helpers::bpf_sk_storage_get,
    macros::btf_map,
};
use ebpf_common::{
    Addr, CidrData, Counts, Direction, ExcludedPort, HeldSyn, Interface, Listener, LocalAddr, Pod, capture, cidr_data,
};

const CIDR_BITS: u32 = 8 * size_of::<CidrData>() as u32;

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

/// The SYNs that this copy of `hold` has taken.
#[btf_map]
pub(crate) static HELD_SYNS: RingBuf<HeldSyn, 65_536> = RingBuf::new();

/// The netns cookie of the pod that this copy of `steer`, of `hold` or of a guard serves: these program types have no helper that
/// returns it.
#[unsafe(no_mangle)]
pub(crate) static COOKIE: Global<u64> = Global::new(0);

/// Not 0 if the kernel has `bpf_set_retval` for connect hooks. With 0 the call is dead code, which the verifier
/// removes.
#[unsafe(no_mangle)]
pub(crate) static CAN_SET_RETVAL: Global<u32> = Global::new(0);

/// Whether a socket is the daemon's: it has a storage that a pod cannot write, whatever mark the pod sets.
///
/// # Safety
/// `sk` must be a socket that the program's context holds.
#[inline(always)]
pub(crate) unsafe fn is_daemons(sk: *mut bpf_sock) -> bool {
    // SAFETY: guaranteed by the caller. Without the flag to create the storage, the initial value is not read.
    let storage =
        unsafe { bpf_sk_storage_get((&raw const OWN_SOCKETS).cast_mut().cast(), sk.cast(), core::ptr::null_mut(), 0) };
    !storage.is_null()
}

/// A pod's exceptions from capture, from the maps.
pub(crate) struct Exceptions {
    pub(crate) cookie: u64,
}

impl capture::Exceptions for Exceptions {
    #[inline(always)]
    fn is_own(&self, addr: &Addr) -> bool {
        // SAFETY: map values are not dereferenced, only their presence counts.
        unsafe { LOCAL_ADDRS.get(LocalAddr { cookie: self.cookie, addr: *addr }) }.is_some()
    }

    #[inline(always)]
    fn excludes_port(&self, port: u16) -> bool {
        let direction = Direction::Outbound as u32;
        // SAFETY: as above.
        unsafe { EXCLUDED_PORTS.get(ExcludedPort { cookie: self.cookie, direction, port: u32::from(port) }) }.is_some()
    }

    #[inline(always)]
    fn excludes_addr(&self, addr: &Addr) -> bool {
        let key = aya_ebpf::btf_maps::lpm_trie::Key::new(CIDR_BITS, cidr_data(self.cookie, addr));
        EXCLUDED_CIDRS.get(&key).is_some()
    }
}
