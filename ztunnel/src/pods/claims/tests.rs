use super::*;
use crate::model::{
    identity::{SpiffeId, TrustDomain},
    local::LocalPod,
    workload::{RefuseReason, Workload},
};
use crate::pods::reconcile::CannotEnrol;

const THEFT: &str = "/n/web";

fn name(pod: &str) -> NamespacedName {
    NamespacedName::new("ns", pod)
}

fn netns(inode: u64) -> NetnsId {
    NetnsId { device: 4, inode }
}

/// A mesh of pods with addresses.
fn mesh(pods: &[(&str, &str)]) -> Snapshot {
    let pod = |(pod, address): &(&str, &str)| Workload {
        addresses: vec![address.parse().unwrap()],
        ..Workload::new(name(pod), SpiffeId::new(TrustDomain::default(), "ns", *pod))
    };
    Snapshot::build(1, pods.iter().map(pod).collect(), vec![], vec![])
}

fn named(mesh: &Snapshot, paths: &[(&str, &str)]) -> Named {
    let pods =
        paths.iter().map(|(pod, path)| (name(pod), LocalPod { netns: Some((*path).into()), ..LocalPod::default() }));
    // Every path below /n/web leads to the same namespace, `/gone` leads nowhere, and each other path leads to a
    // namespace of its own.
    Named::by(mesh, &pods.collect(), |file| match file.path().to_str().unwrap() {
        "/gone" => None,
        path if path.starts_with(THEFT) => Some(netns(1)),
        path => Some(netns(path.len() as u64 + 100)),
    })
}

/// A pod `a` that names the namespace with cookie 7.
struct Case<'a> {
    mesh: Snapshot,
    named: &'a [(&'a str, &'a str)],
    enrolled: &'a [(&'a str, u64)],
    holder: Option<(&'a str, &'a [&'a str])>,
    wanted: &'a [&'a str],
}

impl Default for Case<'_> {
    fn default() -> Self {
        Self { mesh: mesh(&[("a", "10.0.0.1")]), named: &[("a", THEFT)], enrolled: &[], holder: None, wanted: &["a"] }
    }
}

impl Case<'_> {
    fn judge(&self) -> Result<(), ClaimError> {
        let refused = || Err(CannotEnrol::Membership(RefuseReason::NoAddress));
        let wanted = self.wanted.iter().map(|pod| (name(pod), refused())).collect();
        let names: Vec<_> = self.enrolled.iter().map(|(pod, cookie)| (name(pod), *cookie)).collect();
        let claims = Claims {
            mesh: &self.mesh,
            named: &named(&self.mesh, self.named),
            enrolled: names.iter().map(|(name, cookie)| (name, *cookie)).collect(),
            wanted: &wanted,
        };
        let holder = self.holder.map(|(pod, addresses)| Holder {
            pod: format!("ns/{pod}"),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        });
        let claimed = Claimed { cookie: 7, netns: netns(1), file: &THEFT.into(), holder };
        claims.check(&name("a"), &claimed, &["10.0.0.1".parse().unwrap()])
    }
}

#[test]
fn a_namespace_that_one_pod_names_is_its_own() {
    assert_eq!(Case::default().judge(), Ok(()));
    let elsewhere = &[("a", THEFT), ("b", "/n/b")];
    assert_eq!(Case { named: elsewhere, enrolled: &[("b", 8)], ..Case::default() }.judge(), Ok(()));
}

#[test]
fn a_namespace_of_an_enrolled_pod_stays_its_own() {
    let taken = Case { enrolled: &[("b", 7)], holder: Some(("a", &[])), ..Case::default() }.judge();
    assert!(matches!(taken, Err(ClaimError::Taken { other, .. }) if other == name("b")));
}

