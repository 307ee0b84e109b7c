//! The parts of the capture are removed: pins, links, the file system below them. Or an older installation is left behind.

use std::fs;
use std::io::Error;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::libc;
use ztunnel_tests::admin;
use ztunnel_tests::apps::server::Server;
use ztunnel_tests::daemon;
use ztunnel_tests::process::Launch;
use ztunnel_tests::proof;
use ztunnel_tests::settings;
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, ONE_NODE, Pod};
use ztunnel_tests::wait;

const PORT: u16 = 7000;
const BPF_OBJ_GET: i64 = 7;
const BPF_LINK_DETACH: i64 = 34;

fn bpf(command: i64, attributes: &mut [u64; 2]) -> Result<i32> {
    // SAFETY: the attributes have sixteen bytes, and the memory to which they point outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), 16) };
    ensure!(result >= 0, "bpf({command}): {}", Error::last_os_error());
    Ok(i32::try_from(result)?)
}

/// Detaches the link that is pinned at a path, as `bpftool link detach` does.
fn detach(pin: &Path) -> Result<()> {
    let path = std::ffi::CString::new(pin.as_os_str().as_bytes())?;
    let fd = bpf(BPF_OBJ_GET, &mut [path.as_ptr() as u64, 0]).with_context(|| pin.display().to_string())?;
    // SAFETY: the call has returned a new descriptor.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    bpf(BPF_LINK_DETACH, &mut [u64::try_from(link.as_raw_fd())?, 0]).with_context(|| pin.display().to_string())?;
    Ok(())
}

/// The pins of all links of a daemon.
fn links(pins: &Path) -> Result<Vec<PathBuf>> {
    let layout = fs::read_dir(pins)?.next().context("no layout")??.path();
    let mut found: Vec<_> = ["connect4", "connect6", "setsockopt"].iter().map(|name| layout.join(name)).collect();
    for folder in [layout.join("pods"), layout.join("devices")] {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                found.extend(fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?);
            } else {
                found.push(path);
            }
        }
    }
    Ok(found)
}

fn enrolled() -> Result<(Testbed, Vec<PathBuf>)> {
    let mut bed = Testbed::node_a_enrolled()?;
    let pins = bed.daemon_mut("node-a")?.pins().to_owned();
    let links = links(&pins)?;
    // Three hooks, and for each of two pods `steer` and both guards of one device.
    ensure!(links.len() == 3 + 2 * 3, "{links:?}");
    Ok((bed, links))
}

/// All links are pinned again, the repair was counted, and connections are captured.
fn whole_again(bed: &Testbed, links: &[PathBuf]) -> Result<()> {
    let daemon = bed.daemon("node-a")?;
    let there = || Ok(links.iter().all(|link| link.exists()) && restored(bed)? >= links.len() as u64);
    wait::until_true("every link to be put back", wait::PATIENCE, there).with_context(|| daemon.tail())?;
    ensure!(daemon.get("/healthz/ready")?.status == 200, "not ready");
    ensure!(!daemon.lines_with(&["another process removed", "again"])?.is_empty(), "it said nothing");
    captured(bed)
}

fn restored(bed: &Testbed) -> Result<u64> {
    let dump = bed.daemon("node-a")?.dump()?;
    dump.value().get("linksRestored").and_then(serde_json::Value::as_u64).context("no linksRestored")
}

fn captured(bed: &Testbed) -> Result<()> {
    for family in Family::BOTH {
        let echo = Server::echo(bed.pod("web-b")?, bed.pod("web-b")?.at(family, PORT))?;
        proof::outbound(bed, "client-a", &echo, Pod::connect)?;
        let inside = Server::echo(bed.pod("web-a")?, bed.pod("web-a")?.at(family, PORT))?;
        proof::inbound(bed, "client-b", "web-a", &inside, inside.address())?;
    }
    Ok(())
}

#[test]
fn removed_pins_open_no_pod_and_come_back() -> Result<()> {
    let (bed, links) = enrolled()?;
    let echo = Server::echo(bed.pod("web-b")?, bed.pod("web-b")?.at(Family::V4, PORT))?;
    for link in &links {
        fs::remove_file(link).with_context(|| link.display().to_string())?;
    }
    proof::outbound(&bed, "client-a", &echo, Pod::connect).context("without any pin")?;
    drop(echo);
    whole_again(&bed, &links)
}

