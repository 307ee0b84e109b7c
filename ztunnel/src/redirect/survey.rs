//! Connections from before the enrolment of a pod. No hook has seen their connects, so they stay as they are. They are
//! counted and can be reset.

use std::{io, net::IpAddr, path::PathBuf};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP};
pub use netlink_packet_sock_diag::inet::SocketId;
use netlink_packet_sock_diag::{
    constants::{AF_INET, AF_INET6},
    inet::StateFlags,
};
use thiserror::Error;

use super::sock_diag::{self, Answer};
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

/// Connections of the namespace with other machines or pods that are open or half open.
///
/// # Errors
/// When the kernel refuses the dump (CONFIG_INET_DIAG is missing).
pub fn connections(netns: &Netns) -> Result<Vec<SocketId>, SurveyError> {
    let failed = |source| SurveyError::Request { what: "list the connections", netns: netns.path().to_owned(), source };
    let listed = netns.enter(|| -> io::Result<Vec<SocketId>> {
        let mut found = Vec::new();
        for family in [AF_INET, AF_INET6] {
            found.extend(list(family, open_states())?);
        }
        Ok(found)
    })?;
    listed.map_err(failed)
}

/// Resets connections; the other ends get a reset as well. Returns the number of reset connections.
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

/// Resets the connects that have no answer yet: their retransmitted SYNs would be dropped, and they would wait for
/// minutes. Returns their number.
///
/// # Errors
/// When the kernel can't list or cut them.
pub fn cut_unanswered(netns: &Netns) -> Result<usize, SurveyError> {
    let failed = |source| SurveyError::Request { what: "cut a connect", netns: netns.path().to_owned(), source };
    let cut = netns.enter(|| -> io::Result<usize> {
        let mut cut = 0;
        for family in [AF_INET, AF_INET6] {
            for id in list(family, StateFlags::SYN_SENT)? {
                cut += usize::from(destroy(&id)?);
            }
        }
        Ok(cut)
    })?;
    cut.map_err(failed)
}

fn list(family: u8, states: StateFlags) -> io::Result<Vec<SocketId>> {
    let id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    let socket = sock_diag::open()?;
    socket.send(&sock_diag::request(family, id, states, NLM_F_DUMP, 0), 0)?;
    let mut found = Vec::new();
    loop {
        for (_, answer) in sock_diag::receive(&socket)? {
            match answer? {
                Answer::Socket(response) => {
                    let id = response.header.socket_id;
                    if !is_local(id.source_address) && !is_local(id.destination_address) {
                        found.push(id);
                    }
                }
                Answer::Done => return Ok(found),
                Answer::Other => {}
            }
        }
    }
}

/// Resets a connection. Returns whether it still existed.
fn destroy(id: &SocketId) -> io::Result<bool> {
    let request = sock_diag::request(sock_diag::family_of(id), id.clone(), open_states(), NLM_F_ACK, 0);
    let socket = sock_diag::open()?;
    socket.send(&sock_diag::to_destroy(request), 0)?;
    for (_, answer) in sock_diag::receive(&socket)? {
        match answer {
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(other) => return Err(other),
            Ok(_) => {}
        }
    }
    Ok(true)
}

fn open_states() -> StateFlags {
    StateFlags::ESTABLISHED
        | StateFlags::SYN_SENT
        | StateFlags::FIN_WAIT1
        | StateFlags::FIN_WAIT2
        | StateFlags::CLOSE_WAIT
}

fn is_local(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}
