//! The memory that the daemon may use: the limit of its cgroup, or the memory of the machine.

use std::path::{Path, PathBuf};

/// The limit in bytes: the smallest limit of the process's cgroup, its parents, and the machine. `None`: there is no `/proc`.
pub(super) fn of_process(read: impl Fn(&Path) -> Option<String>) -> Option<usize> {
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let machine = read(Path::new("/proc/meminfo")).as_deref().and_then(total);
    let limits = groups.lines().filter_map(place).flat_map(|(root, group, file)| {
        // In a container the cgroup may be mounted as the root, where its path from outside does not exist. So all parents up
        // to the root are tried.
        let inside = group.trim_start_matches('/');
        let paths = Path::new(inside).ancestors().map(|part| root.join(part).join(file)).collect::<Vec<_>>();
        paths.into_iter().filter_map(|path| read(&path)?.trim().parse().ok()).collect::<Vec<usize>>()
    });
    limits.chain(machine).min()
}

/// The place of the limit for a line of `/proc/self/cgroup`: mount point, group, file.
fn place(line: &str) -> Option<(PathBuf, &str, &'static str)> {
    let mut fields = line.splitn(3, ':');
    let (number, controllers, group) = (fields.next()?, fields.next()?, fields.next()?);
    if number == "0" && controllers.is_empty() {
        return Some(("/sys/fs/cgroup".into(), group, "memory.max"));
    }
    let of_memory = controllers.split(',').any(|controller| controller == "memory");
    of_memory.then(|| ("/sys/fs/cgroup/memory".into(), group, "memory.limit_in_bytes"))
}

/// The machine's memory.
fn total(meminfo: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.parse::<usize>().ok().map(|kilobytes| kilobytes << 10)
}

#[cfg(test)]
mod tests {
    use super::of_process;
    use std::{fs, path::Path};

    const MEMINFO: (&str, &str) = ("/proc/meminfo", "MemTotal:        8000000 kB\nMemFree: 1 kB\n");

    fn limit(files: &[(&str, &str)]) -> Option<usize> {
        of_process(|path: &Path| {
            let found = files.iter().find(|(name, _)| Path::new(name) == path);
            found.map(|(_, text)| (*text).to_owned())
        })
    }

    #[test]
    fn the_smallest_limit_around_the_process_counts() {
        const V2: (&str, &str) = ("/proc/self/cgroup", "0::/kubepods/pod1/c\n");
        let (of_pod, of_container) = ("/sys/fs/cgroup/kubepods/pod1/memory.max", "/sys/fs/cgroup/memory.max");
        assert_eq!(limit(&[MEMINFO, V2, (of_pod, "max\n")]), Some(8_000_000 << 10));
        assert_eq!(limit(&[MEMINFO, V2, (of_pod, "1073741824\n")]), Some(1 << 30));
        assert_eq!(limit(&[MEMINFO, V2, (of_container, "536870912\n")]), Some(512 << 20), "seen from inside");
        let v1 = ("/proc/self/cgroup", "9:cpu,cpuacct:/x\n7:memory:/kubepods/pod1\n1:name=systemd:/y\n");
        let file = "/sys/fs/cgroup/memory/kubepods/pod1/memory.limit_in_bytes";
        assert_eq!(limit(&[MEMINFO, v1, (file, "1073741824\n")]), Some(1 << 30));
        assert_eq!(
            limit(&[MEMINFO, v1, (file, "9223372036854771712\n")]),
            Some(8_000_000 << 10),
            "none is a large number"
        );
        assert_eq!(limit(&[]), None);
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(of_process(|path| fs::read_to_string(path).ok()).is_some_and(|bytes| bytes > 16 << 20));
    }
}
