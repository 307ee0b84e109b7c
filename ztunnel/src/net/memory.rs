//! The memory budget for buffers and windows of the whole daemon. It is shared by pods and their peers, so that none of them
//! can use up the memory of the others.
//!
//! Two kinds of claims are counted: promises to a peer (the window of an HBONE connection), and memory in use (copy buffers). A
//! claim without which a connection can't work is small. It is refused when the budget, or the share of its pod or peer, is
//! used up. Growth is granted only from free memory: a peer may use as much as a quarter of the free memory, a pod as much as
//! the free memory, and both at most half of their share. So some memory is always left for the next claim. When little is left
//! ([`Account::is_tight`]), memory that was granted for growth is taken back as far as possible.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

/// One pod gets at most the budget divided by this.
const POD: usize = 2;
/// The same for one peer.
const PEER: usize = 4;
/// A pod or peer grows at most to its share divided by this; the rest is for its new connections.
const GROWTH: usize = 2;
/// A peer grows at most to the free memory divided by this.
const GROWTH_OF_PEER: usize = 4;

/// The daemon's budget. Clones share it.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Whole>);

#[derive(Debug)]
struct Whole {
    limit: usize,
    used: AtomicUsize,
    refused: AtomicU64,
    /// One entry for each peer, whichever pods it connects to.
    peers: Mutex<HashMap<IpAddr, Weak<Part>>>,
}

/// The bytes of one pod or one peer.
#[derive(Debug, Default)]
struct Part(AtomicUsize);

impl Part {
    fn used(&self) -> usize {
        self.0.load(Relaxed)
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(usize::MAX)
    }
}

impl Budget {
    /// A budget of this many bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        let (used, refused, peers) = (AtomicUsize::new(0), AtomicU64::new(0), Mutex::default());
        Self(Arc::new(Whole { limit, used, refused, peers }))
    }

    /// A new account for a pod.
    #[must_use]
    pub fn pod(&self) -> Account {
        Account { whole: Arc::clone(&self.0), pod: Arc::default(), peer: None }
    }

    /// The size of the budget in bytes.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.0.limit
    }

    /// The claimed bytes.
    #[must_use]
    pub fn used(&self) -> usize {
        self.0.used.load(Relaxed)
    }

    /// The number of refused claims.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Relaxed)
    }
}

/// The account of a pod, or of one of its peers. Clones share it.
#[derive(Clone, Debug)]
pub struct Account {
    whole: Arc<Whole>,
    pod: Arc<Part>,
    peer: Option<Arc<Part>>,
}

impl Account {
    /// The account of a peer of this pod.
    #[must_use]
    pub fn of_peer(&self, peer: IpAddr) -> Self {
        let mut peers = self.whole.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let part = peers.get(&peer).and_then(Weak::upgrade).unwrap_or_else(|| {
            // Peers without claims are removed.
            peers.retain(|_, part| part.strong_count() > 0);
            let part = Arc::default();
            peers.insert(peer, Arc::downgrade(&part));
            part
        });
        Self { peer: Some(part), ..self.clone() }
    }

    /// The size of the whole budget in bytes.
    #[must_use]
    pub fn budget(&self) -> usize {
        self.whole.limit
    }

    /// Whether so little of the budget or of the pod's share is left that connections should use less memory.
    #[must_use]
    pub fn is_tight(&self) -> bool {
        let used = self.whole.used.load(Relaxed);
        used >= self.growth_ends() || self.pod.used() >= self.whole.limit.saturating_sub(used)
    }

    /// Claims memory without which a connection can't work. `None`: the connection must be refused.
    #[must_use]
    pub fn claim(&self, bytes: usize) -> Option<Claim> {
        let mut claim = Claim { account: self.clone(), bytes: 0 };
        let limit = self.whole.limit;
        let fits = |used: Used| used.whole <= limit && used.pod <= limit / POD && used.peer <= limit / PEER;
        if claim.add_if(bytes, fits) {
            return Some(claim);
        }
        self.whole.refused.fetch_add(1, Relaxed);
        None
    }

    /// A claim for memory in use, with 0 bytes at first; see [`Claim::resize`].
    #[must_use]
    pub fn count(&self) -> Claim {
        Claim { account: self.clone(), bytes: 0 }
    }

