//! Addresses about which connections need information, if the node does not have the whole mesh. A source that asks a control
//! plane for one address at a time gets the wanted addresses here, and reports when they are known.
//!
//! An unknown address is not treated as outside of the mesh: a connection waits until the control plane has said which object
//! has the address. The wait and the number of waiting connections are limited, and an address that no connection wants any
//! more is forgotten.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::model::workload::NamespacedName;

/// Limits of the demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DemandLimits {
    /// The maximum time that a connection waits.
    pub timeout: Duration,
    /// The maximum number of waiting connections.
    pub waiting: usize,
    /// The maximum number of known addresses.
    pub addresses: usize,
    /// An address is forgotten if no connection has wanted it for this time.
    pub idle: Duration,
}

/// The wait is Istio's for a workload. The number of addresses is the number that a control plane of this project serves by
/// name on one stream, with room for the endpoints behind them.
impl Default for DemandLimits {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(5), waiting: 1024, addresses: 16_384, idle: Duration::from_secs(600) }
    }
}

/// Why the owner of an address is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unresolved {
    /// The control plane did not answer.
    #[error(
        "the control plane has not answered within {}.{:03} s which object has the address {address} \
         (--control-plane-mode on-demand): the connection is refused, since the address may be in the mesh; \
         /config_dump says whether the control plane is reached",
        waited.as_secs(), waited.subsec_millis()
    )]
    Silence {
        /// The address.
        address: IpAddr,
        /// The time of the wait.
        waited: Duration,
    },
    /// Too many connections wait, or too many addresses are in use.
    #[error(
        "{what} (--control-plane-mode on-demand): the control plane was not asked for {address}; try again, or use \
         the mode wildcard"
    )]
    TooMany {
        /// The address.
        address: IpAddr,
        /// The reason.
        what: &'static str,
    },
}

/// The wanted addresses and their state. Clones share it.
#[derive(Clone, Debug)]
pub struct Demand(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limits: DemandLimits,
    state: Mutex<State>,
    /// Changes when something new is wanted.
    wanted: watch::Sender<u64>,
    /// Changes when an answer has arrived.
    answered: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    addresses: HashMap<IpAddr, Wanted>,
    /// The pods of this node. `None`: they are not known yet.
    own: Option<BTreeSet<NamespacedName>>,
    waiting: usize,
    /// An address was refused because of the limit.
    is_full: bool,
}

#[derive(Debug)]
struct Wanted {
    used: Instant,
    /// The control plane has been asked.
    is_asked: bool,
    /// The control plane has said which object has the address, or that none has it.
    is_answered: bool,
}

/// One waiting connection.
struct Waiting<'a>(&'a Shared);

impl Default for Demand {
    fn default() -> Self {
        Self::new(DemandLimits::default())
    }
}

impl Demand {
    /// A demand without wanted addresses.
    #[must_use]
    pub fn new(limits: DemandLimits) -> Self {
        let (wanted, answered) = (watch::Sender::new(0), watch::Sender::new(0));
        Self(Arc::new(Shared { limits, state: Mutex::default(), wanted, answered }))
    }

    /// The limits.
    #[must_use]
    pub fn limits(&self) -> DemandLimits {
        self.0.limits
    }

    /// Waits until the owner of an address is known.
    ///
    /// # Errors
    /// The owner does not become known.
    pub async fn known(&self, address: IpAddr, now: Instant) -> Result<(), Unresolved> {
        let address = address.to_canonical();
        let Some(_waiting) = self.want(address, now)? else { return Ok(()) };
        let limit = self.0.limits.timeout;
        let mut answered = self.0.answered.subscribe();
        let answer = timeout(limit, async {
            while !self.0.state().addresses.get(&address).is_some_and(|wanted| wanted.is_answered) {
                // The sender exists as long as this value.
                let _changed = answered.changed().await;
            }
        });
        answer.await.map_err(|_elapsed| Unresolved::Silence { address, waited: limit })
    }

