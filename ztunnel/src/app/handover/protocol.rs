//! The messages of a handover, and how they travel: JSON behind its length, open files beside it.

use std::{
    collections::HashMap,
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    path::PathBuf,
};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest},
    net::UnixStream,
};

/// The versions of the protocol that this program speaks.
pub const PROTOCOLS: [u32; 2] = [1, 2];
/// From this version on the sandboxes of pods are handed over.
pub const WITH_SANDBOXES: u32 = 2;

/// Maximum size of a message in bytes: room for a count of each pod, for the maximum number of pods.
const LONGEST: u32 = 4 << 20;
/// Maximum number of open files in one message.
const MOST_FILES: usize = 8;

/// A message of the new daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// Asks to take over.
    Ask(Asker),
    /// The new daemon is ready and begins.
    Begin,
    /// The new daemon serves the pods.
    Done,
}

/// A daemon that wants to take over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Asker {
    /// The oldest and the newest version of the protocol that it speaks.
    pub protocols: [u32; 2],
    /// Its version.
    pub version: String,
    /// The layout of its BPF maps.
    pub layout: u32,
    /// Its node.
    pub node: String,
}

/// A message of the daemon that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// The daemon refuses to hand over.
    Refused {
        /// The reason, and the remedy.
        reason: String,
        /// Whether another daemon takes over, and may fail.
        #[serde(default)]
        busy: bool,
    },
    /// The daemon agrees. Its open files follow: the two of the lock, and the listeners.
    Granted(Granted),
    /// The daemon has stopped all changes.
    Frozen {
        /// Number of its enrolled pods.
        pods: usize,
        /// By cookie: number of connections of a pod from before its enrolment.
        connections_before: HashMap<u64, usize>,
        /// The sandboxes of pods that the CNI plugin has reported. Their open network namespaces follow the message, in the same order.
        #[serde(default)]
        sandboxes: Vec<Sandbox>,
    },
    /// The daemon has retired: it serves only its open connections.
    Left,
    /// The daemon has aborted the handover, and continues.
    Aborted {
        /// The reason.
        reason: String,
    },
}

/// The sandbox of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// The namespace of the pod.
    pub namespace: String,
    /// The name of the pod.
    pub name: String,
    /// The UID of the pod.
    pub uid: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The path at which the network namespace was opened.
    pub netns: PathBuf,
}

/// The daemon that will hand over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Granted {
    /// The version of the protocol from here on.
    pub protocol: u32,
    /// Its version.
    pub version: String,
    /// The addresses of its listeners as configured: admin endpoints, metrics, readiness.
    pub endpoints: Vec<SocketAddr>,
}

/// The newest version of the protocol that both speak.
#[must_use]
pub fn agree(one: [u32; 2], other: [u32; 2]) -> Option<u32> {
    let ([one_oldest, one_newest], [other_oldest, other_newest]) = (one, other);
    let newest = one_newest.min(other_newest);
    (newest >= one_oldest.max(other_oldest)).then_some(newest)
}

/// Sends a message.
///
/// # Errors
/// What the system says.
pub async fn send(stream: &mut UnixStream, message: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let length = u32::try_from(text.len()).ok().filter(|length| *length <= LONGEST);
    let length = length.ok_or_else(|| io::Error::other("a message of the handover is too long"))?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(&text).await
}

/// The next message.
///
/// # Errors
/// What the system says; `UnexpectedEof`: the other side has ended; `InvalidData`: this is not a message.
pub async fn receive<T: DeserializeOwned>(stream: &mut UnixStream) -> io::Result<T> {
    let length = stream.read_u32().await?;
    if length > LONGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {length} bytes")));
    }
    let mut text = Vec::new();
    // Not more than the message, because open files may arrive with the next byte.
    stream.take(length.into()).read_to_end(&mut text).await?;
    if text.len() < length as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&text)?)
}

/// Sends open files.
///
/// # Errors
/// What the system says.
pub async fn send_files(stream: &UnixStream, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    for part in files.chunks(MOST_FILES) {
        send_part(stream, part).await?;
    }
    Ok(())
}

async fn send_part(stream: &UnixStream, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let files: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let sent = stream.async_io(Interest::WRITABLE, || {
        let (byte, rights) = ([IoSlice::new(&[0])], [ControlMessage::ScmRights(&files)]);
        Ok(sendmsg::<()>(stream.as_raw_fd(), &byte, &rights, MsgFlags::MSG_NOSIGNAL, None)?)
    });
    sent.await.map(drop)
}

/// Receives open files.
///
/// # Errors
/// What the system says, or another number of files arrives.
pub async fn receive_files(stream: &UnixStream, count: usize) -> io::Result<Vec<OwnedFd>> {
    let mut files = Vec::new();
    while files.len() < count {
        files.extend(receive_part(stream, (count - files.len()).min(MOST_FILES)).await?);
    }
    Ok(files)
}

async fn receive_part(stream: &UnixStream, count: usize) -> io::Result<Vec<OwnedFd>> {
    let files = stream.async_io(Interest::READABLE, || {
        let (mut byte, mut space) = ([0], nix::cmsg_space!([RawFd; MOST_FILES]));
        let mut bytes = [IoSliceMut::new(&mut byte)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut bytes, Some(&mut space), flags)?;
        let mut files = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // SAFETY: the kernel has just opened these for this process, and nobody else knows of them.
                files.extend(raw.into_iter().map(|file| unsafe { OwnedFd::from_raw_fd(file) }));
            }
        }
        if message.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(files)
    });
    let files = files.await?;
    if files.len() != count {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{} open files were received, and {count} were expected", files.len()),
        ));
    }
    Ok(files)
}
