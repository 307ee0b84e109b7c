//! The windows of a connection: the number of bytes that its peer may send before they are read. The daemon promises memory for
//! these bytes.
//!
//! If there is enough memory, a connection begins with the windows of the settings. Otherwise it begins with smaller windows.
//! They grow up to the settings each time applications on this side have read a whole window, as far as the budget allows. So
//! only a peer whose bytes are read gets more.
//!
//! When memory is short, the windows shrink. HTTP/2 has no frame that reduces the window of a connection, so the peer may still
//! use the whole window that it was promised. The window of a stream can be reduced, which takes effect when the peer has
//! acknowledged the SETTINGS. The budget counts the bytes that the peer may still send under both limits. A connection without
//! streams is closed instead: see [`Windows::is_outgrown`].

use std::time::Duration;

use tokio::time::Instant;

use super::settings::{LARGEST_WINDOW, Settings};
use crate::net::memory::{Account, Claim};

/// The smallest window of a connection: the initial window of HTTP/2, which can't be reduced.
const SMALLEST: u32 = (64 << 10) - 1;
/// The smallest window of a stream: a full TLS record.
const SMALLEST_OF_STREAM: u32 = 16 << 10;
/// A connection begins with at most the budget divided by this.
const PART: usize = 2048;
/// The windows shrink at most once in this time.
const SHRINK_PAUSE: Duration = Duration::from_secs(1);
/// The counted bytes differ from the promised bytes by less than this.
const STEP: usize = 64 << 10;

/// The received bytes of a connection's streams.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// Bytes that the peer has sent.
    pub(super) heard: u64,
    /// Bytes that applications on this side have read.
    pub(super) read: u64,
}

/// The windows of one connection. Dropping the value returns the memory.
#[derive(Debug)]
pub struct Windows {
    claim: Claim,
    /// The connection's window at its start.
    first: u32,
    connection: u32,
    most: u32,
    /// The window of a stream as a fraction of the connection's window.
    streams: (u64, u64),
    /// The largest number of open streams.
    streams_at_most: u64,
    /// The number of read bytes when the window last changed, or could not change.
    read: u64,
    /// A stream window that was not announced to the peer yet.
    untold: Option<u32>,
    /// The stream window that was announced last, and the largest one that the peer may still use.
    told: u32,
    in_force: u32,
    /// The bytes promised to the peer before the connection's window shrank, and the number of read bytes at that time.
    granted: Option<(u64, u64)>,
    /// When the windows last shrank.
    shrunk: Option<Instant>,
}

impl Windows {
    /// The windows with which a connection of this account begins. `None`: there is no memory for one more connection.
    #[must_use]
    pub fn claim(settings: &Settings, account: &Account) -> Option<Self> {
        let most = settings.connection_window.clamp(SMALLEST, LARGEST_WINDOW);
        let part = u32::try_from(account.budget() / PART).unwrap_or(u32::MAX).clamp(SMALLEST, most);
        let first = if account.is_tight() { SMALLEST } else { part };
        let (claim, first) = match account.claim(first as usize) {
            Some(claim) => (claim, first),
            None => (account.claim(SMALLEST as usize)?, SMALLEST),
        };
        let streams = (settings.stream_window.into(), u64::from(settings.connection_window).max(1));
        let told = of_stream(first, streams);
        Some(Self {
            claim,
            first,
            connection: first,
            most,
            streams,
            streams_at_most: u64::from(settings.max_streams).max(settings.slots() as u64),
            read: 0,
            untold: None,
            told,
            in_force: told,
            granted: None,
            shrunk: None,
        })
    }

    /// The account of the memory.
    pub(super) fn account(&self) -> &Account {
        self.claim.account()
    }

    /// The settings, with these windows in place of their own.
    pub(super) fn of(&self, settings: &Settings) -> Settings {
        Settings { stream_window: self.stream(), connection_window: self.connection, ..settings.clone() }
    }

    fn stream(&self) -> u32 {
        of_stream(self.connection, self.streams)
    }

    /// Whether more bytes are promised than at the start of the connection while memory is short. A connection without streams
    /// should then be closed.
    pub(super) fn is_outgrown(&self) -> bool {
        self.claim.bytes() > self.first as usize && self.account().is_tight()
    }

    /// Lets the windows grow or shrink. Returns the connection's window if it has changed.
    pub(super) fn adjust(&mut self, seen: Seen) -> Option<u32> {
        if self.granted.is_some() {
            self.settle(seen);
        }
        let can_shrink = self.connection > SMALLEST || self.in_force > self.told;
        if can_shrink && self.account().is_tight() { self.shrink(seen) } else { self.grow(seen) }
    }

