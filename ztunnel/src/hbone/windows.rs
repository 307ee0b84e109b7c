//! What the peer of a tunnel may send before somebody reads it: memory that is promised to it.
//!
//! Where memory is plenty a connection begins with the windows of the settings. Otherwise it begins with less, and is given
//! more, up to those, once applications here have read a whole window: only to a peer whose bytes are wanted, and only as
//! far as the budget allows.
//!
//! Where memory is short windows shrink again. HTTP/2 has no word that takes the window of a connection back, so that a peer keeps
//! its right to what it was promised until it has used it. The window of a stream can be taken back, and binds the peer once it has
//! acknowledged the SETTINGS. What is counted is what the peer may still send by both. A connection without streams is
//! given up instead: see [`Windows::is_outgrown`].

use std::time::Duration;

use tokio::time::Instant;

use super::settings::{LARGEST_WINDOW, Settings};
use crate::net::memory::{Account, Claim};

/// The smallest window of a connection: HTTP/2's, which nobody can announce less than.
const SMALLEST: u32 = (64 << 10) - 1;
/// The smallest window of a stream: a full TLS record.
const SMALLEST_OF_STREAM: u32 = 16 << 10;
/// What part of the budget a connection begins with.
const PART: usize = 2048;
/// Windows shrink no more than once in this time.
const SHRINK_PAUSE: Duration = Duration::from_secs(1);
/// What is counted differs from what is promised by less than this.
const STEP: usize = 64 << 10;

/// Bytes of a connection's tunnels.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// The peer has sent them.
    pub(super) heard: u64,
    /// Applications here have read them.
    pub(super) read: u64,
}

/// The windows of one connection. Dropping it gives the memory back.
#[derive(Debug)]
pub struct Windows {
    claim: Claim,
    /// With which it began.
    first: u32,
    connection: u32,
    most: u32,
    /// Of the connection's window, a stream's is so much.
    streams: (u64, u64),
    /// So many streams may be open.
    streams_at_most: u64,
    /// Bytes that had been read when the window changed last, or could not.
    read: u64,
    /// A stream's window that the peer has not been told yet.
    untold: Option<u32>,
    /// The stream's window that the peer was told last, and the largest by which it may still go.
    told: u32,
    in_force: u32,
    /// What the peer was promised beyond the connection's window, with the bytes that had been read then.
    granted: Option<(u64, u64)>,
    /// When it shrank last.
    shrunk: Option<Instant>,
}

impl Windows {
    /// The windows that a connection of this account begins with. `None`: there is no memory for one more.
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

    /// Whose memory it is.
    pub(super) fn account(&self) -> &Account {
        self.claim.account()
    }

    /// The settings with these windows.
    pub(super) fn of(&self, settings: &Settings) -> Settings {
        Settings { stream_window: self.stream(), connection_window: self.connection, ..settings.clone() }
    }

    fn stream(&self) -> u32 {
        of_stream(self.connection, self.streams)
    }

    /// Whether more is promised than it began with, and everyone should do with less: without streams the connection is better
    /// given up.
    pub(super) fn is_outgrown(&self) -> bool {
        self.claim.bytes() > self.first as usize && self.account().is_tight()
    }

    /// Lets the windows grow or shrink. The connection's window, if it is another now.
    pub(super) fn adjust(&mut self, seen: Seen) -> Option<u32> {
        if self.granted.is_some() {
            self.settle(seen);
        }
        let can_shrink = self.connection > SMALLEST || self.in_force > self.told;
        if can_shrink && self.account().is_tight() { self.shrink(seen) } else { self.grow(seen) }
    }

    /// After applications have read a whole window.
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

    /// By half, or to what was read of late where that is less.
    fn shrink(&mut self, seen: Seen) -> Option<u32> {
        let now = Instant::now();
        if self.shrunk.is_some_and(|shrunk| now < shrunk + SHRINK_PAUSE) {
            return None;
        }
        self.shrunk = Some(now);
        if self.connection <= SMALLEST {
            // Told again, so that its acknowledgement says that what was told before is in force.
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

    /// Tells the peer the window of a stream, if it does not know it; `tell` is refused until the one before is acknowledged.
    pub(super) fn announce(&mut self, tell: impl FnOnce(u32) -> bool) {
        if let Some(window) = self.untold.take_if(|window| tell(*window)) {
            self.in_force = self.told.max(window);
            self.told = window;
        }
    }

    /// Counts what is promised by now.
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

    /// What the peer may send by these windows, or has sent and nobody has read.
    fn promised(&self, connection: u32, of_stream: u32, seen: Seen) -> usize {
        let of_connection = self.of_connection(connection, seen);
        if of_connection == u64::from(connection) {
            return connection as usize;
        }
        let unread = seen.heard.saturating_sub(seen.read);
        let of_streams = self.streams_at_most.saturating_mul(of_stream.into()).saturating_add(unread);
        usize::try_from(of_connection.min(of_streams.max(connection.into()))).unwrap_or(usize::MAX)
    }

    /// The same by the window of the connection alone.
    fn of_connection(&self, connection: u32, seen: Seen) -> u64 {
        let left = self.granted.map(|(granted, since)| granted.saturating_sub(seen.read.saturating_sub(since)));
        left.unwrap_or_default().max(connection.into())
    }
}

/// The window of a stream on a connection with that window.
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

    /// 128 tunnels of one peer whose application reads nothing, then those of a second one.
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

    /// Windows that have grown to those of the settings, and what has been read for that.
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

    /// Other pods take what there is.
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
        // Half of that is read, and no more than that was promised anew.
        advance(SHRINK_PAUSE).await;
        let bytes = bytes + u64::from(4 * MIB);
        assert_eq!(windows.adjust(read(bytes)), Some(4 * MIB));
        assert_eq!(windows.claim.bytes(), 12 << 20);
        // Nothing is read any more: a stream's window is what is left to take back.
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
        // What was sent before that and nobody reads is held, too.
        let stalled = Seen { heard: bytes + u64::from(2 * MIB), read: bytes };
        windows.adjust(stalled);
        assert_eq!(windows.claim.bytes(), 200 * SMALLEST_OF_STREAM as usize + (2 << 20));
        // All of it has been used.
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
