//! A set that nearly always has one member. There are as many such sets as addresses in the mesh.

use std::collections::BTreeSet;

/// A set: an array while it is small, since the first node of a tree alone takes 600 bytes.
#[derive(Debug)]
pub(super) enum Few<T> {
    Small(Box<[T]>),
    Large(BTreeSet<T>),
}

/// The most members of the array.
const SMALL: usize = 8;

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self::Small(Box::default())
    }
}

impl<T: Ord + Clone> Few<T> {
    /// Adds or removes a member.
    pub(super) fn note(&mut self, member: &T, is_in: bool) {
        let small = match self {
            Self::Small(small) => small,
            Self::Large(large) => {
                if is_in {
                    large.insert(member.clone())
                } else {
                    large.remove(member)
                };
                if large.is_empty() {
                    *self = Self::default();
                }
                return;
            }
        };
        let others = small.iter().filter(|other| *other != member);
        let all = others.chain(is_in.then_some(member)).cloned();
        *self = if small.len() < SMALL { Self::Small(all.collect()) } else { Self::Large(all.collect()) };
    }

    /// Whether it has no member.
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Small(small) => small.is_empty(),
            Self::Large(large) => large.is_empty(),
        }
    }

    /// The members, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        let (small, large) = match self {
            Self::Small(small) => (Some(small.iter()), None),
            Self::Large(large) => (None, Some(large.iter())),
        };
        small.into_iter().flatten().chain(large.into_iter().flatten())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set(steps in prop::collection::vec((0u8..20, any::<bool>()), 0..200)) {
            let (mut few, mut model) = (Few::default(), BTreeSet::new());
            for (member, is_in) in steps {
                few.note(&member, is_in);
                if is_in { model.insert(member) } else { model.remove(&member) };
                prop_assert_eq!(few.iter().copied().collect::<BTreeSet<_>>(), model.clone());
                prop_assert_eq!((few.iter().count(), few.is_empty()), (model.len(), model.is_empty()));
            }
        }
    }
}
