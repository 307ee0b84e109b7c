//! The order in which policies, and the workloads that name them, are sent and removed.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::{Strategy, prop, proptest};

use super::*;

#[test]
fn a_policy_comes_before_the_workload_that_names_it_and_goes_after_it() {
    let mut mesh = catalogue(vec![set(ADDRESS, "w", "w")]);
    let mut stream = Stream::of(&[(ADDRESS, ask(&[], &[], &[])), (POLICY, ask(&[], &[], &[]))]);
    assert_eq!(stream.due(&mesh).unwrap(), "Authorization: ");
    assert_eq!(stream.due(&mesh).unwrap(), "Address: +w");
    stream.ack(ADDRESS);
    stream.ack(POLICY);
    mesh.apply(vec![set(ADDRESS, "w", "w p"), set(POLICY, "p", "p")], true);
    assert_eq!(stream.due(&mesh).unwrap(), "Authorization: +p");
    assert_eq!(stream.due(&mesh), None, "the workload waits until the node has the policy");
    stream.ack(POLICY);
    assert_eq!(stream.due(&mesh).unwrap(), "Address: +w p");
    mesh.apply(vec![gone(POLICY, "p"), set(ADDRESS, "w", "w q"), set(POLICY, "q", "q")], true);
    assert_eq!(stream.due(&mesh).unwrap(), "Authorization: +q");
    stream.ack(POLICY);
    assert_eq!(stream.due(&mesh), None, "the node may still enforce the old policy");
    stream.ack(ADDRESS);
    assert_eq!(stream.due(&mesh).unwrap(), "Address: +w q");
    assert_eq!(stream.due(&mesh), None);
    stream.ack(ADDRESS);
    assert_eq!(stream.due(&mesh).unwrap(), "Authorization: -p");
}

#[test]
fn workloads_that_do_not_depend_on_a_new_policy_do_not_wait_for_it() {
    let mut mesh = catalogue(vec![]);
    let mut stream = Stream::of(&[(ADDRESS, ask(&[], &[], &[])), (POLICY, ask(&[], &[], &[]))]);
    stream.due(&mesh).unwrap();
    stream.due(&mesh).unwrap();
    stream.ack(POLICY);
    // This workload changes while the first response is unanswered, and before the policy exists.
    mesh.apply(vec![set(ADDRESS, "early", "early")], true);
    mesh.apply(vec![set(POLICY, "p", "p"), set(ADDRESS, "late", "late p")], true);
    assert_eq!(stream.due(&mesh).unwrap(), "Authorization: +p");
    stream.ack(ADDRESS);
    assert_eq!(stream.due(&mesh).unwrap(), "Address: +early");
    stream.ack(ADDRESS);
    stream.ack(POLICY);
    assert_eq!(stream.due(&mesh).unwrap(), "Address: +late p");
}

#[test]
fn who_comes_back_loses_no_policy_before_its_workloads_have_others() {
    let mesh = catalogue(vec![set(POLICY, "q", "q"), set(ADDRESS, "w", "w q")]);
    let known = ask(&[], &[], &[("w", "w p")]);
    let mut stream = Stream::of(&[(ADDRESS, known), (POLICY, ask(&[], &[], &[("p", "p")]))]);
    assert_eq!(stream.due(&mesh).unwrap(), "Authorization: +q");
    assert_eq!(stream.due(&mesh), None);
    stream.ack(POLICY);
    assert_eq!(stream.due(&mesh).unwrap(), "Address: +w q");
    stream.ack(ADDRESS);
    assert_eq!(stream.due(&mesh).unwrap(), "Authorization: -p");
}

#[test]
fn a_policy_that_comes_again_before_its_removal_was_told_stays() {
    let mut mesh = catalogue(vec![set(ADDRESS, "w", "w")]);
    let known = ask(&[], &[], &[("p", "p")]);
    let mut stream = Stream::of(&[(ADDRESS, ask(&[], &[], &[])), (POLICY, known)]);
    assert_eq!(stream.due(&mesh).unwrap(), "Authorization: ");
    assert_eq!(stream.due(&mesh).unwrap(), "Address: +w");
    mesh.apply(vec![set(POLICY, "p", "p"), set(ADDRESS, "w", "w p")], true);
    stream.ack(POLICY);
    assert_eq!(stream.due(&mesh).unwrap(), "Authorization: +p");
    stream.ack(POLICY);
    stream.ack(ADDRESS);
    assert_eq!(stream.due(&mesh).unwrap(), "Address: +w p");
    stream.ack(ADDRESS);
    assert_eq!(stream.due(&mesh), None);
}

