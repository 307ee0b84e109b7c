//! Which control plane, and how both ends prove who they are.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use http::uri::{Authority, PathAndQuery, Scheme};
use thiserror::Error;

/// Istio's port.
const PORT: u16 = 15012;

/// A control plane.
#[derive(Clone, Debug)]
pub struct ControlPlane {
    /// Where it is.
    pub url: PlaneUrl,
    /// File of the roots that its certificate must lead to, as PEM; read for every connection.
    pub roots: PathBuf,
    /// What proves to it who this daemon is; read for every stream and every certificate request.
    pub token: Token,
    /// A name that its certificate may have beside the URL's host.
    pub alternative_name: Option<String>,
    /// This node.
    pub node: Arc<str>,
    /// This node's cluster.
    pub cluster: Arc<str>,
    /// This node's network; empty is the default one.
    pub network: Arc<str>,
    /// When a silent connection is given up.
    pub keepalive: Keepalive,
}

/// When a silent connection is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// After so much silence it is asked for a sign of life.
    pub interval: Duration,
    /// How long that may take.
    pub timeout: Duration,
}

/// Istio's values.
impl Default for Keepalive {
    fn default() -> Self {
        Self { interval: Duration::from_secs(30), timeout: Duration::from_secs(10) }
    }
}

/// Where a token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// In this file, without which there is no connection.
    File(PathBuf),
    /// In this file, if it is there; without it the control plane is asked without a token.
    IfThere(PathBuf),
}

impl Token {
    /// The file.
    pub(super) fn path(&self) -> &PathBuf {
        match self {
            Self::File(path) | Self::IfThere(path) => path,
        }
    }
}

/// `https://HOST:PORT`; the port is 15012 where none is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaneUrl {
    host: String,
    port: u16,
    uri: Uri,
}

/// Not the URL of a control plane.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is not the URL of a control plane: write https://HOST or https://HOST:PORT")]
pub struct UrlError(String);

impl PlaneUrl {
    /// The host, an IPv6 address without brackets.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// The whole.
    pub(super) fn uri(&self) -> Uri {
        self.uri.clone()
    }
}

impl FromStr for PlaneUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let wrong = || UrlError(text.chars().take(128).collect());
        let rest = match text.split_once("://") {
            Some(("https", rest)) => rest,
            Some(_) => return Err(wrong()),
            None => text,
        };
        let given: Authority = rest.strip_suffix('/').unwrap_or(rest).parse().map_err(|_| wrong())?;
        let host = given.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = given.port_u16();
        if host.is_empty() || given.as_str().contains('@') || (port.is_none() && given.as_str() != given.host()) {
            return Err(wrong());
        }
        let port = port.unwrap_or(PORT);
        let authority = format!("{}:{port}", given.host()).parse::<Authority>().map_err(|_| wrong())?;
        let mut parts = http::uri::Parts::default();
        (parts.scheme, parts.authority) = (Some(Scheme::HTTPS), Some(authority));
        parts.path_and_query = Some(PathAndQuery::from_static("/"));
        Ok(Self { host, port, uri: Uri::from_parts(parts).map_err(|_| wrong())? })
    }
}

impl fmt::Display for PlaneUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = &self.host;
        if host.contains(':') {
            write!(f, "https://[{host}]:{}", self.port)
        } else {
            write!(f, "https://{host}:{}", self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::PlaneUrl;

    #[test]
    fn urls_have_a_host_and_a_port() {
        for (text, shown) in [
            ("https://istiod.istio-system.svc:15012", "https://istiod.istio-system.svc:15012"),
            ("https://istiod.istio-system.svc", "https://istiod.istio-system.svc:15012"),
            ("istiod.istio-system.svc", "https://istiod.istio-system.svc:15012"),
            ("https://istiod:443/", "https://istiod:443"),
            ("https://10.0.0.1", "https://10.0.0.1:15012"),
            ("https://[fd00::1]", "https://[fd00::1]:15012"),
            ("https://[fd00::1]:1", "https://[fd00::1]:1"),
        ] {
            let url: PlaneUrl = text.parse().unwrap();
            assert_eq!(
                (url.to_string().as_str(), url.uri().to_string().trim_end_matches('/')),
                (shown, shown),
                "{text}"
            );
        }
        for bad in [
            "",
            "https://",
            "http://istiod",
            "https://istiod/path",
            "https://u@istiod",
            "https://istiod:0x1",
            "a b",
            "istiod:",
        ] {
            assert!(bad.parse::<PlaneUrl>().is_err(), "{bad:?}");
        }
    }
}
