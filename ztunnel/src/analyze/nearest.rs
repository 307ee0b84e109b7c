//! What was likely meant by a name that is not known.

use std::cell::Cell;

/// Names with more edits between them are different names.
const FARTHEST: usize = 2;
/// Of more candidates none is searched: a label with a value of its own in each pod is no list of names.
const MOST_CANDIDATES: usize = 1_000;

/// The work for all names of a mesh together, in pairs of letters: less than a second. A mesh with more unknown names has no
/// misspellings.
const MOST_WORK: usize = 40_000_000;

/// Finds what was meant, as long as that does not take too long.
pub(super) struct Nearest {
    /// The work that may still be done.
    left: Cell<usize>,
}

impl Default for Nearest {
    fn default() -> Self {
        Self { left: Cell::new(MOST_WORK) }
    }
}

impl Nearest {
    /// The known name with the fewest edits from `name`, if it is likely the one that was meant.
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

/// How many edits may lie between two names for one to be a misspelling of the other: at most [`FARTHEST`], and fewer than
/// half of a short name. `None`: their lengths differ by more.
fn most_edits(one: &str, other: &str) -> Option<usize> {
    let [one, other] = [one, other].map(|name| name.chars().count());
    let most = FARTHEST.min(one.min(other).div_ceil(2).saturating_sub(1).max(1));
    (one.abs_diff(other) <= most).then_some(most)
}

/// The edits that make one name of the other: letters replaced, added or removed, and neighbours swapped. `None`: more than
/// `most`.
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
