//! The values in `/proc` of a process, and of this process.

use prometheus_client::{encoding::text::encode, registry::Registry};

use super::{Times, number, register};

#[test]
fn times_are_found_behind_whatever_name_the_program_has() {
    let fields = "S 1 2 3 0 -1 4194560 100 0 0 0 1234 66 0 0 20 0 9 0 98765 1000 200";
    for name in ["ztunnel", "a b) S 1", "(("] {
        let times = Times::read(&format!("42 ({name}) {fields}"));
        assert_eq!(times, Some(Times { cpu: 13.0, start_after_boot: 987.65 }), "{name}");
    }
    for broken in ["", "42 (ztunnel", "42 (ztunnel) S 1 2", "42 (z) S 1 2 3 0 -1 4 1 0 0 0 x 6 0 0 20 0 9 0 9 1 2"] {
        assert_eq!(Times::read(broken), None, "{broken}");
    }
}

#[test]
fn a_number_is_that_of_its_own_line() {
    let status = "VmPeak:\t  9 kB\nVmSize:\t  1234 kB\nThreads:\t7\n";
    assert_eq!((number(status, "VmSize:"), number(status, "Threads:")), (Some(1234), Some(7)));
    assert_eq!((number(status, "VmRSS:"), number("VmRSS: much", "VmRSS:")), (None, None));
}

#[test]
fn this_process_has_all_of_them_and_none_is_0() {
    let mut registry = Registry::default();
    register(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    let value = |name: &str| -> f64 {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("{name} not in {text}")).parse().unwrap()
    };
    for name in
        ["resident_memory_bytes", "virtual_memory_bytes", "threads", "open_fds", "max_fds", "start_time_seconds"]
    {
        assert!(value(&format!("process_{name}")) > 0.0, "{name}: {text}");
    }
    assert!(value("process_cpu_seconds_total") >= 0.0);
    assert!(value("process_resident_memory_bytes") <= value("process_virtual_memory_bytes"), "{text}");
    let started = value("process_start_time_seconds");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    // The kernel rounds both terms to about 10 ms; its boot time has whole seconds.
    assert!(started <= now + 2.0 && started > 1.6e9, "{started} is not before {now}");
}
