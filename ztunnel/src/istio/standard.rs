//! The messages of Google that the protocols use.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::{Enumeration, Message, Oneof};

/// `google.protobuf.Any`: a message of any type.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Any {
    /// The type: `type.googleapis.com/` and the full name of the message.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The encoded message. It is a slice of the bytes from which it was decoded, and keeps all of these in memory.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

/// `google.protobuf.Empty`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Empty {}

/// `google.protobuf.UInt32Value`: a number that can be absent, which differs from 0.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct UInt32Value {
    /// The number.
    #[prost(uint32, tag = "1")]
    pub value: u32,
}

/// `google.protobuf.Struct`: a JSON object.
#[derive(Clone, PartialEq, Message)]
pub struct Struct {
    /// Its values by key.
    #[prost(btree_map = "string, message", tag = "1")]
    pub fields: BTreeMap<String, Value>,
}

/// `google.protobuf.Value`: a JSON value.
#[derive(Clone, PartialEq, Message)]
pub struct Value {
    /// The kind of the value; absent in an invalid message.
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5, 6")]
    pub kind: Option<Kind>,
}

/// The kinds of a [`Value`].
#[derive(Clone, PartialEq, Oneof)]
pub enum Kind {
    /// `null`.
    #[prost(enumeration = "NullValue", tag = "1")]
    Null(i32),
    /// A number.
    #[prost(double, tag = "2")]
    Number(f64),
    /// A string.
    #[prost(string, tag = "3")]
    String(String),
    /// `true` or `false`.
    #[prost(bool, tag = "4")]
    Bool(bool),
    /// An object.
    #[prost(message, tag = "5")]
    Struct(Struct),
    /// An array.
    #[prost(message, tag = "6")]
    List(ListValue),
}

/// `google.protobuf.NullValue`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum NullValue {
    /// `null`.
    Null = 0,
}

/// `google.protobuf.ListValue`: a JSON array.
#[derive(Clone, PartialEq, Message)]
pub struct ListValue {
    /// Its values.
    #[prost(message, repeated, tag = "1")]
    pub values: Vec<Value>,
}

/// `google.rpc.Status`: an error inside a message.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Status {
    /// The number of the gRPC status code.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// What is wrong, for people.
    #[prost(string, tag = "2")]
    pub message: String,
}

impl Struct {
    /// An object with string values.
    pub fn of_strings<K: Into<String>, V: Into<String>>(fields: impl IntoIterator<Item = (K, V)>) -> Self {
        let value = |text: V| Value { kind: Some(Kind::String(text.into())) };
        Self { fields: fields.into_iter().map(|(key, text)| (key.into(), value(text))).collect() }
    }

    /// The string of a key, if the value is a string.
    #[must_use]
    pub fn string(&self, key: &str) -> Option<&str> {
        match &self.fields.get(key)?.kind {
            Some(Kind::String(text)) => Some(text),
            _ => None,
        }
    }
}
