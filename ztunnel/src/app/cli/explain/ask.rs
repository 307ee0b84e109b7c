//! Asks a running daemon for an explanation.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{
    Request, StatusCode,
    body::Bytes,
    client::conn::http1,
    header::{ACCEPT, HOST},
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, runtime, time::timeout};

use crate::{
    app::admin::{EXPLAIN, explain::encode},
    explain::Explanation,
};

/// How long the connect may take: the daemon is on this node, or close.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the answer may take: the daemon's own limit for a connection of its admin endpoints.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The largest accepted answer in bytes. An explanation of a large mesh is far smaller; a larger answer comes from another
/// program.
const LARGEST: usize = 64 << 20;
/// The number of bytes of an invalid answer that are shown.
const EXCERPT: usize = 500;

/// Asks the daemon with its admin endpoints at this address.
///
/// # Errors
/// The error says what to do if there is no answer, or if another program answers.
pub(super) fn daemon(admin: SocketAddr, from: &str, to: &str, port: &str) -> anyhow::Result<Explanation> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let path = format!("{EXPLAIN}?{}", encode(from, to, port));
    let answered = runtime.block_on(async { timeout(TIMEOUT, fetch(admin, &path)).await });
    let (status, body) = answered
        .with_context(|| format!("the daemon at {admin} did not answer within {} s", TIMEOUT.as_secs()))?
        .with_context(|| format!("cannot ask a daemon at {admin}"))?;
    read(admin, status, &body)
}

async fn fetch(admin: SocketAddr, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    const REMEDY: &str =
        "is one running there? Its address is that of `ztunnel run --admin`, in the node's own network";
    let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(admin)).await;
    let stream = connected
        .map_err(|_| anyhow!("no connection within {} s", CONNECT_TIMEOUT.as_secs()))
        .and_then(|stream| Ok(stream?));
    let stream = stream.context(REMEDY)?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.context("the program that listens there does not speak HTTP")?;
    let request = Request::get(path)
        .header(HOST, admin.to_string())
        .header(ACCEPT, "application/json")
        .body(Empty::<Bytes>::new())
        .context("cannot ask for that")?;
    let answer = async {
        let response =
            sender.send_request(request).await.context("the program that listens there does not answer in HTTP")?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST).collect().await;
        let body = body.map_err(|error| anyhow!("the answer can't be read: {error}"))?;
        anyhow::Ok((status, body.to_bytes()))
    };
    tokio::pin!(answer, connection);
    tokio::select! {
        answer = &mut answer => answer,
        // The connection may end first if the other side closes. The bytes received until then are in the answer.
        _ended = &mut connection => answer.await,
    }
}

fn read(admin: SocketAddr, status: StatusCode, body: &[u8]) -> anyhow::Result<Explanation> {
    let said = || String::from_utf8_lossy(body).trim().chars().take(EXCERPT).collect::<String>();
    match status {
        StatusCode::OK => serde_json::from_slice(body).with_context(|| {
            format!(
                "the answer of {admin} is not an explanation: is that the admin address of a daemon of this version?"
            )
        }),
        StatusCode::NOT_FOUND => {
            bail!(
                "{admin} has no endpoint /explain: give the address of the daemon's --admin, and not of \
                 --metrics or --readiness"
            )
        }
        _ => bail!("the daemon at {admin} can't explain that: {}", said()),
    }
}