#[test]
fn removed_pins_are_there_again_for_the_next_daemon() -> Result<()> {
    let (mut bed, links) = enrolled()?;
    let layout = links.first().and_then(|link| link.parent()).context("no link")?.to_owned();
    fs::remove_dir_all(&layout)?;
    whole_again(&bed, &links)?;
    // A pod that is enrolled now shares the maps of the others.
    bed.release()?;
    bed.enrol()?;
    whole_again(&bed, &links)?;
    let echo = Server::echo(bed.pod("web-b")?, bed.pod("web-b")?.at(Family::V4, PORT + 1))?;
    bed.daemon_mut("node-a")?.kill9()?;
    ensure!(bed.pod("client-a")?.connect(echo.address()).is_err(), "the pod is open");
    bed.daemon_mut("node-a")?.restart()?;
    bed.daemon("node-a")?.enrolled("client-a")?;
    captured(&bed)
}

#[test]
fn detached_links_are_attached_again() -> Result<()> {
    let (bed, links) = enrolled()?;
    for link in &links {
        detach(link)?;
    }
    whole_again(&bed, &links)
}

#[test]
fn a_new_device_of_a_pod_is_guarded_and_one_that_goes_leaves_no_pin() -> Result<()> {
    let (bed, before) = enrolled()?;
    let pins = bed.daemon("node-a")?.pins().to_owned();
    let pod = bed.pod("client-a")?;
    pod.netns.ip("link add extra type veth peer name far\nlink set far up\nlink set extra up\n")?;
    let count = |wanted: usize| {
        wait::until_true(&format!("{wanted} links"), wait::PATIENCE, || Ok(links(&pins)?.len() == wanted))
            .with_context(|| format!("{:#?}", links(&pins)))
    };
    // Both ends of the pair are in the pod, and each device has two guards.
    count(before.len() + 4)?;
    pod.netns.ip("link del extra\n")?;
    count(before.len())?;
    ensure!(restored(&bed)? == 0, "a device that went was taken for an attack");
    captured(&bed)?;
    bed.release()?;
    count(3)
}

#[test]
fn pins_that_die_with_the_daemon_are_refused() -> Result<()> {
    let bed = Testbed::new(ONE_NODE)?;
    let (binary, netns) = (settings::daemon_binary()?.display().to_string(), &bed.topology.node("node-a")?.netns);
    let folder = &bed.topology.folder;
    let pins = folder.join("bpf").display().to_string();
    // The daemon runs in its own mount namespace and mounts a BPF file system there, which disappears with the namespace.
    let launch = |args: &[&str]| Launch::new("unshare").args(["--mount", &binary]).args(args).inside(netns);
    let private = |args: &[&str]| launch(args).finish();
    let (mesh, state) = (bed.mesh.folder().display().to_string(), folder.join("state").display().to_string());
    let run = ["run", "--node", "node-a", "--mesh", &mesh, "--state", &state, "--bpf-pin", &pins];
    let done = private(&run)?;
    ensure!(!done.success && done.stderr.contains("--bpf-pin-private"), "{}{}", done.stdout, done.stderr);
    let done = private(&["check", "--bpf-pin", &pins])?;
    let row = done.stdout.lines().find(|line| line.contains("pins outlive")).unwrap_or_default();
    ensure!(!done.success && row.contains("MISSING"), "{}", done.stdout);
    let accepted = launch(&[&run[..], &["--bpf-pin-private"]].concat());
    let mut accepted = accepted.log_to(&folder.join("private.log")).start()?;
    wait::until_true("a daemon that may be private to be ready", wait::PATIENCE, || {
        ensure!(accepted.ended()?.is_none(), "it ended");
        Ok(admin::get(netns, "/healthz/ready").is_ok_and(|answer| answer.status == 200))
    })?;
    drop(accepted);
    // With the machine's own BPF file system there is no fault.
    let usual = bed.topology.prefix.pins("node-a").display().to_string();
    let done = private(&["check", "--bpf-pin", &usual])?;
    let row = done.stdout.lines().find(|line| line.contains("pins outlive")).unwrap_or_default();
    ensure!(row.contains("ok"), "{}", done.stdout);
    Ok(())
}

