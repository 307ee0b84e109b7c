use std::io;

use super::{Capabilities, State, Uses, capabilities, net_raw, requirements};

fn missing(held: u64) -> Vec<&'static str> {
    missing_for(held, Uses::default())
}

fn missing_for(held: u64, uses: Uses) -> Vec<&'static str> {
    let all = capabilities(Capabilities(held), uses).into_iter();
    // The capability that SO_BINDTODEVICE needs depends on the kernel that runs the test.
    all.filter(|row| row.state == State::Missing && row.name != "CAP_NET_RAW").map(|row| row.name).collect()
}

#[test]
fn the_effective_set_is_read_and_no_other() {
    let status = "Name:\tx\nCapInh:\t0000000000000000\nCapPrm:\t000001ffffffffff\nCapEff:\t0000008000201000\n";
    let held = Capabilities::parse(status).unwrap();
    assert_eq!(held, Capabilities(0x80_0020_1000));
    assert!(held.has(Capabilities::BPF) && held.has(Capabilities::NET_ADMIN) && held.has(Capabilities::SYS_ADMIN));
    assert!(!held.has(Capabilities::NET_RAW));
    assert_eq!(Capabilities::parse("CapPrm:\t1\n"), None);
    assert_eq!(Capabilities::parse("CapEff:\tnonsense\n"), None);
}

#[test]
fn cap_sys_admin_stands_in_for_cap_bpf_but_not_the_other_way_round() {
    let (net_admin, sys_admin, bpf) = (1 << 12, 1 << 21, 1 << 39);
    assert_eq!(missing(0), ["CAP_BPF", "CAP_NET_ADMIN", "CAP_SYS_ADMIN"]);
    assert_eq!(missing(net_admin | sys_admin), [""; 0]);
    assert_eq!(missing(net_admin | bpf), ["CAP_SYS_ADMIN"]);
    assert_eq!(missing(sys_admin), ["CAP_NET_ADMIN"]);
}

#[test]
fn each_function_asks_for_its_own_capabilities() {
    let always = 1 << 12 | 1 << 21 | 1 << 39;
    let uses = |processes, cni_plugin| Uses { processes, cni_plugin };
    assert_eq!(missing_for(always, uses(true, false)), ["CAP_SYS_PTRACE"]);
    assert_eq!(missing_for(always, uses(true, true)), ["CAP_SYS_PTRACE", "CAP_SYS_CHROOT"]);
    assert_eq!(missing_for(always | 1 << 18, uses(true, true)), ["CAP_SYS_PTRACE"]);
    assert_eq!(missing_for(always | 1 << 18 | 1 << 19, uses(true, true)), [""; 0]);
}

#[test]
fn cap_net_raw_is_asked_for_only_where_the_kernel_does() {
    let (none, raw) = (Capabilities(0), Capabilities(1 << 13));
    let refused = || Err(io::Error::from_raw_os_error(1));
    assert!(net_raw(none, Ok(())).is_ok());
    assert!(net_raw(none, refused()).is_err());
    assert!(net_raw(raw, refused()).is_ok());
    assert!(net_raw(none, Err(io::Error::from_raw_os_error(19))).is_ok(), "no interface lo is another matter");
}

/// With any privileges, the probe has an answer for each requirement, and does not fail.
#[test]
fn every_requirement_has_an_answer() {
    let all = requirements(std::path::Path::new("/nonexistent/bpf"), Uses { processes: true, cni_plugin: true });
    for requirement in &all {
        assert!(!requirement.found.is_empty() && !requirement.cost.is_empty(), "{requirement:?}");
        let same = all.iter().filter(|other| other.name == requirement.name).count();
        assert_eq!(same, 1, "{}", requirement.name);
    }
}
