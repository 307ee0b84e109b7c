//! Clients: one exchange, and the ways of connecting that a pod may choose.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Result, ensure};

use crate::topology::Pod;

/// Sends bytes and expects them back.
///
/// # Errors
/// As the socket's; also when other bytes come back.
pub fn exchange(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)?;
    let mut answer = vec![0; bytes.len()];
    stream.read_exact(&mut answer)?;
    if answer == bytes { Ok(()) } else { Err(io::Error::other("other bytes came back")) }
}

/// Connects, exchanges and closes; returns the client's own address.
///
/// # Errors
/// When a step fails.
pub fn exchange_once(pod: &Pod, target: SocketAddr) -> Result<SocketAddr> {
    let mut stream = pod.connect(target)?;
    let own = stream.local_addr()?;
    ensure!(stream.peer_addr()? == target, "connected to {target}, but the peer is {}", stream.peer_addr()?);
    exchange(&mut stream, b"hello")?;
    Ok(own)
}

/// Connects and reads to the end.
///
/// # Errors
/// When a step fails.
pub fn read_once(pod: &Pod, target: SocketAddr) -> Result<String> {
    let mut stream = pod.connect(target)?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
