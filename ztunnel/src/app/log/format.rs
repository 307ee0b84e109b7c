//! Istio's two formats of a line: text with fields, and flat JSON.
//!
//! The value of a field may come from a peer. It can't end the line or look like another field: control characters are escaped,
//! and in text a value that is not a plain word is quoted.

use std::fmt::{self, Debug, Write as _};

use serde_json::Value;
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    field::RecordFields,
    fmt::{
        FmtContext, FormattedFields,
        format::{FormatEvent, FormatFields, Writer},
        time::{FormatTime, SystemTime},
    },
    registry::{LookupSpan, Scope},
};

/// `TIME TAB level TAB target[:spans] TAB message TAB k=v k=v`.
pub(super) struct Text;

/// `{"level":…,"time":…,"scope":…,"message":…,fields…}`; without spans.
pub(super) struct Json;

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = TextFields::default();
        event.record(&mut line);
        let target = line.target.as_deref().unwrap_or(event.metadata().target());
        SystemTime.format_time(&mut writer)?;
        write!(writer, "\t{}\t", level(*event.metadata().level()))?;
        writer.write_str(target.strip_prefix("ztunnel::").unwrap_or(target))?;
        for span in context.event_scope().into_iter().flat_map(Scope::from_root) {
            write!(writer, ":{}", span.name())?;
            if let Some(fields) = span.extensions().get::<FormattedFields<N>>().filter(|fields| !fields.is_empty()) {
                write!(writer, "{{{fields}}}")?;
            }
        }
        write!(writer, "\t{}", line.message)?;
        if !line.fields.is_empty() {
            write!(writer, "\t{}", line.fields)?;
        }
        writeln!(writer)
    }
}

/// The fields of spans.
impl<'writer> FormatFields<'writer> for Text {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut line = TextFields::default();
        fields.record(&mut line);
        writer.write_str(&line.fields)
    }
}

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = JsonFields::default();
        event.record(&mut line);
        let target = line.target.as_deref().unwrap_or(event.metadata().target());
        write!(writer, r#"{{"level":"{}","time":""#, level(*event.metadata().level()))?;
        SystemTime.format_time(&mut writer)?;
        let mut head = String::from(r#"","scope":"#);
        push_json(target, &mut head);
        head.push_str(r#","message":"#);
        push_json(&line.message, &mut head);
        writer.write_str(&head)?;
        writer.write_str(&line.fields)?;
        writeln!(writer, "}}")
    }
}

fn level(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

/// The role of a field.
enum Role {
    Message,
    /// The target of a record from the crate `log`, whose events all have the same target.
    Target,
    /// Other fields of records from the crate `log`: file and line.
    Origin,
    Field,
}

impl Role {
    fn of(field: &Field) -> Self {
        match field.name() {
            "message" => Self::Message,
            "log.target" => Self::Target,
            name if name.starts_with("log.") => Self::Origin,
            _ => Self::Field,
        }
    }
}

#[derive(Default)]
struct TextFields {
    message: String,
    target: Option<String>,
    fields: String,
}

impl TextFields {
    fn push(&mut self, field: &Field, value: impl FnOnce(&mut String)) {
        let separator = if self.fields.is_empty() { "" } else { " " };
        self.fields.push_str(separator);
        self.fields.push_str(field.name());
        self.fields.push('=');
        value(&mut self.fields);
    }

    fn push_number(&mut self, field: &Field, value: impl fmt::Display) {
        self.push(field, |fields| {
            // Writing to a string can't fail.
            let _ = write!(fields, "{value}");
        });
    }
}

impl Visit for TextFields {
    fn record_str(&mut self, field: &Field, value: &str) {
        match Role::of(field) {
            // The message ends at a tab or at the end of the line, so quotes in it need no escape.
            Role::Message => escape(value, &['\'', '"', '\\'], &mut self.message),
            Role::Target => self.target = Some(value.to_owned()),
            Role::Origin => {}
            Role::Field => self.push(field, |fields| quote(value, fields)),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let text = format!("{value:?}");
        match Role::of(field) {
            Role::Field if is_word(&text) => self.push(field, |fields| fields.push_str(&text)),
            Role::Field | Role::Message | Role::Target | Role::Origin => self.record_str(field, &text),
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.record_str(field, &value.to_string());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if matches!(Role::of(field), Role::Field) {
            self.push_number(field, value);
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push_number(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.push_number(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push_number(field, value);
    }
}

/// Whether a value needs no quotes: an address, a number, a name.
fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'=' | b'\\'))
}

fn quote(text: &str, into: &mut String) {
    into.push('"');
    escape(text, &['\''], into);
    into.push('"');
}

/// Escapes characters that could end the line or change its look, as in a Rust literal. The characters in `plain` are not
/// escaped.
fn escape(text: &str, plain: &[char], into: &mut String) {
    for character in text.chars() {
        if plain.contains(&character) {
            into.push(character);
        } else {
            into.extend(character.escape_debug());
        }
    }
}

#[derive(Default)]
struct JsonFields {
    message: String,
    target: Option<String>,
    /// The fields, each as `,"name":value`.
    fields: String,
    /// A buffer for the current value.
    scratch: String,
}

impl JsonFields {
    fn name(&mut self, field: &Field) {
        self.fields.push(',');
        push_json(field.name(), &mut self.fields);
        self.fields.push(':');
    }

    fn push(&mut self, field: &Field, value: impl Into<Value>) {
        self.name(field);
        self.fields.push_str(&json(value));
    }

    fn push_str(&mut self, field: &Field, value: &str) {
        self.name(field);
        push_json(value, &mut self.fields);
    }

    fn push_integer(&mut self, field: &Field, value: impl fmt::Display) {
        self.name(field);
        // Writing to a string can't fail.
        let _ = write!(self.fields, "{value}");
    }
}

/// Adds a JSON string. Most texts need no escape.
fn push_json(text: &str, into: &mut String) {
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\')) {
        into.push('"');
        into.push_str(text);
        into.push('"');
    } else {
        into.push_str(&json(text));
    }
}

/// JSON, with further control characters escaped: terminals obey some that JSON does not require to be escaped.
fn json(value: impl Into<Value>) -> String {
    let text = value.into().to_string();
    if !text.contains(char::is_control) {
        return text;
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if character.is_control() {
            let _ = write!(escaped, "\\u{:04x}", u32::from(character));
        } else {
            escaped.push(character);
        }
    }
    escaped
}

impl Visit for JsonFields {
    fn record_str(&mut self, field: &Field, value: &str) {
        match Role::of(field) {
            Role::Message => self.message.push_str(value),
            Role::Target => self.target = Some(value.to_owned()),
            Role::Origin => {}
            Role::Field => self.push_str(field, value),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut text = std::mem::take(&mut self.scratch);
        text.clear();
        // Writing to a string can't fail.
        let _ = write!(text, "{value:?}");
        self.record_str(field, &text);
        self.scratch = text;
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.record_str(field, &value.to_string());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if matches!(Role::of(field), Role::Field) {
            self.push_integer(field, value);
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push_integer(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.push(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push(field, value);
    }
}
