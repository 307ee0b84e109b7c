//! The sysctls that give answers the mark of the packets that they answer. They are set in the pod's network namespace,
//! and restored at the release of the pod.

use std::{io, path::Path};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::proc_sys;
use crate::net::netns::{Netns, NetnsError};

/// With these, accepted sockets inherit the mark of the SYN. Resets and answers in TIME-WAIT get the mark of the packet
/// that they answer.
pub(super) const WANTED: [&str; 3] =
    ["net/ipv4/tcp_fwmark_accept", "net/ipv4/fwmark_reflect", "net/ipv6/fwmark_reflect"];

/// A sysctl and its value before the daemon set it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// Path below `/proc/sys`.
    pub name: String,
    /// Value.
    pub value: String,
}

/// Why a sysctl could not be set.
#[derive(Debug, Error)]
pub enum SysctlError {
    /// The namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The file could not be read or written.
    #[error(
        "cannot {what} /proc/sys/{name}: {source}; make /proc/sys writable for the daemon, or give it CAP_SYS_ADMIN and allow fsopen (seccomp)"
    )]
    Access {
        /// The step.
        what: &'static str,
        /// The sysctl.
        name: String,
        /// The cause.
        source: io::Error,
    },
}

/// Reads the current values.
///
/// # Errors
/// Names the sysctl.
pub fn read(netns: &Netns) -> Result<Vec<Saved>, SysctlError> {
    netns.enter(|| {
        let present = WANTED.iter().filter(|name| !is_absent_family(name));
        present.map(|name| Ok(Saved { name: (*name).to_owned(), value: get(name)? })).collect()
    })?
}

/// Sets all of them to 1. A sysctl that is 1 already is not written.
///
/// # Errors
/// Names the sysctl.
pub fn enable(netns: &Netns) -> Result<(), SysctlError> {
    netns.enter(|| {
        let mut present = WANTED.iter().filter(|name| !is_absent_family(name));
        present.try_for_each(|name| if get(name)? == "1" { Ok(()) } else { set(name, "1") })
    })?
}

/// Restores the values.
///
/// # Errors
/// Names the sysctl. The others have been tried.
pub fn restore(netns: &Netns, saved: &[Saved]) -> Result<(), SysctlError> {
    netns.enter(|| {
        // Only the sysctls of this module are set. The record on disk must be no way to set others.
        let known = saved.iter().filter(|saved| WANTED.contains(&saved.name.as_str()));
        let results: Vec<_> = known.map(|saved| set(&saved.name, &saved.value)).collect();
        results.into_iter().collect()
    })?
}

/// A kernel without IPv6 has no IPv6 sysctls; all others must be there.
pub(super) fn is_absent_family(name: &str) -> bool {
    name.starts_with("net/ipv6/") && !Path::new("/proc/sys/net/ipv6").exists()
}

fn get(name: &str) -> Result<String, SysctlError> {
    proc_sys::read(name).map_err(|source| SysctlError::Access { what: "read", name: name.to_owned(), source })
}

fn set(name: &str, value: &str) -> Result<(), SysctlError> {
    proc_sys::write(name, value).map_err(|source| SysctlError::Access { what: "write", name: name.to_owned(), source })
}
