//! The memory that buffers and windows may take, of the whole daemon: shared out to pods and to their peers, so that none of
//! them takes it from the others.
//!
//! Two kinds of claims are counted: what a peer was promised (the window of a tunnel) and what is in use (copy buffers). A claim
//! that a connection needs to work at all is small, and refused when the budget, or the share of its pod or peer, is used up.
//! More is granted only out of what is free: a peer may have a quarter as much as is free, a pod as much, and both no more than
//! half of their share. So there is always something left for whoever comes next. Where there is little left
//! ([`Account::is_tight`]), what was granted by growth is taken back as far as that can be.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

/// Of the budget, what one pod may have at most.
const POD: usize = 2;
/// The same for one peer.
const PEER: usize = 4;
/// Of its share, what a pod or peer may have by growth: the rest is for what it begins next.
const GROWTH: usize = 2;
/// A peer may get more while it has less than so much of what is free.
const GROWTH_OF_PEER: usize = 4;

/// The daemon's budget. Clones are the same.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Whole>);

#[derive(Debug)]
struct Whole {
    limit: usize,
    used: AtomicUsize,
    refused: AtomicU64,
    /// A peer is the same whichever pod it talks to.
    peers: Mutex<HashMap<IpAddr, Weak<Part>>>,
}

/// What one pod or one peer has.
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
    /// A budget of so many bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        let (used, refused, peers) = (AtomicUsize::new(0), AtomicU64::new(0), Mutex::default());
        Self(Arc::new(Whole { limit, used, refused, peers }))
    }

    /// The account of a pod, which has nothing yet.
    #[must_use]
    pub fn pod(&self) -> Account {
        Account { whole: Arc::clone(&self.0), pod: Arc::default(), peer: None }
    }

    /// Bytes of the budget.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.0.limit
    }

    /// Bytes that are claimed.
    #[must_use]
    pub fn used(&self) -> usize {
        self.0.used.load(Relaxed)
    }

    /// How many claims were refused.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Relaxed)
    }
}

/// The share of a pod, or of one of its peers. Clones are the same.
#[derive(Clone, Debug)]
pub struct Account {
    whole: Arc<Whole>,
    pod: Arc<Part>,
    peer: Option<Arc<Part>>,
}

impl Account {
    /// The share of the pod that a peer has.
    #[must_use]
    pub fn of_peer(&self, peer: IpAddr) -> Self {
        let mut peers = self.whole.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let part = peers.get(&peer).and_then(Weak::upgrade).unwrap_or_else(|| {
            // Whoever is gone has nothing any more.
            peers.retain(|_, part| part.strong_count() > 0);
            let part = Arc::default();
            peers.insert(peer, Arc::downgrade(&part));
            part
        });
        Self { peer: Some(part), ..self.clone() }
    }

    /// Bytes of the whole budget.
    #[must_use]
    pub fn budget(&self) -> usize {
        self.whole.limit
    }

    /// Whether there is so little left, of the whole or of the pod's share, that everyone should do with less.
    #[must_use]
    pub fn is_tight(&self) -> bool {
        let used = self.whole.used.load(Relaxed);
        used >= self.growth_ends() || self.pod.used() >= self.whole.limit.saturating_sub(used)
    }

    /// Claims what a connection can't do without; `None`: it must be refused.
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

    /// Counts what is in use: nothing yet, see [`Claim::resize`].
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

/// How much is used, a new claim included.
#[derive(Clone, Copy)]
struct Used {
    whole: usize,
    pod: usize,
    peer: usize,
}

/// Bytes of the budget; free again when the value is dropped.
#[derive(Debug)]
pub struct Claim {
    account: Account,
    bytes: usize,
}

impl Claim {
    /// Whose it is.
    #[must_use]
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// How much it is.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Claims more, to work faster. `false`: there is not enough left for that.
    pub fn grow(&mut self, more: usize) -> bool {
        let (limit, ends) = (self.account.whole.limit, self.account.growth_ends());
        self.add_if(more, |used| {
            let free = limit.saturating_sub(used.whole);
            let (pod, peer) = (limit / POD / GROWTH, limit / PEER / GROWTH);
            used.whole <= ends && used.pod <= free.min(pod) && used.peer <= peer.min(free / GROWTH_OF_PEER)
        })
    }

    /// Counts so many bytes from now on, whatever is left.
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