    /// Grows the windows if applications have read a whole window.
    fn grow(&mut self, seen: Seen) -> Option<u32> {
        if self.connection >= self.most || seen.read.saturating_sub(self.read) < self.connection.into() {
            return None;
        }
        self.read = seen.read;
        let next = self.connection.saturating_mul(2).min(self.most);
        let in_force = self.in_force.max(of_stream(next, self.streams));
        let more = self.promised(next, in_force, seen).saturating_sub(self.claim.bytes());
        if more > 0 && !self.claim.grow(more) {
            return None;
        }
        (self.connection, self.in_force) = (next, in_force);
        self.untold = Some(self.stream());
        Some(next)
    }

    /// Shrinks the connection's window by half, or to the bytes read since the last change if those are fewer.
    fn shrink(&mut self, seen: Seen) -> Option<u32> {
        let now = Instant::now();
        if self.shrunk.is_some_and(|shrunk| now < shrunk + SHRINK_PAUSE) {
            return None;
        }
        self.shrunk = Some(now);
        if self.connection <= SMALLEST {
            // Announced again: the peer's acknowledgement of this proves that the previous announcement is in force.
            self.untold = Some(self.stream());
            return None;
        }
        let of_late = u32::try_from(seen.read.saturating_sub(self.read)).unwrap_or(u32::MAX);
        self.granted = Some((self.of_connection(self.connection, seen), seen.read));
        self.read = seen.read;
        self.connection = (self.connection / 2).min(of_late).max(SMALLEST);
        self.untold = Some(self.stream());
        self.settle(seen);
        Some(self.connection)
    }

    /// Announces the window of a stream to the peer, if it has changed. `tell` returns `false` until the previous announcement
    /// is acknowledged.
    pub(super) fn announce(&mut self, tell: impl FnOnce(u32) -> bool) {
        if let Some(window) = self.untold.take_if(|window| tell(*window)) {
            self.in_force = self.told.max(window);
            self.told = window;
        }
    }

    /// Adjusts the claim to the bytes that are promised now.
    fn settle(&mut self, seen: Seen) {
        let promised = self.promised(self.connection, self.in_force, seen);
        let is_used = self.of_connection(self.connection, seen) <= self.connection.into();
        if is_used {
            self.granted = None;
        }
        if is_used || promised.abs_diff(self.claim.bytes()) >= STEP {
            self.claim.resize(promised);
        }
    }

    /// The bytes that the peer may send within these windows, and the bytes that it has sent and that are unread.
    fn promised(&self, connection: u32, of_stream: u32, seen: Seen) -> usize {
        let of_connection = self.of_connection(connection, seen);
        if of_connection == u64::from(connection) {
            return connection as usize;
        }
        let unread = seen.heard.saturating_sub(seen.read);
        let of_streams = self.streams_at_most.saturating_mul(of_stream.into()).saturating_add(unread);
        usize::try_from(of_connection.min(of_streams.max(connection.into()))).unwrap_or(usize::MAX)
    }

    /// The same, by the window of the connection alone.
    fn of_connection(&self, connection: u32, seen: Seen) -> u64 {
        let left = self.granted.map(|(granted, since)| granted.saturating_sub(seen.read.saturating_sub(since)));
        left.unwrap_or_default().max(connection.into())
    }
}

/// The window of a stream on a connection with this window.
fn of_stream(connection: u32, (part, whole): (u64, u64)) -> u32 {
    let window = u32::try_from(u64::from(connection).saturating_mul(part) / whole).unwrap_or(LARGEST_WINDOW);
    window.clamp(SMALLEST_OF_STREAM.min(connection), LARGEST_WINDOW)
}

#[cfg(test)]
mod tests {
    use super::SHRINK_PAUSE;
    use super::{SMALLEST, SMALLEST_OF_STREAM, Seen, Windows};
    use crate::{
        hbone::Settings,
        net::memory::{Budget, Claim},
    };
    use tokio::time::advance;

    const MIB: u32 = 1 << 20;

    fn read(bytes: u64) -> Seen {
        Seen { heard: bytes, read: bytes }
    }

    #[test]
    fn where_memory_is_plenty_the_windows_are_those_of_the_settings() {
        let settings = Settings::default();
        let windows = Windows::claim(&settings, &Budget::default().pod()).unwrap();
        assert_eq!(windows.of(&settings), settings);
    }

    /// 128 HBONE connections of a peer whose bytes are not read, then those of further peers.
    #[test]
    fn whoever_is_not_read_gets_no_more_than_a_beginning() {
        let budget = Budget::new(512 << 20);
        let settings = Settings::default();
        let mut all = Vec::new();
        for peer in 1..=20_u8 {
            let account = budget.pod().of_peer([10, 0, 0, peer].into());
            all.extend((0..128).map_while(|_| Windows::claim(&settings, &account)));
        }
        assert!(all.iter_mut().all(|windows| windows.grow(read(0)).is_none()));
        assert_eq!(all.len(), 20 * 128);
        assert!(budget.used() <= 450 << 20, "{}", budget.used());
        assert!(all.iter().any(|windows| windows.connection == SMALLEST), "later ones begin with less");
    }

