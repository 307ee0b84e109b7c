//! Debian packages: finds the missing ones, and installs them without starting a service.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::{process, workspace};

const LISTS: &str = "/var/lib/apt/lists";
/// Debian's archive removes files that a newer version replaces: older lists name packages that no longer exist.
const LISTS_GO_STALE: Duration = Duration::from_secs(24 * 60 * 60);
/// invoke-rc.d and deb-systemd-invoke ask this program before they start a service.
const POLICY: &str = "/usr/sbin/policy-rc.d";
const POLICY_TEXT: &str = "#!/bin/sh\n# By `cargo xtask setup`, while it installs: start no service.\nexit 101\n";
/// Units that the installed packages would start at the next boot.
const UNITS: [&str; 5] =
    ["iperf3.service", "nftables.service", "nginx.service", "prometheus.service", "redis-server.service"];

/// apt-get, with package lists that are updated at most once.
pub(super) struct Apt {
    lists_checked: bool,
}

impl Apt {
    pub(super) fn new() -> Self {
        Self { lists_checked: false }
    }

    /// The packages that dpkg does not have as installed; all of them if there is no dpkg.
    pub(super) fn missing<'a>(packages: &[&'a str]) -> Vec<&'a str> {
        let is_installed = |package: &&str| {
            let mut query = Command::new("dpkg-query");
            query.args(["--show", "--showformat=${db:Status-Status}", package]);
            process::stdout_of(&mut query).is_some_and(|status| status == "installed")
        };
        packages.iter().copied().filter(|package| !is_installed(package)).collect()
    }

    /// Installs the packages. Starts no service, and fails rather than remove another package.
    pub(super) fn install(&mut self, packages: &[&str]) -> Result<()> {
        let names = packages.join(" ");
        if process::find_program("apt-get").is_none() {
            bail!("no apt-get here: install by other means what these Debian packages bring: {names}");
        }
        if !workspace::is_root()? {
            bail!("not root: run `apt-get install {names}` as root, or this command");
        }
        if !self.lists_checked && lists_are_stale() {
            self.update();
        }
        let _services_stay_off = ServicesOff::start()?;
        let fresh_units: Vec<&str> = UNITS.into_iter().filter(|unit| !unit_exists(unit)).collect();
        if let Err(error) = install_once(packages) {
            if self.lists_checked {
                return Err(error);
            }
            self.update();
            install_once(packages)?;
        }
        disable_at_boot(&fresh_units);
        Ok(())
    }

    /// A failure is not an error yet: the present lists may be sufficient, and the installation shows that.
    fn update(&mut self) {
        self.lists_checked = true;
        if let Err(error) = process::run_keeping_tail(apt_get().args(["update", "-qq"])) {
            eprintln!("apt-get update failed, going on with the lists that are there: {error:#}");
        }
    }
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
    command
}

fn install_once(packages: &[&str]) -> Result<()> {
    let mut command = apt_get();
    command.args(["install", "-qq", "--yes", "--no-remove", "--no-install-recommends"]);
    // Without Recommends, a fresh machine still needs the certificates with which curl and cargo verify servers.
    command.args(["-o", "Dpkg::Use-Pty=0", "ca-certificates"]).args(packages);
    process::run_keeping_tail(&mut command)
}

fn lists_are_stale() -> bool {
    let lists = Path::new(LISTS);
    let has_packages = fs::read_dir(lists)
        .is_ok_and(|entries| entries.flatten().any(|entry| entry.file_name().to_string_lossy().contains("_Packages")));
    // The files have the server's modification time; the folders have the time of the last update.
    let changed = |folder: PathBuf| folder.metadata().and_then(|data| data.modified()).ok();
    let updated = changed(lists.to_path_buf()).max(changed(lists.join("partial")));
    let age = updated.and_then(|time| SystemTime::now().duration_since(time).ok());
    !has_packages || age.is_none_or(|age| age > LISTS_GO_STALE)
}

fn unit_exists(unit: &str) -> bool {
    ["/lib/systemd/system", "/usr/lib/systemd/system", "/etc/systemd/system"]
        .iter()
        .any(|folder| Path::new(folder).join(unit).exists())
}

/// Packages enable their units, but a web server at boot is not wanted on a build machine.
fn disable_at_boot(units: &[&str]) {
    let came: Vec<&str> = units.iter().copied().filter(|unit| unit_exists(unit)).collect();
    if Path::new("/run/systemd/system").exists() && !came.is_empty() {
        let _best_effort = process::run_keeping_tail(Command::new("systemctl").args(["--quiet", "disable"]).args(came));
    }
}

/// While this lives, packages that are installed start no service.
struct ServicesOff {
    is_ours: bool,
}

impl ServicesOff {
    fn start() -> Result<Self> {
        // A policy of the machine itself is kept; a policy that a killed set-up left is taken over.
        let is_ours = fs::read_to_string(POLICY).map_or(!Path::new(POLICY).exists(), |text| text == POLICY_TEXT);
        if is_ours {
            fs::write(POLICY, POLICY_TEXT)
                .and_then(|()| fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755)))
                .with_context(|| format!("could not write {POLICY}, which keeps apt-get from starting services"))?;
        }
        Ok(Self { is_ours })
    }
}

impl Drop for ServicesOff {
    fn drop(&mut self) {
        if self.is_ours
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!("could not remove {POLICY} ({error}): remove it, or packages will not start their services");
        }
    }
}
