//! Loads the programs into the kernel. Their maps are pinned and may exist already.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{MapError, MapInfo},
    programs::{ProgramError, ProgramType, SchedClassifier, SkLookup},
    sys::{BpfHelper, is_helper_supported},
};
use ebpf_common::maps as names;
use thiserror::Error;
use tracing::{error, warn};

use super::{
    guard, held,
    pins::{PinDir, PinError},
    sys,
};

/// The embedded BPF object. It is empty if the daemon was built without the BPF tool chain.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ztunnel.bpf.o"));

/// Whether this build contains the BPF programs.
#[must_use]
pub fn is_built_in() -> bool {
    !OBJECT.is_empty()
}

/// The sizes of the maps, in entries.
#[derive(Clone, Copy, Debug)]
pub struct MapSizes {
    /// Enrolled pods.
    pub pods: u32,
    /// Addresses, ports and IP blocks, each, of one pod on the average.
    pub per_pod: u32,
    /// The greatest number of workers. Each has listeners of its own in every pod.
    pub workers: u32,
}

/// Listeners of one worker in one pod: two families, three purposes.
const LISTENERS_PER_WORKER: u32 = 6;
/// Bytes of the log's ring buffer; a multiple of every page size in use.
const LOG_BYTES: u32 = 256 << 10;
/// Bytes of the ring buffer with the held SYNs of one pod: room for some 860. Further ones are dropped until the daemon has read,
/// and their clients send them again.
const SYN_BYTES: u32 = 128 << 10;
/// The same for objects of which `hold` is not loaded; a multiple of every page size in use.
const NO_SYN_BYTES: u32 = 64 << 10;

impl MapSizes {
    /// The greatest number of addresses, of interfaces, of excluded ports and of excluded IP blocks of one pod. It is
    /// larger than the average, but one pod cannot take the room of all others.
    #[must_use]
    pub fn per_pod_limit(&self) -> usize {
        self.per_pod.saturating_mul(4) as usize
    }

    /// Each map and its size.
    #[must_use]
    pub fn entries(&self) -> [(&'static str, u32); 7] {
        let shared = self.pods.saturating_mul(self.per_pod);
        [
            (names::PODS, self.pods),
            (names::LOCAL_ADDRS, shared),
            (names::INTERFACES, shared),
            (names::EXCLUDED_PORTS, shared),
            (names::EXCLUDED_CIDRS, shared),
            (names::LISTENERS, self.pods.saturating_mul(self.workers).saturating_mul(LISTENERS_PER_WORKER)),
            (names::VERDICTS, self.pods),
        ]
    }
}

/// Why programs or maps could not be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The daemon was built without the programs.
    #[error("this binary was built without its BPF programs; build it with `cargo xtask build`")]
    NotBuiltIn,
    /// A pinned map has another size than the one configured.
    #[error(
        "map {name} is pinned at {path} with room for {pinned} entries, but {wanted} are configured; \
         set the old size, or run `ztunnel cleanup` before the start (which opens the pods until then)"
    )]
    Resized {
        /// The map.
        name: &'static str,
        /// Its pin.
        path: PathBuf,
        /// Its size.
        pinned: u32,
        /// The configured size.
        wanted: u32,
    },
    /// The kernel refused maps or object.
    #[error(
        "cannot load the BPF object: {0}; the daemon needs CAP_BPF and CAP_NET_ADMIN, `ztunnel check` says what is missing"
    )]
    Object(#[from] EbpfError),
    /// The kernel refused a program.
    #[error("cannot load the BPF program {name}: {source}")]
    Program {
        /// The program.
        name: &'static str,
        /// The cause.
        source: ProgramError,
    },
    /// A map of the object is missing or of another type.
    #[error("map {name} cannot be used: {source}")]
    Map {
        /// The map.
        name: &'static str,
        /// The cause.
        source: MapError,
    },
    /// A pin that is no longer used could not be removed.
    #[error(transparent)]
    Pin(Box<PinError>),
    /// A pinned link could not be updated or made.
    #[error("cannot attach {name}: {source}")]
    Attach {
        /// The program.
        name: &'static str,
        /// The cause.
        source: io::Error,
    },
}

/// Loads objects that share their maps through the pins.
#[derive(Debug)]
pub struct Loader {
    pins: PinDir,
    sizes: MapSizes,
    log_level: u8,
    can_set_retval: u32,
    guards: bool,
    /// The pinned maps. They are held, because an object that finds no pinned map would make a map of its own, which no
    /// other program uses.
    maps: Vec<(&'static str, OwnedFd)>,
}

impl Loader {
    /// A loader; `verbose` makes the programs log every decision.
    #[must_use]
    pub fn new(pins: PinDir, sizes: MapSizes, verbose: bool) -> Self {
        let log_level = if verbose { aya_log::Level::Debug as u8 } else { 0 };
        let can_set_retval = is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval);
        let guards = guard::supported();
        if let Err(error) = &guards {
            warn!(%error, "the devices of pods are not guarded: see `ztunnel check`");
        }
        let can_set_retval = u32::from(can_set_retval.unwrap_or(false));
        Self { pins, sizes, log_level, can_set_retval, guards: guards.is_ok(), maps: Vec::new() }
    }

