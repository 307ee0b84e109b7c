//! The plugin: what the container runtime runs for each pod sandbox, last in the chain of CNI plugins.
//!
//! It changes nothing, and returns the result of the plugins before it unchanged. While no daemon answers it uses what the
//! daemon has last [seen](super::seen): a pod of a namespace that may be in the mesh does not start, and the kubelet tries again.

use std::{
    fs::File,
    io::{self, Read},
    net::IpAddr,
    os::{
        fd::AsRawFd as _,
        unix::{fs::OpenOptionsExt as _, net::UnixStream},
    },
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use nix::libc;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    message::{self, Action, Answer, Request},
    seen::Seen,
};

/// Versions of the specification in which a plugin gets the result of the plugins before it in the same form.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// A configuration, with the result of the plugins before in it, is not longer.
const MOST_BYTES: u64 = 1 << 20;
/// How long the daemon may be away, as while another takes its place: then the kubelet has to begin from the start.
const AWAY: Duration = Duration::from_secs(15);
/// How soon it is looked for again.
const AGAIN: Duration = Duration::from_millis(50);
/// How long a daemon that is there may take: longer than it does.
const ANSWER: Duration = Duration::from_secs(40);

/// The variables that the container runtime sets.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// CNI_COMMAND.
    pub command: String,
    /// CNI_CONTAINERID: the pod sandbox.
    pub container: String,
    /// CNI_NETNS: the path of the network namespace.
    pub netns: String,
    /// CNI_ARGS.
    pub args: String,
}

/// The configuration of the plugin, as the container runtime gives it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config<'a> {
    cni_version: String,
    #[serde(default)]
    socket: PathBuf,
    #[serde(default)]
    seen: PathBuf,
    #[serde(default)]
    exclude_namespaces: Vec<String>,
    #[serde(borrow)]
    prev_result: Option<&'a RawValue>,
}

/// The result of the plugins before, as far as it is read.
#[derive(Deserialize)]
struct Previous {
    #[serde(default)]
    interfaces: Vec<Interface>,
    #[serde(default)]
    ips: Vec<Ip>,
}

#[derive(Deserialize)]
struct Interface {
    #[serde(default)]
    sandbox: String,
}

#[derive(Deserialize)]
struct Ip {
    address: IpNet,
    interface: Option<usize>,
}

/// Why the container runtime is to give the pod up for now.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Failure {
    cni_version: String,
    /// As the specification numbers them.
    code: u32,
    msg: String,
}

/// Codes of the specification.
const INCOMPATIBLE_VERSION: u32 = 1;
const INVALID_VARIABLES: u32 = 4;
const IO_FAILURE: u32 = 5;
const NOT_DECODED: u32 = 6;
const INVALID_CONFIG: u32 = 7;
const TRY_AGAIN_LATER: u32 = 11;

type Problem = (u32, String);

/// Does what the container runtime wants. What it is answered on standard output, and whether that is a success.
#[must_use]
pub fn run(call: &Call, input: impl Read) -> (String, bool) {
    run_within(AWAY, call, input)
}

/// The same with another time that the daemon may be away.
fn run_within(away: Duration, call: &Call, input: impl Read) -> (String, bool) {
    let mut text = String::new();
    let read = input.take(MOST_BYTES).read_to_string(&mut text);
    if call.command == "VERSION" {
        return (versions(&text), true);
    }
    let parsed = read
        .map_err(|error| error.to_string())
        .and_then(|_| serde_json::from_str::<Config<'_>>(&text).map_err(|error| error.to_string()));
    let config = match parsed {
        Ok(config) => config,
        // What is removed was not made here.
        Err(_) if call.command == "DEL" => return (String::new(), true),
        Err(error) => {
            let msg = format!("the network configuration cannot be read: {error}");
            return (failure("1.0.0".to_owned(), (NOT_DECODED, msg)), false);
        }
    };
    match answer(away, call, &config) {
        Ok(answer) => (answer, true),
        Err(problem) => (failure(config.cni_version, problem), false),
    }
}

/// The answer to VERSION, in the version in which it is asked.
fn versions(text: &str) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Asked {
        cni_version: String,
    }
    let asked = serde_json::from_str::<Asked>(text).map(|asked| asked.cni_version);
    let version = asked.unwrap_or_else(|_| "1.1.0".to_owned());
    serde_json::json!({"cniVersion": version, "supportedVersions": VERSIONS}).to_string()
}

fn failure(cni_version: String, (code, msg): Problem) -> String {
    serde_json::to_string(&Failure { cni_version, code, msg }).unwrap_or_default()
}

