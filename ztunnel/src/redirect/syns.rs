//! The SYNs that `hold` takes from a pod: its program and link, and the ring buffer that this daemon reads.
//!
//! The ring buffer belongs to one program of one daemon and has no pin. So the daemon whose program is attached gets the SYNs. After
//! a daemon has died, its program stays attached and drops SYNs until the next daemon replaces it.

use std::{
    future::Future,
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd},
    pin::Pin,
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{MapData, MapError, RingBuf},
};
use ebpf_common::{HeldSyn, maps as names};
use nix::time::{ClockId, clock_gettime};
use tokio::io::{Interest, unix::AsyncFd};
use tracing::debug;

use super::{
    held::{Condition, Held},
    load::{LoadError, Loader, load_classifier},
    sys::{self, At},
};
use crate::net::{
    netns::{Netns, NetnsError},
    syn::{SYN_VALID, Syn, SynSource},
};

/// The name of the program, and of its link in messages.
pub(super) const HOLD: &str = "hold";
/// `lo` is the first interface of every network namespace.
const LOOPBACK: u32 = 1;
/// SYNs that are read before other tasks of the thread have their turn. A pod with CAP_NET_RAW can send any number of them.
const READ_AT_ONCE: usize = 64;

/// The program `hold` of one pod, attached.
#[derive(Debug)]
pub(super) struct Hold {
    program: OwnedFd,
    held: Held,
}

/// The ring buffer of one pod.
struct SynRing(RingBuf<MapData>);

impl Hold {
    /// Loads the program and attaches it, or makes it the program of the pinned link. Returns the source of the SYNs as well.
    ///
    /// # Errors
    /// Names the program, or the map.
    pub(super) fn attach(loader: &Loader, netns: &Netns) -> Result<(Self, Box<dyn SynSource>), LoadError> {
        let mut object = loader.load_with_ring(netns.cookie())?;
        let program = load_classifier(&mut object, HOLD)?;
        let source = source(&mut object)?;
        let held = link(loader, netns, &program)?;
        Ok((Self { program, held }, source))
    }

    /// Checks that the link exists, and restores it if it does not. Returns whether somebody had removed it.
    ///
    /// # Errors
    /// When it cannot be restored.
    pub(super) fn mend(&mut self, loader: &Loader, netns: Option<&Netns>) -> Result<bool, LoadError> {
        let failed = |source| LoadError::Attach { name: HOLD, source };
        match (self.held.mend().map_err(failed)?, netns) {
            (Condition::Whole, _) | (Condition::Detached, None) => Ok(false),
            (Condition::Repinned, _) => Ok(true),
            (Condition::Detached, Some(netns)) => {
                self.held = link(loader, netns, &self.program)?;
                Ok(true)
            }
        }
    }
}

fn link(loader: &Loader, netns: &Netns, program: &OwnedFd) -> Result<Held, LoadError> {
    let attach = || {
        let attached = netns.enter(|| sys::attach_to_device(program.as_fd(), LOOPBACK, At::TcxIngress));
        attached.map_err(|error: NetnsError| io::Error::other(error))?
    };
    let held = Held::take(loader.pins().hold(netns.cookie()), program.as_fd(), attach);
    held.map_err(|source| LoadError::Attach { name: HOLD, source })
}

fn source(object: &mut Ebpf) -> Result<Box<dyn SynSource>, LoadError> {
    let failed = |source| LoadError::Map { name: names::HELD_SYNS, source };
    let missing = || failed(MapError::InvalidName { name: names::HELD_SYNS.to_owned() });
    let map = object.take_map(names::HELD_SYNS).ok_or_else(missing)?;
    Ok(Box::new(SynRing(RingBuf::try_from(map).map_err(failed)?)))
}

impl SynSource for SynRing {
    fn read<'a>(&'a mut self, take: &'a mut dyn FnMut(Syn)) -> Pin<Box<dyn Future<Output = io::Error> + 'a>> {
        Box::pin(async move {
            let Err(error) = self.read_all(take).await;
            error
        })
    }
}

impl SynRing {
    async fn read_all(&mut self, take: &mut dyn FnMut(Syn)) -> Result<std::convert::Infallible, io::Error> {
        let fd: RawFd = self.0.as_fd().as_raw_fd();
        // SAFETY: the ring buffer keeps its descriptor open as long as it is borrowed here.
        let readable = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        let readable = readable.map_err(|error| error.into_parts().1)?;
        loop {
            readable.readable().await?.clear_ready();
            while self.read_some(take)? == READ_AT_ONCE {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Reads up to [`READ_AT_ONCE`] records, and returns their number.
    fn read_some(&mut self, take: &mut dyn FnMut(Syn)) -> io::Result<usize> {
        let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
        for count in 0..READ_AT_ONCE {
            let Some(record) = self.0.next() else { return Ok(count) };
            match read_record(&record, now) {
                Ok(Some(syn)) => take(syn),
                // The client sends it again.
                Ok(None) => {}
                Err(reason) => debug!(reason, "a record of held SYNs can't be used"),
            }
        }
        Ok(READ_AT_ONCE)
    }
}

/// The SYN of a record; `None`: the record is too old.
///
/// # Errors
/// Why the record has no SYN.
fn read_record(record: &[u8], now: Duration) -> Result<Option<Syn>, String> {
    if record.len() < size_of::<HeldSyn>() {
        return Err(format!("it has {} bytes", record.len()));
    }
    // SAFETY: there are as many bytes, and every bit pattern is a valid record.
    let record: HeldSyn = unsafe { record.as_ptr().cast::<HeldSyn>().read_unaligned() };
    if now.saturating_sub(Duration::from_nanos(record.time)) > SYN_VALID {
        return Ok(None);
    }
    let (length, tcp) = (record.length as usize, record.tcp as usize);
    let bytes = record.bytes.get(..length).ok_or_else(|| format!("its length is {length}"))?;
    Syn::parse(bytes, tcp).map(Some).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebpf_common::HELD_BYTES;
    use proptest::prelude::*;

    fn record(time: Duration, tcp: u32, length: u32) -> Vec<u8> {
        let mut bytes = [0; HELD_BYTES];
        bytes[0] = 0x45;
        bytes[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        bytes[32..34].copy_from_slice(&[0x50, 0x02]);
        let mut record = u64::try_from(time.as_nanos()).unwrap().to_ne_bytes().to_vec();
        record.extend(tcp.to_ne_bytes());
        record.extend(length.to_ne_bytes());
        record.extend(bytes);
        record
    }

    #[test]
    fn records_that_a_dead_daemon_left_are_ignored() {
        let taken = Duration::from_secs(100);
        let valid = record(taken, 20, 40);
        assert!(read_record(&valid, taken + SYN_VALID).unwrap().is_some());
        assert!(read_record(&valid, taken + SYN_VALID + Duration::from_millis(1)).unwrap().is_none());
        assert!(read_record(&valid, Duration::ZERO).unwrap().is_some(), "clocks of two CPUs may differ");
        assert!(read_record(&record(taken, 20, HELD_BYTES as u32 + 1), taken).is_err());
        assert!(read_record(&record(taken, 20, 39), taken).is_err());
        assert!(read_record(&valid[..valid.len() - 1], taken).is_err());
    }

    proptest! {
        #[test]
        fn any_record_is_read_without_a_fault(bytes in prop::collection::vec(any::<u8>(), 0..200), now in any::<u64>()) {
            let _syn = read_record(&bytes, Duration::from_nanos(now));
        }
    }
}
