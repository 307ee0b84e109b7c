//! Network namespaces: making one, running code in it, removing it.
//!
//! They are bind-mounted under [`FOLDER`], as `ip netns add` does it, so that `ip -n NAME` works with them.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::panic;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::process::Launch;

/// The folder of named network namespaces.
pub const FOLDER: &str = "/run/netns";

/// A named network namespace, removed when dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
    path: PathBuf,
    kept: bool,
}

impl Netns {
    /// Makes the namespace and brings its loopback up.
    ///
    /// # Errors
    /// When the name is taken or the kernel refuses.
    pub fn create(name: &str) -> Result<Self> {
        fs::create_dir_all(FOLDER).with_context(|| format!("cannot make {FOLDER}"))?;
        let path = Path::new(FOLDER).join(name);
        File::create_new(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let netns = Self { name: name.to_owned(), path, kept: false };
        let bound = on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
            mount(Some("/proc/thread-self/ns/net"), &netns.path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .with_context(|| format!("cannot mount the namespace on {}", netns.path.display()))
        });
        bound?;
        netns.ip("link set lo up\n")?;
        Ok(netns)
    }

    /// Refers to a namespace that someone else made and will remove.
    #[must_use]
    pub fn existing(name: &str) -> Self {
        Self { name: name.to_owned(), path: Path::new(FOLDER).join(name), kept: true }
    }

    /// The name, for `ip -n`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that pins the namespace.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps the namespace when this value is dropped.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// Runs `work` inside, on a thread of its own. A socket that is made there stays in this namespace for its
    /// lifetime.
    ///
    /// # Errors
    /// When the namespace can't be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file = self.open()?;
        on_own_thread(|| {
            enter(&file).with_context(|| format!("cannot enter {}", self.path.display()))?;
            Ok(work())
        })
    }

    /// Opens the file that pins the namespace.
    ///
    /// # Errors
    /// When the namespace is gone.
    pub fn open(&self) -> Result<File> {
        File::open(&self.path).with_context(|| format!("cannot open {}", self.path.display()))
    }

    /// Runs a batch of `ip` commands inside.
    ///
    /// # Errors
    /// With the output of `ip`.
    pub fn ip(&self, batch: &str) -> Result<()> {
        self.batch("ip", &["-n", &self.name, "-batch", "-"], batch)
    }

    /// Loads an nftables script inside.
    ///
    /// # Errors
    /// With the output of `nft`.
    pub fn nft(&self, script: &str) -> Result<()> {
        self.batch("nft", &["-f", "-"], script)
    }

    fn batch(&self, program: &str, args: &[&str], input: &str) -> Result<()> {
        let done = Launch::new(program).args(args).inside(self).input(input).finish()?;
        if !done.success {
            bail!("`{program}` failed in {}: {}\n{input}", self.name, done.stderr);
        }
        Ok(())
    }

    /// Writes a setting below `/proc/sys/net`, e.g. `ipv4/ip_forward`.
    ///
    /// # Errors
    /// When the setting does not exist.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys/net").join(key);
        self.run(|| fs::write(&path, value).with_context(|| format!("cannot write {}", path.display())))?
    }

    /// Reads a file as seen inside, for `/proc/thread-self/net/…` and `/proc/sys/net/…`.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn read(&self, path: &str) -> Result<String> {
        self.run(|| fs::read_to_string(path).with_context(|| format!("cannot read {path}")))?
    }

    /// Removes the name now. The namespace itself exists as long as something else holds it.
    pub fn remove(&mut self) {
        if !self.kept {
            remove(&self.name);
            self.kept = true;
        }
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Removes a namespace's name, if it exists.
pub(crate) fn remove(name: &str) {
    let path = Path::new(FOLDER).join(name);
    let _ = umount2(&path, MntFlags::MNT_DETACH);
    if let Err(error) = fs::remove_file(&path)
        && error.kind() != ErrorKind::NotFound
    {
        eprintln!("cannot remove {}: {error}", path.display());
    }
}

/// Moves the calling thread into a namespace permanently.
#[expect(clippy::disallowed_methods, reason = "the thread ends after its work, so there is nothing to restore")]
pub(crate) fn enter(file: &File) -> nix::Result<()> {
    nix::sched::setns(file, CloneFlags::CLONE_NEWNET)
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(work).join().unwrap_or_else(|cause| panic::resume_unwind(cause)))
}