#[test]
fn an_older_installation_is_seen_and_named() -> Result<()> {
    let mut bed = Testbed::node_a_enrolled()?;
    bed.daemon_mut("node-a")?.kill9()?;
    // As if the earlier daemon had had another --bpf-pin.
    let (pins, old) = (bed.daemon("node-a")?.pins().to_owned(), bed.topology.prefix.pins("old"));
    fs::rename(&pins, &old)?;
    bed.daemon_mut("node-a")?.restart()?;
    let reason = bed.daemon("node-a")?.refused("client-a")?;
    let remedy = format!("ztunnel cleanup --bpf-pin {}", old.display());
    ensure!(reason.contains(&remedy), "{reason}");
    let (own, place) = (pins.display().to_string(), format!("pinned at {}", old.display()));
    let binary = settings::daemon_binary()?;
    let check =
        |pins: &str| daemon::command(&binary, &bed.topology.node("node-a")?.netns, &["check", "--bpf-pin", pins]);
    let row = |stdout: &str| stdout.lines().any(|line| line.contains("other installations") && line.contains(&place));
    ensure!(row(&check(&own)?.stdout), "`ztunnel check` does not tell of it");
    ensure!(!row(&check(&old.display().to_string())?.stdout), "the installation that is meant is told as another");
    let echo = Server::echo(bed.pod("web-b")?, bed.pod("web-b")?.at(Family::V4, PORT))?;
    ensure!(bed.pod("client-a")?.connect(echo.address()).is_err(), "the pod is open");

    let state = bed.topology.folder.join("state-old").display().to_string();
    let node = &bed.topology.node("node-a")?.netns;
    let args = ["cleanup", "--bpf-pin", &old.display().to_string(), "--state", &state];
    let done = daemon::command(&settings::daemon_binary()?, node, &args)?;
    ensure!(done.success, "{}{}", done.stdout, done.stderr);
    for pod in ["client-a", "web-a"] {
        bed.daemon("node-a")?.enrolled(pod)?;
    }
    proof::outbound(&bed, "client-a", &echo, Pod::connect)?;
    Ok(())
}

/// Without its records the daemon does not know to which pod a captured network namespace belongs. It may belong to a pod that
/// can't be enrolled at the moment.
#[test]
fn another_state_directory_opens_no_captured_pod() -> Result<()> {
    let mut bed = Testbed::node_a_enrolled()?;
    let echo = Server::echo(bed.pod("web-b")?, bed.pod("web-b")?.at(Family::V4, PORT))?;
    bed.daemon_mut("node-a")?.kill9()?;
    let state = bed.daemon("node-a")?.state().to_owned();
    fs::rename(&state, state.with_extension("before"))?;
    // The network namespace can't be verified as the pod's, because it lacks an address.
    let v6 = bed.pod("client-a")?.v6;
    bed.pod("client-a")?.netns.ip(&format!("addr del {v6}/64 dev eth0\n"))?;
    fs::create_dir_all(&state)?;
    bed.daemon_mut("node-a")?.restart()?;
    let daemon = bed.daemon("node-a")?;
    daemon.shut("client-a")?;
    daemon.enrolled("web-a")?;
    wait::until_true("the daemon to tell of it", wait::PATIENCE, || {
        Ok(!daemon.lines_with(&["captured by an earlier daemon", "--state has no record"])?.is_empty())
    })?;
    ensure!(bed.pod("client-a")?.connect(echo.address()).is_err() && echo.accepted() == 0, "the pod is open");
    bed.pod("client-a")?.netns.ip(&format!("addr add {v6}/64 dev eth0 nodad\n"))?;
    daemon.enrolled("client-a")?;
    proof::outbound(&bed, "client-a", &echo, Pod::connect)?;
    Ok(())
}

#[test]
fn a_namespace_that_is_gone_is_not_held_open() -> Result<()> {
    let mut bed = Testbed::node_a_enrolled()?;
    bed.topology.delete_netns("client-a")?;
    // The manifest of the pod still exists, so the pod stays captured and closed.
    bed.daemon("node-a")?.shut("client-a")?;
    wait::until_true("the kernel to remove the namespace", wait::PATIENCE, || Ok(!bed.topology.plugged("client-a")?))
        .with_context(|| bed.daemon("node-a").map(daemon::Daemon::tail).unwrap_or_default())?;
    ensure!(restored(&bed)? == 0, "the end of a namespace was taken for an attack");
    ensure!(bed.daemon("node-a")?.get("/healthz/ready")?.status == 200, "not ready");
    Ok(())
}
