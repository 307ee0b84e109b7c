//! A scripted API server for tests: plain HTTP, with answers from the test.

use std::io::Write as _;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::{Access, Cluster};
use crate::lifecycle::tasks::{TaskCount, TaskSet};

/// A request; `line` has the method and the path with query.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) line: String,
    /// The body.
    pub(crate) body: String,
}

/// The answer to a request.
pub(crate) enum Answer {
    /// A status, and a body.
    Whole(u16, Value),
    /// Events of a watch, until the sender is dropped.
    Stream(mpsc::UnboundedReceiver<Value>),
    /// The connection is closed.
    Close,
}

/// The scripted API server.
pub(crate) struct Script {
    pub(crate) cluster: Cluster,
    asked: Arc<Mutex<Vec<Asked>>>,
    _tasks: TaskSet,
    _kubeconfig: tempfile::NamedTempFile,
}

impl Script {
    /// Answers each request by a function.
    pub(crate) async fn start(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut kubeconfig = tempfile::NamedTempFile::new().unwrap();
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
            "users": [{"name": "u", "user": {"token": "secret"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        kubeconfig.write_all(config.to_string().as_bytes()).unwrap();
        let cluster = Cluster::connect(&Access::Kubeconfig(kubeconfig.path().to_owned())).await.unwrap();
        assert_eq!(cluster.server(), format!("http://{address}"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = TaskSet::new(TaskCount::default());
        let (log, answer) = (Arc::clone(&asked), Arc::new(answer));
        tasks.spawn(tracing::Span::none(), async move {
            let mut connections = TaskSet::new(TaskCount::default());
            while let Ok((stream, _)) = listener.accept().await {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                connections.spawn(tracing::Span::none(), async move {
                    let _closed = serve(stream, &log, &*answer).await;
                });
            }
        });
        Self { cluster, asked, _tasks: tasks, _kubeconfig: kubeconfig }
    }

    /// The requests so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

async fn serve(
    mut stream: TcpStream,
    log: &Mutex<Vec<Asked>>,
    answer: &(impl Fn(&Asked) -> Answer + Sync),
) -> std::io::Result<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        let head = String::from_utf8(head).unwrap();
        let line = head.lines().next().unwrap().trim_end_matches(" HTTP/1.1").to_owned();
        assert!(head.contains("authorization: Bearer secret\r\n"), "{line}: every request has the token");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length = length.map_or(0, |text| text.parse().unwrap());
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        let asked = Asked { line, body: String::from_utf8(body).unwrap() };
        log.lock().unwrap().push(asked.clone());
        match answer(&asked) {
            Answer::Close => return Ok(()),
            Answer::Whole(status, body) => {
                let body = body.to_string();
                let head = format!(
                    "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                stream.write_all((head + &body).as_bytes()).await?;
            }
            Answer::Stream(mut events) => {
                stream.write_all(b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n").await?;
                while let Some(event) = events.recv().await {
                    let line = format!("{event}\n");
                    stream.write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes()).await?;
                }
                stream.write_all(b"0\r\n\r\n").await?;
            }
        }
    }
}

/// An error in the format of the API server.
pub(crate) fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message})
}
