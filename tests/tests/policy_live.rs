//! Open connections when policy changes: connections that are not allowed any more are reset at both ends within a second, and
//! the others are not affected.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use ztunnel_tests::apps::client::exchange;
use ztunnel_tests::apps::server::{Server, is_reset};
use ztunnel_tests::apps::transfer::Pump;
use ztunnel_tests::daemon::Daemon;
use ztunnel_tests::logs::{Access, Direction};
use ztunnel_tests::mesh::{Mesh, PodManifest};
use ztunnel_tests::policy::{CHANGED, admitted, authentication, authorization, decisions, refused};
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, SOCKET_DEADLINE};
use ztunnel_tests::wait;

const PORT: u16 = 7000;

/// A pod outside the mesh.
const GUEST: &str = "guest";

/// A second, and the longest time that the reader of files waits until a change is complete.
const SOON: Duration = Duration::from_millis(1500);

/// The clients of `web-b`. Each has an idle and a busy connection over both families.
const CLIENTS: [&str; 3] = ["client-a", "client-b", GUEST];

fn bed() -> Result<Testbed> {
    let mut bed = Testbed::both_enrolled()?;
    bed.topology.grow("node-a", GUEST)?;
    Ok(bed)
}

/// A client's open connections to `web-b`.
struct Open {
    client: &'static str,
    idle: Vec<TcpStream>,
    busy: Vec<Pump>,
}

impl Open {
    fn connect(bed: &Testbed, client: &'static str) -> Result<Self> {
        let mut open = Self { client, idle: Vec::new(), busy: Vec::new() };
        for (number, family) in (1..).zip(Family::BOTH) {
            let target = bed.pod("web-b")?.at(family, PORT);
            let mut idle = bed.pod(client)?.connect(target)?;
            exchange(&mut idle, b"hello").with_context(|| format!("{client} to {target}"))?;
            open.idle.push(idle);
            open.busy.push(Pump::start(bed.pod(client)?.connect(target)?, number)?);
        }
        Ok(open)
    }

    fn count(&self) -> usize {
        self.idle.len() + self.busy.len()
    }

    /// All connections continue, and no byte is lost.
    fn goes_on(&mut self) -> Result<()> {
        let client = self.client;
        self.idle
            .iter_mut()
            .try_for_each(|stream| exchange(stream, b"still here"))
            .with_context(|| client.to_owned())?;
        self.busy.iter().try_for_each(|pump| pump.more(20)).with_context(|| client.to_owned())
    }

    /// All connections end with a reset.
    fn ends(self, since: Instant) -> Result<()> {
        for mut stream in self.idle {
            let end = stream.read(&mut [0; 1]);
            ensure!(end.as_ref().is_err_and(is_reset), "{}: a reset should come, not {end:?}", self.client);
            ensure!(since.elapsed() < SOON, "{}: the reset took {:?}", self.client, since.elapsed());
        }
        for pump in self.busy {
            let end = pump.ended();
            let reset = |error: &anyhow::Error| error.downcast_ref::<io::Error>().is_some_and(is_reset);
            ensure!(end.as_ref().is_err_and(reset), "{}: a reset should come, not {end:?}", self.client);
            ensure!(since.elapsed() < SOON, "{}: the reset took {:?}", self.client, since.elapsed());
        }
        println!("{}: cut after {:?}", self.client, since.elapsed());
        Ok(())
    }
}

/// The number of log lines of both daemons about outbound connections that policy of the destination has cut.
fn cut_at_source(bed: &Testbed) -> Result<usize> {
    let is = |line: &&Access| line.field("reason") == "policy_changed" && line.direction == Direction::Outbound;
    let lines = |node| Ok::<_, anyhow::Error>(bed.daemon(node)?.access()?.iter().filter(is).count());
    Ok(lines("node-a")? + lines("node-b")?)
}

