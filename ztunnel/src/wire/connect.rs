//! The CONNECT of a stream and its answer, as header sets.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use thiserror::Error;

use super::{
    authority::excerpt,
    baggage::{BAGGAGE, Baggage},
    forwarded::{FORWARDED, Forwarded},
    refusal::REFUSAL,
    trace::{TRACEPARENT, TraceParent},
};
pub use super::{
    authority::{Authority, AuthorityError},
    refusal::HboneRefusal,
};
use crate::model::close::CloseReason;

/// The network from which a gateway forwards.
const NETWORK: HeaderName = HeaderName::from_static("x-forwarded-network");
/// The longest name of a network.
const LONGEST_NETWORK: usize = 253;

/// The request of one node to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectRequest {
    /// The destination of the stream.
    pub authority: Authority,
    /// The description of the workload that connects; sent even if it is empty.
    pub baggage: Baggage,
    /// The client of the connection.
    pub forwarded: Option<Forwarded>,
    /// Its trace id.
    pub traceparent: Option<TraceParent>,
    /// The network from which a gateway forwarded it. It may be empty, which is not the same as absent.
    pub network: Option<String>,
}

/// Why a request is not an HBONE CONNECT.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RequestError {
    /// It has another method.
    #[error("the method is {0:?}, only CONNECT is served")]
    Method(String),
    /// With a scheme and a path it requests another protocol than TCP (RFC 8441).
    #[error("an extended CONNECT (with :scheme and :path) is not served")]
    Extended,
    /// It has no destination.
    #[error("the request has no :authority")]
    NoAuthority,
    /// Its destination can't be parsed.
    #[error("the :authority is not a destination: {0}")]
    Authority(#[from] AuthorityError),
    /// The header is not a valid name, so the network is unknown.
    #[error("{NETWORK} is not a network's name of at most {LONGEST_NETWORK} visible ASCII characters")]
    Network,
}

impl RequestError {
    /// The status of the answer.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        StatusCode::BAD_REQUEST
    }

    /// The reason in log and metrics.
    #[must_use]
    pub fn reason(&self) -> CloseReason {
        CloseReason::BadRequest
    }

    /// The answer.
    #[must_use]
    pub fn response(&self) -> ConnectResponse {
        ConnectResponse::refused(self.status(), HboneRefusal::new(self.reason(), self.to_string()))
    }
}

impl ConnectRequest {
    /// A request with a destination and nothing else.
    #[must_use]
    pub fn to(authority: Authority) -> Self {
        Self { authority, baggage: Baggage::default(), forwarded: None, traceparent: None, network: None }
    }

    /// The HTTP request. The order of its headers is Istio's.
    #[must_use]
    pub fn to_http(&self) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        // A host that was never parsed may be invalid. Without an authority the peer refuses the request.
        *request.uri_mut() = Uri::builder().authority(self.authority.to_string()).build().unwrap_or_default();
        let headers = request.headers_mut();
        headers.insert(BAGGAGE, self.baggage.to_header());
        if let Some(forwarded) = self.forwarded.as_ref().and_then(Forwarded::to_header) {
            headers.insert(FORWARDED, forwarded);
        }
        if let Some(traceparent) = self.traceparent {
            headers.insert(TRACEPARENT, traceparent.to_header());
        }
        if let Some(network) = self.network.as_deref().filter(|network| is_network(network.as_bytes()))
            && let Ok(network) = HeaderValue::try_from(network)
        {
            headers.insert(NETWORK, network);
        }
        request
    }

    /// Reads an HTTP request. Invalid headers are ignored, except where that could change the presumed sender of the request.
    ///
    /// # Errors
    /// If the request is not a CONNECT to a destination.
    pub fn from_http(parts: &http::request::Parts) -> Result<Self, RequestError> {
        if parts.method != Method::CONNECT {
            return Err(RequestError::Method(excerpt(parts.method.as_str())));
        }
        // An extended CONNECT has a scheme and a path; h2 refuses a request with only one of them.
        if parts.uri.scheme().is_some() {
            return Err(RequestError::Extended);
        }
        let authority = parts.uri.authority().ok_or(RequestError::NoAuthority)?.as_str().parse()?;
        let headers = &parts.headers;
        let network = match first(headers, &NETWORK) {
            None => None,
            Some(network) if is_network(network) => Some(String::from_utf8_lossy(network).into_owned()),
            Some(_) => return Err(RequestError::Network),
        };
        Ok(Self {
            authority,
            baggage: Baggage::from_headers(headers),
            forwarded: headers
                .get(FORWARDED)
                .map(|value| Forwarded::parse(value.as_bytes()))
                .filter(|known| *known != Forwarded::default()),
            traceparent: headers.get(TRACEPARENT).and_then(|value| TraceParent::parse(value.as_bytes())),
            network,
        })
    }
}

