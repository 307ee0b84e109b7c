//! The program: its commands, its settings, and its errors when something is missing.

use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Result, ensure};
use ebpf_common::HBONE_PORT;
use ztunnel_tests::admin;
use ztunnel_tests::apps::server::Server;
use ztunnel_tests::daemon::{self, Issuer};
use ztunnel_tests::process::{Capability, Finished, Launch};
use ztunnel_tests::proof;
use ztunnel_tests::settings;
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, ONE_NODE, Pod, TWO_NODES};
use ztunnel_tests::wait;

/// All capabilities that the daemon may need.
const NEEDED: [Capability; 4] = [Capability::Bpf, Capability::NetAdmin, Capability::SysAdmin, Capability::NetRaw];

/// The arguments of a daemon on the testbed's only node.
fn run_arguments(bed: &Testbed) -> Vec<String> {
    let folder = bed.topology.folder.display();
    let pins = bed.topology.prefix.pins("node-a");
    let words = format!("run --node node-a --mesh {folder}/mesh --state {folder}/state --bpf-pin {}", pins.display());
    words.split(' ').map(ToOwned::to_owned).collect()
}

#[test]
fn version_says_which() -> Result<()> {
    let bed = Testbed::new(ONE_NODE)?;
    let done = daemon::command(&settings::daemon_binary()?, &bed.topology.node("node-a")?.netns, &["version"])?;
    ensure!(done.success && done.stdout.contains(env!("CARGO_PKG_VERSION")), "{done:?}");
    Ok(())
}

#[test]
fn check_lists_every_requirement() -> Result<()> {
    let bed = Testbed::new(ONE_NODE)?;
    let done = daemon::command(&settings::daemon_binary()?, &bed.topology.node("node-a")?.netns, &["check"])?;
    ensure!(done.success, "{done:?}");
    for word in ["CAP_BPF", "CAP_NET_ADMIN", "CAP_SYS_ADMIN", "cgroup", "bpf", "tcp_fwmark_accept"] {
        ensure!(done.stdout.contains(word), "`ztunnel check` says nothing about {word}:\n{}", done.stdout);
    }
    Ok(())
}

#[test]
fn check_says_what_is_missing() -> Result<()> {
    let binary = settings::daemon_binary()?.display().to_string();
    for (capability, name) in [(Capability::NetAdmin, "CAP_NET_ADMIN"), (Capability::SysAdmin, "CAP_SYS_ADMIN")] {
        let done = Launch::new(&binary).args(["check"]).without(&[capability]).finish()?;
        let line = done.stdout.lines().find(|line| line.contains(name)).unwrap_or_default().to_lowercase();
        ensure!(!done.success, "a requirement is missing, but `ztunnel check` succeeds:\n{}", done.stdout);
        ensure!(["missing", "no", "lost"].iter().any(|word| line.contains(word)), "{name}: {line:?}");
    }
    Ok(())
}

#[test]
fn a_missing_capability_is_named() -> Result<()> {
    let bed = Testbed::new(ONE_NODE)?;
    let binary = settings::daemon_binary()?.display().to_string();
    // CAP_SYS_ADMIN includes CAP_BPF, so CAP_BPF is missing only if both are missing.
    let cases: [(&[Capability], &str); 4] = [
        (&[Capability::Bpf, Capability::SysAdmin], "CAP_BPF"),
        (&[Capability::Bpf, Capability::SysAdmin], "CAP_SYS_ADMIN"),
        (&[Capability::NetAdmin], "CAP_NET_ADMIN"),
        (&[Capability::SysAdmin], "CAP_SYS_ADMIN"),
    ];
    for (capabilities, name) in cases {
        let done = Launch::new(&binary)
            .args(run_arguments(&bed))
            .inside(&bed.topology.node("node-a")?.netns)
            .without(capabilities)
            .finish()?;
        ensure!(!done.success, "it ran to its end without {name}: {done:?}");
        ensure!(format!("{}{}", done.stdout, done.stderr).contains(name), "{name} is not named: {done:?}");
    }
    Ok(())
}

/// Capabilities that only a daemon on Kubernetes needs.
#[test]
fn a_capability_that_kubernetes_needs_is_named() -> Result<()> {
    let binary = settings::daemon_binary()?.display().to_string();
    let run = ["run", "--node=none", "--pods=kubernetes", "--control-plane=https://127.0.0.1:1", "--cni-install"];
    for (capability, name) in [(Capability::SysPtrace, "CAP_SYS_PTRACE"), (Capability::SysChroot, "CAP_SYS_CHROOT")] {
        let done = Launch::new(&binary).args(run).without(&[capability]).finish()?;
        ensure!(!done.success && format!("{}{}", done.stdout, done.stderr).contains(name), "{name}: {done:?}");
    }
    Ok(())
}

