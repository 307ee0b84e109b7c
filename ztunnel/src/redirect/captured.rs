//! The programs that capture one pod: `steer` in its network namespace, the guards of its devices, and `hold` on its loopback
//! device.

use std::{collections::BTreeMap, os::fd::AsFd as _};

use aya::Ebpf;
use nix::libc;
use tracing::error;

use super::{
    guard::Guard,
    held::{Condition, Held},
    link::Interface,
    load::{LoadError, Loader, load_classifier, steer_of},
    syns::{HOLD, Hold},
    sys::{self, At},
};
use crate::net::{
    netns::{Netns, NetnsError},
    syn::SynSource,
};

/// The links of a pod.
#[derive(Debug)]
pub(super) struct Captured {
    cookie: u64,
    /// `None` once the file of the namespace leads to another one: an open handle would keep the namespace after the
    /// end of its pod.
    netns: Option<Netns>,
    steer: Held,
    guards: BTreeMap<Guard, Held>,
    /// Set while the pod's connects are held.
    hold: Option<Hold>,
    devices: Vec<Interface>,
}

impl Captured {
    /// Attaches `steer` and the guards of all devices, or replaces the programs of the links that are pinned.
    ///
    /// # Errors
    /// Names the program. Programs that were attached before the failure stay pinned.
    pub(super) fn attach(loader: &Loader, netns: &Netns, devices: &[Interface]) -> Result<Self, LoadError> {
        let mut object = loader.load(netns.cookie())?;
        // The guards come first: they have to be there before the hook lets connects proceed.
        let mut guards = BTreeMap::new();
        for (guard, ethernet) in wanted(loader, devices) {
            guards.insert(guard, attach_guard(loader, &mut object, netns, guard, ethernet)?);
        }
        let steer = attach_steer(loader, &mut object, netns)?;
        let (cookie, netns) = (netns.cookie(), Some(netns.clone()));
        Ok(Self { cookie, netns, steer, guards, hold: None, devices: devices.to_vec() })
    }

    /// The id of the program `steer`.
    pub(super) fn steering(&self) -> Option<u32> {
        self.steer.program().ok()
    }

    /// Begins to hold the pod's connects, in place of an earlier `hold`. Returns the source of the SYNs.
    ///
    /// # Errors
    /// When the program cannot be loaded or attached.
    pub(super) fn hold(&mut self, loader: &Loader, netns: &Netns) -> Result<Box<dyn SynSource>, LoadError> {
        let (hold, source) = Hold::attach(loader, netns)?;
        self.hold = Some(hold);
        Ok(source)
    }

    /// Ends that. The pin of an earlier daemon is removed as well.
    ///
    /// # Errors
    /// When the pin can't be removed.
    pub(super) fn release_syns(&mut self, loader: &Loader) -> Result<(), LoadError> {
        self.hold = None;
        let removed = loader.pins().remove(&loader.pins().hold(self.cookie));
        removed.map_err(|error| LoadError::Pin(Box::new(error)))
    }

    /// Follows changes of the devices: new devices get guards, and devices that are gone leave no pin. Also restores
    /// links that somebody has removed, as [`Self::mend`] does.
    ///
    /// # Errors
    /// Names the program that could not be attached to a new device.
    pub(super) fn follow(
        &mut self,
        loader: &Loader,
        netns: &Netns,
        devices: &[Interface],
        restored: &mut u64,
    ) -> Result<(), LoadError> {
        self.netns = Some(netns.clone());
        self.devices = devices.to_vec();
        self.mend(loader, restored)
    }

