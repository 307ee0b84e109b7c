//! On the real kernel: faults that the benchmark must report.

use std::time::Duration;

use super::*;
use crate::settings;
use crate::topology::Family;

/// A path that is not the mode's, a client that fails and a daemon that dies are errors, each with its name.
#[test]
fn what_is_not_as_it_says_is_an_error() -> Result<()> {
    let mut stage = Stage::build(&settings::daemon_binary()?)?;
    let bytes = |stage: &Stage, target| {
        let report = crr::run(stage.client()?, target, 2, Duration::from_millis(100))?;
        Ok::<_, anyhow::Error>(report.latencies.len() as f64 * crr::MESSAGE as f64 * 2.0)
    };
    let ways = [Mode::None, Mode::Chain, Mode::Mesh, Mode::Plaintext];
    for real in ways {
        stage.arrange(real, None)?;
        let (before, target) = (stage.used()?, stage.target(real, stage::EXCHANGE)?);
        let payload = bytes(&stage, target)?;
        for said in ways {
            let checked = stage.check(said, before, payload);
            let told = checked.as_ref().map_err(ToString::to_string).err().unwrap_or_default();
            ensure!(checked.is_ok() == (said == real), "{} said to be {}: {told}", real.name(), said.name());
            ensure!(checked.is_ok() || told.contains("went another way"), "{told}");
        }
        let more = stage.check(real, before, payload * 2.0);
        ensure!(more.is_err() == (real != Mode::None), "more payload than there was, {}: {more:?}", real.name());
    }
    stage.arrange(Mode::Mesh, None)?;
    let nobody = stage.topology.pod("web-b")?.at(Family::V4, 9);
    let refused = crr::run(stage.client()?, nobody, 2, Duration::from_millis(100));
    ensure!(refused.is_err(), "there is no listener, and the connect ended with {refused:?}");
    stage.daemons[1].kill9()?;
    let died = stage.used().map_err(|error| error.to_string());
    ensure!(died.as_ref().is_err_and(|error| error.starts_with("the daemon of node-b is dead")), "{died:?}");
    let measured = Work::Connections(2).measure(&mut stage, Mode::Mesh, 1);
    ensure!(measured.is_err(), "a daemon is dead, and {measured:?}");
    Ok(())
}

#[test]
fn filters_choose_and_what_takes_minutes_is_asked_for() {
    let names = |filters: &[&str]| {
        let filters: Vec<_> = filters.iter().map(ToString::to_string).collect();
        chosen(&filters, &[]).iter().map(|(work, _)| work.name()).collect::<Vec<_>>()
    };
    assert_eq!(names(&["iperf3"]), ["iperf3, 1 stream", "iperf3, 8 streams"]);
    assert_eq!(names(&["8 streams", "wrk, 1 "]), ["iperf3, 8 streams", "wrk, 1 connection"]);
    assert_eq!(names(&["slow"]), ["slow reader, 8 connections", "slow reader, 64 connections"]);
    assert_eq!(names(&["scale: 10 live"]), ["scale: 10 live connections", "scale: 10 live connections, one stream"]);
    assert_eq!(names(&["no such work"]), [""; 0]);
    assert_eq!(names(&["100,000 workloads, one"]), ["scale: 100,000 workloads, one change"]);
    for some in [names(&[]), names(&["scale"])] {
        assert!(some.iter().any(|name| name.contains("10,000 workloads")), "{some:?}");
        assert!(!some.iter().any(|name| name.contains("100,000")), "{some:?}");
    }
    let in_mode = |mode: &str| chosen(&["idle".to_owned(), "wrk, 64".to_owned()], &[mode.to_owned()]);
    assert_eq!(in_mode("no mesh"), [(Work::Requests(64), vec![Mode::None])]);
    assert!(in_mode("no such mode").is_empty());
}