/// While all clients are connected, a change cuts exactly the connections of these clients, for this reason.
fn cuts(
    bed: &Testbed,
    change: impl FnOnce(&Mesh) -> Result<()>,
    cut: &[&str],
    (kind, policy, reason): (&str, &str, &str),
) -> Result<()> {
    let web = bed.pod("web-b")?;
    let echoes = Family::BOTH.map(|family| Server::echo(web, web.at(family, PORT)));
    let echoes = echoes.into_iter().collect::<Result<Vec<_>>>()?;
    let mut all = CLIENTS.into_iter().map(|client| Open::connect(bed, client)).collect::<Result<Vec<_>>>()?;
    all.iter_mut().try_for_each(Open::goes_on)?;
    let daemon = bed.daemon("node-b")?;
    let (seen, counted) = (daemon.access()?.len(), decisions(daemon, kind, policy, "cut")?);
    let at_source = cut_at_source(bed)?;
    let begin = Instant::now();
    change(&bed.mesh)?;
    let (gone, mut staying): (Vec<_>, Vec<_>) = all.into_iter().partition(|open| cut.contains(&open.client));
    let resets: usize = gone.iter().map(Open::count).sum();
    // The daemon of the guest's node does not carry the guest's connections.
    let tunnelled: usize = gone.iter().filter(|open| open.client != GUEST).map(Open::count).sum();
    gone.into_iter().try_for_each(|open| open.ends(begin)).with_context(|| daemon.tail())?;
    wait::until_true("the resets at the server", wait::PATIENCE, || {
        Ok(echoes.iter().map(Server::resets).sum::<usize>() >= resets)
    })?;
    staying.iter_mut().try_for_each(Open::goes_on)?;
    let left: usize = staying.iter().map(Open::count).sum();
    ensure!(echoes.iter().map(Server::open).sum::<usize>() == left, "the server has other connections than those left");
    for pump in staying.into_iter().flat_map(|open| open.busy) {
        pump.finish()?;
    }
    let is_cut = |line: &&Access| line.field("reason") == "policy_changed" && line.direction == Direction::Inbound;
    wait::until_true("a line of each", wait::PATIENCE, || {
        Ok(daemon.access()?.iter().skip(seen).filter(is_cut).count() >= resets)
    })
    .with_context(|| daemon.tail())?;
    let lines: Vec<_> = daemon.access()?.into_iter().skip(seen).filter(|line| is_cut(&line)).collect();
    ensure!(lines.len() == resets, "{resets} were cut, but {} lines say so", lines.len());
    for line in &lines {
        let told = line.error.as_deref().and_then(|error| error.strip_prefix(CHANGED));
        ensure!(told.is_some_and(|told| told.starts_with(reason)), "not {reason:?}: {}", line.line);
    }
    let now = decisions(daemon, kind, policy, "cut")?;
    ensure!(
        now - counted == u32::try_from(resets).map(f64::from)?,
        "{resets} were cut, but {} were counted",
        now - counted
    );
    ensure!(echoes.iter().map(Server::resets).sum::<usize>() == resets, "more were reset");
    wait::until_true("the lines of the clients' nodes", wait::PATIENCE, || {
        Ok(cut_at_source(bed)? >= at_source + tunnelled)
    })
    .with_context(|| bed.daemon("node-a").map_or_else(|error| error.to_string(), Daemon::tail))?;
    ensure!(cut_at_source(bed)? == at_source + tunnelled, "the clients' nodes tell of more cuts");
    Ok(())
}

const NONE: &str = "none";
const AUTHORIZATION: &str = "AuthorizationPolicy";

#[test]
fn a_new_deny_cuts_whom_it_denies() -> Result<()> {
    let bed = bed()?;
    let deny = |source: &str| {
        authorization("deny", &format!("{{action: DENY, rules: [{{from: [{{source: {{{source}}}}}]}}]}}"))
    };
    let reason = (AUTHORIZATION, "deny", "AuthorizationPolicy demo/deny (DENY), rules[0]: ");
    cuts(&bed, |mesh| mesh.policy("deny", &deny("serviceAccounts: [client-a]")), &["client-a"], reason)?;
    bed.change(|mesh| mesh.remove_policy("deny"))?;
    let guest = bed.pod(GUEST)?;
    let addresses = deny(&format!("ipBlocks: ['{}', '{}']", guest.v4, guest.v6));
    cuts(&bed, |mesh| mesh.policy("deny", &addresses), &[GUEST], reason)?;
    bed.change(|mesh| mesh.remove_policy("deny"))?;
    cuts(&bed, |mesh| mesh.policy("deny", &deny("notNamespaces: [elsewhere]")), &CLIENTS, reason)
}

#[test]
fn a_rule_that_allowed_and_is_gone_cuts_whom_it_allowed() -> Result<()> {
    let bed = bed()?;
    let guest = bed.pod(GUEST)?;
    let (client, same_node) =
        ("{from: [{source: {serviceAccounts: [client-a]}}]}", "{from: [{source: {principals: ['*/client-b']}}]}");
    let address = format!("{{from: [{{source: {{ipBlocks: ['{}', '{}']}}}}]}}", guest.v4, guest.v6);
    let allow = |rules: &[&str]| authorization("allow", &format!("{{rules: [{}]}}", rules.join(", ")));
    let all = allow(&[client, same_node, &address]);
    bed.change(|mesh| mesh.policy("allow", &all))?;
    let reason = (NONE, "", "no ALLOW policy matched: demo/allow");
    cuts(&bed, |mesh| mesh.policy("allow", &allow(&[same_node, &address])), &["client-a"], reason)?;
    bed.change(|mesh| mesh.policy("allow", &all))?;
    cuts(&bed, |mesh| mesh.policy("allow", &allow(&[same_node])), &["client-a", GUEST], reason)?;
    bed.change(|mesh| mesh.policy("allow", &all))?;
    cuts(&bed, |mesh| mesh.policy("allow", &allow(&[])), &CLIENTS, reason)
}

