//! The certificate authority of a control plane: each request has a new key, and names the requested identity.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::time::timeout;
use tonic::{Code, Status};
use tracing::{Span, info};

use super::connection::{ConnectError, Connection, request};
use super::plane::ControlPlane;
use crate::identity::poll::{Polled, poll};
use crate::identity::request::{Request, RequestError};
use crate::identity::source::{CertSource, Issuing, SourceError};
use crate::identity::{Credentials, clock, disk};
use crate::istio::certificate::{IMPERSONATED_IDENTITY, IstioCertificateRequest};
use crate::istio::standard::Struct;
use crate::lifecycle::tasks::{TaskCount, TaskSet};
use crate::model::cause::causes;
use crate::model::identity::SpiffeId;

/// How long an answer may take. Without this deadline, a control plane that answers pings but no requests would be asked over
/// the same connection for ever. The deadline is shorter than the time that the daemon waits for a certificate.
const ANSWER_DEADLINE: Duration = Duration::from_secs(20);

/// The authority of a control plane, as a source of certificates.
pub struct RemoteAuthority {
    authority: Arc<Authority>,
    /// Follows the file of the roots until it is dropped.
    _watch: TaskSet,
}

struct Authority {
    plane: Arc<ControlPlane>,
    /// The requested lifetime of certificates.
    ttl: Duration,
    /// How long an answer may take.
    deadline: Duration,
    tasks: TaskCount,
    /// Made for the first request, and again after a failure.
    connection: AsyncMutex<Option<Arc<Connection>>>,
    /// The digest of the file of the roots at the last check.
    roots: Mutex<Option<Vec<u8>>>,
    generation: watch::Sender<u64>,
}

impl RemoteAuthority {
    /// A source of certificates from a control plane, valid for `ttl`. Needs a runtime. The first request connects.
    #[must_use]
    pub fn open(plane: Arc<ControlPlane>, ttl: Duration, tasks: TaskCount) -> Self {
        Self::open_within(ANSWER_DEADLINE, plane, ttl, tasks)
    }

    /// As [`RemoteAuthority::open`], with a deadline for answers.
    pub(super) fn open_within(deadline: Duration, plane: Arc<ControlPlane>, ttl: Duration, tasks: TaskCount) -> Self {
        info!(control_plane = %plane.url, "certificates come from the control plane");
        let mut watch = TaskSet::new(tasks.clone());
        let authority = Arc::new(Authority {
            roots: Mutex::new(sum(&plane)),
            plane,
            ttl,
            deadline,
            tasks,
            connection: AsyncMutex::new(None),
            generation: watch::Sender::new(1),
        });
        watch.spawn(Span::none(), poll(Arc::clone(&authority)));
        Self { authority, _watch: watch }
    }
}

impl CertSource for RemoteAuthority {
    fn issue<'a>(&'a self, identity: &'a SpiffeId) -> Issuing<'a> {
        Box::pin(self.authority.issue(identity))
    }

    fn generation(&self) -> watch::Receiver<u64> {
        self.authority.generation.subscribe()
    }
}

impl Authority {
    async fn issue(&self, identity: &SpiffeId) -> Result<Credentials, SourceError> {
        let unusable = |source: RequestError| SourceError::Request { authority: self.plane.url.to_string(), source };
        let (asked, csr) = Request::new(identity.clone()).map_err(unusable)?;
        let message = IstioCertificateRequest {
            csr,
            validity_duration: i64::try_from(self.ttl.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(Struct::of_strings([(IMPERSONATED_IDENTITY, identity.to_string())])),
        };
        let message = request(&self.plane, message).await.map_err(|error| self.unreached(&error))?;
        let connection = self.connection().await.map_err(|error| self.unreached(&error))?;
        let mut client = connection.client.clone();
        let answer = timeout(self.deadline, client.create_certificate(message)).await;
        let silent = |_elapsed| Status::deadline_exceeded(format!("no answer within {:?}", self.deadline));
        let answer = match answer.map_err(silent).flatten() {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                if !is_answer(&status) {
                    self.forget(&connection).await;
                }
                let why = format!("{}: {}", status.code(), status.message());
                return Err(SourceError::Remote { authority: self.plane.url.to_string(), why });
            }
        };
        asked.accept(&answer.cert_chain, clock::now()).map_err(unusable)
    }

    fn unreached(&self, error: &ConnectError) -> SourceError {
        SourceError::Remote { authority: self.plane.url.to_string(), why: causes(error) }
    }

    /// The connection. While it is being made, other requests wait for it.
    async fn connection(&self) -> Result<Arc<Connection>, ConnectError> {
        let mut place = self.connection.lock().await;
        if let Some(connection) = &*place {
            return Ok(Arc::clone(connection));
        }
        let connection = Arc::new(Connection::open(&self.plane, self.tasks.clone()).await?);
        *place = Some(Arc::clone(&connection));
        Ok(connection)
    }

    /// Drops a connection, so that the next request connects again. Requests in progress continue.
    async fn forget(&self, broken: &Arc<Connection>) {
        let mut place = self.connection.lock().await;
        if place.as_ref().is_some_and(|connection| Arc::ptr_eq(connection, broken)) {
            *place = None;
        }
    }
}

/// Whether the status is an answer of the authority itself: then the connection works.
fn is_answer(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::InvalidArgument
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::ResourceExhausted
            | Code::Unimplemented
    )
}

/// The digest of the roots' file; `None`: it can't be read.
fn sum(plane: &ControlPlane) -> Option<Vec<u8>> {
    disk::read(&plane.roots).ok().map(|content| digest(&SHA256, &content).as_ref().to_vec())
}

/// If the roots by which the control plane is verified are replaced, the roots that it hands out are replaced as well. Then all
/// certificates are requested again, over a new connection.
impl Polled for Authority {
    type State = Option<Vec<u8>>;

    fn news(&self) -> Option<Self::State> {
        let now = sum(&self.plane);
        (*self.roots.lock().unwrap_or_else(PoisonError::into_inner) != now).then_some(now)
    }

    fn take_up(&self) -> Result<(), String> {
        // A missing file is reported by the next connect.
        let now = sum(&self.plane);
        let was = std::mem::replace(&mut *self.roots.lock().unwrap_or_else(PoisonError::into_inner), now.clone());
        if now.is_none() || was == now {
            return Ok(());
        }
        info!(roots = %self.plane.roots.display(), "the roots of the control plane have changed; every certificate is issued anew");
        // A connect in progress has just read the file, or will fail and be repeated.
        if let Ok(mut connection) = self.connection.try_lock() {
            *connection = None;
        }
        self.generation.send_modify(|generation| *generation += 1);
        Ok(())
    }

    fn name(&self) -> String {
        format!("roots of the control plane in {}", self.plane.roots.display())
    }
}
