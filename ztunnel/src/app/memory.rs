//! Returns memory to the kernel that was needed only for a moment, for the start or for a change of the mesh.
//!
//! Reading manifests, loading BPF programs and enrolling pods needs several times the memory of carrying connections, and more
//! pages of the program itself. The allocator keeps freed memory below memory that is still in use, and the kernel counts every
//! page of the program that was ever run.

mod limit;

use std::{fs, ops::Range, time::Duration};

use nix::libc;
use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};
use tracing::{debug, error, info};

use crate::{config::defaults, net::memory::Budget, store::publish::Reader};

/// The page size in bytes, in which the kernel counts.
const PAGE: usize = 4096;

/// The time after a change by which its effects are usually done.
const SETTLED: Duration = Duration::from_secs(1);

/// The shortest time between two returns of memory: a mesh that changes all the time needs its memory again at once.
const PAUSE: Duration = Duration::from_secs(30);

/// The time between two returns without a change. Memory is also needed for other work, for example a list of ten thousand
/// connections.
const LATEST: Duration = Duration::from_secs(5 * 60);

/// The budget for buffers and windows: the given size, or a part of the memory that the daemon may use.
#[must_use]
pub fn budget(told: Option<usize>) -> Budget {
    let read = |path: &std::path::Path| fs::read_to_string(path).ok();
    let bytes = told.or_else(|| Some(limit::of_process(read)? / defaults::MEMORY_PART));
    // Without /proc the memory of the machine is unknown, and the budget is unlimited.
    let budget = bytes.map(Budget::new).unwrap_or_default();
    info!(bytes = budget.limit(), "memory for buffers and windows; set --memory-budget to change it");
    budget
}

/// The kernel's limit of TCP memory on this machine, in bytes, from which it reduces the buffers of sockets.
#[must_use]
pub fn of_sockets() -> usize {
    // Three numbers of pages: low, pressure, high. Only the node's own network namespace has the file.
    let pages = fs::read_to_string("/proc/sys/net/ipv4/tcp_mem").unwrap_or_default();
    let pressure = pages.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pressure.map_or(usize::MAX, |pages| pages.saturating_mul(PAGE))
}

/// Returns memory after the start, after changes of the mesh, and from time to time. Ends with the mesh.
pub async fn tend(mesh: Reader) {
    let mut changes = mesh.subscribe();
    loop {
        sleep(SETTLED).await;
        // This takes milliseconds, so it does not run on the main thread.
        match spawn_blocking(give_back).await {
            Ok(pages) => debug!(pages_kb = pages >> 10, "memory was given back"),
            Err(failure) => error!(%failure, "giving memory back failed: this is a bug, please report it"),
        }
        sleep(PAUSE).await;
        if let Ok(None) = timeout(LATEST, changes.changed()).await {
            return;
        }
    }
}

/// Returns the number of bytes of the program and its libraries that were resident for this process before.
fn give_back() -> usize {
    trim();
    let maps = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    clean_files(&maps).inspect(|(range, _)| let_go(range)).map(|(_, resident)| resident).sum()
}

/// Returns all free memory of the heaps to the kernel, also below memory in use.
#[cfg(target_env = "gnu")]
fn trim() {
    // SAFETY: takes no pointer, and locks what it touches.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn trim() {}

/// Removes pages of a file from this process. They stay in the page cache, and are mapped again when they are accessed.
fn let_go(range: &Range<usize>) {
    // SAFETY: the kernel has just said that this range maps a file, can't be written, and has no page that differs from the
    // file, so that whatever is read there later is the same. Should it be unmapped, nothing is there to lose.
    let result =
        unsafe { libc::madvise(std::ptr::with_exposed_provenance_mut(range.start), range.len(), libc::MADV_DONTNEED) };
    if result != 0 {
        debug!(error = %std::io::Error::last_os_error(), "the kernel keeps pages of the program");
    }
}

/// The read-only file mappings without anonymous pages in the text of `/proc/self/smaps`, and the resident bytes of each. A
/// page becomes anonymous by relocation or by a debugger, for example.
fn clean_files(smaps: &str) -> impl Iterator<Item = (Range<usize>, usize)> {
    let mut lines = smaps.lines().peekable();
    std::iter::from_fn(move || {
        let head = lines.next()?;
        let (mut resident, mut own) = (0, None);
        while let Some(field) = lines.next_if(|line| mapping(line).is_none()) {
            let kilobytes = |name| field.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse::<usize>().ok();
            resident = kilobytes("Rss:").unwrap_or(resident);
            own = kilobytes("Anonymous:").or(own);
        }
        Some((mapping(head), resident << 10, own))
    })
    .filter_map(|(range, resident, own)| {
        range?.filter(|_| own == Some(0) && resident > 0).map(|range| (range, resident))
    })
}

/// Reads the first line of a mapping, `START-END PERMISSIONS OFFSET DEVICE INODE PATH`. `None`: it is another line.
/// `Some(None)`: the mapping is not private, is writable or has no file.
#[expect(clippy::option_option, reason = "two questions about one line")]
fn mapping(line: &str) -> Option<Option<Range<usize>>> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let address = |hex| usize::from_str_radix(hex, 16).ok();
    let range = address(start)?..address(end)?;
    let (permissions, inode) = (fields.next()?, fields.nth(2)?);
    let is_clean = matches!(permissions.as_bytes(), [b'r', b'-', _, b'p']) && inode != "0";
    Some(is_clean.then_some(range))
}

#[cfg(test)]
mod tests {
    use super::{clean_files, give_back};

    const SMAPS: &str = "\
55d0c4e00000-55d0c4e80000 r--p 00000000 fe:00 1 /usr/bin/ztunnel
Rss:                 512 kB
Anonymous:             0 kB
VmFlags: rd mr mw me sd
55d0c4e80000-55d0c4f00000 r-xp 00080000 fe:00 1 /usr/bin/ztunnel
Rss:                 256 kB
Anonymous:             4 kB
55d0c4f00000-55d0c4f80000 rw-p 00080000 fe:00 1 /usr/bin/ztunnel
Rss:                   4 kB
Anonymous:             0 kB
55d0c4f80000-55d0c4f90000 r--p 00000000 00:00 0
Rss:                   4 kB
Anonymous:             0 kB
7f0000000000-7f0000002000 r-xp 00000000 fe:00 2 /lib/of a name: with spaces
Size:                  8 kB
Rss:                   8 kB
Anonymous:             0 kB
7f0000002000-7f0000003000 r-xs 00000000 fe:00 2 /shared
Rss:                   4 kB
Anonymous:             0 kB
7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0 [vdso]
";

    #[test]
    fn only_what_is_the_same_in_its_file_is_let_go() {
        let found: Vec<_> = clean_files(SMAPS).collect();
        let program = (0x55d0_c4e0_0000..0x55d0_c4e8_0000, 512 << 10);
        assert_eq!(found, [program, (0x7f00_0000_0000..0x7f00_0000_2000, 8 << 10)]);
        assert_eq!(clean_files("").count(), 0);
    }

    #[test]
    fn what_is_given_back_comes_back() {
        let before: Vec<u64> = (0..100_000).map(|number| number ^ 7).collect();
        assert!(give_back() > 0, "this program has pages");
        assert!((0..100_000).all(|number| before[number as usize] == number ^ 7));
        give_back();
    }
}