#[test]
fn strict_cuts_plaintext_and_nothing_else() -> Result<()> {
    let bed = bed()?;
    let mode = |mode: &str| authentication("mode", &format!("{{mtls: {{mode: {mode}}}}}"));
    bed.change(|mesh| mesh.policy("mode", &mode("PERMISSIVE")))?;
    let reason = ("PeerAuthentication", "mode", "PeerAuthentication demo/mode: STRICT, and the client has no identity");
    cuts(&bed, |mesh| mesh.policy("mode", &mode("STRICT")), &[GUEST], reason)
}

#[test]
fn labels_that_a_policy_selects_cut_like_a_new_policy() -> Result<()> {
    let bed = bed()?;
    let policy =
        authorization("quarantine", "{selector: {matchLabels: {quarantine: 'yes'}}, action: DENY, rules: [{}]}");
    bed.change(|mesh| mesh.policy("quarantine", &policy))?;
    let (far, web) = (bed.pod("web-a")?, bed.pod("web-b")?);
    let elsewhere = Server::echo(far, far.at(Family::V4, PORT))?;
    let other = Pump::start(bed.pod("client-b")?.connect(elsewhere.address())?, 9)?;
    let labelled = PodManifest::of(web).label("quarantine", "yes");
    let reason = (AUTHORIZATION, "quarantine", "AuthorizationPolicy demo/quarantine (DENY), rules[0]");
    cuts(&bed, |mesh| mesh.pod(&labelled), &CLIENTS, reason)?;
    other.more(20).context("a connection to another pod")?;
    other.finish()?;
    bed.daemon("node-b")?.enrolled("web-b")?;
    bed.change(|mesh| mesh.pod(&PodManifest::of(web)))?;
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    wait::until("the pod to be reached again", wait::PATIENCE, || {
        Ok(admitted(bed.pod("client-a")?, echo.address()).ok())
    })?;
    Ok(())
}

/// Writes until the socket takes no more bytes.
fn fill(stream: &mut TcpStream) -> io::Result<()> {
    stream.set_write_timeout(Some(Duration::from_millis(500)))?;
    loop {
        match stream.write_all(&[b'x'; 65_536]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return stream.set_write_timeout(None),
            written => written?,
        }
    }
}

