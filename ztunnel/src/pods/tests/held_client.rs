//! Applications whose connects are held, and the SYNs that replace those of the kernel.

use std::{
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
};

use tokio::{net::TcpStream, sync::mpsc};

use super::network::{Network, Sent, finished};
use crate::net::syn::{Syn, SynSource};

/// The SYNs of a pod. It replaces the ring buffer.
pub(super) struct Syns(pub(super) mpsc::UnboundedReceiver<Syn>);

impl SynSource for Syns {
    fn read<'a>(&'a mut self, take: &'a mut dyn FnMut(Syn)) -> Pin<Box<dyn Future<Output = io::Error> + 'a>> {
        Box::pin(async move {
            while let Some(syn) = self.0.recv().await {
                take(syn);
            }
            std::future::pending().await
        })
    }
}

/// An application whose connect is held. It replaces the kernel's side of `connect`.
pub(super) struct HeldClient {
    network: Network,
    from: SocketAddr,
    to: SocketAddr,
    answers: mpsc::UnboundedReceiver<Sent>,
}

impl HeldClient {
    /// Sends a SYN with this sequence number.
    pub(super) fn send(&self, sequence: u32) {
        let mut bytes = [0_u8; 40];
        bytes[0] = 0x45;
        let (SocketAddr::V4(from), SocketAddr::V4(to)) = (self.from, self.to) else { panic!("only IPv4 is scripted") };
        bytes[12..16].copy_from_slice(&from.ip().octets());
        bytes[16..20].copy_from_slice(&to.ip().octets());
        bytes[20..22].copy_from_slice(&from.port().to_be_bytes());
        bytes[22..24].copy_from_slice(&to.port().to_be_bytes());
        bytes[24..28].copy_from_slice(&sequence.to_be_bytes());
        bytes[32..34].copy_from_slice(&[0x50, 0x02]);
        let state = self.network.lock();
        let capture = state.of_address(self.from.ip()).unwrap().capture.as_ref().unwrap();
        capture.syns.as_ref().unwrap().send(Syn::parse(&bytes, 20).unwrap()).unwrap();
    }

    /// The next packet for the client.
    pub(super) async fn answer(&mut self) -> Sent {
        self.answers.recv().await.unwrap()
    }

    /// A packet that has come already.
    pub(super) fn answered(&mut self) -> Option<Sent> {
        self.answers.try_recv().ok()
    }

    /// Finishes the connect, after the SYN was put back.
    pub(super) async fn finish(&self) -> io::Result<TcpStream> {
        let stream = {
            let mut state = self.network.lock();
            let end = state.leave(self.from, self.to)?;
            state.begin(end, self.from, self.to)?
        };
        finished(stream).await
    }
}

impl Network {
    /// An application of the pod that has the address `from`, whose connect will be held.
    pub(super) fn held(&self, from: &str, to: &str) -> HeldClient {
        let (from, to): (IpAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let mut state = self.lock();
        let from = SocketAddr::new(from, state.port());
        let (sender, answers) = mpsc::unbounded_channel();
        state.clients.insert((from, to), sender);
        HeldClient { network: self.clone(), from, to, answers }
    }
}
