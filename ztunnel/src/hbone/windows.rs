//! What the peer of a tunnel may send before somebody reads it: memory that is promised to it.
//!
//! Where memory is plenty a connection begins with the windows of the settings. Otherwise it begins with less, and is given
//! more, up to those, once applications here have read a whole window: only to a peer whose bytes are wanted, and only as
//! far as the budget allows. A promise can't be taken back.

use super::settings::{LARGEST_WINDOW, Settings};
use crate::net::memory::{Account, Claim};

/// The smallest window of a connection: HTTP/2's, which nobody can announce less than.
const SMALLEST: u32 = (64 << 10) - 1;
/// The smallest window of a stream: a full TLS record.
const SMALLEST_OF_STREAM: u32 = 16 << 10;
/// What part of the budget a connection begins with.
const PART: usize = 2048;

/// The windows of one connection. Dropping it gives the memory back.
#[derive(Debug)]
pub struct Windows {
    claim: Claim,
    connection: u32,
    most: u32,
    /// Of the connection's window, a stream's is so much.
    streams: (u64, u64),
    /// Bytes that had been read when the window grew last, or could not.
    read: u64,
    /// A stream's window that the peer has not been told yet.
    untold: Option<u32>,
}

impl Windows {
    /// The windows that a connection of this account begins with. `None`: there is no memory for one more.
    #[must_use]
    pub fn claim(settings: &Settings, account: &Account) -> Option<Self> {
        let most = settings.connection_window.clamp(SMALLEST, LARGEST_WINDOW);
        let part = u32::try_from(account.budget() / PART).unwrap_or(u32::MAX).clamp(SMALLEST, most);
        let first = if account.is_tight() { SMALLEST } else { part };
        let (claim, connection) = match account.claim(first as usize) {
            Some(claim) => (claim, first),
            None => (account.claim(SMALLEST as usize)?, SMALLEST),
        };
        let streams = (settings.stream_window.into(), u64::from(settings.connection_window).max(1));
        Some(Self { claim, connection, most, streams, read: 0, untold: None })
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
        let (part, whole) = self.streams;
        let window = u32::try_from(u64::from(self.connection).saturating_mul(part) / whole).unwrap_or(LARGEST_WINDOW);
        window.clamp(SMALLEST_OF_STREAM.min(self.connection), LARGEST_WINDOW)
    }

    /// So many bytes have been read by applications. The connection's window, if it is larger now.
    pub(super) fn grow(&mut self, read: u64) -> Option<u32> {
        if self.connection >= self.most || read.saturating_sub(self.read) < self.connection.into() {
            return None;
        }
        self.read = read;
        let next = self.connection.saturating_mul(2).min(self.most);
        if !self.claim.grow((next - self.connection) as usize) {
            return None;
        }
        self.connection = next;
        self.untold = Some(self.stream());
        Some(next)
    }

    /// Tells the peer the window of a stream, if it does not know it; `tell` may be refused for the moment.
    pub(super) fn announce(&mut self, tell: impl FnOnce(u32) -> bool) {
        self.untold.take_if(|window| tell(*window));
    }
}

#[cfg(test)]
mod tests {
    use super::{SMALLEST, Windows};
    use crate::{hbone::Settings, net::memory::Budget};

    const MIB: u32 = 1 << 20;

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
        assert!(all.iter_mut().all(|windows| windows.grow(0).is_none()));
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
        let mut read = u64::from(first.connection);
        assert_eq!(first.grow(read - 1), None);
        while let Some(window) = first.grow(read) {
            assert_eq!(first.of(&settings).stream_window, window / 4);
            read += u64::from(window);
        }
        first.announce(|_| false);
        let mut told = None;
        first.announce(|window| told.replace(window).is_none());
        assert_eq!((first.connection, told), (16 * MIB, Some(4 * MIB)));
        let grown: Vec<_> = (0..20)
            .filter_map(|_| {
                let mut windows = Windows::claim(&settings, &account)?;
                let mut read = 0;
                while windows.grow(read).is_some() || read == 0 {
                    read += u64::from(16 * MIB);
                }
                Some(windows)
            })
            .collect();
        assert!(budget.used() <= 69 << 20, "{}", budget.used());
        assert_eq!(grown.len(), 20, "all of them work");
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
