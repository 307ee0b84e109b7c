//! Certificates and CAs change under load, or are not available for a while. No request fails before a certificate has expired,
//! and after that no request is sent in plaintext.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ztunnel_tests::apps::client::exchange;
use ztunnel_tests::apps::load::{Ending, Load};
use ztunnel_tests::apps::server::{Server, is_reset};
use ztunnel_tests::ca;
use ztunnel_tests::proof;
use ztunnel_tests::settings;
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, Pod, TWO_NODES};
use ztunnel_tests::wait;

const PORT: u16 = 7000;
const NODES: [&str; 2] = ["node-a", "node-b"];

/// All pods are enrolled, with certificates that are valid for this number of seconds.
fn bed_with(ttl: &str) -> Result<Testbed> {
    bed_of(&["--cert-ttl", ttl])
}

/// All pods are enrolled, by daemons with these arguments.
fn bed_of(arguments: &[&str]) -> Result<Testbed> {
    let mut bed = Testbed::new(TWO_NODES)?;
    for node in NODES {
        let arguments = arguments.iter().copied().map(String::from);
        bed.start_with(node, |options| options.arguments = arguments.collect())?;
    }
    bed.enrol()?;
    certified(&bed)?;
    Ok(bed)
}

/// Waits until both ends have a certificate, and returns the serial numbers.
fn certified(bed: &Testbed) -> Result<[String; 2]> {
    Ok([
        bed.daemon("node-a")?.certified(&ca::identity("client-a"))?,
        bed.daemon("node-b")?.certified(&ca::identity("web-b"))?,
    ])
}

/// Changes the CA as an operator does: no daemon signs under the new root before all daemons trust it.
fn rotate(bed: &mut Testbed) -> Result<()> {
    let ends = [("node-a", ca::identity("client-a")), ("node-b", ca::identity("web-b"))];
    let trusted = |bed: &Testbed| -> Result<Vec<String>> {
        let trusted = |(node, identity): &(&str, String)| -> Result<String> {
            let dump = bed.daemon(node)?.dump()?;
            Ok(dump.certificate(identity).context("no certificate")?.trusted())
        };
        ends.iter().map(trusted).collect()
    };
    let all_changed = |now: &[String], before: &[String]| now.iter().zip(before).all(|(now, before)| now != before);
    let before = trusted(bed)?;
    bed.authority.announce_next()?;
    wait::until_true("the new root", wait::PATIENCE, || Ok(all_changed(&trusted(bed)?, &before)))?;
    let before = certified(bed)?;
    bed.authority.switch_to_next()?;
    wait::until_true("certificates of the new CA", wait::PATIENCE, || Ok(all_changed(&certified(bed)?, &before)))
}

/// Runs a load from `client-a` to `web-b` while `happens` is called again and again; no exchange may fail. A long-lived
/// connection stays open for this number of rounds.
fn under_load(bed: &mut Testbed, rounds: usize, mut happens: impl FnMut(&mut Testbed) -> Result<()>) -> Result<()> {
    let web = bed.pod("web-b")?;
    web.netns.sysctl("ipv4/tcp_tw_reuse", "1")?;
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    proof::tunnelled(bed, ("client-a", "web-b"), &echo, Pod::connect)?;
    let client = bed.pod("client-a")?;
    client.netns.sysctl("ipv4/tcp_tw_reuse", "1")?;
    let load = Load::start(client, echo.address(), 4, Ending::WaitsForEnd)?;
    let mut long_lived = client.connect(echo.address())?;
    let (begin, duration) = (Instant::now(), settings::rotation());
    let mut times = 0_usize;
    while begin.elapsed() < duration {
        happens(bed)?;
        exchange(&mut long_lived, b"still here").with_context(|| format!("the long-lived one, round {times}"))?;
        times += 1;
        if times.is_multiple_of(rounds) {
            long_lived = bed.pod("client-a")?.connect(echo.address())?;
        }
    }
    let report = load.stop()?;
    println!("{times} rounds in {:?}: {report:?}", begin.elapsed());
    ensure!(report.failed == 0 && report.done > 100, "{report:?}");
    let plain = bed.daemon("node-a")?.access()?.into_iter().find(|line| line.error.is_none() && !line.is_tunnelled());
    ensure!(plain.is_none(), "a connection went without a tunnel: {plain:?}");
    Ok(())
}

