//! The control plane to use, and the authentication of both ends.

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
    /// The URL of the control plane.
    pub url: PlaneUrl,
    /// The PEM file of the roots for the control plane's certificate; read for every connection.
    pub roots: PathBuf,
    /// The token that identifies this daemon; read for every stream and every certificate request.
    pub token: Token,
    /// A name that the control plane's certificate may have instead of the URL's host.
    pub alternative_name: Option<String>,
    /// The name of this node.
    pub node: Arc<str>,
    /// The cluster of this node.
    pub cluster: Arc<str>,
    /// The network of this node; empty: the default network.
    pub network: Arc<str>,
    /// When a silent connection is closed.
    pub keepalive: Keepalive,
}

/// When a silent connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// A connection that has been silent for this long gets a PING.
    pub interval: Duration,
    /// How long the answer to the PING may take.
    pub timeout: Duration,
}

/// Istio's values.
impl Default for Keepalive {
    fn default() -> Self {
        Self { interval: Duration::from_secs(30), timeout: Duration::from_secs(10) }
    }
}

/// The file of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// The file is required: without it there is no connection.
    File(PathBuf),
    /// The file is optional: without it requests have no token.
    IfThere(PathBuf),
}

impl Token {
    /// The path of the file.
    pub(super) fn path(&self) -> &PathBuf {
        match self {
            Self::File(path) | Self::IfThere(path) => path,
        }
    }
}

/// `https://HOST:PORT`; the default port is 15012.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaneUrl {
    host: String,
    port: u16,
    uri: Uri,
}

/// A text is not the URL of a control plane.
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

    /// The whole URL.
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
