//! Connections that were there before the pod was enrolled: no hook fired for them, so they stay as they are. They are
//! counted and can be cut.

use std::{io, net::IpAddr, path::PathBuf};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
pub use netlink_packet_sock_diag::inet::SocketId;
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{ExtensionFlags, InetRequest, StateFlags},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};
use thiserror::Error;

use crate::net::netns::{Netns, NetnsError};

/// Why the connections could not be listed or cut.
#[derive(Debug, Error)]
pub enum SurveyError {
    /// The namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The kernel refused.
    #[error("cannot {what} in {netns}: {source}")]
    Request {
        /// The request.
        what: &'static str,
        /// The namespace.
        netns: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// SOCK_DESTROY of linux/sock_diag.h; the library knows only the request to list.
const SOCK_DESTROY: u16 = 21;
const MESSAGE_TYPE: std::ops::Range<usize> = 4..6;

/// Connections of the namespace that are open, in part at least, with other machines or pods.
///
/// # Errors
/// When the kernel refuses the dump (CONFIG_INET_DIAG is missing).
pub fn connections(netns: &Netns) -> Result<Vec<SocketId>, SurveyError> {
    let failed = |source| SurveyError::Request { what: "list the connections", netns: netns.path().to_owned(), source };
    let listed = netns.enter(|| -> io::Result<Vec<SocketId>> {
        let mut found = Vec::new();
        for family in [AF_INET, AF_INET6] {
            found.extend(list(family)?);
        }
        Ok(found)
    })?;
    listed.map_err(failed)
}

/// Resets connections at this end; the other end is told. How many were cut.
///
/// # Errors
/// When the kernel can't (CONFIG_INET_DIAG_DESTROY is missing).
pub fn cut(netns: &Netns, connections: &[SocketId]) -> Result<usize, SurveyError> {
    let failed = |source| SurveyError::Request { what: "cut a connection", netns: netns.path().to_owned(), source };
    let cut = netns.enter(|| -> io::Result<usize> {
        let mut cut = 0;
        for id in connections {
            cut += usize::from(destroy(id)?);
        }
        Ok(cut)
    })?;
    cut.map_err(failed)
}

fn list(family: u8) -> io::Result<Vec<SocketId>> {
    let id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    let request = request(family, id, NLM_F_REQUEST | NLM_F_DUMP);
    let socket = open()?;
    socket.send(&request, 0)?;
    let mut found = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(io::Error::other)?;
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    let id = response.header.socket_id;
                    if !is_local(id.source_address) && !is_local(id.destination_address) {
                        found.push(id);
                    }
                }
                NetlinkPayload::Done(_) => return Ok(found),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
            let length = usize::try_from(message.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
            rest = rest.get(length.max(1)..).unwrap_or_default();
        }
    }
}

/// Whether the connection was still there.
fn destroy(id: &SocketId) -> io::Result<bool> {
    let family = if id.source_address.is_ipv4() { AF_INET } else { AF_INET6 };
    let mut request = request(family, id.clone(), NLM_F_REQUEST | NLM_F_ACK);
    if let Some(kind) = request.get_mut(MESSAGE_TYPE) {
        kind.copy_from_slice(&SOCK_DESTROY.to_ne_bytes());
    }
    let socket = open()?;
    socket.send(&request, 0)?;
    let (bytes, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<SockDiagMessage>::deserialize(&bytes).map_err(io::Error::other)?;
    match answer.payload {
        NetlinkPayload::Error(error) if error.code.is_some() => match error.to_io() {
            gone if gone.kind() == io::ErrorKind::NotFound => Ok(false),
            other => Err(other),
        },
        _ => Ok(true),
    }
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

fn request(family: u8, socket_id: SocketId, flags: u16) -> Vec<u8> {
    let inet = InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::ESTABLISHED
            | StateFlags::SYN_SENT
            | StateFlags::FIN_WAIT1
            | StateFlags::FIN_WAIT2
            | StateFlags::CLOSE_WAIT,
        socket_id,
    };
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(inet).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn is_local(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}
