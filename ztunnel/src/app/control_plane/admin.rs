//! The HTTP endpoints of a control plane: readiness, metrics, and the state of each node.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use prometheus_client::registry::Registry;
use serde::Serialize;
use tokio::sync::watch;

use super::exposition::{self, FollowedValues, Values};
use crate::{
    app::{
        admin::{Answers, Body, Endpoints, TEXT, json, response, scraped},
        log::LostLines,
    },
    control::kubernetes::mesh::{Followed, State, TypeStanding},
    identity::{certificate::rfc3339, local_ca::LocalCa},
    lifecycle::drain::DrainWatch,
    plane::{
        callers::Callers,
        catalogue::Kind,
        describe::{StreamShown, Streams},
        publish::Resources,
    },
    store::publish::Reader,
};

const READY: &str = "/healthz/ready";
/// The state of each node.
pub(in crate::app) const NODES: &str = "/debug/nodes";
const METRICS: [&str; 2] = ["/metrics", "/stats/prometheus"];

/// The state that the endpoints show.
pub(super) struct PlaneAdmin {
    /// The mesh.
    pub(super) mesh: Reader,
    /// The resources that are made from the mesh.
    pub(super) resources: Resources,
    /// How the objects of the Kubernetes API are followed, if the mesh comes from there.
    pub(super) followed: Option<Followed>,
    /// The connected nodes.
    pub(super) streams: Streams,
    /// The nodes that may connect.
    pub(super) nodes: Callers,
    /// The CA.
    pub(super) ca: Arc<LocalCa>,
    /// The expiry of the serving certificate.
    pub(super) serving_until: watch::Receiver<SystemTime>,
    /// The counters.
    pub(super) registry: Registry,
    /// The count of dropped log lines.
    pub(super) lost: LostLines,
    /// Whether the control plane is stopping.
    pub(super) stopping: DrainWatch,
}

/// The answer of `/debug/nodes`.
#[derive(Debug, Serialize)]
struct NodesShown {
    /// The version of a stream that is up to date.
    version: u64,
    /// Whether the mesh is served: it has been complete at least once.
    served: bool,
    /// The number of resources of each type.
    resources: BTreeMap<&'static str, usize>,
    /// The number of nodes with a token.
    tokens: usize,
    /// The expiry of the CA, as RFC 3339.
    ca_until: String,
    /// The expiry of the serving certificate, as RFC 3339.
    serving_until: String,
    /// The problems of the mesh.
    problems: Vec<String>,
    /// How each type of objects of the Kubernetes API is followed, if the mesh comes from there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kubernetes: Vec<FollowedShown>,
    /// The streams of nodes.
    streams: Vec<StreamShown>,
}

/// How a type of objects is followed.
#[derive(Debug, Serialize)]
struct FollowedShown {
    /// The type.
    resource: String,
    /// `waiting`, `synced`, `absent` or `failing`.
    state: &'static str,
    /// The beginning of the state, as RFC 3339.
    since: String,
    /// The number of objects in force.
    objects: usize,
    /// The reason of a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Answers for PlaneAdmin {
    async fn answer(&self, endpoints: Endpoints, request: &Request<Incoming>) -> Response<Body> {
        let paths: &[&str] = match endpoints {
            Endpoints::Admin => &[READY, METRICS[0], METRICS[1], NODES],
            Endpoints::Metrics => &METRICS,
            Endpoints::Readiness | Endpoints::Nodes => &[READY],
        };
        let path = request.uri().path();
        if path != "/" && !paths.contains(&path) {
            return response(StatusCode::NOT_FOUND, TEXT, "not found; / lists the endpoints\n");
        }
        if request.method() != Method::GET {
            return response(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET only\n");
        }
        match path {
            "/" => response(StatusCode::OK, TEXT, paths.join("\n") + "\n"),
            READY => self.readiness(),
            NODES => json(&self.shown()),
            _ => scraped(request, self.metrics()),
        }
    }
}

impl PlaneAdmin {
    fn readiness(&self) -> Response<Body> {
        let pending = self.pending();
        let failing = self.failing();
        if pending.is_empty() {
            return response(StatusCode::OK, TEXT, "ready\n".to_owned() + &failing);
        }
        let mut text = format!("not ready, pending: {}\n", pending.join(", "));
        let mesh = self.mesh.load();
        if let Some(first) = mesh.problems().first().filter(|_| !self.resources.catalogue().is_complete()) {
            text.push_str(&format!("{} problem(s) with the mesh, the first: {first}\n", mesh.problems().len()));
        }
        text.push_str(&failing);
        response(StatusCode::SERVICE_UNAVAILABLE, TEXT, text)
    }

