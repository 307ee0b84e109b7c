//! `/logging`: the levels of the log. GET shows them; POST with `?level=` or `?reset` changes them, as Istio's tools do it.

use std::net::SocketAddr;

use hyper::{Method, Request, Response, StatusCode, body::Incoming, header::ORIGIN};
use percent_encoding::percent_decode_str;
use tracing::info;

use super::reply::{Body, TEXT, response};
use crate::app::log::LogLevels;

/// The beginning of the answer; the levels follow.
pub(in crate::app) const CURRENT: &str = "current log level is ";

/// The parameters of a request.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    reset: bool,
    level: Option<String>,
}

/// Answers a request. `peer`: the client.
pub(super) fn answer(levels: &LogLevels, request: &Request<Incoming>, peer: Option<SocketAddr>) -> Response<Body> {
    let wanted = match wanted(request.uri().query().unwrap_or_default()) {
        Ok(wanted) => wanted,
        Err(error) => return response(StatusCode::BAD_REQUEST, TEXT, error),
    };
    if request.method() == Method::GET {
        return match wanted == Wanted::default() {
            true => shown(&levels.current()),
            false => response(StatusCode::METHOD_NOT_ALLOWED, TEXT, "the levels are changed by POST\n"),
        };
    }
    if let Err(why) = may_change(request, peer) {
        return response(StatusCode::FORBIDDEN, TEXT, why);
    }
    if wanted == Wanted::default() {
        return shown(&levels.current());
    }
    match levels.change(wanted.reset, wanted.level.as_deref().unwrap_or_default()) {
        Ok(now) => {
            info!(levels = now, "the levels of the log were changed at the admin endpoint /logging");
            shown(&now)
        }
        Err(error) => response(StatusCode::BAD_REQUEST, TEXT, format!("{error}\n")),
    }
}

fn shown(levels: &str) -> Response<Body> {
    response(StatusCode::OK, TEXT, format!("{CURRENT}{levels}\n"))
}

/// Whether a client may change something: only from this node, also if the listener is open to others, and not on behalf of a
/// web page.
fn may_change<T>(request: &Request<T>, peer: Option<SocketAddr>) -> Result<(), &'static str> {
    if !peer.is_some_and(|peer| peer.ip().to_canonical().is_loopback()) {
        return Err("levels are changed only from the loopback address of the node\n");
    }
    if request.headers().contains_key(ORIGIN) {
        return Err("a web page may not change levels: the request has the header Origin\n");
    }
    Ok(())
}

fn wanted(query: &str) -> Result<Wanted, String> {
    let mut wanted = Wanted::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=').unwrap_or((pair, "")) {
            ("reset", _) => wanted.reset = true,
            ("level", level) => {
                let level = percent_decode_str(level).decode_utf8();
                let level = level.map_err(|_| "level: not percent-encoded UTF-8\n".to_owned())?;
                wanted.level = Some(level.into_owned()).filter(|level| !level.is_empty());
            }
            _ => return Err("there is a parameter other than level and reset; write /logging?level=info\n".to_owned()),
        }
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use hyper::{Request, header::ORIGIN};

    use super::{Wanted, may_change, wanted};

    #[test]
    fn only_processes_of_this_node_change_levels_and_no_web_page() {
        let request = |origin: bool| {
            let request = Request::post("/logging?level=debug");
            let request = if origin { request.header(ORIGIN, "http://evil.example") } else { request };
            request.body(()).unwrap()
        };
        let local = Some("127.0.0.1:4000".parse().unwrap());
        assert!(may_change(&request(false), local).is_ok());
        assert!(may_change(&request(false), Some("[::1]:4000".parse().unwrap())).is_ok());
        assert!(may_change(&request(false), Some("[::ffff:127.0.0.1]:4000".parse().unwrap())).is_ok());
        assert!(may_change(&request(true), local).is_err());
        assert!(may_change(&request(false), Some("10.0.0.1:4000".parse().unwrap())).is_err());
        assert!(may_change(&request(false), None).is_err());
    }

    #[test]
    fn parameters_are_read_as_istios_tools_write_them() {
        let level = |level: &str| Some(level.to_owned());
        for (query, expected) in [
            ("", Wanted { reset: false, level: None }),
            ("level=", Wanted { reset: false, level: None }),
            ("level=info", Wanted { reset: false, level: level("info") }),
            ("level=info&reset", Wanted { reset: true, level: level("info") }),
            ("level=access%3Adebug%2Cinfo", Wanted { reset: false, level: level("access:debug,info") }),
            ("reset=true", Wanted { reset: true, level: None }),
        ] {
            assert_eq!(wanted(query), Ok(expected), "{query}");
        }
        assert!(wanted("levels=info").is_err() && wanted("level=%ff").is_err());
    }
}
