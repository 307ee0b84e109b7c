//! `/events`: the connections of this node's pods while they open, end or are refused, as lines of JSON, until the client leaves.

use std::{convert::Infallible, sync::Arc, time::Duration};

use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    Response, StatusCode,
    body::{Bytes, Frame},
    header::{CONTENT_TYPE, HeaderValue},
};
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::{
    connection::Connection,
    explain::encoded,
    reply::{Body, TEXT, response},
};
use crate::{
    app::cli::output::SCHEMA_VERSION,
    flow::events::{ConnectionEvent, EventKind, EventReader, Events, Next, Party},
};

/// How often a line is written while nothing happens, so that a client that has gone is noticed.
const IDLE: Duration = Duration::from_secs(5);

const LINES: &str = "application/x-ndjson";

/// A line of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(in crate::app) enum Line {
    /// The first line.
    Started {
        /// The version of the schema of the lines.
        schema_version: u32,
        /// This node.
        node: String,
    },
    /// A connection.
    Connection(Box<ConnectionEvent>),
    /// So many events were lost, because the client is too slow.
    Lost {
        /// Their number.
        events: u64,
    },
    /// Nothing has happened for a while.
    Idle,
}

/// The events that a client wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::app) struct Filter {
    /// Only connections that policy has denied.
    pub(in crate::app) denied: bool,
    /// Only connections that did not reach their destination.
    pub(in crate::app) refused: bool,
    /// The client's pod, namespace, identity or address.
    pub(in crate::app) from: Option<End>,
    /// The server's.
    pub(in crate::app) to: Option<End>,
}

/// One end of a connection, as a person names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::app) struct End(String);

impl End {
    /// `NAMESPACE`, `NAMESPACE/POD`, an identity, an address, or the host name of a service.
    pub(in crate::app) fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    fn is(&self, party: &Party, service: Option<&str>) -> bool {
        let Self(wanted) = self;
        let namespace = party.namespace.as_deref().unwrap_or_default();
        let is_pod = wanted.split_once('/').is_some_and(|(in_namespace, name)| {
            in_namespace == namespace && party.pod.as_deref() == Some(name) && !name.is_empty()
        });
        let address = party.address.rsplit_once(':').map_or("", |(ip, _)| ip.trim_matches(['[', ']']));
        if wanted.is_empty() {
            return false;
        }
        is_pod
            || wanted == namespace
            || party.identity.as_ref() == Some(wanted)
            || wanted == address
            || *wanted == party.address
            || service == Some(wanted)
    }
}

impl Filter {
    /// Reads a query string.
    fn read(query: &str) -> Result<Self, String> {
        let mut filter = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decode_str(value).decode_utf8().map_err(|_| format!("{name}: not UTF-8\n"))?;
            match name {
                "denied" => filter.denied = true,
                "refused" => filter.refused = true,
                "from" => filter.from = Some(End::new(&value)),
                "to" => filter.to = Some(End::new(&value)),
                _ => return Err("there is a parameter other than denied, refused, from and to\n".to_owned()),
            }
        }
        Ok(filter)
    }

    /// The query string.
    pub(in crate::app) fn query(&self) -> String {
        let mut parts = Vec::new();
        parts.extend(self.denied.then(|| "denied".to_owned()));
        parts.extend(self.refused.then(|| "refused".to_owned()));
        parts.extend(self.from.as_ref().map(|End(end)| format!("from={}", encoded(end))));
        parts.extend(self.to.as_ref().map(|End(end)| format!("to={}", encoded(end))));
        parts.join("&")
    }

    fn passes(&self, event: &ConnectionEvent) -> bool {
        let is_refused = event.event == EventKind::Refused;
        (!self.denied || event.is_denied())
            && (!self.refused || is_refused || event.is_denied())
            && self.from.as_ref().is_none_or(|end| end.is(&event.source, None))
            && self.to.as_ref().is_none_or(|end| end.is(&event.destination, event.service.as_deref()))
    }
}

/// What the answer needs to go on.
struct State {
    reader: EventReader,
    filter: Filter,
    connection: Connection,
    first: Option<Line>,
}

/// Answers a request.
pub(super) fn answer(events: &Events, node: &str, query: &str, connection: Option<Connection>) -> Response<Body> {
    let filter = match Filter::read(query) {
        Ok(filter) => filter,
        Err(error) => return response(StatusCode::BAD_REQUEST, TEXT, error),
    };
    let (Some(reader), Some(connection)) = (events.read(), connection) else {
        let text = "as many clients read events as may: try again when one of them has ended\n";
        return response(StatusCode::SERVICE_UNAVAILABLE, TEXT, text);
    };
    let first = Line::Started { schema_version: SCHEMA_VERSION, node: node.to_owned() };
    let state = State { reader, filter, connection, first: Some(first) };
    let lines = stream::unfold(state, |mut state| async move {
        let line = state.next().await?;
        // The client takes what it gets, so its connection may go on.
        state.connection.prolong();
        Some((Ok::<_, Infallible>(Frame::data(bytes(&line))), state))
    });
    let mut response = Response::new(StreamBody::new(lines).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(LINES));
    response
}

