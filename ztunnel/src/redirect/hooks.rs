//! The hooks on the root of cgroup v2. They are attached here, and restored when somebody removes them.

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use aya::{
    Ebpf,
    programs::{CgroupSockAddr, CgroupSockopt, Program, ProgramError},
};
use tracing::error;

use super::{
    held::{Condition, Held},
    load::LoadError,
    pins::PinDir,
    sys::{self, At},
};

/// The hooks and their attach points. `setsockopt` comes first, so that a marked socket can never lose its mark.
pub(super) const HOOKS: [(&str, At); 3] =
    [("setsockopt", At::Setsockopt), ("connect4", At::Connect4), ("connect6", At::Connect6)];

/// The hooks, attached.
#[derive(Debug)]
pub(super) struct Hooks {
    cgroup: File,
    hooks: Vec<Hook>,
}

#[derive(Debug)]
struct Hook {
    name: &'static str,
    at: At,
    program: OwnedFd,
    held: Held,
}

impl Hooks {
    /// Loads the programs of an object and attaches them to the root of cgroup v2, or makes them the programs of the
    /// pinned links.
    ///
    /// # Errors
    /// Names the program.
    pub(super) fn attach(object: &mut Ebpf, cgroup: File, pins: &PinDir) -> Result<Self, LoadError> {
        let mut hooks = Vec::new();
        for (name, at) in HOOKS {
            let program = load(object, name)?;
            let attach = || sys::attach(program.as_fd(), cgroup.as_fd(), at);
            let held = Held::take(pins.hook(name), program.as_fd(), attach);
            let held = held.map_err(|source| LoadError::Attach { name, source })?;
            hooks.push(Hook { name, at, program, held });
        }
        Ok(Self { cgroup, hooks })
    }

    /// Checks that the hooks exist, and restores those that do not. Adds the number of restored hooks to `restored`.
    ///
    /// # Errors
    /// Names the first hook that cannot be restored.
    pub(super) fn mend(&mut self, restored: &mut u64) -> Result<(), LoadError> {
        for hook in &mut self.hooks {
            let failed = |source| LoadError::Attach { name: hook.name, source };
            let condition = hook.held.mend().map_err(failed)?;
            if condition == Condition::Whole {
                continue;
            }
            if condition == Condition::Detached {
                let (program, cgroup) = (hook.program.as_fd(), self.cgroup.as_fd());
                let again = Held::take(hook.held.pin().to_owned(), program, || sys::attach(program, cgroup, hook.at));
                hook.held = again.map_err(failed)?;
            }
            error!(
                hook = hook.name,
                pin = %hook.held.pin().display(),
                was = ?condition,
                "another process removed a BPF hook of this daemon, and the daemon attached it again; find \
                 that process: without the hook captured pods are open"
            );
            *restored += 1;
        }
        Ok(())
    }

    /// Makes this daemon's programs the programs of the pinned links again: another daemon may have replaced them.
    ///
    /// # Errors
    /// Names the program.
    pub(super) fn attach_again(&mut self, pins: &PinDir) -> Result<(), LoadError> {
        for hook in &mut self.hooks {
            let (program, cgroup) = (hook.program.as_fd(), self.cgroup.as_fd());
            let held = Held::take(pins.hook(hook.name), program, || sys::attach(program, cgroup, hook.at));
            hook.held = held.map_err(|source| LoadError::Attach { name: hook.name, source })?;
        }
        Ok(())
    }

    /// Closes the handles of the hooks. Their pins stay.
    pub(super) fn let_go(&mut self) {
        self.hooks.clear();
    }

    /// The programs of the hooks.
    pub(super) fn programs(&self) -> impl Iterator<Item = u32> {
        self.hooks.iter().filter_map(|hook| hook.held.program().ok())
    }

    /// The cgroup.
    pub(super) fn cgroup(&self) -> BorrowedFd<'_> {
        self.cgroup.as_fd()
    }
}

/// Loads a hook of an object into the kernel.
///
/// # Errors
/// When the kernel refuses it.
pub(super) fn load(object: &mut Ebpf, name: &'static str) -> Result<OwnedFd, LoadError> {
    let refused = |source| LoadError::Program { name, source };
    let program = object.program_mut(name).ok_or(LoadError::NotBuiltIn)?;
    match program {
        Program::CgroupSockAddr(_) => {
            let program: &mut CgroupSockAddr = program.try_into().map_err(refused)?;
            program.load().map_err(refused)?;
            program.fd().map_err(refused)?.as_fd().try_clone_to_owned()
        }
        _ => {
            let program: &mut CgroupSockopt = program.try_into().map_err(refused)?;
            program.load().map_err(refused)?;
            program.fd().map_err(refused)?.as_fd().try_clone_to_owned()
        }
    }
    .map_err(|error: io::Error| refused(ProgramError::IOError(error)))
}
