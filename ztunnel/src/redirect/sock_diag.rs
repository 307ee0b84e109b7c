//! Questions about TCP sockets to the kernel (NETLINK_SOCK_DIAG), as bytes and back.

use std::io;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};

/// SOCK_DESTROY of linux/sock_diag.h; the library knows only the request to list.
const SOCK_DESTROY: u16 = 21;
const MESSAGE_TYPE: std::ops::Range<usize> = 4..6;

/// What the kernel says, message by message.
pub(super) enum Answer {
    /// A socket.
    Socket(Box<InetResponse>),
    /// The end of a list, or that something was done.
    Done,
    /// Nothing of interest.
    Other,
}

/// A socket for questions about the network namespace that this thread is in, for as long as it is open.
pub(super) fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// The family in which the kernel is asked for a socket.
pub(super) fn family_of(id: &SocketId) -> u8 {
    if id.source_address.is_ipv4() { AF_INET } else { AF_INET6 }
}

/// A question for one socket; with NLM_F_DUMP for all in one of the states. Only a list is narrowed by them.
pub(super) fn request(family: u8, socket_id: SocketId, states: StateFlags, flags: u16, sequence: u32) -> Vec<u8> {
    let inet = InetRequest { family, protocol: IPPROTO_TCP, extensions: ExtensionFlags::empty(), states, socket_id };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(inet).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Makes a request to close of one to tell.
pub(super) fn to_destroy(mut request: Vec<u8>) -> Vec<u8> {
    if let Some(kind) = request.get_mut(MESSAGE_TYPE) {
        kind.copy_from_slice(&SOCK_DESTROY.to_ne_bytes());
    }
    request
}

/// Waits for the next answers, which come several at once, each with the sequence number of its question.
pub(super) fn receive(socket: &Socket) -> io::Result<Vec<(u32, io::Result<Answer>)>> {
    let (bytes, _) = socket.recv_from_full()?;
    let mut rest = bytes.as_slice();
    let mut answers = Vec::new();
    while !rest.is_empty() {
        let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(io::Error::other)?;
        let answer = match message.payload {
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => Ok(Answer::Socket(response)),
            NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
            NetlinkPayload::Error(_) => Ok(Answer::Done),
            // A list that broke off says so at its end.
            NetlinkPayload::Done(done) if done.code < 0 => Err(io::Error::from_raw_os_error(-done.code)),
            NetlinkPayload::Done(_) => Ok(Answer::Done),
            _ => Ok(Answer::Other),
        };
        answers.push((message.header.sequence_number, answer));
        let length = usize::try_from(message.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
        rest = rest.get(length.max(1)..).unwrap_or_default();
    }
    Ok(answers)
}
