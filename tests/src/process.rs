//! Processes in a namespace: started without a shell, ended by their own id, and never outliving the test.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::libc;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, setsid};

use crate::netns::{Netns, enter};
use crate::requirements;
use crate::wait;

/// A capability, by its number in `linux/capability.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Capability {
    /// Networking: marks, transparent sockets, rules and routes.
    NetAdmin = 12,
    /// Raw sockets.
    NetRaw = 13,
    /// Changing the root directory, entering mount namespaces.
    SysChroot = 18,
    /// Looking at processes of others.
    SysPtrace = 19,
    /// Entering namespaces, mounting.
    SysAdmin = 21,
    /// Loading BPF.
    Bpf = 39,
}

/// The highest capability (`CAP_CHECKPOINT_RESTORE`).
const LAST_CAPABILITY: u8 = 40;

/// A process to be started.
#[derive(Debug)]
pub struct Launch {
    program: String,
    args: Vec<OsString>,
    variables: Vec<(String, OsString)>,
    netns: Option<PathBuf>,
    group: Option<PathBuf>,
    open_files: Option<u64>,
    output: Option<PathBuf>,
    input: Option<String>,
    input_file: Option<File>,
    dropped: Vec<u8>,
    detached: bool,
    patience: Duration,
}

/// The result of a finished process.
#[derive(Debug)]
pub struct Finished {
    /// Whether it exited with 0.
    pub success: bool,
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Launch {
    /// A program of this machine by name, or by absolute path.
    #[must_use]
    pub fn new(program: &str) -> Self {
        Self {
            program: program.to_owned(),
            args: Vec::new(),
            variables: Vec::new(),
            netns: None,
            group: None,
            open_files: None,
            output: None,
            input: None,
            input_file: None,
            dropped: Vec::new(),
            detached: false,
            patience: wait::PATIENCE,
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Adds a variable. Except for these and `PATH` the environment is empty.
    #[must_use]
    pub fn variable(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.variables.push((name.to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Starts it in a network namespace. Only the network namespace changes; `ip netns exec` would change the mount
    /// namespace as well.
    #[must_use]
    pub fn inside(mut self, netns: &Netns) -> Self {
        self.netns = Some(netns.path().to_owned());
        self
    }

    /// Starts it in a control group.
    #[must_use]
    pub fn in_group(mut self, group: Option<&Path>) -> Self {
        self.group = group.map(Path::to_owned);
        self
    }

    /// Limits its open files.
    #[must_use]
    pub fn open_files(mut self, most: Option<u64>) -> Self {
        self.open_files = most;
        self
    }

    /// Appends standard output to `path`, and standard error to `path` + `.err`.
    #[must_use]
    pub fn log_to(mut self, path: &Path) -> Self {
        self.output = Some(path.to_owned());
        self
    }

    /// Sets the text of its standard input.
    #[must_use]
    pub fn input(mut self, text: &str) -> Self {
        self.input = Some(text.to_owned());
        self
    }

    /// Reads standard input from a file.
    #[must_use]
    pub fn input_file(mut self, file: File) -> Self {
        self.input_file = Some(file);
        self
    }

    /// Starts it without these capabilities.
    #[must_use]
    pub fn without(mut self, capabilities: &[Capability]) -> Self {
        self.dropped.extend(capabilities.iter().map(|capability| *capability as u8));
        self
    }

    /// Starts it with these capabilities only.
    #[must_use]
    pub fn with_only(mut self, capabilities: &[Capability]) -> Self {
        let keep = |number: &u8| !capabilities.iter().any(|capability| *capability as u8 == *number);
        self.dropped.extend((0..=LAST_CAPABILITY).filter(keep));
        self
    }

    /// Keeps it running when this process is killed, in a session of its own; see also [`Process::keep`].
    #[must_use]
    pub fn detached(mut self, detached: bool) -> Self {
        self.detached = detached;
        self
    }

    /// The time for which [`Launch::finish`] waits.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Starts the process.
    ///
    /// # Errors
    /// When the program does not exist or can't be started.
    pub fn start(self) -> Result<Process> {
        let (stdout, stderr) = match &self.output {
            Some(path) => (append(path)?, append(&path.with_added_extension("err"))?),
            None => (File::options().write(true).open("/dev/null")?, File::options().write(true).open("/dev/null")?),
        };
        self.spawn(stdout, stderr)
    }

    /// Runs the process to its end.
    ///
    /// # Errors
    /// When it can't be started, or does not end within the patience.
    pub fn finish(self) -> Result<Finished> {
        let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
        let patience = self.patience;
        let mut process = self.spawn(stdout.try_clone()?, stderr.try_clone()?)?;
        let status = process.ended_within(patience)?;
        Ok(Finished { success: status.success(), status, stdout: reread(&mut stdout)?, stderr: reread(&mut stderr)? })
    }

    fn spawn(self, stdout: File, stderr: File) -> Result<Process> {
        let mut command = Command::new(requirements::program(&self.program)?);
        command.args(&self.args).env_clear().env("PATH", requirements::PATH);
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.stdin(match self.input_file {
            Some(file) => file.into(),
            None if self.input.is_some() => Stdio::piped(),
            None => Stdio::null(),
        });
        command.stdout(stdout).stderr(stderr);
        let netns = match &self.netns {
            Some(path) => Some(File::open(path).with_context(|| format!("cannot open {}", path.display()))?),
            None => None,
        };
        let group = match &self.group {
            Some(path) => {
                let path = path.join("cgroup.procs");
                let open = File::options().write(true).open(&path);
                Some(open.with_context(|| format!("cannot open {}", path.display()))?)
            }
            None => None,
        };
        let (dropped, detached, open_files) = (self.dropped, self.detached, self.open_files);
        let prepare = move || prepare((netns.as_ref(), group.as_ref()), &dropped, open_files, detached);
        // SAFETY: between fork and exec `prepare` makes system calls only; it neither allocates nor takes a lock.
        unsafe { command.pre_exec(prepare) };
        let mut child = on_spawner(command).with_context(|| format!("cannot start {}", self.program))?;
        if let (Some(text), Some(mut pipe)) = (&self.input, child.stdin.take()) {
            pipe.write_all(text.as_bytes()).with_context(|| format!("cannot write to {}", self.program))?;
        }
        Ok(Process { program: self.program, child, kept: false })
    }
}

/// The work of the child between fork and exec.
fn prepare(
    (netns, group): (Option<&File>, Option<&File>),
    dropped: &[u8],
    open_files: Option<u64>,
    detached: bool,
) -> io::Result<()> {
    if detached {
        setsid()?;
    } else {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
    }
    if let Some(mut file) = group {
        // 0 stands for the process that writes.
        file.write_all(b"0")?;
    }
    if let Some(file) = netns {
        enter(file)?;
    }
    if let Some(most) = open_files {
        setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    }
    for capability in dropped {
        // SAFETY: PR_CAPBSET_DROP takes a number and touches no memory.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(*capability), 0, 0, 0) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// A running process, killed when dropped unless it is kept.
#[derive(Debug)]
pub struct Process {
    program: String,
    child: Child,
    kept: bool,
}

impl Process {
    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Keeps it running when this value is dropped.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// Sends a signal to this process and no other.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, signal).with_context(|| format!("cannot send {signal} to {} ({pid})", self.program))
    }

    /// Kills it and waits for its end.
    ///
    /// # Errors
    /// When it can't be waited for.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// How it ended, if it has ended.
    ///
    /// # Errors
    /// When its state can't be read.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end within `patience`; it is killed when this value is dropped.
    pub fn ended_within(&mut self, patience: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.program);
        wait::until(&what, patience, || self.ended())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.kept && matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

type Job = (Command, Sender<io::Result<Child>>);

/// Starts a command from a thread that lives as long as this process: the death signal of a child is tied to the
/// *thread* that forked it, and the thread of a test may end earlier.
fn on_spawner(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, jobs) = channel::<Job>();
        thread::spawn(move || {
            for (mut command, reply) in jobs {
                let _ = reply.send(command.spawn());
            }
        });
        Mutex::new(sender)
    });
    let (reply, child) = channel();
    let sender = spawner.lock().unwrap_or_else(PoisonError::into_inner);
    sender.send((command, reply)).map_err(|_| io::Error::other("the spawner is gone"))?;
    drop(sender);
    child.recv().map_err(|_| io::Error::other("the spawner gave no answer"))?
}

fn append(path: &Path) -> Result<File> {
    OpenOptions::new().create(true).append(true).open(path).with_context(|| format!("cannot open {}", path.display()))
}

fn reread(file: &mut File) -> Result<String> {
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