    /// The types of objects that can't be followed now, one on each line.
    fn failing(&self) -> String {
        let mut text = String::new();
        for known in self.followed.iter().flat_map(Followed::shown) {
            if let State::Failing(why) = &known.state {
                text.push_str(&format!("{} not up to date since {}: {why}\n", known.resource, rfc3339(known.since)));
            }
        }
        text
    }

    fn followed(&self) -> Vec<FollowedShown> {
        let shown = |known: TypeStanding| FollowedShown {
            resource: known.resource.to_string(),
            state: known.state.label(),
            since: rfc3339(known.since),
            objects: known.objects,
            reason: match known.state {
                State::Failing(why) => Some(why),
                _ => None,
            },
        };
        self.followed.iter().flat_map(Followed::shown).map(shown).collect()
    }

    fn follow_values(&self) -> Vec<FollowedValues> {
        let values = |known: TypeStanding| FollowedValues {
            resource: known.resource.to_string(),
            objects: known.objects,
            is_synced: matches!(known.state, State::Synced | State::Absent),
            failures: known.failures,
        };
        self.followed.iter().flat_map(Followed::shown).map(values).collect()
    }

    /// The reasons why nodes can't be served now.
    fn pending(&self) -> Vec<&'static str> {
        let now = SystemTime::now();
        let mut pending = Vec::new();
        if self.stopping.is_started() {
            pending.push("shutdown");
        }
        if !self.resources.catalogue().is_complete() {
            pending.push("mesh");
        }
        if self.ca.not_after() <= now {
            pending.push("CA");
        }
        if *self.serving_until.borrow() <= now {
            pending.push("serving certificate");
        }
        pending
    }

    fn shown(&self) -> NodesShown {
        let (version, served, resources) = {
            let catalogue = self.resources.catalogue();
            let counts = Kind::ALL.map(|kind| (kind.name(), catalogue.shelf(kind).len()));
            (catalogue.version(), catalogue.is_complete(), counts.into())
        };
        NodesShown {
            version,
            served,
            resources,
            tokens: self.nodes.len(),
            ca_until: rfc3339(self.ca.not_after()),
            serving_until: rfc3339(*self.serving_until.borrow()),
            problems: self.mesh.load().problems().iter().map(ToString::to_string).collect(),
            kubernetes: self.followed(),
            streams: self.streams.shown(),
        }
    }

    fn metrics(&self) -> Result<String, std::fmt::Error> {
        let (version, resources) = {
            let catalogue = self.resources.catalogue();
            let shelf = |kind| (kind, catalogue.shelf(kind).len(), catalogue.shelf(kind).bytes());
            (catalogue.version(), Kind::ALL.map(shelf))
        };
        let values = Values {
            resources,
            version,
            streams: self.streams.len(),
            tokens: self.nodes.len(),
            problems: self.mesh.load().problems().len(),
            ready: self.pending().is_empty(),
            ca_until: self.ca.not_after(),
            serving_until: *self.serving_until.borrow(),
            lost: self.lost.count(),
            followed: self.follow_values(),
        };
        exposition::text(&self.registry, &values)
    }
}