    fn growth_ends(&self) -> usize {
        self.whole.limit / 4 * 3
    }

    fn parts(&self) -> impl Iterator<Item = &AtomicUsize> {
        [&self.whole.used, &self.pod.0].into_iter().chain(self.peer.as_deref().map(|peer| &peer.0))
    }
}

/// The used bytes, including a new claim.
#[derive(Clone, Copy)]
struct Used {
    whole: usize,
    pod: usize,
    peer: usize,
}

/// Claimed bytes of the budget; they are returned when the value is dropped.
#[derive(Debug)]
pub struct Claim {
    account: Account,
    bytes: usize,
}

impl Claim {
    /// The account of the claim.
    #[must_use]
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// The claimed bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Claims more, for higher throughput. `false`: not enough memory is left for growth.
    pub fn grow(&mut self, more: usize) -> bool {
        let (limit, ends) = (self.account.whole.limit, self.account.growth_ends());
        self.add_if(more, |used| {
            let free = limit.saturating_sub(used.whole);
            let (pod, peer) = (limit / POD / GROWTH, limit / PEER / GROWTH);
            used.whole <= ends && used.pod <= free.min(pod) && used.peer <= peer.min(free / GROWTH_OF_PEER)
        })
    }

    /// Sets the number of claimed bytes, without a limit.
    pub fn resize(&mut self, bytes: usize) {
        let before = std::mem::replace(&mut self.bytes, bytes);
        for part in self.account.parts() {
            if bytes > before {
                part.fetch_add(bytes - before, Relaxed);
            } else {
                part.fetch_sub(before - bytes, Relaxed);
            }
        }
    }

    fn add_if(&mut self, bytes: usize, fits: impl Fn(Used) -> bool) -> bool {
        let mut used = self.account.parts().map(|part| part.fetch_add(bytes, Relaxed).saturating_add(bytes));
        let mut next = || used.next().unwrap_or_default();
        let used = Used { whole: next(), pod: next(), peer: next() };
        let granted = fits(used);
        if granted {
            self.bytes = self.bytes.saturating_add(bytes);
        } else {
            give_back(&self.account, bytes);
        }
        granted
    }
}

fn give_back(account: &Account, bytes: usize) {
    for part in account.parts() {
        part.fetch_sub(bytes, Relaxed);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        give_back(&self.account, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::Budget;
    use std::net::IpAddr;

    const MIB: usize = 1 << 20;

    fn ip(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn no_peer_and_no_pod_has_more_than_its_share_and_all_comes_back() {
        let budget = Budget::new(512 * MIB);
        let (pod, other) = (budget.pod(), budget.pod());
        let mut claims: Vec<_> = (0..1000).map_while(|_| pod.of_peer(ip(1)).claim(MIB)).collect();
        assert_eq!(claims.len(), 128, "a quarter is a peer's");
        assert!(other.of_peer(ip(1)).claim(MIB).is_none(), "whichever pod it talks to");
        for peer in 2..=9 {
            claims.extend((0..1000).map_while(|_| pod.of_peer(ip(peer)).claim(MIB)));
        }
        assert_eq!(claims.len(), 256, "half is a pod's");
        assert!(other.of_peer(ip(10)).claim(MIB).is_some());
        assert!(budget.refused() > 0);
        drop(claims);
        assert_eq!((budget.used(), pod.of_peer(ip(1)).peer.unwrap().used()), (0, 0));
        let _again = pod.of_peer(ip(77));
        assert_eq!(budget.0.peers.lock().unwrap().len(), 1, "peers without a claim are forgotten");
    }

    #[test]
    fn growth_always_leaves_something_for_the_next_one() {
        let budget = Budget::new(512 * MIB);
        let mut claims = Vec::new();
        for peer in 1..=100 {
            let before = budget.used();
            let mut claim = budget.pod().of_peer(ip(peer)).claim(MIB).unwrap();
            while claim.grow(MIB) {}
            let got = budget.used() - before;
            assert!(got <= 64 * MIB, "{got} bytes for peer {peer}");
            claims.push(claim);
        }
        assert!(budget.used() <= 484 * MIB, "growth ends at three quarters, and everybody has one more");
        assert!(claims[0].account().is_tight() && !Budget::default().pod().is_tight());
    }
}
