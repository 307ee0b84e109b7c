//! The cost of a connection in instructions, counted by callgrind: each scenario is run a fixed number of times.
//!
//! No time is measured. `cargo xtask instructions` runs this program under valgrind, which counts only inside [`counted`], and
//! reads the order of the scenarios and their numbers of operations from standard output.
//!
//! The hash maps of the standard library have different seeds in each process. If that could make a difference for a few keys,
//! many maps and keys are used.

use std::hint::black_box;
use std::io::{self, Write as _};

use ztunnel::model::flow::Flow;
use ztunnel::model::identity::{SpiffeId, TrustDomain};
use ztunnel::model::local::LocalPod;
use ztunnel::policy::{Connection, PodPolicies, Principal};
use ztunnel::route::decide;
use ztunnel::store::snapshot::Snapshot;
use ztunnel::wire::connect::{ConnectRequest, ConnectResponse};

use crate::policies::{RULES, Shape, guest, stranger};

#[path = "../../fixtures/mesh.rs"]
mod meshes;
#[path = "../../fixtures/policy.rs"]
mod policies;

/// The number of operations of a scenario.
const TIMES: usize = 2_000;

/// The number of maps that are used if each has few keys.
const MAPS: usize = 50;

fn main() -> io::Result<()> {
    // The scenario with the most allocations comes first, because the work of an allocator depends on memory freed before.
    wire()?;
    judge()?;
    route()
}

/// Runs a scenario. `operation` returns whether its result is correct. All operations are run once before they are counted, so
/// that one-time work is not counted.
fn scenario(name: &str, times: usize, mut operation: impl FnMut(usize) -> bool) -> io::Result<()> {
    if !(0..times).all(&mut operation) {
        return Err(io::Error::other(format!("{name}: not what it is meant to be")));
    }
    counted(times, &mut operation);
    writeln!(io::stdout().lock(), "{times}\t{name}")
}

/// The function that callgrind counts; callgrind writes the counts when it returns.
#[inline(never)]
fn counted(times: usize, operation: &mut dyn FnMut(usize) -> bool) {
    for number in 0..times {
        black_box(operation(number));
    }
}

#[expect(clippy::indexing_slicing, reason = "the remainder is below the length")]
fn pick<T>(all: &[T], number: usize) -> &T {
    black_box(&all[number % all.len()])
}

fn judge() -> io::Result<()> {
    for (shape, name) in Shape::ALL {
        let sizes = match shape {
            Shape::Principals => vec![(10, 1, MAPS), (1_000, RULES, 1), (10_000, RULES, 1)],
            _ => vec![(1_000, RULES, 1)],
        };
        // Without an index every rule is compared.
        let times = if shape == Shape::NotPrincipals { 10 } else { TIMES };
        for (count, rules, maps) in sizes {
            let guards: Vec<_> = (0..maps).map(|_| guard(shape, count, rules)).collect();
            let strangers: Vec<_> = (0..times).map(a_stranger).collect();
            scenario(&format!("judge a stranger, {count} policies, {name}"), times, |number| {
                pick(&guards, number).judge(pick(&strangers, number)).is_err()
            })?;
            if shape == Shape::Principals {
                let all = count * rules;
                // Every second policy denies.
                let rule = |number: usize| number * (all / times).max(1) % all;
                let guests: Vec<_> = (0..times).map(|number| guest(rule(number) + 1)).collect();
                scenario(&format!("judge who is named, {count} policies, {name}"), times, |number| {
                    let is_allowed = rule(number) / rules % 2 == 1;
                    pick(&guards, number).judge(pick(&guests, number)).is_ok() == is_allowed
                })?;
            }
        }
    }
    Ok(())
}

fn guard(shape: Shape, count: usize, rules: usize) -> PodPolicies {
    let mesh = policies::mesh().with_policies(policies::policies(shape, count, rules));
    PodPolicies::of(&mesh, &policies::pod(), &LocalPod::default())
}

fn a_stranger(number: usize) -> Connection {
    let identity = SpiffeId::new(TrustDomain::default(), "demo", format!("client-{number:05}"));
    Connection { source: Some(Principal::new(identity)), source_ip: meshes::address(12, number), ..stranger() }
}

fn route() -> io::Result<()> {
    for (size, maps) in [((10, 50), MAPS), (meshes::LARGE, 1)] {
        let (services, pods) = size;
        let all: Vec<Snapshot> = (0..maps).map(|_| meshes::mesh(size)).collect();
        let own = meshes::name(0);
        let spread = |number: usize, of: usize| number * (of / TIMES).max(1) % of;
        let to_service = |number| meshes::flow((meshes::address(11, spread(number, services)), 80).into());
        let to_pod = |number| meshes::flow((meshes::address(10, spread(number, pods)), 8080).into());
        let to_stranger = |number| meshes::flow((meshes::address(12, number), 80).into());
        let kinds: [(&str, &dyn Fn(usize) -> Flow); 3] =
            [("service", &to_service), ("pod", &to_pod), ("stranger", &to_stranger)];
        for (kind, to) in kinds {
            let flows: Vec<_> = (0..TIMES).map(to).collect();
            scenario(&format!("route to a {kind}, {services} services, {pods} pods"), TIMES, |number| {
                let found = decide::outbound(pick(&all, number), pick(&flows, number), &own, number as u64);
                found.is_ok_and(|found| found.service.is_some() == (kind == "service"))
            })?;
        }
    }
    Ok(())
}

fn wire() -> io::Result<()> {
    let (request, response) = meshes::connect();
    let (asked, _) = request.to_http().into_parts();
    let (answered, _) = response.to_http().into_parts();
    let (request, response) = (black_box(&request), black_box(&response));
    let (asked, answered) = (black_box(&asked), black_box(&answered));
    scenario("write a CONNECT", TIMES, |_| black_box(request.to_http()).headers().len() > 1)?;
    scenario("read a CONNECT", TIMES, |_| black_box(ConnectRequest::from_http(asked)).is_ok())?;
    scenario("write an answer", TIMES, |_| !black_box(response.to_http()).headers().is_empty())?;
    scenario("read an answer", TIMES, |_| black_box(ConnectResponse::from_http(answered)).baggage.is_some())
}
