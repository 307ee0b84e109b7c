//! What was likely meant by a name that is not known.

use std::cell::Cell;

/// Names with more edits between them are different names.
const FARTHEST: usize = 2;
/// Of more candidates none is searched: a label with a value of its own in each pod is no list of names.
const MOST_CANDIDATES: usize = 1_000;

/// How many candidates are looked at for all names together: who has a thousand names wrong has no misspellings.
const MOST_COMPARED: usize = 500_000;

/// Finds what was meant, as long as that does not take too long.
pub(super) struct Nearest {
    /// How many candidates may still be looked at.
    left: Cell<usize>,
}

impl Default for Nearest {
    fn default() -> Self {
        Self { left: Cell::new(MOST_COMPARED) }
    }
}

impl Nearest {
    /// The known name with the fewest edits from `name`, if it is likely the one that was meant.
    pub(super) fn find<'a>(&self, name: &str, known: impl ExactSizeIterator<Item = &'a str>) -> Option<&'a str> {
        if known.len() > MOST_CANDIDATES {
            return None;
        }
        self.left.set(self.left.get().checked_sub(known.len())?);
        let candidates = known.filter(|candidate| *candidate != name);
        candidates.filter_map(|candidate| Some((distance(name, candidate)?, candidate))).min().map(|(_, best)| best)
    }
}

/// How many letters have to be replaced, added or taken away, two neighbours that change places being one edit; `None` if
/// these are two different names: more than two edits, or more than half of a short name.
fn distance(one: &str, other: &str) -> Option<usize> {
    // At most four bytes a letter.
    if one.len().abs_diff(other.len()) > 4 * FARTHEST {
        return None;
    }
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    let farthest = FARTHEST.min(one.len().min(other.len()).div_ceil(2).saturating_sub(1).max(1));
    if one.len().abs_diff(other.len()) > farthest {
        return None;
    }
    // Row by row of the usual table: to make `other[..column]` of `one[..row]`.
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=other.len()).collect();
    let mut one_before = None;
    for (row, letter) in one.iter().enumerate() {
        let mut current = vec![row + 1];
        let mut other_before = None;
        for (column, wanted) in other.iter().enumerate() {
            let at = |row: &[usize], column: usize| row.get(column).copied().unwrap_or(usize::MAX - 1);
            let replaced = at(&last, column) + usize::from(letter != wanted);
            let mut best = replaced.min(at(&last, column + 1) + 1).min(at(&current, column) + 1);
            if column > 0 && other_before == Some(letter) && one_before == Some(wanted) {
                best = best.min(at(&before_last, column - 1) + 1);
            }
            current.push(best);
            other_before = Some(wanted);
        }
        if current.iter().min().is_some_and(|least| *least > farthest) {
            return None;
        }
        before_last = std::mem::replace(&mut last, current);
        one_before = Some(letter);
    }
    last.last().copied().filter(|edits| *edits <= farthest)
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