#[test]
fn certificates_that_live_four_seconds_fail_no_request() -> Result<()> {
    let mut bed = bed_with("4")?;
    let mut serials = BTreeSet::new();
    under_load(&mut bed, usize::MAX, |bed| {
        wait::pass(Duration::from_millis(500));
        serials.extend(certified(bed)?);
        Ok(())
    })?;
    let (seen, seconds) = (serials.len(), usize::try_from(settings::rotation().as_secs())?);
    println!("{seen} certificates of two pods in {seconds} s");
    // Certificates are renewed at half of their lifetime, which is two seconds. The test may miss half of them.
    ensure!(seen >= seconds / 2, "only {seen} certificates in {seconds} s");
    Ok(())
}

#[test]
fn a_new_ca_every_two_seconds_fails_no_request() -> Result<()> {
    let mut bed = bed_with("86400")?;
    let mut rounds = 0;
    // Each round removes the oldest of the bundle's three roots. A connection that was made during a change may still depend on
    // the previous root.
    under_load(&mut bed, 1, |bed| {
        rotate(bed)?;
        rounds += 1;
        Ok(())
    })?;
    ensure!(rounds >= 2, "only {rounds} rotations");
    Ok(())
}

/// After the change, new HBONE connections use the new CA: at the end the old root is removed from the bundle.
#[test]
fn tunnels_are_made_under_the_new_ca() -> Result<()> {
    let mut bed = bed_with("4")?;
    let echo = Server::echo(bed.pod("web-b")?, bed.pod("web-b")?.at(Family::V4, PORT))?;
    for round in 0..4 {
        rotate(&mut bed)?;
        proof::tunnelled(&bed, ("client-a", "web-b"), &echo, Pod::connect).with_context(|| format!("round {round}"))?;
    }
    Ok(())
}

fn ends_in_a_reset(stream: &mut TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(wait::PATIENCE))?;
    let end = stream.read(&mut [0; 1]);
    ensure!(end.as_ref().is_err_and(is_reset), "not reset, but {end:?}");
    Ok(())
}

/// One of the nodes logs this error of a connection. The node that notices first cuts the HBONE connection, and the other node
/// only sees the loss.
fn told(bed: &Testbed, why: &str) -> Result<()> {
    wait::until_true("the reason", wait::PATIENCE, || {
        let lines = [bed.daemon("node-a")?.access()?, bed.daemon("node-b")?.access()?].concat();
        Ok(lines.iter().filter_map(|line| line.error.as_deref()).any(|error| error.contains(why)))
    })
}

/// An HBONE connection that is older than the overlap of a rotation is cut with all its streams; others continue.
#[test]
fn a_tunnel_ends_with_the_root_of_its_peer() -> Result<()> {
    let mut bed = bed_with("86400")?;
    let echo = Server::echo(bed.pod("web-b")?, bed.pod("web-b")?.at(Family::V4, PORT))?;
    let connect = |bed: &Testbed| bed.pod("client-a")?.connect(echo.address());
    let mut old = connect(&bed)?;
    exchange(&mut old, b"under the old root")?;
    rotate(&mut bed)?;
    let mut new = connect(&bed)?;
    exchange(&mut new, b"under the new root")?;
    exchange(&mut old, b"still trusted")?;
    bed.authority.forget_old()?;
    ends_in_a_reset(&mut old)?;
    told(&bed, "does not lead to a root that is trusted here any more")?;
    exchange(&mut new, b"undisturbed")?;
    proof::tunnelled(&bed, ("client-a", "web-b"), &echo, Pod::connect)?;
    Ok(())
}

#[test]
fn a_ca_that_is_away_for_a_while_fails_nothing() -> Result<()> {
    let mut bed = bed_with("6")?;
    let mut away = false;
    under_load(&mut bed, usize::MAX, |bed| {
        match away {
            true => bed.authority.show(),
            false => bed.authority.hide(),
        }?;
        away = !away;
        wait::pass(Duration::from_secs(1));
        Ok(())
    })?;
    if away {
        bed.authority.show()?;
    }
    certified(&bed)?;
    Ok(())
}

