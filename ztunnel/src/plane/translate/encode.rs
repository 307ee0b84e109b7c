//! Resources in the form in which they are sent.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::{BufMut as _, BytesMut};
use prost::{
    Message as _,
    encoding::{WireType, encode_key, encode_varint},
};

use crate::{
    istio::discovery,
    plane::{catalogue::Resource, session::version_of},
};

/// The number of the field `resources` in a response.
const RESOURCES: u32 = 2;

/// Encodes a resource with its version and its aliases: other names by which nodes ask for it.
pub(super) fn resource(message: discovery::Resource, aliases: Vec<Arc<str>>, services: Vec<Arc<str>>) -> Resource {
    let content = content(message.resource.as_ref().map(|any| &*any.value).unwrap_or_default());
    let message = discovery::Resource {
        version: version_of(content),
        aliases: aliases.iter().map(ToString::to_string).collect(),
        ..message
    };
    let length = message.encoded_len();
    let mut encoded = BytesMut::with_capacity(length + 8);
    encode_key(RESOURCES, WireType::LengthDelimited, &mut encoded);
    encode_varint(length as u64, &mut encoded);
    encoded.put_slice(&message.encode_to_vec());
    Resource {
        encoded: encoded.freeze(),
        content,
        aliases: aliases.into(),
        services: services.into(),
        ranges: Box::default(),
    }
}

/// The first bits of a SHA-256. Only versions of one resource are compared.
pub(super) fn content(value: &[u8]) -> u64 {
    let digest = digest(&SHA256, value);
    digest.as_ref().iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}
