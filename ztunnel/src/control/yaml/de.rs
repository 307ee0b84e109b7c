//! From a tree of values to a type.
//!
//! Values of a wrong type are reported in this module's words: messages of `serde` have the names of Rust types.

use std::borrow::Cow;
use std::fmt;

use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer, MapAccess, SeqAccess, Unexpected,
    VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::error::Error;
use super::node::{MappingEntry, Node, TextPosition, Value};
use super::scalar;
use crate::control::field::{FieldPath, Step};

/// A value that does not fit its type.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::control) struct Fault {
    /// Starting at the innermost field.
    steps: Vec<Step>,
    place: Option<TextPosition>,
    message: String,
}

impl Fault {
    fn new(message: impl Into<String>) -> Self {
        Self { steps: Vec::new(), place: None, message: message.into() }
    }

    /// The path of the field.
    pub(in crate::control) fn path(&self) -> FieldPath {
        let steps: Vec<Step> = self.steps.iter().rev().cloned().collect();
        FieldPath::from_steps(&steps)
    }

    /// The error, with the field's position in the tree.
    pub(in crate::control) fn into_error(self, root: &Node<'_>) -> Error {
        let field = self.path();
        let is_time =
            matches!(self.steps.first(), Some(Step::Key(key)) if key.ends_with("Timestamp") || key.ends_with("Time"));
        let message =
            if is_time { "this is not a time: write it like 2026-01-31T12:00:00Z".to_owned() } else { self.message };
        let place = self.place.or_else(|| root.locate(&field)).unwrap_or(root.place);
        Error::at(place, field, printable(&message))
    }

    fn below(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    fn placed(mut self, place: TextPosition) -> Self {
        self.place.get_or_insert(place);
        self
    }
}

/// Escapes control characters, which must not reach a log.
fn printable(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { clean.extend(c.escape_default()) } else { clean.push(c) }
    }
    clean
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string())
    }

    fn invalid_type(unexpected: Unexpected<'_>, _: &dyn Expected) -> Self {
        Self::new(format!("{} is not allowed here", name_of(unexpected)))
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        match unexpected {
            Unexpected::Str(text) => Self::new(format!("{text:?} is not a value that is read here: write {expected}")),
            other => Self::new(format!("{} is not a value that is read here", name_of(other))),
        }
    }

    fn invalid_length(length: usize, _: &dyn Expected) -> Self {
        Self::new(format!("a list of {length} entries is not allowed here"))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::new(format!("unknown value {variant:?}: write {}", any_of(expected)))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let known = if expected.is_empty() {
            "no field is known here".to_owned()
        } else {
            format!("write {}", any_of(expected))
        };
        Self::new("unknown field: ".to_owned() + &known).below(Step::Key(field.into()))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new("is missing: write it").below(Step::Key(field.into()))
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::new("the key is there twice: remove one of the two").below(Step::Key(field.into()))
    }
}

fn any_of(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [all @ .., last] => format!("{} or {last}", all.join(", ")),
    }
}

fn name_of(unexpected: Unexpected<'_>) -> String {
    match unexpected {
        Unexpected::Bool(value) => value.to_string(),
        Unexpected::Unsigned(value) => value.to_string(),
        Unexpected::Signed(value) => value.to_string(),
        Unexpected::Float(value) => value.to_string(),
        Unexpected::Str(text) => format!("the text {text:?}"),
        Unexpected::Char(c) => format!("the text {c:?}"),
        Unexpected::Unit | Unexpected::Option => "an empty value".to_owned(),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "a map".to_owned(),
        _ => "this value".to_owned(),
    }
}

/// Deserializes a value as the type that is asked for.
#[derive(Clone, Copy)]
pub(in crate::control) struct NodeDeserializer<'n, 'a> {
    node: &'n Node<'a>,
}

impl<'n, 'a> NodeDeserializer<'n, 'a> {
    pub(in crate::control) fn new(node: &'n Node<'a>) -> Self {
        Self { node }
    }

    fn wrong(self, wanted: &str) -> Fault {
        let given = match &self.node.value {
            _ if self.node.is_null() => "nothing is given".to_owned(),
            Value::Plain(text) | Value::Text(text) if text.chars().count() <= 64 => format!("{text:?} is given"),
            Value::Plain(_) | Value::Text(_) => "a text is given".to_owned(),
            Value::List(_) => "a list is given".to_owned(),
            Value::Map(_) => "a map is given".to_owned(),
        };
        Fault::new(format!("{given} where {wanted} belongs"))
    }

    fn whole(self, least: i128, most: i128) -> Result<i128, Fault> {
        let wanted = || {
            if (least, most) == (i128::from(i64::MIN), i128::from(u64::MAX)) {
                "a whole number".to_owned()
            } else {
                format!("a whole number from {least} to {most}")
            }
        };
        match &self.node.value {
            Value::Plain(text) => {
                let value = scalar::integer(text).filter(|value| (least..=most).contains(value));
                value.ok_or_else(|| self.wrong(&wanted()))
            }
            Value::Text(text) if scalar::integer(text).is_some() => {
                let message = format!("the text {text:?} is given where a number belongs: remove the quotation marks");
                Err(Fault::new(message))
            }
            _ => Err(self.wrong(&wanted())),
        }
    }

    fn str<'t>(&'t self, wanted: &str) -> Result<&'n Cow<'a, str>, Fault> {
        match &self.node.value {
            Value::Plain(_) if self.node.is_null() => Err(self.wrong(wanted)),
            Value::Plain(text) | Value::Text(text) => Ok(text),
            Value::List(_) | Value::Map(_) => Err(self.wrong(wanted)),
        }
    }
}

