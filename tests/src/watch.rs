//! Proof that no connection bypasses the daemon while something happens: clients that connect from and to a pod in
//! loops, and servers that would notice.
//!
//! The clients bind to ports of [`OWN_PORTS`], which neither the kernel nor the daemon ever chooses. If a server sees
//! such a port, its client is connected to it without a daemon in between, for however short a moment.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

use crate::apps::client::exchange;
use crate::apps::server::Server;
use crate::netns::enter;
use crate::testbed::Testbed;
use crate::topology::{Family, Pod};
use crate::wait;

/// Ports above the kernel's range of ephemeral ports, and far above the ports of deliveries.
pub const OWN_PORTS: Range<u16> = 61_000..65_000;

/// The port of the servers.
pub const PORT: u16 = 7000;

/// An attempt that takes this long did not fail fast; also the deadline of each of its steps.
const SLOW: Duration = Duration::from_secs(1);

/// The errors with which a connect from a closed pod may fail.
const CLOSED: [i32; 5] = [libc::ECONNREFUSED, libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EPERM, libc::EADDRNOTAVAIL];

/// One client that connects, exchanges and resets in a loop; stopped when dropped.
#[derive(Debug)]
pub struct Attempts {
    target: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    through: AtomicU64,
    failed: AtomicU64,
    slow: AtomicU64,
}

impl Attempts {
    /// Starts the client in a pod, bound to a device if one is given; the target echoes.
    ///
    /// # Errors
    /// When the pod can't be entered.
    pub fn start(pod: &Pod, target: SocketAddr, device: Option<&'static str>) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let (netns, sharing) = (pod.netns.open()?, Arc::clone(&shared));
        let thread = thread::spawn(move || {
            if enter(&netns).is_err() {
                return;
            }
            let mut ports = OWN_PORTS.cycle();
            while let (false, Some(port)) = (sharing.stop.load(Ordering::SeqCst), ports.next()) {
                sharing.once(target, device, port);
                wait::pass(Duration::from_millis(1));
            }
        });
        Ok(Self { target, shared, thread: Some(thread) })
    }

    /// The number of successful exchanges.
    #[must_use]
    pub fn through(&self) -> u64 {
        self.shared.through.load(Ordering::SeqCst)
    }

    /// The number of attempts.
    #[must_use]
    pub fn made(&self) -> u64 {
        self.through() + self.shared.failed.load(Ordering::SeqCst)
    }

    /// Waits for `count` more attempts.
    ///
    /// # Errors
    /// When they take too long.
    pub fn more(&self, count: u64) -> Result<()> {
        let enough = self.made() + count;
        let what = format!("{count} more attempts at {}", self.target);
        wait::until_true(&what, wait::PATIENCE, || Ok(self.made() >= enough))
    }
}

impl Drop for Attempts {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn once(&self, target: SocketAddr, device: Option<&str>, port: u16) {
        let begin = Instant::now();
        let count = match attempt(target, device, port) {
            Ok(()) => &self.through,
            // The port is in use, so no packet was sent.
            Err(error) if error.kind() == ErrorKind::AddrInUse => return,
            Err(_) => &self.failed,
        };
        count.fetch_add(1, Ordering::SeqCst);
        if begin.elapsed() >= SLOW {
            self.slow.fetch_add(1, Ordering::SeqCst);
        }
    }
}

fn attempt(target: SocketAddr, device: Option<&str>, port: u16) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
    let family = Family::of(target);
    if family == Family::V6 {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    // The socket closes with a reset, so that no port stays in TIME-WAIT.
    socket.set_linger(Some(Duration::ZERO))?;
    socket.bind_device(device.map(str::as_bytes))?;
    socket.bind(&SocketAddr::new(family.any(), port).into())?;
    socket.connect_timeout(&target.into(), SLOW)?;
    socket.set_read_timeout(Some(SLOW))?;
    exchange(&mut TcpStream::from(socket), b"hello")
}

/// Checks that no client reached these servers without a daemon in between.
///
/// # Errors
/// Names the clients that did.
pub fn no_bypass(servers: &[Server]) -> Result<()> {
    for server in servers {
        let peers = server.peers();
        let bypassed: Vec<_> = peers.iter().filter(|peer| OWN_PORTS.contains(&peer.port())).collect();
        ensure!(
            bypassed.is_empty(),
            "{} of {} connections to {} came directly: {:?} …",
            bypassed.len(),
            peers.len(),
            server.address(),
            bypassed.first()
        );
    }
    Ok(())
}