fn answer(away: Duration, call: &Call, config: &Config<'_>) -> Result<String, Problem> {
    if !VERSIONS.contains(&&*config.cni_version) {
        let msg =
            format!("cniVersion {:?} is not supported; supported are {}", config.cni_version, VERSIONS.join(", "));
        return Err((INCOMPATIBLE_VERSION, msg));
    }
    match &*call.command {
        "ADD" => {
            let previous = previous(config)?;
            start(away, call, config, previous, Action::Add)?;
            Ok(previous.get().to_owned())
        }
        "CHECK" => start(away, call, config, previous(config)?, Action::Check).map(|()| String::new()),
        // Nothing is made here that would have to be removed, and the network is ready whatever the daemon does.
        "DEL" | "GC" | "STATUS" => Ok(String::new()),
        other => Err((INVALID_VARIABLES, format!("CNI_COMMAND {other:?} is not known"))),
    }
}

fn previous<'a>(config: &Config<'a>) -> Result<&'a RawValue, Problem> {
    config.prev_result.ok_or_else(|| {
        let msg = "there is no prevResult: ztunnel-cni must be behind the plugin that creates the network of the pod";
        (INVALID_CONFIG, msg.to_owned())
    })
}

/// Whether the pod may start; the error is the reason why it may not.
fn start(away: Duration, call: &Call, config: &Config<'_>, previous: &RawValue, action: Action) -> Result<(), Problem> {
    let argument = |name: &str| {
        let values = call.args.split(';').filter_map(|argument| argument.split_once('='));
        values.rev().find(|(key, _)| *key == name).map(|(_, value)| value).unwrap_or_default().to_owned()
    };
    let namespace = argument("K8S_POD_NAMESPACE");
    // No pod of Kubernetes, or one that the installation needs before there is a daemon.
    if namespace.is_empty() || config.exclude_namespaces.contains(&namespace) {
        return Ok(());
    }
    let request = Request {
        version: message::VERSION,
        action,
        name: argument("K8S_POD_NAME"),
        uid: argument("K8S_POD_UID"),
        sandbox: call.container.clone(),
        netns: call.netns.clone(),
        addresses: addresses(call, previous)?,
        namespace,
    };
    let mut options = File::options();
    let opened = options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(&call.netns);
    let netns = opened.map_err(|error| (IO_FAILURE, format!("cannot open CNI_NETNS {:?}: {error}", call.netns)))?;
    match ask(away, config, &request, &netns) {
        Ok(Answer::Enrolled | Answer::Outside { .. }) => Ok(()),
        Ok(Answer::Refused { reason }) => Err((TRY_AGAIN_LATER, format!("{}: {reason}", title(&request)))),
        Err(reason) => Err((TRY_AGAIN_LATER, format!("{}: {reason}", title(&request)))),
    }
}

fn title(request: &Request) -> String {
    format!("ztunnel does not let pod {}/{} start", request.namespace, request.name)
}

/// The addresses inside of the pod.
fn addresses(call: &Call, previous: &RawValue) -> Result<Vec<IpAddr>, Problem> {
    let read: Previous = serde_json::from_str(previous.get())
        .map_err(|error| (NOT_DECODED, format!("the prevResult cannot be read: {error}")))?;
    let is_inside = |ip: &&Ip| {
        let interface = ip.interface.and_then(|index| read.interfaces.get(index));
        interface.is_none_or(|interface| interface.sandbox.is_empty() || interface.sandbox == call.netns)
    };
    Ok(read.ips.iter().filter(is_inside).map(|ip| ip.address.addr()).collect())
}

/// Asks the daemon until one answers, or for as long as it may be away.
fn ask(away: Duration, config: &Config<'_>, request: &Request, netns: &File) -> Result<Answer, String> {
    let begun = Instant::now();
    loop {
        let error = match exchange(&config.socket, request, netns) {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let seen = Seen::read(&config.seen);
        if !seen.may_be_in_mesh(&request.namespace) {
            return Ok(Answer::Outside { reason: seen.reason(&request.namespace) });
        }
        if begun.elapsed() >= away {
            return Err(format!(
                "no daemon answers at {} ({error}), and {}; look at the pod of the DaemonSet ztunnel on this node",
                config.socket.display(),
                seen.reason(&request.namespace)
            ));
        }
        sleep(AGAIN);
    }
}

fn exchange(socket: &Path, request: &Request, netns: &File) -> io::Result<Answer> {
    let socket = UnixStream::connect(socket)?;
    socket.set_write_timeout(Some(ANSWER))?;
    socket.set_read_timeout(Some(ANSWER))?;
    message::send(&socket, request, Some(netns.as_raw_fd()))?;
    message::receive(&socket)
}

#[cfg(test)]
mod tests;
