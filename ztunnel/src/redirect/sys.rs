//! The bpf(2) calls that the library does not offer in the form that is needed here.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

use nix::libc;

const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_MAP_GET_FD_BY_ID: libc::c_int = 14;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

const BPF_F_BEFORE: u32 = 1 << 3;

/// Programs of one attach point that are read. The kernel allows 64.
const MOST_PROGRAMS: usize = 64;
/// Maps of one program that are read. `connect4` has ten.
const MOST_MAPS: usize = 32;

/// The attach point of a program (`enum bpf_attach_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum At {
    /// `connect()` of IPv4 sockets of a cgroup.
    Connect4 = 10,
    /// The same for IPv6 sockets.
    Connect6 = 11,
    /// `setsockopt()` of sockets of a cgroup.
    Setsockopt = 22,
    /// Socket look-up in a network namespace.
    SkLookup = 36,
    /// Packets that arrive over a device.
    TcxIngress = 46,
    /// Packets that leave over a device.
    TcxEgress = 47,
}

/// The members of `union bpf_attr` for BPF_MAP_UPDATE_ELEM.
#[repr(C)]
struct UpdateElem {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The members of `union bpf_attr` for BPF_MAP_LOOKUP_ELEM.
#[repr(C)]
struct LookupElem {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
}

/// The members of `union bpf_attr` for BPF_OBJ_GET and BPF_OBJ_PIN.
#[repr(C)]
struct Path64 {
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

/// The members of `union bpf_attr` for BPF_LINK_CREATE. The members after the flags are for devices.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    padding: u32,
    expected_revision: u64,
}

/// The members of `union bpf_attr` for BPF_PROG_QUERY. All members are needed: for a device, the kernel writes the
/// revision whatever size it was told. Older kernels accept members that they do not know if these are 0.
#[repr(C)]
struct ProgQuery {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    padding: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

const _: () = assert!(size_of::<ProgQuery>() == 64);

/// The members of `union bpf_attr` for BPF_*_GET_FD_BY_ID.
#[repr(C)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

/// The members of `union bpf_attr` for BPF_OBJ_GET_INFO_BY_FD.
#[repr(C)]
struct GetInfo {
    fd: u32,
    length: u32,
    info: u64,
}

/// The beginning of `struct bpf_link_info`. The kernel copies as much of it as fits.
#[repr(C)]
#[derive(Default)]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    padding: u32,
    /// For a cgroup: its id, in two halves. For a namespace: inode and attach type. For a device: index and attach
    /// type.
    target: [u32; 4],
}

/// The beginning of `struct bpf_prog_info`, up to the name.
#[repr(C)]
#[derive(Default)]
struct RawProgInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_len: u32,
    xlated_len: u32,
    jited: u64,
    xlated: u64,
    load_time: u64,
    created_by_uid: u32,
    map_count: u32,
    map_ids: u64,
    name: [u8; 16],
}

/// The beginning of `struct bpf_map_info`, up to the name.
#[repr(C)]
#[derive(Default)]
struct RawMapInfo {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    name: [u8; 16],
}

/// The kernel's information about a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkInfo {
    /// The id of its program.
    pub(super) program: u32,
    /// Whether it is still attached to anything.
    pub(super) attached: bool,
}

/// The kernel's information about a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProgramInfo {
    /// Its name, at most 15 bytes.
    pub(super) name: String,
    /// The ids of its maps.
    pub(super) maps: Vec<u32>,
}

/// Puts `value` into the storage of a socket. Takes the map by reference, so that every worker can do it at once.
///
/// # Errors
/// As bpf(2).
pub(super) fn store_on_socket(map: BorrowedFd<'_>, socket: BorrowedFd<'_>, value: u32) -> io::Result<()> {
    let key: libc::c_int = socket.as_raw_fd();
    let attr = UpdateElem {
        map_fd: fd(map),
        padding: 0,
        key: address(&raw const key),
        value: address(&raw const value),
        flags: 0,
    };
    bpf(BPF_MAP_UPDATE_ELEM, &attr).map(|_| ())
}

/// Replaces the program of a link atomically: the link always has a program.
///
/// # Errors
/// As bpf(2); ENOLINK: the target of the link is gone.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attr = LinkUpdate { link_fd: fd(link), new_prog_fd: fd(program), flags: 0, old_prog_fd: 0 };
    bpf(BPF_LINK_UPDATE, &attr).map(|_| ())
}

/// Detaches a link at once. When the last descriptor and the last pin of a link go, the kernel detaches it later.
///
/// # Errors
/// As bpf(2); EOPNOTSUPP: the kernel cannot detach links of this type.
pub(super) fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(BPF_LINK_DETACH, &fd(link)).map(|_| ())
}

/// Opens the object that is pinned at a path.
///
/// # Errors
/// As bpf(2).
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let text = CString::new(path.as_os_str().as_bytes())?;
    let attr = Path64 { path: address(text.as_ptr()), fd: 0, flags: 0 };
    bpf(BPF_OBJ_GET, &attr).map(owned)
}

/// Pins an object at a path that does not exist yet.
///
/// # Errors
/// As bpf(2).
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let text = CString::new(path.as_os_str().as_bytes())?;
    let attr = Path64 { path: address(text.as_ptr()), fd: fd(object), flags: 0 };
    bpf(BPF_OBJ_PIN, &attr).map(|_| ())
}

/// Attaches a program to a cgroup or a network namespace, besides all programs that are attached already.
///
/// # Errors
/// As bpf(2).
pub(super) fn attach(program: BorrowedFd<'_>, target: BorrowedFd<'_>, at: At) -> io::Result<OwnedFd> {
    create_link(program, fd(target), at, 0)
}

