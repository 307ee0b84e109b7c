//! The end of connections: how one side ends, so the other side sees it, through two daemons.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};

use anyhow::{Context, Result, ensure};
use socket2::SockRef;
use ztunnel_tests::apps::server::{Server, finish_sending, is_reset, read_all, reset};
use ztunnel_tests::logs::Direction;
use ztunnel_tests::proof;
use ztunnel_tests::testbed::Testbed;
use ztunnel_tests::topology::{Family, Pod};
use ztunnel_tests::wait;

const PORT: u16 = 7000;

/// The result of the server's side of a test.
type Outcome = io::Result<Vec<u8>>;

/// A server that passes its outcome to the test.
fn server(
    pod: &Pod,
    family: Family,
    serve: impl Fn(TcpStream) -> Outcome + Send + Sync + 'static,
) -> Result<(Server, Receiver<Outcome>)> {
    let (sender, outcomes) = channel();
    let sender = Mutex::new(sender);
    let server = Server::start(pod, pod.at(family, PORT), move |stream, _| {
        let outcome = serve(stream);
        let sender = sender.lock().map_err(|_| io::Error::other("poisoned"))?;
        sender.send(outcome).map_err(|_| io::Error::other("the test is over"))
    })?;
    Ok((server, outcomes))
}

/// Runs one ending over both families, from `client-a` to `web-b`. Both pods are enrolled.
fn ending(
    serve: fn(TcpStream) -> Outcome,
    client: fn(TcpStream) -> Outcome,
    check: fn(&Outcome, &Outcome) -> Result<()>,
) -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    for family in Family::BOTH {
        let (server, outcomes) = server(bed.pod("web-b")?, family, serve)?;
        let stream = bed.pod("client-a")?.connect(server.address())?;
        let at_client = client(stream);
        let at_server = outcomes.recv_timeout(wait::PATIENCE).context("the server's side did not end")?;
        check(&at_client, &at_server).with_context(|| format!("{family:?}: {at_client:?}, {at_server:?}"))?;
        no_connection_left(&bed)?;
    }
    Ok(())
}

/// Both daemons carried the connection, and no daemon has it any more.
fn no_connection_left(bed: &Testbed) -> Result<()> {
    proof::steered(bed, "client-a", Direction::Outbound, 1)?;
    proof::delivered(bed, "web-b", 1)?;
    proof::had_tunnels(bed, "web-b")?;
    for node in ["node-a", "node-b"] {
        bed.daemon(node)?.wait_dump("no connection to be left", wait::PATIENCE, |dump| {
            dump.pods().all(|pod| pod.connections() == 0)
        })?;
    }
    Ok(())
}

fn reset_came(outcome: &Outcome) -> Result<()> {
    ensure!(outcome.as_ref().is_err_and(is_reset), "a reset should have come");
    Ok(())
}

const REQUEST: &[u8] = b"request";

#[test]
fn client_finishes_first_and_still_gets_data() -> Result<()> {
    ending(
        |mut stream| {
            let request = read_all(&mut stream)?;
            stream.write_all(&[b'x'; 300_000])?;
            Ok(request)
        },
        |mut stream| {
            stream.write_all(REQUEST)?;
            finish_sending(&stream)?;
            read_all(&mut stream)
        },
        |client, server| {
            ensure!(client.as_ref().is_ok_and(|bytes| bytes.len() == 300_000), "the answer after the FIN was lost");
            ensure!(server.as_ref().is_ok_and(|bytes| bytes == REQUEST));
            Ok(())
        },
    )
}

#[test]
fn server_finishes_first_and_still_gets_data() -> Result<()> {
    ending(
        |mut stream| {
            finish_sending(&stream)?;
            read_all(&mut stream)
        },
        |mut stream| {
            let nothing = read_all(&mut stream)?;
            stream.write_all(&[b'x'; 300_000])?;
            Ok(nothing)
        },
        |client, server| {
            ensure!(client.as_ref().is_ok_and(Vec::is_empty));
            ensure!(server.as_ref().is_ok_and(|bytes| bytes.len() == 300_000), "what came after the FIN was lost");
            Ok(())
        },
    )
}

#[test]
fn client_resets() -> Result<()> {
    ending(
        |mut stream| {
            stream.write_all(b"!")?;
            read_all(&mut stream)
        },
        |mut stream| {
            // The client resets only after it has read this byte. After an earlier reset the daemon may make no connection to
            // the server.
            stream.read_exact(&mut [0; 1])?;
            stream.write_all(REQUEST)?;
            reset(stream)?;
            Ok(Vec::new())
        },
        |_, server| reset_came(server),
    )
}

#[test]
fn server_resets() -> Result<()> {
    ending(
        |mut stream| {
            stream.read_exact(&mut [0; REQUEST.len()])?;
            reset(stream)?;
            Ok(Vec::new())
        },
        |mut stream| {
            stream.write_all(REQUEST)?;
            read_all(&mut stream)
        },
        |client, _| reset_came(client),
    )
}

/// More bytes than all buffers on the way hold.
const TOO_MUCH: usize = 64 << 20;

/// Writes until the socket takes no more bytes.
fn fill(stream: &mut TcpStream) -> io::Result<()> {
    stream.set_write_timeout(Some(std::time::Duration::from_millis(500)))?;
    let chunk = [b'x'; 65_536];
    for _ in 0..TOO_MUCH / chunk.len() {
        match stream.write(&chunk) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            other => _ = other?,
        }
    }
    Err(io::Error::other("the buffers have no end"))
}

