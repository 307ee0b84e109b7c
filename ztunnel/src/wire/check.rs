//! Properties that hold for any input of a parser. They are run by the fuzz targets, on their seeds, and on random texts.

use http::{HeaderName, HeaderValue, Method, Request, Uri};

use super::{
    authority::Authority, baggage::Baggage, connect::ConnectRequest, forwarded::Forwarded, refusal::HboneRefusal,
    trace::TraceParent,
};

/// A property of one parser.
pub type Check = fn(&[u8]);

/// Every check, by the name of its fuzz target.
pub const CHECKS: [(&str, Check); 6] = [
    ("authority", authority),
    ("baggage", baggage),
    ("connect_request", connect_request),
    ("forwarded", forwarded),
    ("refusal", refusal),
    ("traceparent", traceparent),
];

/// An authority is written in a form that is parsed as the same authority.
///
/// # Panics
/// If the property does not hold.
pub fn authority(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match text.parse::<Authority>() {
        Ok(authority) => {
            let written = authority.to_string();
            assert!(authority.port() != 0 && written.len() <= 260 && is_printable(written.as_bytes()), "{written:?}");
            assert_eq!(written.parse(), Ok(authority));
            assert!(written.parse::<Uri>().is_ok(), "{written:?}");
        }
        Err(error) => assert!(error.to_string().len() < 2048 && !error.to_string().contains('\n')),
    }
}

/// Parsed baggage is written short and printable, and is parsed as the same baggage.
///
/// # Panics
/// If the property does not hold.
pub fn baggage(bytes: &[u8]) {
    let baggage = Baggage::parse(bytes);
    let written = baggage.to_header();
    assert!(written.len() < 7 * (253 + 32) && is_printable(written.as_bytes()), "{written:?}");
    assert_eq!(Baggage::parse(written.as_bytes()), baggage);
}

/// The same for `forwarded`.
///
/// # Panics
/// If the property does not hold.
pub fn forwarded(bytes: &[u8]) {
    let forwarded = Forwarded::parse(bytes);
    let Some(written) = forwarded.to_header() else {
        assert_eq!(forwarded, Forwarded::default());
        return;
    };
    assert!(written.len() <= 320 && is_printable(written.as_bytes()), "{written:?}");
    assert_eq!(Forwarded::parse(written.as_bytes()), forwarded);
}

/// The same for `traceparent`.
///
/// # Panics
/// If the property does not hold.
pub fn traceparent(bytes: &[u8]) {
    if let Some(trace) = TraceParent::parse(bytes) {
        assert_eq!(trace.to_header().len(), 55);
        assert_eq!(TraceParent::parse(trace.to_header().as_bytes()), Some(trace));
    }
}

/// The same for a refusal. The end of its detail may be cut off when it is written.
///
/// # Panics
/// If the property does not hold.
pub fn refusal(bytes: &[u8]) {
    let Some(refusal) = HboneRefusal::parse(bytes) else { return };
    assert!(!refusal.detail.contains(char::is_control), "{refusal:?}");
    let written = refusal.to_header();
    assert!(written.as_ref().is_some_and(|value| value.len() <= 512), "{refusal:?}");
    let again = written.and_then(|value| HboneRefusal::parse(value.as_bytes()));
    assert!(
        again.as_ref().is_some_and(|again| again.reason == refusal.reason && refusal.detail.starts_with(&again.detail)),
        "{refusal:?} became {again:?}"
    );
}

/// A whole request, written as lines: `METHOD URI`, then `name: value` each. A request that is accepted is written again as a
/// request with the same meaning.
///
/// # Panics
/// If the property does not hold.
pub fn connect_request(bytes: &[u8]) {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let mut first = lines.next().unwrap_or_default().splitn(2, |byte| *byte == b' ');
    let (method, uri) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
    let (Ok(method), Ok(uri)) = (Method::from_bytes(method), Uri::try_from(uri)) else { return };
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    for line in lines {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let (name, value) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value.trim_ascii()))
            && request.headers_mut().try_append(name, value).is_err()
        {
            return;
        }
    }
    match ConnectRequest::from_http(&request.into_parts().0) {
        Ok(request) => {
            assert_eq!(ConnectRequest::from_http(&request.to_http().into_parts().0), Ok(request));
        }
        Err(error) => {
            assert!(error.status().is_client_error());
            assert!(error.response().to_http().headers().len() == 1, "{error}");
        }
    }
}

fn is_printable(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| (0x20..0x7f).contains(byte))
}
