//! A mesh of 100,000 workloads holds no more memory after a minute with 1,000 changes a second.

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering};

use ztunnel::model::identity::{SpiffeId, TrustDomain};
use ztunnel::model::locality::Locality;
use ztunnel::model::origin::Origin;
use ztunnel::model::policy::{Action, AuthorizationPolicy, Rule, Scope};
use ztunnel::model::service::{Endpoint, Health, Service, ServicePort, TargetPort};
use ztunnel::model::workload::{Membership, NamespacedName, Workload};
use ztunnel::store::change::{Batch, Change, ServiceKey};
use ztunnel::store::publish::{self, Publisher, Reader};

/// The system's allocator, with a count of the allocated bytes.
struct Counting;

static HELD: AtomicIsize = AtomicIsize::new(0);

// The size of a layout never exceeds `isize::MAX`.
const fn bytes(size: usize) -> isize {
    size.cast_signed()
}

// SAFETY: every call is passed unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(bytes(layout.size()), Ordering::Relaxed);
        // SAFETY: the caller makes the promise that the system's allocator requires.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        HELD.fetch_sub(bytes(layout.size()), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        HELD.fetch_add(bytes(size) - bytes(layout.size()), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const WORKLOADS: u32 = 100_000;
const SERVICES: u32 = 10_000;
const CHANGES: u32 = 60_000;

fn name(number: u32) -> NamespacedName {
    NamespacedName::new(format!("space-{}", number % 100), format!("web-{number}"))
}

fn address(number: u32) -> IpAddr {
    Ipv4Addr::from_bits((10 << 24) + number).into()
}

/// A workload; `round` selects the fields that change.
fn workload(number: u32, round: u32) -> Change {
    let name = name(number);
    let identity = SpiffeId::new(TrustDomain::default(), Arc::clone(&name.namespace), "web");
    Change::Workload(Arc::new(Workload {
        uid: format!("uid-{number}-{round}").into(),
        node: Some(format!("node-{}", (number + round) % 500).into()),
        addresses: vec![address(number)],
        labels: [("app", format!("app-{}", number / 10))].into(),
        membership: Membership::InMesh,
        ..Workload::new(name, identity)
    }))
}

fn service(number: u32, round: u32) -> Service {
    let endpoint = |pod: u32| Endpoint {
        address: address(pod),
        ports: [(80, 8080)].into(),
        health: if round.is_multiple_of(2) { Health::Ready } else { Health::Unready },
        workload: Some(name(pod)),
        weight: 1,
        node: None,
        locality: Locality::default(),
    };
    // The number of endpoints changes with the round.
    let endpoints = (0..10 - round % 3).map(|place| endpoint(number * 10 + place)).collect();
    let own = name(number);
    let hostname = format!("{}.{}.svc.cluster.local", own.name, own.namespace);
    Service {
        vips: vec![Ipv4Addr::from_bits((11 << 24) + number).into()],
        ports: [ServicePort { name: None, port: 80, target: TargetPort::Number(8080) }].into(),
        endpoints,
        ..Service::new(own, hostname)
    }
}

fn policy(number: u32, round: u32) -> Change {
    let name = NamespacedName::new(format!("space-{}", number % 100), format!("policy-{number}"));
    Change::Authorization(Arc::new(AuthorizationPolicy {
        scope: Scope::Namespace(Arc::clone(&name.namespace)),
        name,
        origin: Origin::line_of("policies.yaml", 1),
        action: if round.is_multiple_of(2) { Action::Deny } else { Action::Audit },
        dry_run: false,
        rules: vec![Rule::default()],
    }))
}

/// The mesh of a round; the test begins and ends with the mesh of round 0.
fn all(round: u32) -> impl Iterator<Item = Change> {
    let workloads = (0..WORKLOADS).map(move |number| workload(number, round));
    let services = (0..SERVICES).map(move |number| Change::Service(Arc::new(service(number, round))));
    workloads.chain(services).chain((0..1_000).map(move |number| policy(number, round)))
}

/// Applies a minute of changes and then the first mesh again. Returns the allocated bytes after that.
fn a_minute(publisher: &Publisher, mesh: &Reader) -> isize {
    let mut changed = mesh.load();
    for number in 0..CHANGES {
        let (place, round) = (number.wrapping_mul(7919), number / 100 + 1);
        let change = match number % 100 {
            0..70 => workload(place % WORKLOADS, round),
            70..80 => Change::WorkloadGone(name(place % WORKLOADS)),
            80..95 => Change::Service(Arc::new(service(place % SERVICES, round))),
            95..98 => Change::ServiceGone(ServiceKey::of(&service(place % SERVICES, round))),
            _ => policy(place % 1_000, round),
        };
        publisher.apply(Batch::of(vec![change]));
        // Readers are always nearly up to date.
        changed = mesh.load();
    }
    let counts = changed.counts();
    assert!(counts.workloads < WORKLOADS as usize && counts.services < SERVICES as usize, "{counts:?}");
    drop(changed);
    publisher.apply(Batch::of(all(0).collect()));
    let counts = mesh.load().counts();
    assert_eq!((counts.workloads, counts.services), (WORKLOADS as usize, SERVICES as usize));
    HELD.load(Ordering::Relaxed)
}

#[test]
fn changes_leave_no_memory_behind() {
    let (publisher, mesh) = publish::channel();
    publisher.apply(Batch::of(all(0).collect()));
    let first = HELD.load(Ordering::Relaxed);
    // Tables that have grown and shrunk have other sizes than tables that have only grown.
    let held = a_minute(&publisher, &mesh);
    assert!(held < first + first / 10, "{first} bytes were held at first, {held} after changes");
    let now = a_minute(&publisher, &mesh);
    assert!(now < held + held / 100, "{held} bytes were held before, {now} are now");
    publisher.publish(Default::default());
    let nothing = HELD.load(Ordering::Relaxed);
    assert!(nothing < held / 100, "{nothing} bytes are held of an empty mesh");
}
