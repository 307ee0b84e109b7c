//! What the plugin and the daemon say to each other: one line of JSON each way, and with the first byte of the request the open
//! network namespace.
//!
//! The plugin opens the network namespace, because its path has a meaning in the plugin's mount namespace only. The daemon proves
//! what it gets.

use std::{
    io::{self, IoSlice, IoSliceMut, Read as _, Write as _},
    net::IpAddr,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};

/// The version of this language. Plugin and daemon are the same program, but not always of the same age.
pub const VERSION: u32 = 1;
/// No message is longer.
pub const MOST_BYTES: usize = 8 << 10;

/// What the plugin asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// [`VERSION`].
    pub version: u32,
    /// The action.
    pub action: Action,
    /// The namespace of the pod.
    pub namespace: String,
    /// The name of the pod.
    pub name: String,
    /// The UID by which the kubelet knows the pod.
    pub uid: String,
    /// The pod sandbox, by the name that the container runtime has given it.
    pub sandbox: String,
    /// The path of the network namespace, for messages.
    pub netns: String,
    /// The addresses that the plugins before have given to the pod.
    pub addresses: Vec<IpAddr>,
}

/// An action of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Enrol the pod.
    Add,
    /// Say whether the pod is enrolled.
    Check,
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "lowercase")]
pub enum Answer {
    /// The pod is enrolled: it may start.
    Enrolled,
    /// The pod is not in the mesh: it may start.
    Outside {
        /// The reason.
        reason: String,
    },
    /// The pod may not start now.
    Refused {
        /// The reason.
        reason: String,
    },
}

/// Sends a message, and with its first byte an open file.
///
/// # Errors
/// As the socket.
pub fn send(mut socket: &UnixStream, message: &impl Serialize, file: Option<RawFd>) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    let files: Vec<RawFd> = file.into_iter().collect();
    let rights = [ControlMessage::ScmRights(&files)];
    let control: &[ControlMessage<'_>] = if files.is_empty() { &[] } else { &rights };
    let sent = sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&line)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    socket.write_all(line.get(sent..).unwrap_or_default())
}

/// Reads a message to its end; the rest of the connection is not looked at.
///
/// # Errors
/// As the socket; the other side has sent no message, one that is too long, or one that cannot be parsed.
pub fn receive<T: for<'a> Deserialize<'a>>(mut socket: &UnixStream) -> io::Result<T> {
    let mut incoming = Incoming::default();
    let mut buffer = [0; 1024];
    loop {
        let read = socket.read(&mut buffer)?;
        if let Some(message) = incoming.take(buffer.get(..read).unwrap_or_default())? {
            return Ok(message);
        }
    }
}

/// A message of which not all is there yet.
#[derive(Debug, Default)]
pub struct Incoming(Vec<u8>);

impl Incoming {
    /// Takes what was read; nothing is the end of the connection. The message, once it is whole.
    ///
    /// # Errors
    /// It is too long, ends too early, or is not a message.
    pub fn take<T: for<'a> Deserialize<'a>>(&mut self, read: &[u8]) -> io::Result<Option<T>> {
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        if read.is_empty() {
            let why = format!("the connection ended after {} bytes of a message", self.0.len());
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
        }
        self.0.extend_from_slice(read);
        let end = self.0.iter().position(|byte| *byte == b'\n');
        if end.unwrap_or(self.0.len()) > MOST_BYTES {
            return Err(invalid(format!("a message is longer than {MOST_BYTES} bytes")));
        }
        let Some(line) = end.and_then(|end| self.0.get(..end)) else { return Ok(None) };
        serde_json::from_slice(line).map(Some).map_err(|error| {
            invalid(format!(
                "the message cannot be \
             parsed: {error}"
            ))
        })
    }
}

/// Reads the bytes that have arrived, and an open file if one comes with them. Does not wait on a non-blocking socket.
///
/// # Errors
/// As the socket; more than one file came.
pub fn read_with_file(socket: RawFd, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut control = nix::cmsg_space!([RawFd; 1]);
    let mut into = [IoSliceMut::new(buffer)];
    let received = recvmsg::<()>(socket, &mut into, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut files = Vec::new();
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = message {
            // SAFETY: the kernel has just created these descriptors for this process, and no other value owns them.
            files.extend(descriptors.into_iter().map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) }));
        }
    }
    if files.len() > 1 || received.flags.contains(MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message has more than one file"));
    }
    Ok((received.bytes, files.pop()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(pieces: &[&[u8]]) -> io::Result<Option<Answer>> {
        let mut incoming = Incoming::default();
        let mut last = Ok(None);
        for piece in pieces {
            last = Ok(incoming.take(piece)?);
        }
        last
    }

    #[test]
    fn a_message_may_come_in_pieces_and_no_other_way() {
        assert_eq!(take(&[b"{\"result\":", b"\"enrolled\"}", b"\n"]).unwrap(), Some(Answer::Enrolled));
        assert_eq!(take(&[b"{\"result\":\"enrolled\"}"]).unwrap(), None, "half a message");
        assert_eq!(take(&[b"{\"result\":\"enrolled\"}", b""]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(take(&[b"\xff\xfe\n"]).unwrap_err().to_string().contains("the message cannot be parsed"));
        assert!(take(&[b"{\"result\":\"maybe\"}\n"]).unwrap_err().to_string().contains("the message cannot be parsed"));
        assert!(take(&[&[b' '; MOST_BYTES + 1]]).unwrap_err().to_string().contains("longer than"));
    }

    #[test]
    fn a_file_comes_with_the_message_and_two_are_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        send(&ours, &Answer::Enrolled, Some(file.as_raw_fd())).unwrap();
        let mut buffer = [0; 256];
        let (read, got) = read_with_file(theirs.as_raw_fd(), &mut buffer).unwrap();
        assert_eq!(Incoming::default().take(&buffer[..read]).unwrap(), Some(Answer::Enrolled));
        assert!(got.is_some());

        let both = [file.as_raw_fd(), file.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&both)];
        sendmsg::<()>(ours.as_raw_fd(), &[IoSlice::new(b"x")], &control, MsgFlags::empty(), None).unwrap();
        assert!(read_with_file(theirs.as_raw_fd(), &mut buffer).is_err());
    }
}
