//! The bpf(2) calls that the library does not offer in the form needed here.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

use nix::libc;

const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_LINK_UPDATE: libc::c_int = 29;

/// The members of `union bpf_attr` for BPF_MAP_UPDATE_ELEM.
#[repr(C)]
struct UpdateElem {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The members of `union bpf_attr` for BPF_OBJ_GET.
#[repr(C)]
struct ObjGet {
    path: u64,
    fd: u32,
    flags: u32,
}

/// The members of `union bpf_attr` for BPF_LINK_UPDATE.
#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// Puts `value` into the storage of a socket. Takes the map by reference, so that every worker can do it at once.
///
/// # Errors
/// As bpf(2).
pub(super) fn store_on_socket(map: BorrowedFd<'_>, socket: BorrowedFd<'_>, value: u32) -> io::Result<()> {
    let key: libc::c_int = socket.as_raw_fd();
    let (key_at, value_at) = ((&raw const key).expose_provenance(), (&raw const value).expose_provenance());
    let attr = UpdateElem { map_fd: fd(map), padding: 0, key: key_at as u64, value: value_at as u64, flags: 0 };
    bpf(BPF_MAP_UPDATE_ELEM, &attr).map(|_| ())
}

/// Replaces the program behind a link, with no moment in which there is none.
///
/// # Errors
/// As bpf(2); ENOLINK: what the link was attached to is gone.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attr = LinkUpdate { link_fd: fd(link), new_prog_fd: fd(program), flags: 0, old_prog_fd: 0 };
    bpf(BPF_LINK_UPDATE, &attr).map(|_| ())
}

/// Opens what is pinned at a path.
///
/// # Errors
/// As bpf(2).
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let text = CString::new(path.as_os_str().as_bytes())?;
    let attr = ObjGet { path: text.as_ptr().expose_provenance() as u64, fd: 0, flags: 0 };
    let fd = bpf(BPF_OBJ_GET, &attr)?;
    // SAFETY: the call gave this process a new descriptor, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn fd(fd: BorrowedFd<'_>) -> u32 {
    // An open descriptor is never negative.
    fd.as_raw_fd().unsigned_abs()
}

fn bpf<T>(command: libc::c_int, attr: &T) -> io::Result<i32> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes of a live value, and through the addresses in it values that outlive
    // the call; none of these commands writes anything back.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::try_from(result).unwrap_or(i32::MAX)) }
}
