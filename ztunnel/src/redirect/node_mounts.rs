//! A BPF file system that a container mounts for its node. A container that is not privileged may receive the mounts of its node, but
//! cannot pass its own on to the node.

use std::{io, path::Path};

use nix::mount::{MsFlags, mount};

use crate::net::netns::with_mounts_of_the_node;

/// Mounts a BPF file system at a path of the node.
///
/// # Errors
/// The step that the kernel refuses.
pub(super) fn mount_bpf(target: &Path) -> io::Result<()> {
    with_mounts_of_the_node(|| mount_bpf_here(target))
}

/// Mounts a BPF file system in the mount namespace of this thread.
///
/// # Errors
/// As mount(2).
pub(super) fn mount_bpf_here(target: &Path) -> io::Result<()> {
    Ok(mount(Some("bpf"), target, Some("bpf"), MsFlags::empty(), Some("mode=0700"))?)
}
