//! The choice among endpoints: by rank first, and among endpoints of one rank at random, in proportion to their weights.

use std::net::IpAddr;

/// The maximum number of chosen endpoints: one to connect to, and two to try if that fails.
pub const MOST: usize = 3;

/// The chosen items, in the order in which they are tried.
#[derive(Debug)]
pub struct Choice<R, T>([Option<PinnedEndpoint<R, T>>; MOST]);

#[derive(Debug)]
struct PinnedEndpoint<R, T> {
    rank: R,
    key: f64,
    item: T,
}

impl<R, T> Choice<R, T> {
    /// Rank and item of each chosen item.
    pub fn iter(&self) -> impl Iterator<Item = (&R, &T)> {
        self.0.iter().flatten().map(|entry| (&entry.rank, &entry.item))
    }

    /// The item to try first.
    pub fn first(&self) -> Option<(&R, &T)> {
        self.iter().next()
    }
}

/// Chooses up to [`MOST`] of the items `(rank, weight, item)`, each at most once. The lowest ranks come first. Items of one
/// rank are chosen as if they were drawn one after the other without replacement, with a probability in proportion to their
/// weights. An item with weight 0 is never chosen. `draw` has to be random; the same draw gives the same choice.
///
/// One pass, no allocation: every item gets an exponentially distributed arrival time with its weight as the rate, and the
/// items with the first arrivals are chosen (Efraimidis and Spirakis, "Weighted random sampling with a reservoir").
pub fn choose<R: Ord, T>(items: impl IntoIterator<Item = (R, u32, T)>, draw: u64) -> Choice<R, T> {
    let mut best = Choice([const { None }; MOST]);
    let mut random = SplitMix64(draw);
    for (rank, weight, item) in items {
        let unit = random.unit();
        best.offer(rank, weight, unit, item);
    }
    best
}

/// The same, but each item `(rank, weight, draw, item)` has its own draw. The choice stays the same while the draws stay the
/// same. An item that is added or removed changes only the choices in which it is chosen (rendezvous hashing).
pub fn choose_sticky<R: Ord, T>(items: impl IntoIterator<Item = (R, u32, u64, T)>) -> Choice<R, T> {
    let mut best = Choice([const { None }; MOST]);
    for (rank, weight, draw, item) in items {
        best.offer(rank, weight, SplitMix64(draw).unit(), item);
    }
    best
}

/// The draw for a pair of addresses, the same on every node.
#[must_use]
pub fn draw_of(client: IpAddr, endpoint: IpAddr) -> u64 {
    let mut mixed = 0;
    for address in [client, endpoint] {
        let bits = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
        for half in [(bits >> 64) as u64, bits as u64] {
            mixed = SplitMix64(mixed ^ half).next();
        }
    }
    mixed
}

impl<R: Ord, T> Choice<R, T> {
    fn offer(&mut self, rank: R, weight: u32, unit: f64, item: T) {
        if weight == 0 {
            return;
        }
        let mut carried = PinnedEndpoint { rank, key: -unit.ln() / f64::from(weight), item };
        for place in &mut self.0 {
            match place {
                None => {
                    *place = Some(carried);
                    break;
                }
                Some(held) if carried.is_before(held) => std::mem::swap(held, &mut carried),
                Some(_) => {}
            }
        }
    }
}

impl<R: Ord, T> PinnedEndpoint<R, T> {
    fn is_before(&self, other: &Self) -> bool {
        self.rank.cmp(&other.rank).then(self.key.total_cmp(&other.key)).is_lt()
    }
}

