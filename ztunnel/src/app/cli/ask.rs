//! Asks a running daemon or control plane, at its admin address.

use std::{net::SocketAddr, ops::ControlFlow, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
    header::{ACCEPT, HOST},
};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{net::TcpStream, runtime, time::timeout};

/// How long the connect may take: the daemon is on this node, or close.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the answer may take: the daemon's own limit for a connection of its admin endpoints.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The largest accepted answer in bytes. The dump of a mesh of 100,000 pods is smaller.
const LARGEST: usize = 512 << 20;
/// The largest line of a stream in bytes; a larger line comes from another program.
const LONGEST_LINE: usize = 1 << 20;
/// How long a stream may be silent. The daemon writes a line every 5 seconds at least.
const SILENCE: Duration = Duration::from_secs(20);
/// The number of bytes of an invalid answer that are shown.
const EXCERPT: usize = 500;

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

impl Answer {
    /// The beginning of the body, for messages.
    pub(super) fn excerpt(&self) -> String {
        String::from_utf8_lossy(&self.body).trim().chars().take(EXCERPT).collect()
    }
}

/// Sends a request without a body.
///
/// # Errors
/// The error says what to do if there is no answer, or if another program answers.
pub(super) fn ask(admin: SocketAddr, method: Method, path: &str) -> anyhow::Result<Answer> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let answered = runtime.block_on(async { timeout(TIMEOUT, fetch(admin, method, path)).await });
    answered
        .with_context(|| format!("the daemon at {admin} did not answer within {} s", TIMEOUT.as_secs()))?
        .with_context(|| format!("cannot ask a daemon at {admin}"))
}

/// The text of an endpoint.
///
/// # Errors
/// As [`ask`]; also for an answer other than 200.
pub(super) fn text(admin: SocketAddr, path: &str) -> anyhow::Result<String> {
    let answer = ask(admin, Method::GET, path)?;
    check(admin, path, &answer)?;
    Ok(String::from_utf8_lossy(&answer.body).into_owned())
}

/// The JSON of an endpoint.
///
/// # Errors
/// As [`text`]; also for an answer of another shape.
pub(super) fn json<T: DeserializeOwned>(admin: SocketAddr, path: &str) -> anyhow::Result<T> {
    let answer = ask(admin, Method::GET, path)?;
    check(admin, path, &answer)?;
    serde_json::from_slice(&answer.body).with_context(|| {
        format!(
            "the answer of {admin} to {path} has another shape: is the daemon of another version than this command?"
        )
    })
}

/// Checks the status of an answer.
///
/// # Errors
/// The error says what to do.
pub(super) fn check(admin: SocketAddr, path: &str, answer: &Answer) -> anyhow::Result<()> {
    let endpoint = path.split('?').next().unwrap_or(path);
    match answer.status {
        StatusCode::OK => Ok(()),
        StatusCode::NOT_FOUND => bail!(
            "{admin} has no endpoint {endpoint}: give the address of --admin, and not of --metrics or --readiness; or the \
             program that listens there is older than this command"
        ),
        _ => bail!("the program at {admin} cannot answer {endpoint}: {}", answer.excerpt()),
    }
}

async fn fetch(admin: SocketAddr, method: Method, path: &str) -> anyhow::Result<Answer> {
    send(admin, method, path, async |response| {
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST).collect().await;
        let body = body.map_err(|error| anyhow!("the answer can't be read: {error}"))?;
        Ok(Answer { status, body: body.to_bytes() })
    })
    .await
}

/// Reads the lines of an endpoint that does not end by itself, until `each` breaks or the time is over. `None`: without end.
///
/// # Errors
/// As [`text`]; also if the stream ends, is silent for too long, or has lines that no daemon writes.
pub(super) fn lines(
    admin: SocketAddr,
    path: &str,
    limit: Option<Duration>,
    mut each: impl FnMut(&str) -> anyhow::Result<ControlFlow<()>>,
) -> anyhow::Result<()> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let read = send(admin, Method::GET, path, async |response| {
        let status = response.status();
        let mut body = response.into_body();
        if status != StatusCode::OK {
            let body = Limited::new(body, LARGEST).collect().await;
            let body = body.map_err(|error| anyhow!("the answer can't be read: {error}"))?.to_bytes();
            return check(admin, path, &Answer { status, body });
        }
        let mut rest = Vec::new();
        loop {
            let frame = timeout(SILENCE, body.frame()).await;
            let frame = frame.map_err(|_| anyhow!("nothing came for {} s", SILENCE.as_secs()))?;
            let Some(frame) = frame else { bail!("the daemon has ended the stream: it is stopping") };
            let Ok(data) = frame.context("the stream broke")?.into_data() else { continue };
            rest.extend_from_slice(&data);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                if each(String::from_utf8_lossy(&line).trim_end())?.is_break() {
                    return Ok(());
                }
            }
            if rest.len() > LONGEST_LINE {
                bail!("a line is longer than {LONGEST_LINE} bytes: that is not a daemon");
            }
        }
    });
    runtime.block_on(async {
        match limit {
            Some(limit) => timeout(limit, read).await.unwrap_or(Ok(())),
            None => read.await,
        }
        .with_context(|| format!("cannot follow the daemon at {admin}"))
    })
}