/// Attaches a program to a device of this thread's network namespace, before all programs that are attached already.
///
/// # Errors
/// As bpf(2); EINVAL: the kernel has no such links (before Linux 6.6, or without CONFIG_NET_XGRESS).
pub(super) fn attach_to_device(program: BorrowedFd<'_>, index: u32, at: At) -> io::Result<OwnedFd> {
    create_link(program, index, at, BPF_F_BEFORE)
}

fn create_link(program: BorrowedFd<'_>, target: u32, at: At, flags: u32) -> io::Result<OwnedFd> {
    let attr = LinkCreate {
        prog_fd: fd(program),
        target,
        attach_type: at as u32,
        flags,
        relative: 0,
        padding: 0,
        expected_revision: 0,
    };
    bpf(BPF_LINK_CREATE, &attr).map(owned)
}

/// Ids of the programs that are attached to a cgroup or a network namespace.
///
/// # Errors
/// As bpf(2).
pub(super) fn attached(target: BorrowedFd<'_>, at: At) -> io::Result<Vec<u32>> {
    query(fd(target), at)
}

/// Ids of the programs that are attached to a device of this thread's network namespace.
///
/// # Errors
/// As bpf(2); EINVAL: as of [`attach_to_device`].
pub(super) fn attached_to_device(index: u32, at: At) -> io::Result<Vec<u32>> {
    query(index, at)
}

fn query(target: u32, at: At) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; MOST_PROGRAMS];
    let mut attr = ProgQuery {
        target,
        attach_type: at as u32,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: address(ids.as_mut_ptr()),
        count: MOST_PROGRAMS as u32,
        padding: 0,
        prog_attach_flags: 0,
        link_ids: 0,
        link_attach_flags: 0,
        revision: 0,
    };
    bpf_mut(BPF_PROG_QUERY, &mut attr)?;
    ids.truncate(attr.count as usize);
    Ok(ids)
}

/// Asks the kernel for information about a link.
///
/// # Errors
/// As bpf(2).
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let info: RawLinkInfo = info(link, RawLinkInfo::default())?;
    // One half of a cgroup's id may be 0, but not both. For other links the second word is a constant, so only the
    // first one counts.
    const BPF_LINK_TYPE_CGROUP: u32 = 3;
    let [first, second, ..] = info.target;
    let attached = first != 0 || (info.kind == BPF_LINK_TYPE_CGROUP && second != 0);
    Ok(LinkInfo { program: info.prog_id, attached })
}

/// Asks the kernel for information about a program; `None`: the program does not exist any more.
///
/// # Errors
/// As bpf(2).
pub(super) fn program_info(id: u32) -> io::Result<Option<ProgramInfo>> {
    let Some(program) = by_id(BPF_PROG_GET_FD_BY_ID, id)? else { return Ok(None) };
    let mut maps = vec![0_u32; MOST_MAPS];
    let asked =
        RawProgInfo { map_count: MOST_MAPS as u32, map_ids: address(maps.as_mut_ptr()), ..RawProgInfo::default() };
    let info = info(program.as_fd(), asked)?;
    maps.truncate(info.map_count as usize);
    Ok(Some(ProgramInfo { name: text(&info.name), maps }))
}

/// The map with an id, if it exists and has this name and these sizes of key and value.
///
/// # Errors
/// As bpf(2).
pub(super) fn map_like(id: u32, name: &str, key_size: usize, value_size: usize) -> io::Result<Option<OwnedFd>> {
    let Some(map) = by_id(BPF_MAP_GET_FD_BY_ID, id)? else { return Ok(None) };
    let info = info(map.as_fd(), RawMapInfo::default())?;
    let fits = text(&info.name) == name && (info.key_size, info.value_size) == (key_size as u32, value_size as u32);
    Ok(fits.then_some(map))
}

/// Looks up a key of eight bytes in a map whose values have eight bytes.
///
/// # Errors
/// As bpf(2).
pub(super) fn value_of(map: BorrowedFd<'_>, key: u64) -> io::Result<Option<[u32; 2]>> {
    let mut value = [0_u32; 2];
    let attr =
        LookupElem { map_fd: fd(map), padding: 0, key: address(&raw const key), value: address(value.as_mut_ptr()) };
    match bpf(BPF_MAP_LOOKUP_ELEM, &attr) {
        Ok(_) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn info<T>(object: BorrowedFd<'_>, mut asked: T) -> io::Result<T> {
    let mut attr = GetInfo { fd: fd(object), length: size_of::<T>() as u32, info: address(&raw mut asked) };
    bpf_mut(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(asked)
}

fn by_id(command: libc::c_int, id: u32) -> io::Result<Option<OwnedFd>> {
    match bpf(command, &ById { id, next: 0, flags: 0 }) {
        Ok(fd) => Ok(Some(owned(fd))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn text(name: &[u8; 16]) -> String {
    let bytes = name.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

fn fd(fd: BorrowedFd<'_>) -> u32 {
    // An open descriptor is never negative.
    fd.as_raw_fd().unsigned_abs()
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: only given what a call has returned as a new descriptor, which nothing else owns.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn address<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}

fn bpf<T>(command: libc::c_int, attr: &T) -> io::Result<i32> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes of a live value, and reads or writes through the addresses in it values
    // that outlive the call; none of the commands that are given to this function writes into the value itself.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::try_from(result).unwrap_or(i32::MAX)) }
}

fn bpf_mut<T>(command: libc::c_int, attr: &mut T) -> io::Result<i32> {
    // SAFETY: as above, and the kernel may write as many bytes of the value, all of whose bit patterns are valid.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::try_from(result).unwrap_or(i32::MAX)) }
}
