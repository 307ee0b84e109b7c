use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn contents(map: &SharedMap<u32, u32>) -> HashMap<u32, u32> {
    map.iter().map(|(key, value)| (*key, *value)).collect()
}

/// The number of nodes that the map shares with another map, and of all nodes.
fn shared(one: &Node<u32, u32>, other: &Node<u32, u32>) -> (usize, usize) {
    match (one, other) {
        (Node::Leaf(one), Node::Leaf(other)) => (usize::from(Arc::ptr_eq(&one.places, &other.places)), 1),
        (Node::Branch(one), Node::Branch(other)) if !Arc::ptr_eq(one, other) => {
            let below = one.children.iter().zip(&other.children).map(|(one, other)| shared(one, other));
            below.fold((0, 1), |(a, b), (c, d)| (a + c, b + d))
        }
        (Node::Branch(_), Node::Branch(_)) => (1, 1),
        _ => (0, 1),
    }
}

#[test]
fn a_change_leaves_the_original_alone_and_shares_all_but_its_path() {
    let map: SharedMap<u32, u32> = (0..100_000).map(|number| (number, number)).collect();
    let mut changed = map.clone();
    assert!(map.is_same(&changed));
    assert_eq!(changed.insert(7, 8), Some(7));
    assert_eq!(changed.remove(&9), Some(9));
    assert_eq!((map.get(&7), map.get(&9), map.len()), (Some(&7), Some(&9), 100_000));
    assert_eq!((changed.get(&7), changed.get(&9), changed.len()), (Some(&8), None, 99_999));
    assert!(!map.is_same(&changed));
    let (same, all) = shared(&map.root, &changed.root);
    assert!(all - same <= 2 * 3, "{same} of {all} nodes are shared");
}

#[test]
fn what_is_not_there_changes_nothing() {
    let mut map: SharedMap<u32, u32> = (0..1000).map(|number| (number, number)).collect();
    let before = map.clone();
    assert_eq!(map.remove(&5000), None);
    map.set(6000, None);
    assert!(map.is_same(&before));
    assert_eq!(SharedMap::<u32, u32>::default().get(&1), None);
}

#[test]
fn what_is_emptied_keeps_no_nodes() {
    let mut map: SharedMap<u32, u32> = (0..50_000).map(|number| (number, number)).collect();
    for number in 0..50_000 {
        assert_eq!(map.remove(&number), Some(number));
    }
    assert!(map.is_empty() && matches!(map.root, Node::Empty));
}

/// All keys have the same bits where children are chosen.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Colliding(u32);

impl Hash for Colliding {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u8(0);
    }
}

#[test]
fn keys_of_one_hash_are_kept_apart() {
    let mut map: SharedMap<Colliding, u32> = (0..1_000).map(|number| (Colliding(number), number)).collect();
    assert_eq!(map.len(), 1_000);
    for number in (0..1_000).step_by(2) {
        assert_eq!(map.remove(&Colliding(number)), Some(number));
    }
    assert_eq!((map.get(&Colliding(500)), map.get(&Colliding(501))), (None, Some(&501)));
    assert_eq!(map.iter().count(), 500);
}

proptest! {
    #[test]
    fn it_is_a_map(steps in prop::collection::vec((0u32..600, prop::option::of(any::<u32>())), 0..3_000)) {
        let (mut map, mut model) = (SharedMap::default(), HashMap::new());
        let mut copies = Vec::new();
        for (number, (key, value)) in steps.into_iter().enumerate() {
            if number % 200 == 0 {
                copies.push((map.clone(), model.clone()));
            }
            let (was, expected) = match value {
                Some(value) => (map.insert(key, value), model.insert(key, value)),
                None => (map.remove(&key), model.remove(&key)),
            };
            prop_assert_eq!(was, expected);
            prop_assert_eq!(map.len(), model.len());
        }
        copies.push((map, model));
        for (map, model) in copies {
            prop_assert_eq!(&contents(&map), &model);
            for key in 0..600 {
                prop_assert_eq!(map.get(&key), model.get(&key));
            }
        }
    }
}