    /// Whether the devices of pods are guarded, and connects can be held.
    #[must_use]
    pub fn guards(&self) -> bool {
        self.guards
    }

    /// The pins that it uses.
    #[must_use]
    pub fn pins(&self) -> &PinDir {
        &self.pins
    }

    /// Loads the object with its maps; its programs are not in the kernel yet. `cookie` goes into `steer`, `hold` and the guards.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(&self, cookie: u64) -> Result<Ebpf, LoadError> {
        self.load_sized(cookie, NO_SYN_BYTES)
    }

    /// The same, with a ring buffer of held SYNs.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub(super) fn load_with_ring(&self, cookie: u64) -> Result<Ebpf, LoadError> {
        self.load_sized(cookie, SYN_BYTES)
    }

    fn load_sized(&self, cookie: u64, syn_bytes: u32) -> Result<Ebpf, LoadError> {
        if !is_built_in() {
            return Err(LoadError::NotBuiltIn);
        }
        self.repin()?;
        self.check_sizes()?;
        let mut loader = EbpfLoader::new();
        for (name, entries) in self.sizes.entries() {
            loader.map_max_entries(name, entries).map_pin_path(name, self.pins.map(name));
        }
        loader.map_pin_path(names::OWN_SOCKETS, self.pins.map(names::OWN_SOCKETS));
        loader.map_max_entries(names::LOGS, LOG_BYTES).map_pin_path(names::LOGS, self.pins.map(names::LOGS));
        loader.map_max_entries(names::HELD_SYNS, syn_bytes);
        loader.override_global("COOKIE", &cookie, true);
        loader.override_global("CAN_SET_RETVAL", &self.can_set_retval, true);
        loader.override_global(aya_log::LEVEL, &self.log_level, false);
        Ok(loader.load(OBJECT)?)
    }

    /// Holds the maps that the first object has pinned or found.
    ///
    /// # Errors
    /// Names the map.
    pub fn hold_maps(&mut self) -> Result<(), LoadError> {
        let sized = self.sizes.entries().map(|(name, _)| name);
        for name in sized.into_iter().chain([names::OWN_SOCKETS, names::LOGS]) {
            let failed = |source| LoadError::Map { name, source: MapError::IoError(source) };
            self.maps.push((name, sys::open_pin(&self.pins.map(name)).map_err(failed)?));
        }
        Ok(())
    }

    /// Pins the maps again whose pins somebody has removed. Returns their number.
    ///
    /// # Errors
    /// Names the map.
    pub fn repin(&self) -> Result<u64, LoadError> {
        let mut repinned = 0;
        for (name, map) in &self.maps {
            let pin = self.pins.map(name);
            if !pin.exists() {
                let failed = |source| LoadError::Map { name, source: MapError::IoError(source) };
                held::pin_anew(map.as_fd(), &pin).map_err(failed)?;
                error!(
                    map = name, pin = %pin.display(),
                    "another process removed the pin of a BPF map, and the daemon pinned the map again"
                );
                repinned += 1;
            }
        }
        Ok(repinned)
    }

    fn check_sizes(&self) -> Result<(), LoadError> {
        for (name, wanted) in self.sizes.entries() {
            let path = self.pins.map(name);
            if !path.exists() {
                continue;
            }
            let info = MapInfo::from_pin(&path).map_err(|source| LoadError::Map { name, source })?;
            if info.max_entries() != wanted {
                return Err(LoadError::Resized { name, path, pinned: info.max_entries(), wanted });
            }
        }
        Ok(())
    }
}

/// Loads the object alone, for [`super::probe`]: its maps have room for one entry, as the object says, nothing is
/// pinned, and everything is removed with the value.
///
/// # Errors
/// See [`LoadError`].
pub(super) fn load_unpinned() -> Result<Ebpf, LoadError> {
    if !is_built_in() {
        return Err(LoadError::NotBuiltIn);
    }
    let mut loader = EbpfLoader::new();
    loader.map_max_entries(names::LOGS, LOG_BYTES).override_global(aya_log::LEVEL, &0_u8, false);
    Ok(loader.load(OBJECT)?)
}

/// The program `steer` of an object.
///
/// # Errors
/// When the object has no such program.
pub fn steer_of(object: &mut Ebpf) -> Result<&mut SkLookup, LoadError> {
    let program = object.program_mut("steer").ok_or(LoadError::NotBuiltIn)?;
    program.try_into().map_err(|source| LoadError::Program { name: "steer", source })
}

/// Loads `hold` or a guard of an object into the kernel, unless it is loaded already.
///
/// # Errors
/// When the kernel refuses it.
pub(super) fn load_classifier(object: &mut Ebpf, name: &'static str) -> Result<OwnedFd, LoadError> {
    let refused = |source| LoadError::Program { name, source };
    let program = object.program_mut(name).ok_or(LoadError::NotBuiltIn)?;
    let program: &mut SchedClassifier = program.try_into().map_err(refused)?;
    if program.fd().is_err() {
        program.load().map_err(refused)?;
    }
    let fd = program.fd().map_err(refused)?.as_fd().try_clone_to_owned();
    fd.map_err(|error| refused(ProgramError::IOError(error)))
}
