//! Puts the plugin on the node: its program into the folder of CNI programs, its entry into the CNI configuration.
//!
//! A program that does not run on the node would keep every pod from starting, so it is tried there first. The configuration
//! belongs to another program, which may rewrite it at any time: the installer reads it periodically and changes it only if the entry is
//! missing. A restart of the daemon changes nothing. The removal of the daemon removes program and entry.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::sleep,
    time::{Duration, Instant},
};

use nix::libc;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::{sync::watch, task::spawn_blocking};
use tracing::{error, info, warn};

use super::{
    NAME, Place,
    conflist::{self, ConflistError},
    seen::replace,
};

/// Until it has been looked at for the first time.
const NOT_YET: &str =
    "the CNI plugin is not in the CNI configuration yet: pods of the mesh may start before they are enrolled";
/// How often the configuration is looked at: new pods of the mesh start unprotected while the entry is missing.
const LOOK: Duration = Duration::from_millis(500);
/// A CNI configuration is not longer.
const MOST_BYTES: u64 = 1 << 20;
/// Deadline for the answer of the program to VERSION on the node.
const TRIAL: Duration = Duration::from_secs(10);

/// Where and how the plugin is installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The folder of CNI programs, under its path on the node.
    pub programs: PathBuf,
    /// The folder of the CNI configuration, under its path on the node.
    pub configuration: PathBuf,
    /// Namespaces whose pods start whether there is a daemon or not.
    pub excluded: Vec<String>,
    /// The root folder of the node, as the daemon sees it.
    pub root: PathBuf,
}

/// The record of an installation, for its removal.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Installed {
    programs: PathBuf,
    configuration: PathBuf,
}

/// Why the plugin is not installed, or not removed.
#[derive(Debug, Error)]
pub enum InstallError {
    /// A file cannot be used.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// The step.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The program cannot run on the node.
    #[error(
        "the plugin does not run on the node: {why}. It needs a C library on the node (glibc) that is not \
         older than that with which the daemon was built; until the plugin runs, pods of the mesh are \
         enrolled after their first container has started"
    )]
    Trial {
        /// What happened.
        why: String,
    },
    /// There is no configuration that it could join.
    #[error("there is no CNI configuration in {} yet", .0.display())]
    NoConfiguration(PathBuf),
    /// It is installed in a directory that is not visible here.
    #[error(
        "the plugin is installed in {}, which is not visible to this daemon: mount the directory under the \
         same path. Until the plugin is removed, new pods of the mesh wait for a daemon with --cni-install. \
         If the directory does not exist on the node any more, remove {}",
        configuration.display(),
        record.display()
    )]
    NotVisible {
        /// The directory of the configuration.
        configuration: PathBuf,
        /// The record of the installation.
        record: PathBuf,
    },
    /// It cannot join.
    #[error(
        "cannot add the plugin to the CNI configuration {}: {source}; the file stays as it is, and pods of \
         the mesh are enrolled after their first container has started",
        path.display()
    )]
    Conflist {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: ConflistError,
    },
}

fn file<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> InstallError + 'a {
    move |source| InstallError::File { what, path: path.to_owned(), source }
}

/// Keeps the plugin installed.
#[derive(Debug)]
pub struct Installer {
    place: Place,
    settings: Settings,
    /// The program of the daemon, which is the plugin's as well.
    own: PathBuf,
    /// The plugin's program as it was when it was written: device, inode and time of change.
    written: Option<(u64, u64, i64)>,
    /// The file in which the entry is.
    joined: Option<PathBuf>,
    /// What is wrong.
    problem: watch::Sender<Option<String>>,
    is_over: IsOver,
}

/// Whether the installation has been removed, so that nothing is put in place any more.
type IsOver = Arc<Mutex<bool>>;

/// Removes what an installer has put in place.
#[derive(Debug)]
pub struct Remover {
    place: Place,
    is_over: IsOver,
}

impl Remover {
    /// Has the installer stop, and removes everything. Blocks on the file system.
    ///
    /// # Errors
    /// As [`remove`].
    pub fn remove(&self) -> Result<bool, InstallError> {
        let mut is_over = self.is_over.lock().unwrap_or_else(PoisonError::into_inner);
        *is_over = true;
        remove(&self.place)
    }
}

impl Installer {
    /// Keeps it installed with these settings.
    #[must_use]
    pub fn new(place: Place, settings: Settings) -> Self {
        Self {
            place,
            settings,
            own: "/proc/self/exe".into(),
            written: None,
            joined: None,
            problem: watch::channel(Some(NOT_YET.to_owned())).0,
            is_over: IsOver::default(),
        }
    }

