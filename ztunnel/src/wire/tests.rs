//! Properties of all parsers on random texts, and on the seeds of their fuzz targets.

use std::{fs, path::Path};

use proptest::prelude::*;

use super::{
    authority::Authority,
    baggage::Baggage,
    check::{CHECKS, connect_request},
    connect::{ConnectRequest, ConnectResponse, HboneRefusal},
    forwarded::Forwarded,
    trace::TraceParent,
};
use crate::model::{close::CloseReason, workload::ControllerKind};

#[test]
fn every_seed_of_every_fuzz_target_holds() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let mut folders: Vec<String> = fs::read_dir(folder.join("seeds"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    folders.sort();
    // Parsers outside of this folder have tests of their own.
    let elsewhere = ["certificate_answer", "manifests", "pod_report", "resources", "signing_request"];
    folders.retain(|name| !elsewhere.contains(&name.as_str()));
    assert_eq!(folders, CHECKS.map(|(name, _)| name), "a folder of seeds for every check");
    for (name, check) in CHECKS {
        assert!(folder.join(format!("targets/{name}.rs")).exists(), "a fuzz target for every check: {name}");
        let seeds: Vec<_> = fs::read_dir(folder.join("seeds").join(name)).unwrap().collect();
        assert!(seeds.len() >= 6, "{name} has {} seeds", seeds.len());
        for seed in seeds {
            check(&fs::read(seed.unwrap().path()).unwrap());
        }
    }
}

/// Most seeds are refused. These seeds have to be accepted, because fuzzing needs valid inputs to start from.
#[test]
fn the_seeds_from_istio_are_understood() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    let read = |path: &str| fs::read(folder.join(path)).unwrap();
    assert!(Baggage::parse(&read("baggage/istio")).zone.is_some());
    let forwarded = Forwarded::parse(&read("forwarded/istio"));
    assert!(forwarded.client.is_some() && forwarded.host.is_some());
    assert!(TraceParent::parse(&read("traceparent/istio")).is_some());
    assert!(HboneRefusal::parse(&read("refusal/denied")).is_some_and(|refusal| refusal.close_reason().is_some()));
    assert!(std::str::from_utf8(&read("authority/ipv6")).unwrap().parse::<Authority>().is_ok());
}

fn word() -> impl Strategy<Value = Option<std::sync::Arc<str>>> {
    proptest::option::of("[!-+\\--<>-~]{1,40}".prop_map(Into::into))
}

fn baggage() -> impl Strategy<Value = Baggage> {
    let kind = proptest::sample::select(vec![
        ControllerKind::Deployment,
        ControllerKind::CronJob,
        ControllerKind::Job,
        ControllerKind::Pod,
    ]);
    (word(), word(), (kind, word()), word(), word(), word(), word()).prop_map(
        |(cluster, namespace, (kind, name), service, version, region, zone)| Baggage {
            cluster,
            namespace,
            workload: name.map(|name| (kind, name)),
            service,
            version,
            region,
            zone,
        },
    )
}

fn authority() -> impl Strategy<Value = Authority> {
    prop_oneof![
        (any::<std::net::IpAddr>(), 1_u16..)
            .prop_map(|(ip, port)| Authority::from(std::net::SocketAddr::new(ip, port))),
        ("([a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?\\.){0,4}[a-z][a-z0-9]{0,9}", 1_u16..)
            .prop_map(|(host, port)| Authority::Host { host, port }),
    ]
}

fn forwarded() -> impl Strategy<Value = Forwarded> {
    (any::<std::net::IpAddr>(), 1_u16.., proptest::option::of("[a-z0-9.*_-]{1,60}")).prop_map(|(ip, port, host)| {
        let ip = ip.to_canonical();
        Forwarded::new(std::net::SocketAddr::new(ip, port), host)
    })
}

proptest! {
    #[test]
    fn whatever_bytes_come_nothing_breaks(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        for (_, check) in CHECKS {
            check(&bytes);
        }
    }

    #[test]
    fn whatever_text_of_the_right_alphabet_comes_nothing_breaks(text in "[a-z0-9.:=,;\"\\[\\]%@ -]{0,120}") {
        for (_, check) in CHECKS {
            check(text.as_bytes());
        }
        let value = &text;
        connect_request(
            format!("CONNECT 10.0.0.1:80\nbaggage: {value}\nforwarded: {value}\ntraceparent: {value}").as_bytes(),
        );
    }

    #[test]
    fn requests_arrive_as_they_were_meant(
        authority in authority(),
        baggage in baggage(),
        forwarded in proptest::option::of(forwarded()),
        traceparent in proptest::option::of((1_u128.., 1_u64..)),
        network in proptest::option::of("[!-~]{0,40}"),
    ) {
        let traceparent = traceparent.map(|(trace, parent)| TraceParent::new(trace, parent));
        let request = ConnectRequest { authority, baggage, forwarded, traceparent, network };
        prop_assert_eq!(ConnectRequest::from_http(&request.to_http().into_parts().0), Ok(request));
    }

    #[test]
    fn refusals_arrive_as_they_were_meant(
        status in 100_u16..=999,
        reason in proptest::sample::select(CloseReason::ALL.to_vec()),
        detail in "[^\\pC]{0,30}",
        baggage in proptest::option::of(baggage()),
    ) {
        let refusal = Some(HboneRefusal::new(reason, detail.trim()));
        let response = ConnectResponse { status: http::StatusCode::from_u16(status).unwrap(), baggage, refusal };
        prop_assert_eq!(ConnectResponse::from_http(&response.to_http().into_parts().0), response);
    }
}