#[test]
fn whoever_is_on_record_keeps_a_namespace_as_long_as_it_is_in_the_mesh() {
    let on_record = |case: Case<'_>| matches!(case.judge(), Err(ClaimError::OnRecord { other, .. }) if other == "ns/b");
    let of_b = || Case { holder: Some(("b", &[])), wanted: &["a", "b"], ..Case::default() };
    assert!(on_record(of_b()));
    // The manifest of the pod on record may be one that can't be read.
    assert!(on_record(Case { mesh: mesh(&[("a", "10.0.0.1")]).with_partial(true), wanted: &["a"], ..of_b() }));
    assert_eq!(Case { wanted: &["a"], ..of_b() }.judge(), Ok(()));
    assert_eq!(Case { enrolled: &[("b", 8)], ..of_b() }.judge(), Ok(()), "it has another by now");
    // The pod on record keeps the namespace, even if another pod names it.
    assert_eq!(
        Case { holder: Some(("a", &[])), named: &[("a", THEFT), ("b", THEFT)], ..Case::default() }.judge(),
        Ok(())
    );
}

#[test]
fn a_namespace_that_several_name_is_nobodys_whatever_the_path() {
    for (path, pod) in [(THEFT, "b"), ("/n/web/../web", "b"), ("/n/web-alias", "c")] {
        let several = Case { named: &[("a", THEFT), (pod, path)], ..Case::default() }.judge();
        assert!(matches!(several, Err(ClaimError::Named { others, .. }) if others == format!("ns/{pod}")), "{path}");
    }
    // The record of a pod that is gone does not count.
    let several = Case { named: &[("a", THEFT), ("b", THEFT)], holder: Some(("z", &[])), ..Case::default() }.judge();
    assert!(matches!(several, Err(ClaimError::Named { .. })));
}

#[test]
fn pods_that_have_finished_name_nothing() {
    let finished =
        Workload { finished: true, ..Workload::new(name("b"), SpiffeId::new(TrustDomain::default(), "ns", "b")) };
    let mesh = Snapshot::build(1, vec![finished], vec![], vec![]);
    assert_eq!(Case { mesh, named: &[("a", THEFT), ("b", THEFT)], ..Case::default() }.judge(), Ok(()));
}

#[test]
fn an_address_that_several_claim_is_nobodys_unless_it_was_proved_before() {
    let contested = || Case { mesh: mesh(&[("a", "10.0.0.1"), ("b", "10.0.0.1")]), ..Case::default() };
    let denied = |case: Case<'_>| match case.judge() {
        Err(ClaimError::Contested { address, claimants, .. }) => {
            assert_eq!((address.to_string().as_str(), claimants.as_str()), ("10.0.0.1", "ns/a, ns/b"));
            true
        }
        _ => false,
    };
    assert!(denied(contested()));
    assert!(denied(Case { holder: Some(("a", &["10.0.0.9"])), ..contested() }));
    assert!(denied(Case { holder: Some(("z", &["10.0.0.1"])), ..contested() }), "proved for another pod");
    assert_eq!(Case { holder: Some(("a", &["10.0.0.1"])), ..contested() }.judge(), Ok(()));
}

#[test]
fn a_pod_that_is_being_deleted_is_not_enrolled_with_an_address_of_another() {
    let pod = |pod: &str, leaving| Workload {
        addresses: vec!["10.0.0.1".parse().unwrap()],
        leaving,
        ..Workload::new(name(pod), SpiffeId::new(TrustDomain::default(), "ns", pod))
    };
    let mesh = |a_leaves, b_leaves| Snapshot::build(1, vec![pod("a", a_leaves), pod("b", b_leaves)], vec![], vec![]);
    let judge = |mesh| Case { mesh, ..Case::default() }.judge();
    assert_eq!(judge(mesh(false, true)), Ok(()));
    let error = judge(mesh(true, false)).unwrap_err();
    assert!(matches!(&error, ClaimError::Passed { owner, .. } if *owner == name("b")), "{error}");
    assert!(matches!(judge(mesh(true, true)), Err(ClaimError::Contested { .. })));
    // An address that was proved before stays proved.
    let held = Case { mesh: mesh(true, false), holder: Some(("a", &["10.0.0.1"])), ..Case::default() };
    assert_eq!(held.judge(), Ok(()));
}
