//! The answers of the endpoints.

use std::convert::Infallible;

use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::{
    Response, StatusCode,
    body::Bytes,
    header::{CONTENT_TYPE, HeaderValue},
};
use serde::Serialize;

/// The body of an answer.
pub(in crate::app) type Body = UnsyncBoxBody<Bytes, Infallible>;

pub(in crate::app) const TEXT: &str = "text/plain; charset=utf-8";
pub(super) const JSON: &str = "application/json";

/// A value as JSON.
pub(in crate::app) fn json(shown: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec_pretty(shown) {
        Ok(json) => response(StatusCode::OK, JSON, json),
        Err(error) => response(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
    }
}

/// An answer with a status, a type and a body.
pub(in crate::app) fn response(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