    /// Why new pods of the mesh may start before they are enrolled; nothing: they do not.
    #[must_use]
    pub fn problem(&self) -> watch::Receiver<Option<String>> {
        self.problem.subscribe()
    }

    /// What removes it again.
    #[must_use]
    pub fn remover(&self) -> Remover {
        Remover { place: self.place.clone(), is_over: Arc::clone(&self.is_over) }
    }

    /// Looks whether everything is in place, and puts it there, for as long as this is polled.
    pub async fn run(mut self) {
        loop {
            let looking = spawn_blocking(move || {
                self.look_and_tell();
                self
            });
            match looking.await {
                Ok(installer) => self = installer,
                Err(failure) => {
                    return error!(%failure, "installing the CNI plugin failed: this is a bug, please report it");
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Looks once, and logs a problem when it differs from the last one.
    fn look_and_tell(&mut self) {
        let is_over = Arc::clone(&self.is_over);
        let is_over = is_over.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_over {
            return;
        }
        match self.look() {
            Ok(()) => drop(self.problem.send_replace(None)),
            Err(error) => {
                let text = error.to_string();
                self.joined = None;
                let before = self.problem.send_replace(Some(text.clone()));
                if before.as_ref() != Some(&text) {
                    match error {
                        InstallError::NoConfiguration(_) => {
                            warn!("{text}; ztunnel-cni is added to it when it exists");
                        }
                        _ => error!("{text}"),
                    }
                }
            }
        }
    }

    /// Looks once. Blocks on the file system.
    ///
    /// # Errors
    /// Something cannot be put in place; what was there is as before.
    fn look(&mut self) -> Result<(), InstallError> {
        if self.written.is_none() {
            let Settings { programs, configuration, .. } = self.settings.clone();
            let next = Installed { programs, configuration };
            if let Some(before) = Installed::read(&self.place)?.filter(|before| *before != next) {
                before.take_out()?;
            }
            let record = serde_json::to_vec(&next).unwrap_or_default();
            let path = self.place.installed();
            replace(&path, &record, 0o600).map_err(file("write", &path))?;
        }
        self.install_program()?;
        let folder = &self.settings.configuration;
        let names = configurations(folder)?;
        let mut refused = None;
        for name in names {
            let path = folder.join(name);
            match join(&path, &self.entry()) {
                Ok(was_missing) => {
                    if was_missing || self.joined.as_ref() != Some(&path) {
                        info!(path = %path.display(), was_missing, "ztunnel-cni is in the CNI configuration: pods of the mesh start when they are enrolled");
                    }
                    self.joined = Some(path);
                    return Ok(());
                }
                // The container runtime may skip it as well, or use none at all then.
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        Err(refused.unwrap_or_else(|| InstallError::NoConfiguration(folder.clone())))
    }

    fn entry(&self) -> String {
        let (socket, seen) = (self.place.socket(), self.place.seen());
        serde_json::json!({
            "type": NAME, "socket": socket, "seen": seen, "excludeNamespaces": self.settings.excluded,
        })
        .to_string()
    }

    /// Puts the program into its folder, if it is not there as it was written.
    fn install_program(&mut self) -> Result<(), InstallError> {
        let path = self.settings.programs.join(NAME);
        let place =
            |path: &Path| fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino(), found.mtime()));
        if self.written.is_some() && place(&path) == self.written {
            return Ok(());
        }
        fs::create_dir_all(&self.settings.programs).map_err(file("make", &self.settings.programs))?;
        let next = self.settings.programs.join(format!(".{NAME}.next"));
        copy_program(&self.own, &next).map_err(file("write", &next))?;
        if let Err(error) = self.try_out(&next) {
            // It must not be started.
            let _gone = fs::remove_file(&next);
            return Err(error);
        }
        fs::rename(&next, &path).map_err(file("write", &path))?;
        self.written = place(&path);
        Ok(())
    }

    /// Starts the program from the root folder of the node and asks it for its versions.
    fn try_out(&self, program: &Path) -> Result<(), InstallError> {
        let failed = |why: String| InstallError::Trial { why };
        let mut child = Command::new(&self.own)
            .arg("cni")
            .args([Path::new("--try-root"), &self.settings.root, Path::new("--try-program"), program])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let begun = Instant::now();
        let status = loop {
            match child.try_wait().map_err(|error| failed(error.to_string()))? {
                Some(status) => break status,
                None if begun.elapsed() >= TRIAL => {
                    let _ended = child.kill();
                    let _reaped = child.wait();
                    return Err(failed(format!("it does not answer within {} s", TRIAL.as_secs())));
                }
                None => sleep(Duration::from_millis(5)),
            }
        };
        let output = |stream: Option<&mut dyn io::Read>| {
            let mut text = String::new();
            stream.map(|stream| stream.take(1024).read_to_string(&mut text));
            text
        };
        let answer = output(child.stdout.as_mut().map(|stream| stream as &mut dyn io::Read));
        if status.success() && answer.contains("supportedVersions") {
            return Ok(());
        }
        let said = output(child.stderr.as_mut().map(|stream| stream as &mut dyn io::Read));
        Err(failed(format!("{status}: {}{}", said.trim(), answer.trim())))
    }
}

/// The files of the CNI configuration in the order in which container runtimes look at them.
fn configurations(folder: &Path) -> Result<Vec<String>, InstallError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(file("read", folder)(error)),
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<_> = names.filter(|name| conflist::is_config(name)).collect();
    names.sort_unstable();
    Ok(names)
}

/// Whether the entry was missing.
fn join(path: &Path, entry: &str) -> Result<bool, InstallError> {
    change(path, |text| conflist::join(text, entry))
}

/// Changes a configuration in place of itself. Whether it is another one now.
fn change(path: &Path, next: impl FnOnce(&str) -> Result<String, ConflistError>) -> Result<bool, InstallError> {
    let invalid = |source| InstallError::Conflist { path: path.to_owned(), source };
    let mut text = String::new();
    let mut file_read = File::open(path).map_err(file("read", path))?;
    let mode = file_read.metadata().map_err(file("read", path))?.permissions().mode() & 0o777;
    match (&mut file_read).take(MOST_BYTES).read_to_string(&mut text) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(invalid(ConflistError::Invalid("it is not text".to_owned())));
        }
        read => read.map_err(file("read", path))?,
    };
    let next = next(&text).map_err(invalid)?;
    if next == text {
        return Ok(false);
    }
    // A link stays a link: what it leads to is replaced.
    let target = fs::canonicalize(path).map_err(file("find", path))?;
    replace(&target, next.as_bytes(), mode).map_err(file("write", &target))?;
    Ok(true)
}

fn copy_program(from: &Path, to: &Path) -> io::Result<()> {
    match fs::remove_file(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o755).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
    let mut file = options.open(to)?;
    file.set_permissions(fs::Permissions::from_mode(0o755))?;
    io::copy(&mut File::open(from)?, &mut file)?;
    file.sync_all()
}

/// Where the plugin has been installed, if it has: the file of the CNI configuration in which its entry is, if it is in one.
#[must_use]
pub fn installed(place: &Place) -> Option<Option<PathBuf>> {
    let record = Installed::read(place).ok()??;
    let names = configurations(&record.configuration).unwrap_or_default();
    let mut paths = names.into_iter().map(|name| record.configuration.join(name));
    Some(paths.find(|path| fs::read_to_string(path).is_ok_and(|text| conflist::has(&text))))
}

/// Takes the plugin off the node, if it has been installed: first out of the configuration, as nothing starts where a program is
/// missing. Whether something was removed. Blocks on the file system.
///
/// # Errors
/// Something could not be removed, and is still recorded.
pub fn remove(place: &Place) -> Result<bool, InstallError> {
    let Some(record) = Installed::read(place)? else { return Ok(false) };
    if !record.configuration.is_dir() {
        return Err(InstallError::NotVisible { configuration: record.configuration, record: place.installed() });
    }
    record.take_out()?;
    for path in [place.socket(), place.seen(), place.installed()] {
        remove_file(&path)?;
    }
    Ok(true)
}

impl Installed {
    /// The record of a place, if there is one.
    fn read(place: &Place) -> Result<Option<Self>, InstallError> {
        let path = place.installed();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(file("read", &path)(error)),
        };
        serde_json::from_slice(&text).map_err(|error| file("read", &path)(error.into()))
    }

    /// Removes the entry and the program.
    fn take_out(&self) -> Result<(), InstallError> {
        for name in configurations(&self.configuration)? {
            let path = self.configuration.join(name);
            match change(&path, conflist::leave) {
                Ok(true) => info!(path = %path.display(), "ztunnel-cni was removed from the CNI configuration"),
                Ok(false) => {}
                // What cannot be read has no entry that the container runtime would read.
                Err(InstallError::Conflist { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        remove_file(&self.programs.join(NAME))
    }
}

fn remove_file(path: &Path) -> Result<(), InstallError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