/// As in a container that is not privileged.
#[test]
fn a_read_only_proc_sys_is_no_obstacle() -> Result<()> {
    let binary = settings::daemon_binary()?.display().to_string();
    let script = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec \"$0\" check";
    let done = Launch::new("unshare").args(["--mount", "sh", "-ec", script, &binary]).finish()?;
    let line = done.stdout.lines().find(|line| line.contains("sysctls for marks")).unwrap_or_default();
    ensure!(done.success && line.contains("through a procfs of the daemon's own"), "{line}\n{done:?}");
    Ok(())
}

#[test]
fn the_named_capabilities_are_enough() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    bed.start_with("node-a", |options| options.capabilities = NEEDED.to_vec())?;
    bed.enrol()?;
    for family in Family::BOTH {
        let (outer, inner) = (bed.pod("web-b")?, bed.pod("web-a")?);
        let echo = Server::echo(outer, outer.at(family, 7000))?;
        proof::outbound(&bed, "client-a", &echo, Pod::connect)?;
        let echo = Server::echo(inner, inner.at(family, 7000))?;
        proof::inbound(&bed, "client-b", "web-a", &echo, echo.address())?;
    }
    bed.release()?;
    bed.daemon_mut("node-a")?.terminate()
}

#[test]
fn a_missing_mesh_folder_is_named() -> Result<()> {
    let bed = Testbed::new(ONE_NODE)?;
    let missing = bed.topology.folder.join("no-such-mesh").display().to_string();
    let binary = settings::daemon_binary()?;
    let netns = &bed.topology.node("node-a")?.netns;
    let pins = bed.topology.prefix.pins("node-a").display().to_string();
    let done = daemon::command(&binary, netns, &["run", "--node", "node-a", "--mesh", &missing, "--bpf-pin", &pins])?;
    ensure!(!done.success, "{done:?}");
    ensure!(format!("{}{}", done.stdout, done.stderr).contains(&missing), "the folder is not named: {done:?}");
    Ok(())
}

#[test]
fn missing_settings_are_all_named_at_once() -> Result<()> {
    let bed = Testbed::new(ONE_NODE)?;
    let done = daemon::command(&settings::daemon_binary()?, &bed.topology.node("node-a")?.netns, &["run"])?;
    ensure!(!done.success, "{done:?}");
    for word in ["--node", "--mesh"] {
        ensure!(done.stderr.contains(word) || done.stdout.contains(word), "{word} is not named: {done:?}");
    }
    Ok(())
}

#[test]
fn settings_come_from_the_environment_too() -> Result<()> {
    let bed = Testbed::new(ONE_NODE)?;
    let netns = &bed.topology.node("node-a")?.netns;
    let mut process = Launch::new(&settings::daemon_binary()?.display().to_string())
        .args(["run"])
        .variable("ZTUNNEL_NODE", "node-a")
        .variable("ZTUNNEL_MESH", bed.mesh.folder())
        .variable("ZTUNNEL_STATE", bed.topology.folder.join("state"))
        .variable("ZTUNNEL_BPF_PIN", bed.topology.prefix.pins("node-a"))
        .variable("ZTUNNEL_ADMIN", "127.0.0.1:15999")
        .variable("ZTUNNEL_LOG_FORMAT", "json")
        .inside(netns)
        .log_to(&bed.topology.folder.join("daemon.log"))
        .start()?;
    wait::until_true("a listener at the address of ZTUNNEL_ADMIN", wait::PATIENCE, || {
        let errors = std::fs::read_to_string(bed.topology.folder.join("daemon.log.err")).unwrap_or_default();
        ensure!(process.ended()?.is_none(), "the daemon ended: {errors}");
        let done = Launch::new("ss").args(["-Htnl", "sport = :15999"]).inside(netns).finish()?;
        Ok(!done.stdout.trim().is_empty())
    })
}

#[test]
fn a_second_daemon_on_the_same_pins_is_refused() -> Result<()> {
    let bed = Testbed::one_node()?;
    let mut arguments = run_arguments(&bed);
    let ports = ["--admin", "127.0.0.1:15998", "--metrics", "127.0.0.1:15997", "--readiness", "127.0.0.1:15996"];
    arguments.extend(ports.map(String::from));
    let done = Launch::new(&settings::daemon_binary()?.display().to_string())
        .args(&arguments)
        .inside(&bed.topology.node("node-a")?.netns)
        .finish()?;
    ensure!(!done.success, "two daemons share one pin folder: {done:?}");
    bed.enrol()
}