/// All buffers on the way are full. A side that does not read is reset as well, and does not delay the reset of others.
#[test]
fn connections_that_stand_still_are_cut_at_once() -> Result<()> {
    let bed = bed()?;
    let web = bed.pod("web-b")?;
    let (release, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    let deaf = Server::start(web, web.at(Family::V4, PORT), move |mut stream, _| {
        // Returns with an error when the other end is dropped: then the server reads.
        let _released = held.lock().map(|held| held.recv());
        io::copy(&mut stream, &mut io::sink()).map(drop)
    })?;
    let (full, filled) = mpsc::channel();
    let sender = Server::start(web, web.at(Family::V4, PORT + 1), move |mut stream, _| {
        fill(&mut stream)?;
        full.send(()).map_err(io::Error::other)?;
        loop {
            stream.write_all(b"more")?;
        }
    })?;
    let mut open = Vec::new();
    for client in ["client-a", GUEST] {
        let client = bed.pod(client)?;
        let mut stream = client.connect(deaf.address())?;
        fill(&mut stream)?;
        open.extend([stream, client.connect(sender.address())?]);
        filled.recv_timeout(wait::PATIENCE).context("the sender stands still")?;
    }
    let begin = Instant::now();
    bed.mesh.policy("deny", &authorization("deny", "{action: DENY, rules: [{}]}"))?;
    wait::until_true("the resets at the sender", wait::PATIENCE, || Ok(sender.resets() == 2))?;
    for mut stream in open {
        stream.set_read_timeout(Some(SOCKET_DEADLINE))?;
        // The bytes that have arrived come before the reset.
        let end = io::copy(&mut stream, &mut io::sink());
        ensure!(end.as_ref().is_err_and(is_reset), "a reset should come, not {end:?}");
    }
    ensure!(begin.elapsed() < SOON, "the resets took {:?}", begin.elapsed());
    drop(release);
    wait::until_true("the resets at the deaf", wait::PATIENCE, || Ok(deaf.resets() == 2))
}

/// A daemon that drains still judges its open connections.
#[test]
fn policy_holds_while_a_node_drains() -> Result<()> {
    let mut bed = bed()?;
    let web = bed.pod("web-b")?;
    let echoes = Family::BOTH.map(|family| Server::echo(web, web.at(family, PORT)));
    let _echoes = echoes.into_iter().collect::<Result<Vec<_>>>()?;
    let (mut client, mut guest) = (Open::connect(&bed, "client-a")?, Open::connect(&bed, GUEST)?);
    // A connection that the daemon has not accepted yet would be refused.
    client.goes_on()?;
    guest.goes_on()?;
    let daemon = bed.daemon("node-b")?;
    daemon.signal(Signal::SIGTERM)?;
    wait::until_true("the drain", wait::PATIENCE, || Ok(!daemon.lines_with(&["draining"])?.is_empty()))?;
    let deny = authorization("deny", "{action: DENY, rules: [{from: [{source: {serviceAccounts: [client-a]}}]}]}");
    let begin = Instant::now();
    bed.mesh.policy("deny", &deny)?;
    client.ends(begin).with_context(|| daemon.tail())?;
    guest.goes_on()?;
    guest.busy.into_iter().try_for_each(Pump::finish)?;
    drop(guest.idle);
    bed.daemon_mut("node-b")?.exited(wait::PATIENCE)
}

/// While a policy changes all the time, a connection that every version allows is not cut, and a connection that every version
/// denies is never accepted.
#[test]
fn changes_without_end_cut_nobody_else() -> Result<()> {
    let bed = bed()?;
    let web = bed.pod("web-b")?;
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    let mut open = Open { client: "client-a", idle: Vec::new(), busy: Vec::new() };
    open.busy.push(Pump::start(bed.pod("client-a")?.connect(echo.address())?, 1)?);
    let allow = |number: u32| {
        let rule = "{from: [{source: {serviceAccounts: [client-a]}}]}";
        authorization("allow", &format!("{{rules: [{rule}, {{to: [{{operation: {{ports: ['{number}']}}}}]}}]}}"))
    };
    bed.change(|mesh| mesh.policy("allow", &allow(1)))?;
    for number in 2..30 {
        bed.mesh.policy("allow", &allow(number))?;
        refused(bed.pod("client-b")?, echo.address()).with_context(|| format!("after change {number}"))?;
        admitted(bed.pod("client-a")?, echo.address()).with_context(|| format!("after change {number}"))?;
        open.goes_on()?;
    }
    open.busy.into_iter().try_for_each(Pump::finish)?;
    ensure!(echo.resets() == 0, "{:?}", echo.failures());
    Ok(())
}

/// The number of open connections.
const MANY: usize = 2000;

/// Many connections and many policies: the denied connections are cut in time, and the others continue without a pause.
#[test]
fn many_connections_are_cut_in_time() -> Result<()> {
    let bed = bed()?;
    let web = bed.pod("web-b")?;
    let echo = Server::echo(web, web.at(Family::V4, PORT))?;
    let filler = |number: u32| {
        let rule =
            format!("{{from: [{{source: {{namespaces: [n{number}]}}}}], to: [{{operation: {{ports: ['9']}}}}]}}");
        authorization(&format!("filler-{number}"), &format!("{{action: DENY, rules: [{rule}]}}"))
    };
    let fillers: String = (0..1000).map(filler).collect();
    bed.change(|mesh| mesh.policy("fillers", &fillers))?;
    let mut open = Vec::new();
    for number in 0..MANY {
        let mut stream = bed.pod("client-a")?.connect(echo.address())?;
        exchange(&mut stream, b"hello").with_context(|| format!("connection {number}"))?;
        open.push(stream);
    }
    let other = Pump::start(bed.pod("client-b")?.connect(echo.address())?, 1)?;
    let deny = authorization("deny", "{action: DENY, rules: [{from: [{source: {serviceAccounts: [client-a]}}]}]}");
    let begin = Instant::now();
    bed.mesh.policy("deny", &deny)?;
    for mut stream in open {
        let end = stream.read(&mut [0; 1]);
        ensure!(end.as_ref().is_err_and(is_reset), "a reset should come, not {end:?}");
    }
    let took = begin.elapsed();
    println!("{MANY} connections were cut after {took:?}");
    ensure!(took < SOON, "{MANY} connections were cut after {took:?}");
    other.more(20)?;
    other.finish()?;
    let daemon = bed.daemon("node-b")?;
    let cut = decisions(daemon, AUTHORIZATION, "deny", "cut")?;
    ensure!(cut == 2000.0, "{cut} were counted");
    wait::until_true("the ends at the server", wait::PATIENCE, || Ok(echo.open() == 0))?;
    ensure!(echo.resets() == MANY, "{} were reset at the server", echo.resets());
    Ok(())
}