#[test]
fn client_resets_while_its_data_is_queued() -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    for family in Family::BOTH {
        let (go, wait_for_go) = channel::<()>();
        let wait_for_go = Mutex::new(wait_for_go);
        let (server, outcomes) = server(bed.pod("web-b")?, family, move |mut stream| {
            let gone = wait_for_go.lock().map_err(|_| io::Error::other("poisoned"))?;
            gone.recv_timeout(wait::PATIENCE).map_err(io::Error::other)?;
            read_all(&mut stream)
        })?;
        let mut stream = bed.pod("client-a")?.connect(server.address())?;
        fill(&mut stream)?;
        reset(stream)?;
        go.send(())?;
        let outcome = outcomes.recv_timeout(wait::PATIENCE)?;
        reset_came(&outcome).with_context(|| format!("{family:?}: {:?}", outcome.map(|bytes| bytes.len())))?;
        no_connection_left(&bed)?;
    }
    Ok(())
}

#[test]
fn server_resets_while_its_data_is_queued() -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    for family in Family::BOTH {
        let (server, outcomes) = server(bed.pod("web-b")?, family, |mut stream| {
            fill(&mut stream)?;
            reset(stream)?;
            Ok(Vec::new())
        })?;
        let mut stream = bed.pod("client-a")?.connect(server.address())?;
        outcomes.recv_timeout(wait::PATIENCE)?.context("the server could not fill the way")?;
        let outcome = read_all(&mut stream);
        reset_came(&outcome).with_context(|| format!("{family:?}: {:?}", outcome.map(|bytes| bytes.len())))?;
        no_connection_left(&bed)?;
    }
    Ok(())
}

#[test]
fn client_closes_with_unread_data() -> Result<()> {
    ending(
        |mut stream| {
            stream.write_all(&[b'x'; 10_000])?;
            read_all(&mut stream)
        },
        |mut stream| {
            stream.read_exact(&mut [0; 1])?;
            drop(stream);
            Ok(Vec::new())
        },
        |_, server| reset_came(server),
    )
}

#[test]
fn an_empty_connection_closes_in_peace() -> Result<()> {
    ending(
        |mut stream| read_all(&mut stream),
        |stream| {
            drop(stream);
            Ok(Vec::new())
        },
        |_, server| {
            ensure!(server.as_ref().is_ok_and(Vec::is_empty), "a FIN should have come");
            Ok(())
        },
    )
}

#[test]
fn one_side_resets_long_after_the_other_finished() -> Result<()> {
    let bed = Testbed::both_enrolled()?;
    let (server, outcomes) = server(bed.pod("web-b")?, Family::V4, |mut stream| {
        let request = read_all(&mut stream)?;
        reset(stream)?;
        Ok(request)
    })?;
    let address: SocketAddr = server.address();
    let mut stream = bed.pod("client-a")?.connect(address)?;
    stream.write_all(REQUEST)?;
    finish_sending(&stream)?;
    let outcome = read_all(&mut stream);
    reset_came(&outcome).with_context(|| format!("{outcome:?}"))?;
    ensure!(outcomes.recv_timeout(wait::PATIENCE)?? == REQUEST);
    no_connection_left(&bed)
}

/// Sends bytes of which the last is urgent.
fn urgent(stream: &TcpStream, bytes: &[u8]) -> io::Result<()> {
    let sent = SockRef::from(stream).send_out_of_band(bytes)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::Error::other("not all was sent")) }
}

/// Sends bytes with urgent bytes among them. One urgent byte is the last byte before the answer of the other side.
fn says(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"abc")?;
    urgent(stream, b"!")?;
    stream.write_all(b"def")?;
    urgent(stream, b"gh?")
}

const SAID: &[u8] = b"abc!defgh?";

/// Reads the bytes of [`says`], with the urgent bytes among the others.
fn hears(stream: &mut TcpStream) -> Outcome {
    let mut heard = vec![0; SAID.len()];
    stream.read_exact(&mut heard)?;
    Ok(heard)
}

/// A byte that is sent as urgent data arrives in its place, through HBONE.
#[test]
fn urgent_bytes_arrive_among_the_others() -> Result<()> {
    ending(
        |mut stream| {
            let heard = hears(&mut stream)?;
            says(&mut stream)?;
            // The client has received all bytes.
            let _end = read_all(&mut stream)?;
            Ok(heard)
        },
        |mut stream| {
            says(&mut stream)?;
            let heard = hears(&mut stream);
            finish_sending(&stream)?;
            heard
        },
        |client, server| {
            for heard in [client, server] {
                ensure!(heard.as_ref().is_ok_and(|heard| heard == SAID), "{heard:?}");
            }
            Ok(())
        },
    )
}

/// The same in plaintext, from a pod of the mesh and to a pod of the mesh.
#[test]
fn urgent_bytes_arrive_among_the_others_in_plaintext() -> Result<()> {
    let bed = Testbed::node_a_enrolled()?;
    for (client, target) in [("client-a", "web-b"), ("client-b", "web-a")] {
        for family in Family::BOTH {
            let (server, outcomes) = server(bed.pod(target)?, family, |mut stream| {
                let heard = hears(&mut stream)?;
                says(&mut stream)?;
                let _end = read_all(&mut stream)?;
                Ok(heard)
            })?;
            let mut stream = bed.pod(client)?.connect(server.address())?;
            says(&mut stream)?;
            let heard = hears(&mut stream).with_context(|| format!("{client} -> {target}, {family:?}"))?;
            ensure!(heard == SAID, "{heard:?}");
            finish_sending(&stream)?;
            let at_server = outcomes.recv_timeout(wait::PATIENCE).context("the server's side did not end")??;
            ensure!(at_server == SAID, "{at_server:?}");
        }
    }
    Ok(())
}