#[test]
fn a_policy_that_comes_again_and_goes_again_stays_as_long_as_a_workload_names_it() {
    let mut mesh = catalogue(vec![]);
    let mut stream = Stream::of(&[(ADDRESS, ask(&[], &[], &[])), (POLICY, ask(&[], &[], &[("p", "p")]))]);
    assert_eq!(stream.due(&mesh).unwrap(), "Authorization: ");
    assert_eq!(stream.due(&mesh).unwrap(), "Address: ");
    mesh.apply(vec![set(ADDRESS, "w", "w p"), set(POLICY, "p", "p")], true);
    stream.ack(POLICY);
    assert_eq!(stream.due(&mesh).unwrap(), "Authorization: +p");
    stream.ack(ADDRESS);
    mesh.apply(vec![set(ADDRESS, "v", "v q"), set(POLICY, "q", "q")], true);
    stream.ack(POLICY);
    assert_eq!(stream.due(&mesh).unwrap(), "Authorization: +q");
    assert_eq!(stream.due(&mesh).unwrap(), "Address: +w p");
    mesh.apply(vec![set(ADDRESS, "w", "w"), gone(POLICY, "p")], true);
    stream.ack(POLICY);
    assert_eq!(stream.due(&mesh), None, "the node has the workload that names it");
    stream.ack(ADDRESS);
    assert_eq!(stream.due(&mesh).unwrap(), "Address: +v q +w");
    stream.ack(ADDRESS);
    assert_eq!(stream.due(&mesh).unwrap(), "Authorization: -p");
}

#[test]
fn a_policy_stays_while_the_next_version_of_a_workload_that_names_it_waits_for_another_policy() {
    let mut mesh = catalogue(vec![set(ADDRESS, "w", "w p"), set(POLICY, "p", "p")]);
    let mut stream = Stream::of(&[(ADDRESS, ask(&[], &[], &[])), (POLICY, ask(&[], &[], &[]))]);
    assert_eq!(stream.due(&mesh).unwrap(), "Authorization: +p");
    stream.ack(POLICY);
    assert_eq!(stream.due(&mesh).unwrap(), "Address: +w p");
    // The state of `w` without a policy is never sent: it is replaced before the node has answered.
    mesh.apply(vec![set(ADDRESS, "w", "w"), gone(POLICY, "p")], true);
    mesh.apply(vec![set(ADDRESS, "v", "v q"), set(POLICY, "q", "q")], true);
    assert_eq!(stream.due(&mesh).unwrap(), "Authorization: +q");
    mesh.apply(vec![set(ADDRESS, "w", "w r"), set(POLICY, "r", "r")], true);
    stream.ack(ADDRESS);
    assert_eq!(stream.due(&mesh), None);
    stream.ack(POLICY);
    assert_eq!(stream.due(&mesh).unwrap(), "Authorization: +r");
    assert_eq!(stream.due(&mesh).unwrap(), "Address: +v q");
    stream.ack(POLICY);
    assert_eq!(stream.due(&mesh), None, "the node has the workload that names it");
    stream.ack(ADDRESS);
    assert_eq!(stream.due(&mesh).unwrap(), "Address: +w r");
    stream.ack(ADDRESS);
    assert_eq!(stream.due(&mesh).unwrap(), "Authorization: -p");
}

/// One step of a test.
#[derive(Clone, Debug)]
enum Step {
    /// The workload with this number names these policies from now on.
    Workload(u8, BTreeSet<u8>),
    /// The workload is gone.
    Gone(u8),
    /// The node answers the last response of a type.
    Answer(Kind),
    /// The node connects again, and states the resources that it has.
    Reconnect,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step =
        (0..6_u8, 0..3_u8, prop::collection::btree_set(0..4_u8, 0..3)).prop_map(
            |(kind, number, policies)| match kind {
                0 | 1 => Step::Workload(number, policies),
                2 => Step::Gone(number),
                3 => Step::Answer(ADDRESS),
                4 => Step::Answer(POLICY),
                _ => Step::Reconnect,
            },
        );
    prop::collection::vec(step, 0..40)
}

