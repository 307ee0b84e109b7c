//! Reads lists and the events of watches in bounded memory. An object stays text until it is its turn: so one object that cannot be
//! parsed affects no other object, and at no time there is more than one tree of a type.

use std::borrow::Cow;
use std::collections::VecDeque;

use futures_util::StreamExt as _;
use futures_util::stream::{BoxStream, unfold};
use http_body_util::BodyExt as _;
use kube::client::Body;
use kube::core::Status;
use kube::core::request::Error;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::client::Cluster;
use super::failure::Reason;

/// The most bytes of a page with several objects. A page of 100 usual Pods has 1 MB.
pub(super) const LONGEST_PAGE: usize = 8 << 20;
/// The most bytes of a page with one object, and of an event. etcd takes objects of 1.5 MiB, unless it is configured otherwise, and a
/// byte of a text has up to six in JSON.
pub(super) const LONGEST_OBJECT: usize = 32 << 20;
/// The most bytes of an error.
const LONGEST_STATUS: usize = 64 << 10;

/// A request, or the error if the selection can't be expressed as a request.
pub(super) type Asking = Result<http::Request<Vec<u8>>, Error>;

/// A page of a list.
pub(super) struct Page {
    /// The token of the next page. `None`: this page is the last one.
    pub(super) next: Option<String>,
    /// The version of the list.
    pub(super) version: String,
    pub(super) objects: VecDeque<Box<RawValue>>,
}

/// Why there is no page.
pub(super) enum NoPage {
    /// The page has too many bytes.
    TooLong,
    Failed(Reason),
}

/// An event of a watch.
pub(super) enum Event {
    Applied(Box<RawValue>),
    Deleted(Box<RawValue>),
    /// The watch has seen all changes up to this version.
    Bookmark(String),
}

/// The events of a watch. The stream ends with the watch, or after a failure.
pub(super) type Events = BoxStream<'static, Result<Event, Reason>>;

/// Requests a page of at most `most` bytes.
pub(super) async fn list(cluster: Cluster, request: Asking, most: usize) -> Result<Page, NoPage> {
    let body = send(&cluster, request).await.map_err(NoPage::Failed)?;
    let text = read(body, most).await.map_err(NoPage::Failed)?.ok_or(NoPage::TooLong)?;
    let PageText { metadata, items } =
        serde_json::from_slice(&text).map_err(|error| NoPage::Failed(Reason::Answer(error.to_string())))?;
    Ok(Page {
        next: metadata.r#continue.filter(|token| !token.is_empty()),
        version: metadata.resource_version.unwrap_or_default(),
        objects: items.unwrap_or_default(),
    })
}

/// Begins a watch.
pub(super) async fn begin(cluster: Cluster, request: Asking) -> Result<Events, Reason> {
    let body = send(&cluster, request).await?;
    let lines = Lines { body: Some(body), text: Vec::new(), searched: 0 };
    Ok(unfold(lines, |mut lines| async move { Some((lines.event().await?, lines)) }).boxed())
}

#[derive(Deserialize)]
struct PageText {
    #[serde(default)]
    metadata: PageMetadata,
    items: Option<VecDeque<Box<RawValue>>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct PageMetadata {
    resource_version: Option<String>,
    r#continue: Option<String>,
}

#[derive(Deserialize)]
struct EventText<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Bookmark {
    metadata: PageMetadata,
}

async fn send(cluster: &Cluster, request: Asking) -> Result<Body, Reason> {
    let request = request.map_err(|error| Reason::Refused(error.to_string()))?;
    let answer = cluster.client.send(request.map(Body::from)).await.map_err(|error| Reason::of(&error))?;
    let (head, body) = answer.into_parts();
    if head.status.is_success() {
        return Ok(body);
    }
    let text = read(body, LONGEST_STATUS).await?.unwrap_or_default();
    let mut status = serde_json::from_slice::<Status>(&text).unwrap_or_else(|_| {
        // A proxy in front of the API server answers with another text.
        Status { message: String::from_utf8_lossy(&text).trim().to_owned(), ..Status::default() }
    });
    if status.code == 0 {
        status.code = head.status.as_u16();
    }
    Err(Reason::of_status(&status))
}

/// Reads a whole body. `None`: it has more than `most` bytes.
async fn read(mut body: Body, most: usize) -> Result<Option<Vec<u8>>, Reason> {
    let mut text = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Reason::of(&error))?;
        let Ok(data) = frame.into_data() else { continue };
        if text.len() + data.len() > most {
            return Ok(None);
        }
        text.extend_from_slice(&data);
    }
    Ok(Some(text))
}

/// The lines of a watch. Each is an event.
struct Lines {
    /// `None`: the watch has ended or failed.
    body: Option<Body>,
    text: Vec<u8>,
    /// There is no end of a line in this many bytes.
    searched: usize,
}

impl Lines {
    /// The next event. `None`: the watch has ended.
    async fn event(&mut self) -> Option<Result<Event, Reason>> {
        let event = match self.line().await {
            Ok(None) => return None,
            Ok(Some(line)) => event(&line),
            Err(reason) => Err(reason),
        };
        if event.is_err() {
            self.body = None;
            self.text = Vec::new();
        }
        Some(event)
    }

    async fn line(&mut self) -> Result<Option<Vec<u8>>, Reason> {
        loop {
            let end = self.text.get(self.searched..).and_then(|rest| rest.iter().position(|byte| *byte == b'\n'));
            if let Some(end) = end {
                let rest = self.text.split_off(self.searched + end + 1);
                let line = std::mem::replace(&mut self.text, rest);
                self.searched = 0;
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return Ok(Some(line));
            }
            self.searched = self.text.len();
            if self.text.len() > LONGEST_OBJECT {
                return Err(Reason::Answer(format!("an event has more than {LONGEST_OBJECT} bytes")));
            }
            let Some(body) = &mut self.body else { return Ok(None) };
            match body.frame().await {
                // The rest is not a whole event: the next watch begins before it.
                None => return Ok(None),
                Some(Err(error)) => return Err(Reason::of(&error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.text.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

fn event(line: &[u8]) -> Result<Event, Reason> {
    let invalid = |error: serde_json::Error| Reason::Answer(error.to_string());
    let EventText { r#type, object } = serde_json::from_slice(line).map_err(invalid)?;
    match &*r#type {
        "ADDED" | "MODIFIED" => Ok(Event::Applied(object.to_owned())),
        "DELETED" => Ok(Event::Deleted(object.to_owned())),
        "BOOKMARK" => {
            let Bookmark { metadata } = serde_json::from_str(object.get()).map_err(invalid)?;
            Ok(Event::Bookmark(metadata.resource_version.unwrap_or_default()))
        }
        "ERROR" => Err(Reason::of_status(&serde_json::from_str::<Status>(object.get()).map_err(invalid)?)),
        other => Err(Reason::Answer(format!("an event has the unknown type {other:?}"))),
    }
}
