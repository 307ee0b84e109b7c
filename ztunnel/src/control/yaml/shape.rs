//! One visitor for whatever a text may hold, of which only lists and maps are of interest.

use std::fmt;

use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};

/// What to do with a value, depending on its shape.
pub(super) trait Shape<'de>: Sized {
    type Value;

    /// It is neither a map nor a list.
    fn leaf(self) -> Self::Value;

    fn map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error>;

    fn list<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error>;
}

/// Reads a value, whatever its shape is.
pub(super) fn any<'de, S: Shape<'de>, D: Deserializer<'de>>(shape: S, deserializer: D) -> Result<S::Value, D::Error> {
    deserializer.deserialize_any(ShapeVisitor(shape))
}

struct ShapeVisitor<S>(S);

impl<'de, S: Shape<'de>> Visitor<'de> for ShapeVisitor<S> {
    type Value = S::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<S::Value, A::Error> {
        self.0.map(map)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<S::Value, A::Error> {
        self.0.list(list)
    }

    fn visit_bool<E>(self, _: bool) -> Result<S::Value, E> {
        Ok(self.0.leaf())
    }

    fn visit_i64<E>(self, _: i64) -> Result<S::Value, E> {
        Ok(self.0.leaf())
    }

    fn visit_i128<E>(self, _: i128) -> Result<S::Value, E> {
        Ok(self.0.leaf())
    }

    fn visit_u64<E>(self, _: u64) -> Result<S::Value, E> {
        Ok(self.0.leaf())
    }

    fn visit_u128<E>(self, _: u128) -> Result<S::Value, E> {
        Ok(self.0.leaf())
    }

    fn visit_f64<E>(self, _: f64) -> Result<S::Value, E> {
        Ok(self.0.leaf())
    }

    fn visit_str<E>(self, _: &str) -> Result<S::Value, E> {
        Ok(self.0.leaf())
    }

    fn visit_bytes<E>(self, _: &[u8]) -> Result<S::Value, E> {
        Ok(self.0.leaf())
    }

    fn visit_unit<E>(self) -> Result<S::Value, E> {
        Ok(self.0.leaf())
    }

    fn visit_none<E>(self) -> Result<S::Value, E> {
        Ok(self.0.leaf())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        any(self.0, deserializer)
    }
}