    /// Checks that all links exist, and restores those that do not. Adds the number of links that somebody had removed
    /// to `restored`.
    ///
    /// # Errors
    /// Names the first program that cannot be restored.
    pub(super) fn mend(&mut self, loader: &Loader, restored: &mut u64) -> Result<(), LoadError> {
        let failed = |name| move |source| LoadError::Attach { name, source };
        self.netns.take_if(|netns| !netns.is_current());
        let netns = self.netns.clone();
        let mut removed = Vec::new();
        match self.steer.mend().map_err(failed("steer"))? {
            Condition::Whole => {}
            Condition::Repinned => removed.push("steer".to_owned()),
            Condition::Detached => {
                if let Some(netns) = &netns {
                    self.steer = attach_steer(loader, &mut loader.load(self.cookie)?, netns)?;
                    removed.push("steer".to_owned());
                }
            }
        }
        if let Some(hold) = &mut self.hold
            && hold.mend(loader, netns.as_ref())?
        {
            removed.push(HOLD.to_owned());
        }
        let mut gone = Vec::new();
        for (guard, held) in &self.guards {
            match held.mend().map_err(failed("guard"))? {
                Condition::Whole => {}
                Condition::Repinned => removed.push(guard.to_string()),
                Condition::Detached => gone.push(*guard),
            }
        }
        if let Some(netns) = &netns {
            for held in gone.iter().filter_map(|guard| self.guards.remove(guard)) {
                loader.pins().remove(held.pin()).map_err(|error| LoadError::Pin(Box::new(error)))?;
            }
            let attached = self.guard_devices(loader, netns)?;
            removed.extend(attached.into_iter().filter(|guard| gone.contains(guard)).map(|guard| guard.to_string()));
        }
        if !removed.is_empty() {
            error!(
                netns = netns.map(|netns| netns.path().display().to_string()),
                cookie = self.cookie,
                links = removed.join(", "),
                "another process removed BPF links of a captured pod, and the daemon attached them again; \
                 find that process: without the links the pod is open"
            );
            *restored += removed.len() as u64;
        }
        Ok(())
    }

    /// Attaches the guards that are missing, and returns them.
    fn guard_devices(&mut self, loader: &Loader, netns: &Netns) -> Result<Vec<Guard>, LoadError> {
        let missing: Vec<_> =
            wanted(loader, &self.devices).filter(|(guard, _)| !self.guards.contains_key(guard)).collect();
        let mut attached = Vec::new();
        if missing.is_empty() {
            return Ok(attached);
        }
        let mut object = loader.load(self.cookie)?;
        for (guard, ethernet) in missing {
            match attach_guard(loader, &mut object, netns, guard, ethernet) {
                Ok(held) => {
                    self.guards.insert(guard, held);
                    attached.push(guard);
                }
                // The device is gone, and the notification of that is on its way.
                Err(LoadError::Attach { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(attached)
    }
}

/// The guards of devices, and whether each carries Ethernet frames.
fn wanted<'a>(loader: &Loader, devices: &'a [Interface]) -> impl Iterator<Item = (Guard, bool)> + use<'a> {
    let devices = if loader.guards() { devices } else { &[] };
    devices.iter().flat_map(|device| Guard::of(device).map(|guard| (guard, device.ethernet)))
}

fn attach_steer(loader: &Loader, object: &mut Ebpf, netns: &Netns) -> Result<Held, LoadError> {
    let refused = |source| LoadError::Program { name: "steer", source };
    let program = steer_of(object)?;
    program.load().map_err(refused)?;
    let program = program.fd().map_err(refused)?.as_fd();
    let attach = || sys::attach(program, netns.as_fd(), At::SkLookup);
    let held = Held::take(loader.pins().pod(netns.cookie()), program, attach);
    held.map_err(|source| LoadError::Attach { name: "steer", source })
}

fn attach_guard(
    loader: &Loader,
    object: &mut Ebpf,
    netns: &Netns,
    guard: Guard,
    ethernet: bool,
) -> Result<Held, LoadError> {
    let name = guard.program(ethernet);
    let program = load_classifier(object, name)?;
    let failed = |source| LoadError::Attach { name, source };
    let attach = || {
        let attached = netns.enter(|| sys::attach_to_device(program.as_fd(), guard.device, guard.place()));
        attached.map_err(|error: NetnsError| std::io::Error::other(error))?
    };
    Held::take(loader.pins().guard(netns.cookie(), guard), program.as_fd(), attach).map_err(failed)
}
