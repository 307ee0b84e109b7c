//! Limits the reviews of unknown tokens, for each address that they come from. A program that sends forged tokens uses
//! up the limit of its own address only. It takes nothing away from nodes at other addresses.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};

/// Reviews at once for one address: a quarter of all.
const AT_ONCE: usize = 4;
/// How long a token may wait for the reviews of other tokens from its address.
const WAIT: Duration = Duration::from_secs(5);
/// Refusals of one address in a row. A node whose pod is not known yet is refused as well, and tries again after some
/// seconds.
const REFUSALS: u32 = 8;
/// The time after which one more refusal is allowed.
const FORGIVE_EVERY: Duration = Duration::from_secs(10);
/// Addresses with an account of their own: more than the nodes that are new at one time. Further addresses share one
/// account.
const MOST: usize = 4096;

/// The accounts of all addresses.
#[derive(Debug, Default)]
pub(super) struct Unproved {
    addresses: Mutex<HashMap<IpAddr, Arc<Account>>>,
    others: Arc<Account>,
}

#[derive(Debug)]
struct Account {
    reviews: Arc<Semaphore>,
    /// The time at which no refusal counts any more.
    forgiven_at: Mutex<Option<Instant>>,
}

impl Default for Account {
    fn default() -> Self {
        Self { reviews: Arc::new(Semaphore::new(AT_ONCE)), forgiven_at: Mutex::default() }
    }
}

/// The right to have one token reviewed.
#[derive(Debug)]
pub(super) struct Attempt {
    account: Arc<Account>,
    _place: OwnedSemaphorePermit,
}

/// Why a token is not reviewed now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TooMany {
    /// Too many tokens from the address were refused. The next token is reviewed after this time.
    Refused(Duration),
    /// The tokens from the address that are being reviewed take too long.
    AtOnce,
}

impl Unproved {
    /// Waits until a token from an address may be reviewed.
    ///
    /// # Errors
    /// Too many tokens from the address were refused, or wait for their reviews.
    pub(super) async fn attempt(&self, address: IpAddr) -> Result<Attempt, TooMany> {
        let account = self.account(address, Instant::now());
        account.check(Instant::now())?;
        let place = timeout(WAIT, Arc::clone(&account.reviews).acquire_owned()).await;
        let Ok(Ok(place)) = place else { return Err(TooMany::AtOnce) };
        // Other tokens from the address may have been refused meanwhile.
        account.check(Instant::now())?;
        Ok(Attempt { account, _place: place })
    }

    fn account(&self, address: IpAddr, now: Instant) -> Arc<Account> {
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = addresses.get(&address) {
            return Arc::clone(account);
        }
        if addresses.len() >= MOST {
            addresses.retain(|_, account| Arc::strong_count(account) > 1 || account.owes(now));
        }
        if addresses.len() >= MOST {
            return Arc::clone(&self.others);
        }
        let account = Arc::new(Account::default());
        addresses.insert(address, Arc::clone(&account));
        account
    }
}

impl Account {
    fn owes(&self, now: Instant) -> bool {
        self.forgiven_at.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at > now)
    }

    fn check(&self, now: Instant) -> Result<(), TooMany> {
        let forgiven_at = self.forgiven_at.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or(now).max(now);
        let most = now + FORGIVE_EVERY * (REFUSALS - 1);
        if forgiven_at > most { Err(TooMany::Refused(forgiven_at - most)) } else { Ok(()) }
    }
}

impl Attempt {
    /// The token was refused.
    pub(super) fn refused(self, now: Instant) {
        let mut forgiven_at = self.account.forgiven_at.lock().unwrap_or_else(PoisonError::into_inner);
        *forgiven_at = Some(forgiven_at.unwrap_or(now).max(now) + FORGIVE_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use tokio::time::{Instant, advance, timeout};

    use super::*;

    fn address(number: u32) -> IpAddr {
        Ipv4Addr::from(0x0a00_0000 + number).into()
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_are_counted_by_address_and_forgiven_one_by_one() {
        let unproved = Unproved::default();
        for _ in 0..REFUSALS {
            unproved.attempt(address(1)).await.unwrap().refused(Instant::now());
        }
        assert_eq!(unproved.attempt(address(1)).await.unwrap_err(), TooMany::Refused(FORGIVE_EVERY));
        drop(unproved.attempt(address(2)).await.unwrap());
        advance(FORGIVE_EVERY).await;
        unproved.attempt(address(1)).await.unwrap().refused(Instant::now());
        assert!(unproved.attempt(address(1)).await.is_err());
        // A token that was not refused costs nothing.
        for _ in 0..100 {
            drop(unproved.attempt(address(2)).await.unwrap());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_waits_for_itself_alone() {
        let unproved = Unproved::default();
        let mut held = Vec::new();
        for _ in 0..AT_ONCE {
            held.push(unproved.attempt(address(1)).await.unwrap());
        }
        let start = Instant::now();
        assert_eq!(unproved.attempt(address(1)).await.unwrap_err(), TooMany::AtOnce);
        assert_eq!(start.elapsed(), WAIT);
        timeout(Duration::ZERO, unproved.attempt(address(2))).await.unwrap().unwrap();
        // A token that waits is refused together with the tokens before it.
        let waiting = unproved.attempt(address(1));
        let refusing = async {
            for _ in 0..REFUSALS - 1 {
                held[0].account.forgiven_at.lock().unwrap().get_or_insert_with(Instant::now);
                let account = Arc::clone(&held[0].account);
                let place = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
                Attempt { account, _place: place }.refused(Instant::now());
            }
            held.pop().unwrap().refused(Instant::now());
        };
        assert!(matches!(tokio::join!(waiting, refusing).0, Err(TooMany::Refused(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded() {
        let unproved = Unproved::default();
        let most = u32::try_from(MOST).unwrap();
        for number in 0..most {
            unproved.attempt(address(number)).await.unwrap().refused(Instant::now());
        }
        // Addresses with refusals are not forgotten. All other addresses share one account.
        for _ in 0..REFUSALS {
            unproved.attempt(address(most)).await.unwrap().refused(Instant::now());
        }
        assert!(unproved.attempt(address(most + 1)).await.is_err());
        assert_eq!(unproved.addresses.lock().unwrap().len(), MOST);
        unproved.attempt(address(3)).await.unwrap();
        advance(FORGIVE_EVERY * 2).await;
        unproved.attempt(address(most + 1)).await.unwrap();
        assert_eq!(unproved.addresses.lock().unwrap().len(), 1);
    }
}
