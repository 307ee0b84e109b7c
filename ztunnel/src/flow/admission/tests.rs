use std::net::IpAddr;

use futures_util::FutureExt as _;

use super::{Admission, AdmissionPermit, Client, Evicted, Full, Limits, counts::Count};

const LIMITS: Limits =
    Limits { connections: 1024, connections_per_peer: 128, handshakes: 256, handshakes_per_peer: 32 };

fn known(last: u8) -> Client {
    Client::new([10, 0, 0, last].into(), true)
}

fn stranger(number: u16) -> Client {
    let [high, low] = number.to_be_bytes();
    Client::new([10, 9, high, low].into(), false)
}

fn ipv6(address: &str) -> Client {
    Client::new(address.parse::<IpAddr>().unwrap(), false)
}

/// Whether the handshake was evicted.
fn is_evicted(place: &AdmissionPermit) -> bool {
    place.evicted().now_or_never().is_some()
}

/// This many handshakes that are never finished.
fn silent(pod: &Admission, client: Client, count: usize) -> Vec<AdmissionPermit> {
    (0..count).map(|_| pod.admit(client).unwrap()).collect()
}

#[test]
fn every_limit_holds_and_places_come_back() {
    let limits = Limits { connections: 4, connections_per_peer: 3, handshakes: 3, handshakes_per_peer: 2 };
    let pod = Admission::new(limits);
    let (mut a, mut b) = (pod.admit(known(1)).unwrap(), pod.admit(known(1)).unwrap());
    let c = pod.admit(known(2)).unwrap();
    a.ready().unwrap();
    a.ready().unwrap();
    b.ready().unwrap();
    let mut d = pod.admit(known(1)).unwrap();
    d.ready().unwrap();
    assert_eq!(pod.admit(known(1)).unwrap_err(), Full::ConnectionsOfPeer(3));
    let mut e = pod.admit(known(3)).unwrap();
    assert!(is_evicted(&c), "the fourth place is for whoever is ready first");
    e.ready().unwrap();
    assert_eq!(pod.admit(known(4)).unwrap_err(), Full::Connections(4));
    drop((a, b));
    assert!(pod.admit(known(4)).is_ok(), "it is given back at once, as nobody keeps it");
    drop((c, d, e));
    let counts = pod.lock();
    assert_eq!((counts.all(), counts.strangers(), counts.clients()), (Count::default(), 0, 0));
}

#[test]
fn nine_neighbours_with_silent_connections_shut_nobody_out() {
    for client in [known(200), stranger(200)] {
        let pod = Admission::new(LIMITS);
        let neighbours: Vec<_> = (1..=9).map(|number| silent(&pod, stranger(number), 32)).collect();
        for _ in 0..40 {
            let mut good = pod.admit(client).unwrap();
            // The neighbours try again.
            let again: Vec<_> = (1..=9).map(|number| silent(&pod, stranger(number), 32)).collect();
            assert!(!is_evicted(&good));
            good.ready().unwrap();
            drop((good, again));
        }
        drop(neighbours);
    }
}

#[test]
fn pods_of_the_mesh_have_half_of_the_places_to_themselves() {
    let pod = Admission::new(LIMITS);
    let mut slow: Vec<_> = (0..128).map(|number| pod.admit(known(number)).unwrap()).collect();
    // Many addresses, with one handshake each.
    let strangers: Vec<_> = (0..5000).map(|number| pod.admit(stranger(number)).unwrap()).collect();
    assert_eq!(pod.lock().strangers(), 128);
    assert!(slow.iter_mut().all(|place| place.ready().is_ok()));
    assert_eq!(strangers.iter().filter(|place| !is_evicted(place)).count(), 128);
}

#[test]
fn a_pod_of_the_mesh_that_says_nothing_loses_its_own_places_first() {
    let pod = Admission::new(LIMITS);
    let many: Vec<_> = (0..20).flat_map(|number| silent(&pod, known(number), 32)).collect();
    assert_eq!(pod.lock().all().handshakes, 256);
    let mut good = pod.admit(known(99)).unwrap();
    let more = silent(&pod, known(1), 100);
    good.ready().unwrap();
    let mut lost = many.into_iter().find(is_evicted).unwrap();
    assert_eq!(lost.ready(), Err(Evicted), "who was slower than the eviction is told");
    drop((lost, more));
    assert_eq!(pod.lock().all(), Count { handshakes: 0, connections: 1 });
}

#[test]
fn the_addresses_of_one_ipv6_network_are_one_stranger() {
    let pod = Admission::new(LIMITS);
    let places: Vec<_> = (0..1000).map(|number| pod.admit(ipv6(&format!("fd00:9::{number:x}"))).unwrap()).collect();
    assert_eq!(pod.lock().all().handshakes, 32);
    assert_eq!(pod.lock().clients(), 1);
    let _other = pod.admit(ipv6("fd00:9:0:1::1")).unwrap();
    let _mapped = pod.admit(ipv6("::ffff:10.9.0.1")).unwrap();
    assert_eq!(pod.lock().of(stranger(1)).handshakes, 1, "an address is the same in both notations");
    drop(places);
    let pods: Vec<_> = (0..100u128)
        .map(|number| pod.admit(Client::new(std::net::Ipv6Addr::from_bits(number | 0xfd << 120).into(), true)).unwrap())
        .collect();
    assert_eq!((pods.len(), pod.lock().clients()), (100, 102), "of a node's pods each counts for itself");
}