/// Clients and servers of both families, from an enrolled pod to a plain one and the other way round, all of them in
/// loops.
#[derive(Debug)]
pub struct Watch {
    /// The loops out of the pod: IPv4, IPv6.
    pub outbound: Vec<Attempts>,
    /// The loops into the pod: IPv4, IPv6.
    pub inbound: Vec<Attempts>,
    /// Servers in the pod, on all of its addresses of both families.
    pub inside: Vec<Server>,
    /// Servers in `web-b`.
    pub outside: Vec<Server>,
    pod: String,
}

impl Watch {
    /// Starts it for an enrolled pod of `node-a`; no pod on `node-b` is enrolled.
    ///
    /// # Errors
    /// When a server can't be started.
    pub fn over(bed: &Testbed, name: &str) -> Result<Self> {
        let (pod, client, web) = (bed.pod(name)?, bed.pod("client-b")?, bed.pod("web-b")?);
        let inside = Server::echo(pod, SocketAddr::new(Family::V6.any(), PORT))?;
        let outside = Family::BOTH.map(|family| Server::echo(web, web.at(family, PORT)));
        let outbound = Family::BOTH.map(|family| Attempts::start(pod, web.at(family, PORT), None));
        let inbound = Family::BOTH.map(|family| Attempts::start(client, pod.at(family, PORT), None));
        Ok(Self {
            inside: vec![inside],
            outbound: outbound.into_iter().collect::<Result<_>>()?,
            inbound: inbound.into_iter().collect::<Result<_>>()?,
            outside: outside.into_iter().collect::<Result<_>>()?,
            pod: name.to_owned(),
        })
    }

    /// Checks that nothing bypassed the daemon so far.
    ///
    /// # Errors
    /// Names what did.
    pub fn no_bypass(&self) -> Result<()> {
        no_bypass(&self.outside).context("out of the pod")?;
        no_bypass(&self.inside).context("into the pod")
    }

    /// Waits until exchanges of these families succeed in both directions, and checks that none bypasses the daemon.
    ///
    /// # Errors
    /// When they do not succeed in time.
    pub fn works(&self, families: &[Family], patience: Duration) -> Result<()> {
        let loops: Vec<_> = self.loops(families).map(|attempts| (attempts, attempts.through() + 5)).collect();
        let met = wait::until_true("exchanges to come through", patience, || {
            Ok(loops.iter().all(|(attempts, enough)| attempts.through() >= *enough))
        });
        met.with_context(|| {
            let counts = loops.iter().map(|(attempts, enough)| (attempts.target, attempts.through() + 5 - enough));
            format!("came through at each target: {:?}", counts.collect::<Vec<_>>())
        })?;
        self.no_bypass()
    }

    /// Waits until the pod is closed: the attempts of each loop of these families fail, and fail fast. Nothing bypassed
    /// the daemon, also not before the pod was closed.
    ///
    /// # Errors
    /// When an exchange succeeds, with or without the daemon.
    pub fn closed(&self, bed: &Testbed, families: &[Family]) -> Result<()> {
        wait::until_true("all attempts to fail, and fast", wait::PATIENCE, || {
            self.no_bypass()?;
            self.all_fail(families)
        })?;
        for family in families {
            let (socket, target) = (bed.pod(&self.pod)?.socket(*family)?, bed.pod("web-b")?.at(*family, PORT));
            let outcome = socket.connect(&target.into());
            let error = outcome.err().with_context(|| format!("the closed pod connected to {target}"))?;
            ensure!(error.raw_os_error().is_some_and(|code| CLOSED.contains(&code)), "the connect failed with {error}");
        }
        self.no_bypass()
    }

    /// Whether the next attempts of all these loops fail, and fast.
    fn all_fail(&self, families: &[Family]) -> Result<bool> {
        let through = || self.loops(families).map(Attempts::through).collect::<Vec<_>>();
        for attempts in self.loops(families) {
            attempts.more(1)?;
        }
        let (before, slow) = (through(), self.slow(families));
        for attempts in self.loops(families) {
            attempts.more(20)?;
        }
        // An attempt that began while the pod was being closed may have got no answer at all; then it is slow.
        Ok(before == through() && slow == self.slow(families))
    }

    fn slow(&self, families: &[Family]) -> u64 {
        self.loops(families).map(|attempts| attempts.shared.slow.load(Ordering::SeqCst)).sum()
    }

    fn loops<'a>(&'a self, families: &'a [Family]) -> impl Iterator<Item = &'a Attempts> {
        let all = self.outbound.iter().chain(&self.inbound);
        all.filter(|attempts| families.contains(&Family::of(attempts.target)))
    }
}
