//! Questions to the kernel about TCP sockets (NETLINK_SOCK_DIAG), and the decoding of its answers.

use std::io;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};

/// SOCK_DESTROY of linux/sock_diag.h. The library has only the request for a list.
const SOCK_DESTROY: u16 = 21;
const MESSAGE_TYPE: std::ops::Range<usize> = 4..6;

/// One message of the kernel.
pub(super) enum Answer {
    /// A socket.
    Socket(Box<InetResponse>),
    /// The end of a list, or the success of a request.
    Done,
    /// Nothing of interest.
    Other,
}

/// A netlink socket for questions about the network namespace in which this thread is now.
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

/// A question for one socket, or with NLM_F_DUMP for all sockets in the states. The states filter only a list.
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

/// Turns a question for a socket into a request to close it.
pub(super) fn to_destroy(mut request: Vec<u8>) -> Vec<u8> {
    if let Some(kind) = request.get_mut(MESSAGE_TYPE) {
        kind.copy_from_slice(&SOCK_DESTROY.to_ne_bytes());
    }
    request
}

/// Waits for the next answers. Several arrive at once, each with the sequence number of its question.
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
            // The last message of an incomplete list has an error.
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