impl State {
    /// The next line. `None`: the daemon is stopping.
    async fn next(&mut self) -> Option<Line> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let Self { reader, filter, connection, .. } = self;
        let idle = sleep(IDLE);
        tokio::pin!(idle);
        loop {
            let next = tokio::select! {
                next = reader.next() => next?,
                () = &mut idle => return Some(Line::Idle),
                () = connection.drain.started() => return None,
            };
            match next {
                Next::Event(event) if filter.passes(&event) => {
                    return Some(Line::Connection(Box::new(Arc::unwrap_or_clone(event))));
                }
                Next::Event(_) => {}
                Next::Lost(events) => return Some(Line::Lost { events }),
            }
        }
    }
}

fn bytes(line: &Line) -> Bytes {
    // A line contains texts and numbers, so the conversion can't fail.
    let mut text = serde_json::to_vec(line).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

#[cfg(test)]
mod tests {
    use super::{End, Filter, Line};
    use crate::flow::events::{ConnectionEvent, EventKind, Party};

    fn event() -> ConnectionEvent {
        let party = |address: &str, pod: &str, identity: &str| Party {
            address: address.to_owned(),
            namespace: Some("demo".to_owned()),
            pod: Some(pod.to_owned()),
            identity: Some(identity.to_owned()),
        };
        ConnectionEvent {
            event: EventKind::Refused,
            source: party("10.0.0.1:4000", "client", "spiffe://cluster.local/ns/demo/sa/client"),
            destination: party("[fd00::2]:80", "web-0", "spiffe://cluster.local/ns/demo/sa/web"),
            service: Some("web.demo.svc.cluster.local".to_owned()),
            reason: Some("denied".into()),
            ..ConnectionEvent::default()
        }
    }

    #[test]
    fn an_end_is_named_in_several_ways() {
        let event = event();
        let from = |end: &str| Filter { from: Some(End::new(end)), ..Filter::default() }.passes(&event);
        let to = |end: &str| Filter { to: Some(End::new(end)), ..Filter::default() }.passes(&event);
        for name in ["demo", "demo/client", "spiffe://cluster.local/ns/demo/sa/client", "10.0.0.1", "10.0.0.1:4000"] {
            assert!(from(name), "{name}");
        }
        for name in ["demo", "demo/web-0", "fd00::2", "[fd00::2]:80", "web.demo.svc.cluster.local"] {
            assert!(to(name), "{name}");
        }
        for name in ["", "demo/", "client", "demo/web", "prod/client", "10.0.0.2", "web.demo.svc.cluster.local"] {
            assert!(!from(name), "{name}");
        }
    }

    #[test]
    fn a_filter_is_the_same_after_it_was_sent() {
        let filter = Filter {
            denied: true,
            refused: true,
            from: Some(End::new("demo/a&b=c")),
            to: Some(End::new("spiffe://cluster.local/ns/demo/sa/web")),
        };
        assert_eq!(Filter::read(&filter.query()), Ok(filter));
        assert_eq!(Filter::read(&Filter::default().query()), Ok(Filter::default()));
        assert!(Filter::read("form=demo/a").is_err());
    }

    #[test]
    fn kinds_of_events_are_told_apart() {
        let event = event();
        let closed = ConnectionEvent { event: EventKind::Closed, reason: Some("complete".into()), ..event.clone() };
        let cut = ConnectionEvent { event: EventKind::Closed, reason: Some("policy_changed".into()), ..event.clone() };
        let denied = Filter { denied: true, ..Filter::default() };
        let refused = Filter { refused: true, ..Filter::default() };
        assert!(denied.passes(&event) && denied.passes(&cut) && !denied.passes(&closed));
        assert!(refused.passes(&event) && refused.passes(&cut) && !refused.passes(&closed));
    }

    #[test]
    fn a_line_is_read_as_it_was_written() {
        for line in [
            Line::Started { schema_version: 1, node: "a".to_owned() },
            Line::Connection(Box::new(event())),
            Line::Lost { events: 7 },
            Line::Idle,
        ] {
            let text = serde_json::to_string(&line).unwrap();
            assert_eq!(serde_json::from_str::<Line>(&text).unwrap(), line, "{text}");
        }
    }
}
