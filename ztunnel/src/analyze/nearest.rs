//! Finds the known name that was probably meant by an unknown one.

use std::cell::Cell;

/// Names that differ by more edits are different names.
const FARTHEST: usize = 2;
/// The most candidates that are searched: a label with a different value in each pod is not a list of names.
const MOST_CANDIDATES: usize = 1_000;

/// The total work for all names of a mesh, in pairs of letters: less than a second. If a mesh has more unknown names,
/// they are not misspellings.
const MOST_WORK: usize = 40_000_000;

/// Searches for the name that was meant, within the limit of work.
pub(super) struct Nearest {
    /// The remaining work.
    left: Cell<usize>,
}

impl Default for Nearest {
    fn default() -> Self {
        Self { left: Cell::new(MOST_WORK) }
    }
}

impl Nearest {
    /// The known name with the fewest edits from `name`, if it was probably meant.
    pub(super) fn find<'a>(&self, name: &str, known: impl ExactSizeIterator<Item = &'a str>) -> Option<&'a str> {
        if known.len() > MOST_CANDIDATES {
            return None;
        }
        let mut best = None;
        for candidate in known.filter(|candidate| *candidate != name) {
            let most = most_edits(name, candidate);
            let work = most.map_or(1, |_| name.len().saturating_mul(candidate.len()));
            self.left.set(self.left.get().checked_sub(work)?);
            let edits = most.and_then(|most| distance(name, candidate, most));
            best = edits.map(|edits| (edits, candidate)).into_iter().chain(best).min();
        }
        best.map(|(_, candidate)| candidate)
    }
}

/// The most edits between two names for one to be a misspelling of the other: at most [`FARTHEST`], and fewer than half
/// of a short name. `None`: the lengths of the names differ by more.
fn most_edits(one: &str, other: &str) -> Option<usize> {
    let [one, other] = [one, other].map(|name| name.chars().count());
    let most = FARTHEST.min(one.min(other).div_ceil(2).saturating_sub(1).max(1));
    (one.abs_diff(other) <= most).then_some(most)
}

/// The number of edits from one name to the other: letters replaced, added or removed, and neighbouring letters
/// swapped. `None`: more than `most`.
fn distance(one: &str, other: &str, most: usize) -> Option<usize> {
    Some(strsim::osa_distance(one, other)).filter(|edits| *edits <= most)
}

#[cfg(test)]
mod tests {
    use super::Nearest;

    #[test]
    fn one_or_two_edits_are_a_misspelling() {
        let table = [
            ("wbe", "web", true),
            ("we", "web", true),
            ("webb", "web", true),
            ("fronted", "frontend", true),
            ("fornt-end", "frontend", true),
            ("frontend", "backend", false),
            ("web", "api", false),
            ("web", "db", false),
            ("v1", "v2", true),
            ("a", "bc", false),
            ("cafe", "café", true),
            ("", "ab", false),
        ];
        for (name, known, expected) in table {
            let found = Nearest::default().find(name, [known].into_iter());
            assert_eq!(found, expected.then_some(known), "{name} {known}");
        }
        let nearest = Nearest::default();
        assert_eq!(nearest.find("reviews", ["review", "reviewer", "ratings"].into_iter()), Some("review"));
        assert_eq!(nearest.find("web", ["web"].into_iter()), None);
    }
}
