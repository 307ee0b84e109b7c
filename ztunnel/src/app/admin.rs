//! The admin endpoints: readiness, metrics, and the state of everything as JSON.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tracing::{Span, debug};
use tracing_appender::non_blocking::ErrorCounter;

use super::exposition;
use crate::{
    lifecycle::tasks::{TaskCount, TaskSet},
    net::listen::Acceptor,
    pods::manager::ManagerHandle,
};

/// A request must be there by then.
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections at once; more wait.
const CONNECTIONS: usize = 64;

/// What the endpoints show.
pub struct Admin {
    /// The pods.
    pub manager: ManagerHandle,
    /// The data path's counters.
    pub registry: Registry,
    /// Lost log lines.
    pub lost: ErrorCounter,
}

/// Listens.
///
/// # Errors
/// Names the address.
pub async fn bind(addr: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(addr).await.with_context(|| format!("cannot listen on {addr}; set --admin"))
}

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, admin: Admin, count: TaskCount) {
    let admin = Arc::new(admin);
    let mut acceptor = Acceptor::new(listener, Arc::new(Semaphore::new(CONNECTIONS)));
    let mut connections = TaskSet::new(count);
    loop {
        tokio::select! {
            accepted = acceptor.next() => {
                let admin = Arc::clone(&admin);
                connections.spawn(Span::none(), async move {
                    serve_connection(accepted.stream, admin).await;
                    drop(accepted.permit);
                });
            }
            () = connections.reap_next(), if !connections.is_empty() => {}
        }
    }
}

async fn serve_connection(stream: TcpStream, admin: Arc<Admin>) {
    let service = service_fn(move |request| {
        let admin = Arc::clone(&admin);
        async move { Ok::<_, Infallible>(answer(&admin, &request).await) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(16 << 10);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
        debug!(%error, "an admin connection failed");
    }
}

async fn answer(admin: &Admin, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; charset=utf-8";
    let path = request.uri().path();
    if !matches!(path, "/" | "/healthz/ready" | "/metrics" | "/stats/prometheus" | "/config_dump") {
        return response(StatusCode::NOT_FOUND, TEXT, "not found; / lists what there is\n");
    }
    if request.method() != Method::GET {
        return response(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET only\n");
    }
    if path == "/" {
        return response(StatusCode::OK, TEXT, "/healthz/ready\n/metrics\n/config_dump\n");
    }
    let Some(now) = admin.manager.describe().await else {
        return response(StatusCode::SERVICE_UNAVAILABLE, TEXT, "not ready, pending: shutdown\n");
    };
    match path {
        "/healthz/ready" if now.pending.is_empty() => response(StatusCode::OK, TEXT, "ready\n"),
        "/healthz/ready" => {
            let text = format!("not ready, pending: {}\n", now.pending.join(", "));
            response(StatusCode::SERVICE_UNAVAILABLE, TEXT, text)
        }
        "/config_dump" => match serde_json::to_vec_pretty(&now) {
            Ok(json) => response(StatusCode::OK, "application/json", json),
            Err(error) => response(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
        },
        _ => match exposition::text(&admin.registry, &admin.lost, &now) {
            Ok(text) => response(StatusCode::OK, exposition_type(request), text),
            Err(error) => response(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
        },
    }
}

/// OpenMetrics for whom asks for it; the same text is good Prometheus text for all others.
fn exposition_type(request: &Request<Incoming>) -> &'static str {
    let accept = request.headers().get(hyper::header::ACCEPT).and_then(|value| value.to_str().ok());
    if accept.is_some_and(|accept| accept.contains("application/openmetrics-text")) {
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    } else {
        "text/plain; charset=utf-8"
    }
}

fn response(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