/// The CA, and with it every certificate, expires in a few seconds and is not replaced.
fn ends_soon(bed: &mut Testbed) -> Result<()> {
    let before = certified(bed)?;
    bed.authority.end_in(Duration::from_secs(6))?;
    wait::until_true("certificates of the CA that ends", wait::PATIENCE, || {
        // The certificates may expire before both are seen.
        let now = certified(bed);
        Ok(now.map_or(true, |now| now.iter().zip(&before).all(|(now, before)| now != before)))
    })
}

/// Replaces the CA at once, without an overlap: the certificates have expired, so nothing can fail by that.
fn rotate_in(bed: &mut Testbed) -> Result<()> {
    bed.authority.announce_next()?;
    bed.authority.switch_to_next()
}

/// A connection that must fail; returns the error in the daemon's log.
fn refused(bed: &Testbed, target: SocketAddr) -> Result<Option<String>> {
    let mut stream = bed.pod("client-a")?.connect(target)?;
    let own = stream.local_addr()?;
    if exchange(&mut stream, b"hello").is_ok() {
        return Ok(None);
    }
    let line = bed.daemon("node-a")?.wait_access("the line", |line| line.src == own)?;
    Ok(line.error)
}

#[test]
fn without_a_valid_certificate_nothing_goes_out_at_all() -> Result<()> {
    let mut bed = bed_with("86400")?;
    let web = bed.pod("web-b")?;
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    // An earlier HBONE connection would be valid as long as the certificates with which it was made.
    ends_soon(&mut bed)?;
    proof::tunnelled(&bed, ("client-a", "web-b"), &echo, Pod::connect)?;
    wait::until("the certificates to be over", wait::PATIENCE, || refused(&bed, echo.address()))?;
    let seen = echo.accepted();
    for _ in 0..20 {
        let error = refused(&bed, echo.address())?.context("a connection came through without a certificate")?;
        // Either node may notice first; the other node then sees only a closed connection.
        ensure!(error.contains("certificate") || error.contains(":15008"), "{error}");
    }
    let told = bed.daemon("node-a")?.lines_with(&["outbound", "certificate"])?;
    ensure!(!told.is_empty(), "no log line names the missing certificate: {}", bed.daemon("node-a")?.tail());
    ensure!(echo.accepted() == seen, "{} connections reached the server", echo.accepted() - seen);
    // A client outside the mesh needs no certificate.
    let mut plain = bed.topology.node("node-a")?.netns.run(|| TcpStream::connect(echo.address()))??;
    exchange(&mut plain, b"hello").context("from the node, in plaintext")?;
    rotate_in(&mut bed)?;
    wait::until("certificates again", wait::PATIENCE * 2, || {
        Ok(proof::tunnelled(&bed, ("client-a", "web-b"), &echo, Pod::connect).ok())
    })?;
    Ok(())
}

/// An HBONE connection with an expired certificate takes no new streams; its open streams continue or end with a reset.
#[test]
fn an_open_connection_does_not_hang_when_its_certificate_is_over() -> Result<()> {
    let mut bed = bed_with("86400")?;
    let web = bed.pod("web-b")?;
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    let mut stream = bed.pod("client-a")?.connect(echo.address())?;
    exchange(&mut stream, b"hello")?;
    ends_soon(&mut bed)?;
    wait::until("the certificates to be over", wait::PATIENCE, || refused(&bed, echo.address()))?;
    match exchange(&mut stream, b"still here") {
        Ok(()) => (),
        Err(error) => {
            ensure!(is_reset(&error), "{error}");
            let end = stream.read(&mut [0; 1]);
            ensure!(end.is_err() || matches!(end, Ok(0)), "{end:?}");
        }
    }
    Ok(())
}

#[test]
fn an_open_connection_is_cut_with_its_certificate_where_that_is_wanted() -> Result<()> {
    let mut bed = bed_of(&["--cert-ttl", "86400", "--expired-peers", "cut"])?;
    let echo = Server::echo(bed.pod("web-b")?, bed.pod("web-b")?.at(Family::V4, PORT))?;
    ends_soon(&mut bed)?;
    let mut stream = bed.pod("client-a")?.connect(echo.address())?;
    exchange(&mut stream, b"hello")?;
    ends_in_a_reset(&mut stream)?;
    told(&bed, "the certificate of the peer, or our own, has expired")
}