/// A mesh that has exactly the policies that its workloads name, and a node that follows it.
#[derive(Default)]
struct World {
    mesh: Catalogue,
    workloads: BTreeMap<u8, BTreeSet<u8>>,
    session: Session,
    /// The node's resources, by type and name.
    has: BTreeMap<Kind, BTreeMap<String, String>>,
    unanswered: BTreeMap<Kind, String>,
}

impl World {
    fn policies(&self) -> BTreeSet<u8> {
        self.workloads.values().flatten().copied().collect()
    }

    fn change(&mut self, number: u8, policies: Option<BTreeSet<u8>>) {
        let before = self.policies();
        let text = |policies: &BTreeSet<u8>| {
            let names: Vec<String> = policies.iter().map(|policy| format!("p{policy}")).collect();
            format!("w{number} {}", names.join(" "))
        };
        let name = format!("w{number}");
        let mut changes = vec![match &policies {
            Some(policies) => set(ADDRESS, &name, &text(policies)),
            None => gone(ADDRESS, &name),
        }];
        match policies {
            Some(policies) => drop(self.workloads.insert(number, policies)),
            None => drop(self.workloads.remove(&number)),
        }
        let after = self.policies();
        changes.extend(after.difference(&before).map(|it| set(POLICY, &format!("p{it}"), &format!("p{it}"))));
        changes.extend(before.difference(&after).map(|it| gone(POLICY, &format!("p{it}"))));
        self.mesh.apply(changes, true);
    }

    fn connect(&mut self) {
        self.session = Session::default();
        self.unanswered.clear();
        for kind in Kind::ALL {
            let has = self.has.entry(kind).or_default();
            let known: Vec<(&str, &str)> = has.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
            self.session.request(kind, ask(&[], &[], &known)).unwrap();
        }
    }

    /// Receives all responses that are due.
    fn receive(&mut self) {
        while let Some(response) = self.session.next(&self.mesh, Instant::now()).unwrap() {
            let has = self.has.entry(response.kind).or_default();
            for text in response.resources.iter().map(|bytes| str(bytes)) {
                let name = text.split(' ').next().unwrap();
                has.insert(name.to_owned(), text.to_owned());
            }
            for name in response.removed {
                has.remove(&*name);
            }
            self.unanswered.insert(response.kind, response.nonce);
            self.check();
        }
    }

    /// Checks that the node has each policy that one of its workloads names.
    fn check(&self) {
        let policies = &self.has[&POLICY];
        for workload in self.has.get(&ADDRESS).into_iter().flat_map(BTreeMap::values) {
            for name in workload.split(' ').skip(1).filter(|name| !name.is_empty()) {
                assert!(policies.contains_key(name), "{workload:?} without {name}: {policies:?}");
            }
        }
    }

    fn answer(&mut self, kind: Kind) {
        if let Some(nonce) = self.unanswered.remove(&kind) {
            self.session.request(kind, ack(&nonce)).unwrap().unwrap();
        }
    }
}

proptest! {
    #[test]
    fn no_node_ever_has_a_workload_without_its_policies_and_all_nodes_get_there(steps in steps()) {
        let mut world = World::default();
        world.mesh.apply(vec![], true);
        world.connect();
        for step in steps {
            match step {
                Step::Workload(number, policies) => world.change(number, Some(policies)),
                Step::Gone(number) => world.change(number, None),
                Step::Answer(kind) => world.answer(kind),
                Step::Reconnect => world.connect(),
            }
            world.receive();
        }
        for _ in 0..6 {
            for kind in Kind::ALL {
                world.answer(kind);
            }
            world.receive();
        }
        let expected: Vec<String> = world.workloads.keys().map(|number| format!("w{number}")).collect();
        assert_eq!(world.has[&ADDRESS].keys().cloned().collect::<Vec<_>>(), expected);
        let expected: Vec<String> = world.policies().into_iter().map(|number| format!("p{number}")).collect();
        assert_eq!(world.has[&POLICY].keys().cloned().collect::<Vec<_>>(), expected);
    }
}