/// The answer of the other node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectResponse {
    /// Only 200 means that the application was reached.
    pub status: StatusCode,
    /// The description of the destination's workload.
    pub baggage: Option<Baggage>,
    /// Why the stream was refused, if the peer sends it.
    pub refusal: Option<HboneRefusal>,
}

impl ConnectResponse {
    /// The stream is connected.
    #[must_use]
    pub fn ok(baggage: Option<Baggage>) -> Self {
        Self { status: StatusCode::OK, baggage, refusal: None }
    }

    /// The stream is refused.
    #[must_use]
    pub fn refused(status: StatusCode, refusal: HboneRefusal) -> Self {
        Self { status, baggage: None, refusal: Some(refusal) }
    }

    /// Whether the stream is connected.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.status == StatusCode::OK
    }

    /// The HTTP response.
    #[must_use]
    pub fn to_http(&self) -> Response<()> {
        let mut response = Response::new(());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        if let Some(baggage) = &self.baggage {
            headers.insert(BAGGAGE, baggage.to_header());
        }
        if let Some(refusal) = self.refusal.as_ref().and_then(HboneRefusal::to_header) {
            headers.insert(REFUSAL, refusal);
        }
        response
    }

    /// Reads an HTTP response.
    #[must_use]
    pub fn from_http(parts: &http::response::Parts) -> Self {
        let headers = &parts.headers;
        Self {
            status: parts.status,
            baggage: headers.contains_key(BAGGAGE).then(|| Baggage::from_headers(headers)),
            refusal: headers.get(REFUSAL).and_then(|value| HboneRefusal::parse(value.as_bytes())),
        }
    }
}

fn first<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    headers.get(name).map(HeaderValue::as_bytes)
}

fn is_network(name: &[u8]) -> bool {
    name.len() <= LONGEST_NETWORK && name.iter().all(u8::is_ascii_graphic)
}

#[cfg(test)]
mod tests {
    use super::{ConnectRequest, ConnectResponse, HboneRefusal, RequestError};
    use crate::model::close::CloseReason;
    use crate::wire::{baggage::Baggage, forwarded::Forwarded, trace::TraceParent};
    use http::{HeaderMap, Method, Request, StatusCode};

    fn lines(headers: &HeaderMap) -> Vec<String> {
        headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect()
    }

    fn sample() -> ConnectRequest {
        ConnectRequest {
            authority: "127.10.0.3:80".parse().unwrap(),
            baggage: Baggage::parse(b"k8s.cluster.name=Kubernetes,k8s.namespace.name=default"),
            forwarded: Some(Forwarded::new("127.0.0.2:52331".parse().unwrap(), Some("web.default".into()))),
            traceparent: Some(TraceParent::new(0x8f2c_15b3_2a34_cab2_7798_d2a5_e8b2_1f76, 0x6daa_5a33_122f_cd01)),
            network: Some("n1".into()),
        }
    }