    #[test]
    fn whoever_is_read_gets_more_as_far_as_there_is_some() {
        let budget = Budget::new(512 << 20);
        let settings = Settings::default();
        let account = budget.pod().of_peer([10, 0, 0, 1].into());
        let mut first = Windows::claim(&settings, &account).unwrap();
        let mut bytes = u64::from(first.connection);
        assert_eq!(first.grow(read(bytes - 1)), None);
        while let Some(window) = first.grow(read(bytes)) {
            assert_eq!(first.of(&settings).stream_window, window / 4);
            bytes += u64::from(window);
        }
        first.announce(|_| false);
        let mut told = None;
        first.announce(|window| told.replace(window).is_none());
        assert_eq!((first.connection, told), (16 * MIB, Some(4 * MIB)));
        let grown: Vec<_> = (0..20)
            .filter_map(|_| {
                let mut windows = Windows::claim(&settings, &account)?;
                let mut bytes = 0;
                while windows.grow(read(bytes)).is_some() || bytes == 0 {
                    bytes += u64::from(16 * MIB);
                }
                Some(windows)
            })
            .collect();
        assert!(budget.used() <= 69 << 20, "{}", budget.used());
        assert_eq!(grown.len(), 20, "all of them work");
    }

    /// Windows that have grown to those of the settings, and the number of bytes read for that.
    fn grown(budget: &Budget) -> (Windows, u64) {
        let mut windows = Windows::claim(&Settings::default(), &budget.pod().of_peer([10, 0, 0, 1].into())).unwrap();
        let mut bytes = u64::from(windows.connection);
        while let Some(window) = windows.adjust(read(bytes)) {
            windows.announce(|_| true);
            bytes += u64::from(window);
        }
        assert_eq!((windows.connection, windows.claim.bytes()), (16 * MIB, 16 << 20));
        (windows, bytes)
    }

    /// Other pods claim the free memory.
    fn fill(budget: &Budget) -> Vec<Claim> {
        let rest = budget.limit() / 100 * 80 - budget.used();
        (0..4).map(|_| budget.pod().claim(rest / 4).unwrap()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn windows_shrink_while_memory_is_short_and_what_is_promised_stays_counted() {
        let budget = Budget::new(512 << 20);
        let (mut windows, bytes) = grown(&budget);
        assert!(!windows.is_outgrown());
        let others = fill(&budget);
        assert!(windows.is_outgrown());
        assert_eq!(windows.adjust(read(bytes)), Some(8 * MIB));
        assert_eq!(windows.claim.bytes(), 16 << 20, "the peer may still send as much");
        assert_eq!(windows.adjust(read(bytes)), None, "not all at once");
        // Half of the new window is read, and no further bytes were promised.
        advance(SHRINK_PAUSE).await;
        let bytes = bytes + u64::from(4 * MIB);
        assert_eq!(windows.adjust(read(bytes)), Some(4 * MIB));
        assert_eq!(windows.claim.bytes(), 12 << 20);
        // No byte is read any more: only the windows of the streams can be reduced further.
        advance(SHRINK_PAUSE).await;
        assert_eq!(windows.adjust(read(bytes)), Some(SMALLEST));
        let mut told = Vec::new();
        for _ in 0..3 {
            windows.announce(|window| {
                told.push(window);
                true
            });
            advance(SHRINK_PAUSE).await;
            assert_eq!(windows.adjust(read(bytes)), None);
        }
        assert_eq!(told, [SMALLEST_OF_STREAM; 2], "told once, and once more to know that it was heard");
        assert_eq!(windows.claim.bytes(), 200 * SMALLEST_OF_STREAM as usize);
        // Unread bytes that were sent before count as well.
        let stalled = Seen { heard: bytes + u64::from(2 * MIB), read: bytes };
        windows.adjust(stalled);
        assert_eq!(windows.claim.bytes(), 200 * SMALLEST_OF_STREAM as usize + (2 << 20));
        // The whole promise has been used.
        let bytes = bytes + u64::from(12 * MIB);
        windows.adjust(read(bytes));
        assert_eq!(windows.claim.bytes(), SMALLEST as usize);
        drop(others);
        let mut bytes = bytes + u64::from(16 * MIB);
        while let Some(window) = windows.adjust(read(bytes)) {
            bytes += u64::from(window);
        }
        assert_eq!((windows.connection, windows.claim.bytes()), (16 * MIB, 16 << 20), "as before");
        drop(windows);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn where_nothing_is_left_there_is_no_further_tunnel() {
        let budget = Budget::new(1 << 20);
        let account = budget.pod().of_peer([10, 0, 0, 1].into());
        let settings = Settings::default();
        let all: Vec<_> = (0..100).map_while(|_| Windows::claim(&settings, &account)).collect();
        assert_eq!((all.len(), budget.refused() > 0), (4, true));
        drop(all);
        assert!(Windows::claim(&settings, &account).is_some());
    }
}