/// `ztunnel ca` with further arguments.
fn ca(arguments: &[&str]) -> Result<Finished> {
    Launch::new(&settings::daemon_binary()?.display().to_string()).args(["ca"]).args(arguments).finish()
}

#[test]
fn a_ca_is_made_shown_and_issues_what_another_daemon_accepts() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    let folder = bed.topology.folder.join("own-ca");
    let (folder_name, out) = (folder.display().to_string(), bed.topology.folder.join("out").display().to_string());
    let missing = ca(&["show", "--ca-dir", &folder_name])?;
    ensure!(!missing.success && missing.stderr.contains(&folder_name), "{missing:?}");
    let made = ca(&["init", "--ca-dir", &folder_name])?;
    ensure!(made.success, "{made:?}");
    for name in ["root-cert.pem", "ca-cert.pem", "ca-key.pem", "cert-chain.pem"] {
        ensure!(folder.join(name).is_file(), "no {name}");
    }
    let mode = std::fs::metadata(folder.join("ca-key.pem"))?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "the key has mode {mode:o}");
    let again = ca(&["init", "--ca-dir", &folder_name])?;
    ensure!(!again.success, "a CA was made over another: {again:?}");
    let shown = ca(&["show", "--ca-dir", &folder_name])?;
    ensure!(shown.success && shown.stdout.contains("ca-cert.pem") && !shown.stdout.contains("PRIVATE"), "{shown:?}");
    let identity = ztunnel_tests::ca::identity("web-a");
    let issued = ca(&["issue", "--ca-dir", &folder_name, "--identity", &identity, "--out", &out])?;
    ensure!(issued.success, "{issued:?}");
    bed.start_with("node-a", |options| options.certificates = Issuer::Ca(folder.clone()))?;
    bed.enrol()?;
    bed.daemon("node-a")?.certified(&identity)?;
    let target = bed.pod("web-a")?.at(Family::V4, HBONE_PORT).to_string();
    let mut arguments = vec!["s_client", "-connect", &target, "-alpn", "h2", "-verify_return_error"];
    let names = ["cert-chain.pem", "key.pem", "root-cert.pem"].map(|name| format!("{out}/{name}"));
    for (option, name) in ["-cert", "-key", "-CAfile"].into_iter().zip(&names) {
        arguments.extend([option, name]);
    }
    let done = Launch::new("openssl").args(&arguments).inside(&bed.pod("client-b")?.netns).finish()?;
    ensure!(done.success && done.stdout.contains("Verify return code: 0 (ok)"), "{done:?}");
    Ok(())
}

#[test]
fn the_programs_log_their_decisions_when_asked_to() -> Result<()> {
    let mut bed = Testbed::new(TWO_NODES)?;
    bed.start_with("node-a", |options| options.arguments = vec!["--bpf-log".to_owned()])?;
    bed.enrol()?;
    let echo = Server::echo(bed.pod("web-b")?, bed.pod("web-b")?.at(Family::V4, 7000))?;
    proof::outbound(&bed, "client-a", &echo, Pod::connect)?;
    let output = bed.daemon("node-a")?.output();
    wait::until_true("lines of both programs", wait::PATIENCE, || {
        let log = std::fs::read_to_string(output)?;
        Ok(["connect netns=", "steer netns="].iter().all(|words| log.contains(words)))
    })
}

#[test]
fn the_admin_endpoint_answers() -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    let echo = Server::echo(bed.pod("web-b")?, bed.pod("web-b")?.at(Family::V4, 7000))?;
    proof::outbound(&bed, "client-a", &echo, Pod::connect)?;
    let daemon = bed.daemon("node-a")?;
    let metrics = daemon.get("/metrics")?;
    ensure!(metrics.status == 200 && metrics.body.trim_end().ends_with("# EOF"), "{metrics:?}");
    let names = [
        "ztunnel_bpf_verdicts_total",
        "ztunnel_bpf_map_entries",
        "ztunnel_bpf_map_capacity",
        "ztunnel_pods",
        "istio_tcp_connections_opened_total",
        "istio_tcp_connections_closed_total",
        "istio_tcp_sent_bytes_total",
        "istio_tcp_received_bytes_total",
        "ztunnel_snapshot_version",
        "ztunnel_mesh_problems",
        "process_open_fds",
    ];
    for name in names {
        ensure!(metrics.body.lines().any(|line| line.starts_with(name)), "no metric {name}:\n{}", metrics.body);
    }
    ensure!(daemon.get("/no-such-path")?.status == 404);
    let outside = bed.topology.node("node-b")?;
    ensure!(admin::get(&outside.netns, "/healthz/ready").is_err(), "another node reaches the endpoint");
    Ok(())
}