    #[test]
    fn a_request_has_istios_headers_in_istios_order() {
        let request = sample().to_http();
        assert_eq!((request.method(), request.uri().to_string()), (&Method::CONNECT, "127.10.0.3:80".to_owned()));
        assert!(request.uri().scheme().is_none() && request.uri().path_and_query().is_none());
        assert_eq!(
            lines(request.headers()),
            [
                "baggage: k8s.cluster.name=Kubernetes,k8s.namespace.name=default",
                r#"forwarded: for="127.0.0.2:52331";host=web.default"#,
                "traceparent: 00-8f2c15b32a34cab27798d2a5e8b21f76-6daa5a33122fcd01-00",
                "x-forwarded-network: n1",
            ]
        );
        assert_eq!(ConnectRequest::from_http(&request.into_parts().0), Ok(sample()));
        let bare = ConnectRequest::to("[fd00::1]:80".parse().unwrap());
        assert_eq!(lines(bare.to_http().headers()), ["baggage: "]);
        assert_eq!(ConnectRequest::from_http(&bare.to_http().into_parts().0), Ok(bare));
    }

    #[test]
    fn what_is_no_connect_to_a_destination_is_refused() {
        let check = |request: Request<()>, expected: &str| {
            let error = ConnectRequest::from_http(&request.into_parts().0).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert_eq!((error.status(), error.reason()), (StatusCode::BAD_REQUEST, CloseReason::BadRequest));
        };
        let connect = |uri: &str| Request::builder().method(Method::CONNECT).uri(uri).body(()).unwrap();
        check(Request::builder().method(Method::GET).uri("10.0.0.1:80").body(()).unwrap(), r#""GET""#);
        check(connect("https://10.0.0.1:80/"), "extended");
        check(connect("/"), "no :authority");
        check(connect("10.0.0.1"), "has no port");
        check(connect("web:0"), "has no port");
        check(connect("user@web:80"), "neither an address nor a host name");
        check(connect("[fe80::1%25eth0]:80"), "zones");
        let mut odd = connect("10.0.0.1:80");
        odd.headers_mut().insert("x-forwarded-network", "a b".parse().unwrap());
        assert_eq!(ConnectRequest::from_http(&odd.into_parts().0), Err(RequestError::Network));
    }

    #[test]
    fn headers_that_make_no_sense_are_ignored() {
        let mut request = ConnectRequest::to("web:80".parse().unwrap()).to_http();
        for (name, value) in [("baggage", "=,="), ("forwarded", "garbage"), ("traceparent", "00-1-2-3")] {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let expected = ConnectRequest::to("web:80".parse().unwrap());
        assert_eq!(ConnectRequest::from_http(&request.into_parts().0), Ok(expected));
    }

    #[test]
    fn responses_arrive_as_they_were_meant() {
        let ok = ConnectResponse::ok(Some(Baggage::parse(b"service.name=web")));
        let response = ok.to_http();
        assert_eq!(
            (response.status(), lines(response.headers())),
            (StatusCode::OK, vec!["baggage: service.name=web".into()])
        );
        assert_eq!(ConnectResponse::from_http(&response.into_parts().0), ok);
        let refusal = HboneRefusal::new(CloseReason::Denied, "by policy");
        let refused = ConnectResponse::refused(StatusCode::UNAUTHORIZED, refusal);
        let response = refused.to_http();
        assert_eq!(lines(response.headers()), ["x-ztunnel-refusal: denied by policy"]);
        assert_eq!(ConnectResponse::from_http(&response.into_parts().0), refused);
        assert!(ok.is_ok() && !refused.is_ok());
    }

    #[test]
    fn an_authority_that_was_never_parsed_does_not_get_through() {
        let authority = super::Authority::Host { host: "a b\r\nx: y".into(), port: 80 };
        let request = ConnectRequest::to(authority).to_http();
        assert_eq!(ConnectRequest::from_http(&request.into_parts().0), Err(RequestError::NoAuthority));
    }
}