/// The generator of Steele, Lea and Flood: makes many numbers from one draw.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 to 1 but never 0, because its logarithm is taken.
    fn unit(&mut self) -> f64 {
        // An f64 holds 53 bits exactly.
        let bits = (self.next() >> 11) + 1;
        #[expect(clippy::cast_precision_loss, reason = "at most 2^53")]
        let bits = bits as f64;
        bits / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::{MOST, choose, choose_sticky, draw_of};
    use proptest::prelude::{any, prop, proptest};
    use std::net::IpAddr;

    fn names(items: &[(u8, u32, char)], draw: u64) -> String {
        choose(items.iter().copied(), draw).iter().map(|(_, name)| *name).collect()
    }

    #[test]
    fn ranks_come_first_and_weight_zero_never() {
        for draw in 0..100 {
            let chosen = names(&[(1, 1, 'b'), (0, 1, 'a'), (2, 1, 'c'), (0, 0, 'x')], draw);
            assert_eq!(chosen, "abc");
            assert_eq!(names(&[(0, 0, 'x')], draw), "");
        }
    }

    #[test]
    fn first_and_second_picks_follow_the_weights() {
        const DRAWS: u32 = 40_000;
        let items = [(0, 1, 'a'), (0, 2, 'b'), (0, 5, 'c')];
        let (mut first, mut second_after_c) = ([0u32; 3], [0u32; 3]);
        let index = |name: char| usize::try_from(u32::from(name) - u32::from('a')).unwrap();
        for draw in 0..DRAWS {
            let chosen: Vec<char> =
                names(&items, u64::from(draw).wrapping_mul(0x5851_f42d_4c95_7f2d)).chars().collect();
            first[index(chosen[0])] += 1;
            if chosen[0] == 'c' {
                second_after_c[index(chosen[1])] += 1;
            }
        }
        let near = |count: u32, of: u32, share: f64| (f64::from(count) / f64::from(of) - share).abs() < 0.02;
        assert!(
            near(first[0], DRAWS, 0.125) && near(first[1], DRAWS, 0.25) && near(first[2], DRAWS, 0.625),
            "{first:?}"
        );
        let after_c = second_after_c.iter().sum();
        assert!(near(second_after_c[0], after_c, 1.0 / 3.0), "{second_after_c:?}");
    }

    #[test]
    fn a_client_stays_where_it_is_while_others_come_and_go() {
        let endpoint = |last: u8| IpAddr::from([10, 0, 1, last]);
        let chosen = |client: u8, endpoints: &[u8]| {
            let client = IpAddr::from([10, 0, 0, client]);
            let items = endpoints.iter().map(|last| (0, 1, draw_of(client, endpoint(*last)), *last));
            choose_sticky(items).first().map(|(_, last)| *last).unwrap()
        };
        let mut counts = [0u32; 5];
        for client in 0..=255 {
            let at = chosen(client, &[0, 1, 2, 3]);
            counts[usize::from(at)] += 1;
            assert_eq!(chosen(client, &[3, 1, 0, 2]), at, "in whatever order");
            let with_more = chosen(client, &[0, 1, 2, 3, 4]);
            assert!(with_more == at || with_more == 4, "only the new one takes clients");
            let others: Vec<u8> = (0..4).filter(|last| *last != at).collect();
            assert_ne!(chosen(client, &others), at);
            let gone = (at + 1) % 4;
            let left: Vec<u8> = (0..4).filter(|last| *last != gone).collect();
            assert_eq!(chosen(client, &left), at, "another one is gone");
        }
        assert!(counts[..4].iter().all(|count| (40..=90).contains(count)), "{counts:?}");
        assert_ne!(draw_of(endpoint(1), endpoint(2)), draw_of(endpoint(2), endpoint(1)));
    }

    proptest! {
        #[test]
        fn chosen_are_distinct_and_as_many_as_there_are(weights in prop::collection::vec(0u32..4, 0..20), draw in any::<u64>()) {
            let items = weights.iter().enumerate().map(|(index, weight)| (index % 2, *weight, index));
            let chosen: Vec<usize> = choose(items, draw).iter().map(|(_, index)| *index).collect();
            let usable = weights.iter().filter(|weight| **weight > 0).count();
            assert_eq!(chosen.len(), usable.min(MOST));
            assert!(chosen.iter().all(|index| weights[*index] > 0));
            assert!(chosen.iter().enumerate().all(|(at, index)| !chosen[..at].contains(index)));
            assert!(chosen.windows(2).all(|pair| pair[0] % 2 <= pair[1] % 2));
        }
    }
}