    /// Notes that an address is wanted. `None`: it is known already.
    fn want(&self, address: IpAddr, now: Instant) -> Result<Option<Waiting<'_>>, Unresolved> {
        let limits = self.0.limits;
        let mut state = self.0.state();
        let too_many = |what| Err(Unresolved::TooMany { address, what });
        let count = state.addresses.len();
        match state.addresses.get_mut(&address) {
            Some(wanted) => {
                wanted.used = now;
                if wanted.is_answered {
                    return Ok(None);
                }
            }
            None if count >= limits.addresses => {
                state.is_full = true;
                drop(state);
                self.0.wanted.send_modify(|count| *count += 1);
                return too_many("too many addresses are in use");
            }
            None => {}
        }
        if state.waiting >= limits.waiting {
            return too_many("too many connections wait for answers of the control plane");
        }
        state.waiting += 1;
        let waiting = Waiting(&self.0);
        let mut is_new = false;
        state.addresses.entry(address).or_insert_with(|| {
            is_new = true;
            Wanted { used: now, is_asked: false, is_answered: false }
        });
        drop(state);
        if is_new {
            self.0.wanted.send_modify(|count| *count += 1);
        }
        Ok(Some(waiting))
    }

    /// Notifies of new wanted addresses from now on.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.wanted.subscribe()
    }

    /// Addresses that have not been requested yet. They count as requested from now on.
    #[must_use]
    pub fn news(&self) -> Vec<IpAddr> {
        let mut state = self.0.state();
        let mut new = Vec::new();
        for (address, wanted) in &mut state.addresses {
            if !std::mem::replace(&mut wanted.is_asked, true) {
                new.push(*address);
            }
        }
        new
    }

    /// All addresses. They count as requested from now on.
    #[must_use]
    pub fn all(&self) -> Vec<IpAddr> {
        let mut state = self.0.state();
        state.addresses.values_mut().for_each(|wanted| wanted.is_asked = true);
        state.addresses.keys().copied().collect()
    }

    /// Addresses without an answer.
    #[must_use]
    pub fn unanswered(&self) -> Vec<IpAddr> {
        let state = self.0.state();
        state.addresses.iter().filter(|(_, wanted)| !wanted.is_answered).map(|(address, _)| *address).collect()
    }

    /// Whether an address is wanted.
    #[must_use]
    pub fn wants(&self, address: IpAddr) -> bool {
        self.0.state().addresses.contains_key(&address)
    }

    /// Marks addresses as known: the mesh has them, or no object has them. The mesh must have been published before.
    pub fn answer(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        let mut state = self.0.state();
        for address in addresses {
            if let Some(wanted) = state.addresses.get_mut(&address) {
                wanted.is_answered = true;
            }
        }
        drop(state);
        self.0.answered.send_modify(|count| *count += 1);
    }

    /// Forgets the addresses that no connection has wanted for a long time. If there is no room, addresses that were wanted
    /// more recently are forgotten as well.
    #[must_use]
    pub fn sweep(&self, now: Instant) -> Vec<IpAddr> {
        let mut state = self.0.state();
        let idle = match std::mem::take(&mut state.is_full) {
            true => self.0.limits.idle / 60,
            false => self.0.limits.idle,
        };
        let is_idle = |wanted: &Wanted| wanted.is_answered && now.saturating_duration_since(wanted.used) >= idle;
        let gone = state.addresses.extract_if(|_, wanted| is_idle(wanted));
        gone.map(|(address, _)| address).collect()
    }

    /// Sets the pods of this node, which are always wanted.
    pub fn set_own(&self, pods: BTreeSet<NamespacedName>) {
        let mut state = self.0.state();
        if state.own.as_ref() == Some(&pods) {
            return;
        }
        state.own = Some(pods);
        drop(state);
        self.0.wanted.send_modify(|count| *count += 1);
    }

    /// The pods of this node, if they are known.
    #[must_use]
    pub fn own(&self) -> Option<BTreeSet<NamespacedName>> {
        self.0.state().own.clone()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.waiting = state.waiting.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::time::advance;

    use super::*;

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn small() -> Demand {
        let (limit, idle) = (Duration::from_secs(5), Duration::from_secs(600));
        Demand::new(DemandLimits { timeout: limit, waiting: 2, addresses: 3, idle })
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_waits_for_the_answer_and_later_ones_do_not() {
        let demand = small();
        let mut wanted = demand.subscribe();
        let waiting = demand.known(address(1), Instant::now());
        tokio::pin!(waiting);
        assert_eq!(waiting.as_mut().now_or_never(), None);
        assert!(wanted.has_changed().unwrap());
        wanted.mark_unchanged();
        assert_eq!(demand.news(), [address(1)]);
        assert_eq!((demand.news(), demand.unanswered()), (vec![], vec![address(1)]));
        demand.answer([address(9)]);
        assert_eq!(waiting.as_mut().now_or_never(), None);
        demand.answer([address(1)]);
        assert_eq!(waiting.await, Ok(()));
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(demand.known(mapped, Instant::now()).now_or_never(), Some(Ok(())));
        assert!(!wanted.has_changed().unwrap(), "there is nothing new to ask for");
        assert_eq!(demand.all(), [address(1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_has_an_end_and_the_next_connection_waits_again() {
        let demand = small();
        for _ in 0..2 {
            let begin = Instant::now();
            let error = demand.known(address(1), Instant::now()).await.unwrap_err();
            assert_eq!(
                (error, begin.elapsed()),
                (Unresolved::Silence { address: address(1), waited: begin.elapsed() }, Duration::from_secs(5))
            );
            assert!(error.to_string().contains("10.0.0.1") && error.to_string().contains("5.000 s"), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn not_too_many_wait_and_who_gives_up_leaves_a_place() {
        let demand = small();
        let mut first = Box::pin(demand.known(address(1), Instant::now()));
        let mut second = Box::pin(demand.known(address(1), Instant::now()));
        assert_eq!((first.as_mut().now_or_never(), second.as_mut().now_or_never()), (None, None));
        let error = demand.known(address(2), Instant::now()).now_or_never().unwrap().unwrap_err();
        assert!(error.to_string().starts_with("too many connections wait"), "{error}");
        drop(first);
        assert_eq!(demand.known(address(2), Instant::now()).now_or_never(), None);
        drop(second);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_used_is_forgotten_sooner_where_there_is_no_room() {
        let demand = small();
        for last in 1..=3 {
            assert_eq!(demand.known(address(last), Instant::now()).now_or_never(), None);
            demand.answer([address(last)]);
            advance(Duration::from_secs(1)).await;
        }
        assert!(demand.sweep(Instant::now()).is_empty());
        let error = demand.known(address(4), Instant::now()).now_or_never().unwrap().unwrap_err();
        assert!(error.to_string().starts_with("too many addresses"), "{error}");
        advance(Duration::from_secs(8)).await;
        assert_eq!(demand.known(address(3), Instant::now()).now_or_never(), Some(Ok(())));
        let mut gone = demand.sweep(Instant::now());
        gone.sort_unstable();
        assert_eq!(gone, [address(1), address(2)].map(|it| it));
        assert!(demand.wants(address(3)) && !demand.wants(address(1)));
        advance(Duration::from_secs(599)).await;
        assert!(demand.sweep(Instant::now()).is_empty());
        advance(Duration::from_secs(1)).await;
        assert_eq!(demand.sweep(Instant::now()), [address(3)]);
        // An address for which a connection waits is not forgotten.
        assert_eq!(demand.known(address(5), Instant::now()).now_or_never(), None);
        advance(Duration::from_secs(6000)).await;
        assert!(demand.sweep(Instant::now()).is_empty());
    }

    #[tokio::test]
    async fn own_pods_are_news_once() {
        let demand = small();
        let wanted = demand.subscribe();
        let pods: BTreeSet<_> = [NamespacedName::new("demo", "a")].into();
        assert_eq!(demand.own(), None);
        demand.set_own(pods.clone());
        let version = *wanted.borrow();
        demand.set_own(pods.clone());
        assert_eq!((demand.own(), *wanted.borrow()), (Some(pods), version));
    }
}