/// Sends a request and reads the answer.
async fn send<T>(
    admin: SocketAddr,
    method: Method,
    path: &str,
    read: impl AsyncFnOnce(Response<Incoming>) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    const REMEDY: &str =
        "is one running there? Its address is that of `ztunnel run --admin`, in the node's own network";
    let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(admin)).await;
    let stream = connected
        .map_err(|_| anyhow!("no connection within {} s", CONNECT_TIMEOUT.as_secs()))
        .and_then(|stream| Ok(stream?));
    let stream = stream.context(REMEDY)?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.context("the program that listens there does not speak HTTP")?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, admin.to_string())
        .header(ACCEPT, "application/json")
        .body(Empty::<Bytes>::new())
        .context("cannot ask for that")?;
    let answer = async {
        let response =
            sender.send_request(request).await.context("the program that listens there does not answer in HTTP")?;
        read(response).await
    };
    tokio::pin!(answer, connection);
    tokio::select! {
        answer = &mut answer => answer,
        // The connection may end first if the other side closes. The bytes received until then are in the answer.
        _ended = &mut connection => answer.await,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{
        io::{BufRead as _, BufReader, Write as _},
        net::{SocketAddr, TcpListener},
        ops::ControlFlow,
        thread,
        time::Duration,
    };

    use hyper::Method;
    use serde_json::Value;

    use super::{ask, json, lines, text};

    /// A program that answers each request with the answer for its first line.
    pub(in crate::app::cli) fn answering(answer: impl Fn(&str) -> String + Send + 'static) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut first = String::new();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                reader.read_line(&mut first).unwrap();
                let mut header = String::new();
                while reader.read_line(&mut header).unwrap() > 2 {
                    header.clear();
                }
                // The client may have gone.
                let _gone = stream.write_all(answer(first.trim()).as_bytes());
            }
        });
        address
    }

    /// An answer with this status and body.
    pub(in crate::app::cli) fn http(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
    }

    #[test]
    fn an_answer_is_read_and_an_error_says_what_to_do() {
        let admin = answering(|request| match request {
            "GET /a HTTP/1.1" => http("200 OK", "{\"a\": 1}"),
            "POST /b HTTP/1.1" => http("200 OK", "done"),
            "GET /c?only=x HTTP/1.1" => http("404 Not Found", "not found"),
            _ => http("503 Service Unavailable", "not ready\u{1b}"),
        });
        assert_eq!(json::<Value>(admin, "/a").unwrap(), serde_json::json!({"a": 1}));
        assert_eq!(ask(admin, Method::POST, "/b").unwrap().excerpt(), "done");
        let error = format!("{:#}", text(admin, "/c?only=x").unwrap_err());
        assert!(error.contains("has no endpoint /c:") && error.contains("--admin"), "{error}");
        let error = format!("{:#}", text(admin, "/d").unwrap_err());
        assert!(error.contains("cannot answer /d: not ready"), "{error}");
        let error = format!("{:#}", json::<Vec<u8>>(admin, "/a").unwrap_err());
        assert!(error.contains("another shape"), "{error}");
    }

    #[test]
    fn where_nobody_listens_the_error_names_the_flag() {
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = format!("{:#}", text(gone, "/a").unwrap_err());
        assert!(error.contains("ztunnel run --admin") && error.contains(&gone.to_string()), "{error}");
    }

    #[test]
    fn lines_are_read_until_the_reader_has_enough() {
        let admin = answering(|request| match request {
            "GET /lines HTTP/1.1" => "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\none\ntwo\nthree\n".to_owned(),
            _ => http("503 Service Unavailable", "too many"),
        });
        let mut seen = Vec::new();
        let two = lines(admin, "/lines", None, |line| {
            seen.push(line.to_owned());
            Ok(if seen.len() == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        });
        two.unwrap();
        assert_eq!(seen, ["one", "two"]);
        let all = lines(admin, "/lines", Some(Duration::from_secs(20)), |_| Ok(ControlFlow::Continue(())));
        assert!(format!("{:#}", all.unwrap_err()).contains("has ended the stream"));
        let refused = lines(admin, "/other", None, |_| Ok(ControlFlow::Continue(())));
        assert!(format!("{:#}", refused.unwrap_err()).contains("too many"));
    }
}
