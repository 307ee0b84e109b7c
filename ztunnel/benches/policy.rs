//! The cost of a judgement by the number and kind of policies, and the cost of building the index.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use ztunnel::model::local::LocalPod;
use ztunnel::policy::PodPolicies;

use self::fixtures::{RULES, Shape, guest, mesh, pod, policies, stranger};

#[path = "fixtures/policy.rs"]
mod fixtures;

fn judgements(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("judge");
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_millis(700)).sample_size(20);
    for (shape, name) in Shape::ALL {
        for (count, rules) in [(10, 1), (1_000, RULES), (10_000, RULES)] {
            let mesh = mesh().with_policies(policies(shape, count, rules));
            let guard = PodPolicies::of(&mesh, &pod(), &LocalPod::default());
            let stranger = stranger();
            assert!(guard.judge(&stranger).is_err(), "no ALLOW rule means a stranger");
            group.bench_function(BenchmarkId::new(name, count), |bencher| {
                bencher.iter(|| guard.judge(black_box(&stranger)).is_ok());
            });
        }
    }
    let mesh = mesh().with_policies(policies(Shape::Principals, 10_000, RULES));
    let (guard, guest) = (PodPolicies::of(&mesh, &pod(), &LocalPod::default()), guest(10_000 * RULES));
    assert!(guard.judge(&guest).is_ok(), "a rule lets the guest in");
    group.bench_function("principals, let in/10000", |bencher| {
        bencher.iter(|| guard.judge(black_box(&guest)).is_ok());
    });
    group.finish();
}

fn building(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("build");
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2)).sample_size(10);
    for (shape, name) in Shape::ALL {
        let policies = policies(shape, 10_000, RULES);
        group.bench_function(BenchmarkId::new("index", name), |bencher| {
            let fresh = || (mesh(), policies.clone());
            bencher.iter_batched(fresh, |(mesh, policies)| mesh.with_policies(policies), BatchSize::PerIteration);
        });
    }
    let mesh = mesh().with_policies(policies(Shape::Selectors, 10_000, RULES));
    let (pod, local) = (pod(), LocalPod::default());
    group
        .bench_function("guard", |bencher| bencher.iter(|| PodPolicies::of(black_box(&mesh), black_box(&pod), &local)));
    group.finish();
}

criterion_group!(benches, judgements, building);
criterion_main!(benches);
