//! The state of one stream of a node: the resources for which the node has asked, those that it has, and its answer to
//! the last response. It decides which response is due next. Pure: callers pass it the requests, the time and the
//! catalogue.
//!
//! For each type at most one response is unanswered. Resources that change meanwhile go into the next response, in
//! their latest state.
//!
//! A workload depends on policies. So that no node has a workload without its policies, a new policy is sent before the
//! workloads that may depend on it, and the removal of a policy is sent after those workloads have changed. Each step
//! waits until the node has answered the step before. Settings are sent before everything else: without them a node may
//! connect to destinations that the settings forbid.

mod messages;
mod subscription;

use tokio::time::Instant;

pub use self::messages::{Answer, LONGEST_NAME, MOST_NAMES, Request, Response, SessionError, Wants, version_of};
use self::{messages::Content, subscription::Subscription};
use super::catalogue::{Catalogue, Kind};

/// The state of a stream.
#[derive(Debug, Default)]
pub struct Session {
    address: Option<Subscription>,
    authorization: Option<Subscription>,
    settings: Option<Subscription>,
    object: Option<Subscription>,
    nonces: u64,
}

impl Session {
    /// Applies a request. Returns its answer, if it answers the last response of its type.
    ///
    /// # Errors
    /// The request asks for too many names, or for a name that is too long.
    pub fn request(&mut self, kind: Kind, request: Request) -> Result<Option<Answer>, SessionError> {
        let names = request.subscribe.iter().chain(&request.unsubscribe).chain(request.known.keys());
        if let Some(long) = names.map(String::len).find(|length| *length > LONGEST_NAME) {
            return Err(SessionError::LongName(long));
        }
        match self.slot(kind) {
            None => {
                let subscription = Subscription::begin(request)?;
                *self.slot(kind) = Some(subscription);
                Ok(None)
            }
            Some(subscription) => {
                let answered = subscription.answered(&request.nonce);
                subscription.change(request.subscribe, &request.unsubscribe)?;
                let error = request.error;
                Ok(answered.map(|sent| Answer { kind, version: sent.version, sent: sent.at, error }))
            }
        }
    }

    fn slot(&mut self, kind: Kind) -> &mut Option<Subscription> {
        match kind {
            Kind::Address => &mut self.address,
            Kind::Authorization => &mut self.authorization,
            Kind::Settings => &mut self.settings,
            Kind::Object => &mut self.object,
        }
    }

    fn subscription(&self, kind: Kind) -> Option<&Subscription> {
        match kind {
            Kind::Address => self.address.as_ref(),
            Kind::Authorization => self.authorization.as_ref(),
            Kind::Settings => self.settings.as_ref(),
            Kind::Object => self.object.as_ref(),
        }
    }

    /// The subscription of a type, unless its last response is unanswered.
    fn idle(&mut self, kind: Kind) -> Option<&mut Subscription> {
        self.slot(kind).as_mut().filter(|it| it.sent().is_none())
    }

    /// The resources of a type that the stream wants; `None`: it has not asked for the type yet.
    #[must_use]
    pub fn wants(&self, kind: Kind) -> Option<Wants> {
        self.subscription(kind).map(Subscription::wants)
    }

    /// Whether the next response may contain all resources.
    #[must_use]
    pub fn expects_everything(&self) -> bool {
        Kind::ALL.into_iter().filter_map(|kind| self.subscription(kind)).any(Subscription::expects_everything)
    }

    /// The oldest response without an answer: the time at which it was sent, and its type.
    #[must_use]
    pub fn unanswered(&self) -> Option<(Instant, Kind)> {
        let of = |kind| Some((self.subscription(kind)?.sent()?.at, kind));
        Kind::ALL.into_iter().filter_map(of).min()
    }

    /// The next response; `None`: nothing is due before the catalogue changes or the node answers.
    ///
    /// # Errors
    /// Removals that the stream lacks have been forgotten.
    pub fn next(&mut self, catalogue: &Catalogue, now: Instant) -> Result<Option<Response>, SessionError> {
        if !catalogue.is_complete() {
            return Ok(None);
        }
        let mut due = self.settings(catalogue)?;
        for kind in Kind::POLICIES {
            if due.is_none() {
                due = self.policies(kind, catalogue)?;
            }
        }
        if due.is_none() {
            due = self.addresses(catalogue)?;
        }
        for kind in Kind::POLICIES {
            if due.is_none() {
                due = self.gone_policies(kind, catalogue);
            }
        }
        let Some((kind, content)) = due else { return Ok(None) };
        self.nonces += 1;
        let (nonce, version) = (format!("{:x}", self.nonces), catalogue.version());
        if let Some(subscription) = self.slot(kind) {
            subscription.send(&nonce, version, now, content.holds);
        }
        Ok(Some(Response { kind, nonce, version, resources: content.resources, removed: content.removed }))
    }

    fn settings(&mut self, catalogue: &Catalogue) -> Result<Option<(Kind, Content)>, SessionError> {
        let kind = Kind::Settings;
        let Some(subscription) = self.idle(kind) else { return Ok(None) };
        let (shelf, version) = (catalogue.shelf(kind), catalogue.version());
        if subscription.has_missed(shelf) {
            return Err(SessionError::Behind(kind));
        }
        let mut content = subscription.upserts(shelf, version);
        subscription.removals(shelf, version, &mut content.removed);
        if content.is_due() {
            return Ok(Some((kind, content)));
        }
        subscription.rest(catalogue.version());
        Ok(None)
    }

    /// Policies that are new or different.
    fn policies(&mut self, kind: Kind, catalogue: &Catalogue) -> Result<Option<(Kind, Content)>, SessionError> {
        let Some(subscription) = self.idle(kind) else { return Ok(None) };
        let shelf = catalogue.shelf(kind);
        if subscription.has_missed(shelf) {
            return Err(SessionError::Behind(kind));
        }
        let content = subscription.upserts(shelf, catalogue.version());
        Ok(content.is_due().then_some((kind, content)))
    }

    /// Workloads and services. Those wait whose policies the node has not answered yet.
    fn addresses(&mut self, catalogue: &Catalogue) -> Result<Option<(Kind, Content)>, SessionError> {
        let kind = Kind::Address;
        let holds = |kind| self.subscription(kind).and_then(|policies| policies.holds(kind, catalogue));
        let held = Kind::POLICIES.into_iter().filter_map(holds).min();
        let until = held.map_or(catalogue.version(), |held| held.min(catalogue.version()));
        let Some(subscription) = self.idle(kind) else { return Ok(None) };
        let shelf = catalogue.shelf(kind);
        if subscription.has_missed(shelf) {
            return Err(SessionError::Behind(kind));
        }
        // The first response contains everything, or is not sent yet.
        if subscription.needs_all() && until < catalogue.version() {
            return Ok(None);
        }
        let mut content = subscription.upserts(shelf, until);
        subscription.removals(shelf, until, &mut content.removed);
        if content.is_due() {
            return Ok(Some((kind, content)));
        }
        subscription.rest(catalogue.version());
        Ok(None)
    }

    /// Removals of policies, once no workload of the node depends on them any more.
    fn gone_policies(&mut self, kind: Kind, catalogue: &Catalogue) -> Option<(Kind, Content)> {
        let taken = self.address.as_ref().map_or(u64::MAX, Subscription::taken);
        let subscription = self.idle(kind)?;
        let mut content = Content::default();
        subscription.removals(catalogue.shelf(kind), taken, &mut content.removed);
        content.is_due().then_some((kind, content))
    }
}

#[cfg(test)]
mod tests;