macro_rules! whole {
    ($($method:ident $visit:ident $type:ty;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            let value = self.whole(i128::from(<$type>::MIN), i128::from(<$type>::MAX))?;
            let value = <$type>::try_from(value).map_err(|_| self.wrong("a number"))?;
            visitor.$visit(value).map_err(|fault: Fault| fault.placed(self.node.place))
        }
    )*};
}

impl<'de> Deserializer<'de> for NodeDeserializer<'_, '_> {
    type Error = Fault;

    whole! {
        deserialize_i8 visit_i8 i8;
        deserialize_i16 visit_i16 i16;
        deserialize_i32 visit_i32 i32;
        deserialize_i64 visit_i64 i64;
        deserialize_u8 visit_u8 u8;
        deserialize_u16 visit_u16 u16;
        deserialize_u32 visit_u32 u32;
        deserialize_u64 visit_u64 u64;
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let place = self.node.place;
        let placed = |fault: Fault| fault.placed(place);
        match &self.node.value {
            Value::Plain(_) if self.node.is_null() => visitor.visit_unit().map_err(placed),
            Value::Plain(text) => {
                let given = if let Some(value) = scalar::boolean(text) {
                    visitor.visit_bool(value)
                } else if let Some(value) = scalar::integer(text).and_then(|value| i64::try_from(value).ok()) {
                    visitor.visit_i64(value)
                } else if let Some(value) = scalar::integer(text).and_then(|value| u64::try_from(value).ok()) {
                    visitor.visit_u64(value)
                } else if let Some(value) = scalar::float(text) {
                    visitor.visit_f64(value)
                } else {
                    visitor.visit_str(text)
                };
                given.map_err(placed)
            }
            Value::Text(text) => visitor.visit_str(text).map_err(placed),
            Value::List(_) => self.deserialize_seq(visitor),
            Value::Map(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let value = match &self.node.value {
            Value::Plain(text) => scalar::boolean(text).ok_or_else(|| self.wrong("true or false")),
            Value::Text(text) if scalar::boolean(text).is_some() => Err(Fault::new(format!(
                "the text {text:?} is given where true or false belongs: remove the quotation marks"
            ))),
            _ => Err(self.wrong("true or false")),
        };
        visitor.visit_bool(value?)
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Plain(text) => visitor.visit_f64(scalar::float(text).ok_or_else(|| self.wrong("a number"))?),
            _ => Err(self.wrong("a number")),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_str(self.str("text")?).map_err(|fault: Fault| fault.placed(self.node.place))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        if self.node.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let Value::List(items) = &self.node.value else { return Err(self.wrong("a list")) };
        visitor.visit_seq(Items { items: items.iter(), index: 0 }).map_err(|fault| fault.placed_here(self.node))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let Value::Map(entries) = &self.node.value else { return Err(self.wrong("a map")) };
        visitor.visit_map(Fields { entries: entries.iter(), value: None }).map_err(|fault| fault.placed_here(self.node))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let text = self.str(&any_of(variants))?;
        visitor.visit_enum(Variant(text)).map_err(|fault| fault.placed(self.node.place))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        i128 u128 bytes byte_buf unit unit_struct tuple tuple_struct
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }
}

impl Fault {
    /// Adds the value's position if the fault is in the value itself and not in one of its fields.
    fn placed_here(self, node: &Node<'_>) -> Self {
        if self.steps.is_empty() { self.placed(node.place) } else { self }
    }
}

struct Items<'n, 'a> {
    items: std::slice::Iter<'n, Node<'a>>,
    index: usize,
}

impl<'de> SeqAccess<'de> for Items<'_, '_> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        let Some(node) = self.items.next() else { return Ok(None) };
        let index = self.index;
        self.index += 1;
        let fault = |fault: Fault| fault.placed(node.place).below(Step::Index(index));
        seed.deserialize(NodeDeserializer::new(node)).map(Some).map_err(fault)
    }
}

struct Fields<'n, 'a> {
    entries: std::slice::Iter<'n, MappingEntry<'a>>,
    value: Option<&'n MappingEntry<'a>>,
}

impl<'de> MapAccess<'de> for Fields<'_, '_> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        let Some(entry) = self.entries.next() else { return Ok(None) };
        self.value = Some(entry);
        let key: &str = &entry.key;
        seed.deserialize(key.into_deserializer()).map(Some).map_err(|fault: Fault| fault.placed(entry.place))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let Some(entry) = self.value.take() else { return Err(Fault::new("a value is missing here")) };
        let place = if entry.value.is_null() { entry.place } else { entry.value.place };
        let fault = |fault: Fault| fault.placed(place).below(Step::Key((&*entry.key).into()));
        seed.deserialize(NodeDeserializer::new(&entry.value)).map_err(fault)
    }
}

/// A word that stands for a variant without fields.
struct Variant<'n>(&'n str);

impl<'de> EnumAccess<'de> for Variant<'_> {
    type Error = Fault;
    type Variant = Unit;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Unit), Fault> {
        Ok((seed.deserialize(self.0.into_deserializer())?, Unit))
    }
}

struct Unit;

impl<'de> VariantAccess<'de> for Unit {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, Fault> {
        Err(Fault::new("a word alone is not allowed here"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Fault> {
        Err(Fault::new("a word alone is not allowed here"))
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, Fault> {
        Err(Fault::new("a word alone is not allowed here"))
    }
}
