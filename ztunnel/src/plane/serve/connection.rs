//! One connection of a node.

use std::{
    future::pending,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::{Ping, PingPong, Reason, server};
use tokio::{
    net::TcpStream,
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{Span, debug};

use super::calls::Calls;
use crate::{
    lifecycle::{
        drain::DrainWatch,
        tasks::{TaskCount, TaskSet},
    },
    tls::NamedStream,
};

/// Bytes that a caller may send on one stream before they are read.
const STREAM_WINDOW: u32 = 256 << 10;
/// Bytes that a caller may send on all streams before they are read.
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Bytes of one stream that may wait for the socket.
const SEND_BUFFER: usize = 64 << 10;
/// Bytes of the headers of a call. A token of Kubernetes alone has about 1200.
const HEADERS: u32 = 16 << 10;
/// How long a connection may take to close when its last stream has ended.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

type Connection = server::Connection<NamedStream<TcpStream>, Bytes>;

/// Serves a connection to its end.
pub(super) async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    serving: Arc<Calls>,
    drain: DrainWatch,
    tasks: TaskCount,
) {
    // Only whole messages are sent, so there is nothing to wait for.
    let _best_effort = stream.set_nodelay(true);
    let limits = serving.server.limits;
    let tls = match serving.server.tls.accept(stream).await {
        Ok(tls) => tls,
        Err(error) => {
            debug!(%peer, %error, "a connection failed");
            serving.server.metrics.cut("handshake");
            return;
        }
    };
    let handshake = server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(limits.calls_per_connection)
        .max_header_list_size(HEADERS)
        .max_send_buffer_size(SEND_BUFFER)
        .handshake(tls);
    let connection = match timeout(limits.idle, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return debug!(%peer, %error, "a connection failed"),
        Err(_) => return serving.server.metrics.cut("idle"),
    };
    run(connection, peer, serving, drain, tasks).await;
}

/// Why the control plane ends a connection.
enum Leave {
    Stopping,
    Idle,
    Dead,
    Stranger,
    Gone,
}

async fn run(
    mut connection: Connection,
    peer: SocketAddr,
    serving: Arc<Calls>,
    mut drain: DrainWatch,
    tasks: TaskCount,
) {
    let limits = serving.server.limits;
    let ping = connection.ping_pong();
    let (stop, stopping) = watch::channel(false);
    let is_strange = Arc::new(AtomicBool::new(false));
    let mut calls = TaskSet::new(tasks);
    let mut idle_since = Instant::now();
    let mut alive = std::pin::pin!(alive(ping, limits.ping));
    // Each connection ends at a different time, so that the nodes do not all connect to another replica at once.
    let turn = limits.spread.mul_f64(fastrand::f64());
    let mut stop_at = std::pin::pin!(async move {
        drain.started().await;
        sleep(turn).await;
    });
    let leave = loop {
        let is_idle = calls.is_empty();
        let idle = async {
            match is_idle {
                true => sleep_until(idle_since + limits.idle).await,
                false => pending().await,
            }
        };
        tokio::select! {
            accepted = connection.accept() => {
                let Some(Ok((request, respond))) = accepted else { break Leave::Gone };
                let serving = Arc::clone(&serving);
                let mut stopping = stopping.clone();
                let is_strange = Arc::clone(&is_strange);
                calls.spawn(Span::none(), async move {
                    let stopped = async move {
                        let _gone = stopping.wait_for(|stop| *stop).await;
                    };
                    if !serving.call(request, respond, peer, stopped).await {
                        is_strange.store(true, Ordering::Relaxed);
                    }
                });
            }
            () = idle => break Leave::Idle,
            () = &mut alive => break Leave::Dead,
            () = &mut stop_at => break Leave::Stopping,
            () = ended(&mut calls) => {
                idle_since = Instant::now();
                // A caller without a valid token has only one try on a connection.
                if is_strange.load(Ordering::Relaxed) {
                    break Leave::Stranger;
                }
            }
        }
    };
    let reason = match leave {
        Leave::Gone => return,
        Leave::Stopping => None,
        Leave::Idle => Some("idle"),
        Leave::Dead => Some("dead"),
        Leave::Stranger => None,
    };
    if let Some(reason) = reason {
        debug!(%peer, reason, "a connection was closed");
        serving.server.metrics.cut(reason);
    }
    if let Leave::Dead = leave {
        return connection.abrupt_shutdown(Reason::NO_ERROR);
    }
    stop.send_replace(true);
    connection.graceful_shutdown();
    let close = async {
        // h2 refuses calls that arrive while the connection closes.
        while let Some(Ok(_)) = connection.accept().await {}
    };
    let _late = timeout(CLOSE_WITHIN, async { tokio::join!(close, calls.join_all()) }).await;
}

async fn ended(calls: &mut TaskSet) {
    match calls.is_empty() {
        true => pending().await,
        false => calls.reap_next().await,
    }
}

/// Completes when the peer does not answer a ping.
async fn alive(ping: Option<PingPong>, every: Duration) {
    let Some(mut ping) = ping else { return pending().await };
    loop {
        sleep(every).await;
        match timeout(every, ping.ping(Ping::opaque())).await {
            Ok(Ok(_pong)) => {}
            // The connection itself reports this error.
            Ok(Err(_)) => return pending().await,
            Err(_) => return,
        }
    }
}
