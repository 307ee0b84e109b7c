//! The last part of a connection: how the destination's node handles it.

use ebpf_common::HBONE_PORT;

use super::client::{Client, NO_NETNS};
use super::explanation::{Authentication, Judgement, Verdict};
use super::hints::{self, Case};
use super::journey::{RouteSegment, is_enforced, is_in_mesh};
use super::judgement::{self, Sight};
use super::sources::Sources;
use crate::model::addr::{OrigDst, PeerAddr};
use crate::model::close::CloseReason;
use crate::model::flow::{Direction, Flow};
use crate::model::workload::Workload;
use crate::policy::{Connection, Denial, PodPolicies};
use crate::route::decide::{self, Hop};
use crate::route::target;
use crate::wire::connect::Authority;

/// A source port of a client. No decision depends on it.
const ANY_PORT: u16 = 40_000;
/// The maximum number of listed policies that do not apply; the others are counted.
const MOST_INAPPLICABLE: usize = 100;

/// A connection that arrives at an endpoint.
#[derive(Debug)]
pub(super) struct Arrival<'a> {
    pub(super) sources: Sources<'a>,
    pub(super) client: &'a Client<'a>,
    pub(super) captured: &'a Result<(), String>,
    pub(super) segment: &'a RouteSegment,
}

impl Arrival<'_> {
    /// The verdict on the connection, and the changes that would alter it. `traced`: with every policy.
    pub(super) fn judge(&self, traced: bool) -> (Judgement, Vec<String>) {
        let segment = self.segment;
        let Some(source_ip) = self.client.address_towards(segment.address.ip()) else {
            let family = if segment.address.is_ipv4() { "IPv4" } else { "IPv6" };
            let reason =
                format!("{} has no {family} address to reach {} from", self.client.title(), segment.address.ip());
            return (refused(reason), Vec::new());
        };
        let Some(workload) = &segment.workload else {
            let address = segment.address.ip();
            let unenforced = match self.sources.snapshot.contested(address) {
                Some(_) => format!("{address} is claimed by several pods, so it is not known which one answers"),
                None => format!("the mesh has no pod with the address {address}"),
            };
            return (unjudged(unenforced), Vec::new());
        };
        if self.client.pod.is_some_and(|pod| pod.name == workload.name) {
            return (unjudged(format!("{} connects to itself, which is not captured", workload.title())), Vec::new());
        }
        if workload.is_entry {
            let name = &workload.name;
            return (unjudged(format!("WorkloadEntry {name} is a host that no node of the mesh serves")), Vec::new());
        }
        let local = self.sources.local(&workload.name);
        let is_tunnel = segment.expected().is_some();
        let unenforced = is_enforced(self.sources, workload, segment.address.port(), is_tunnel).err();
        if is_tunnel && local.is_some_and(|local| local.netns.is_none()) {
            let reason = format!("no HBONE connection to Pod {} can be opened: {NO_NETNS}", workload.name);
            return (refused(reason), Vec::new());
        }
        let state = self.sources.state(workload);
        let closed =
            state.as_ref().and_then(|state| if is_tunnel { state.why_no_tunnel() } else { state.why_closed() });
        if let Some(why) = closed {
            let what =
                if is_tunnel { "no HBONE connection to it can be opened" } else { "connections to it are reset" };
            return (refused(format!("Pod {}: {what}: {why}", workload.name)), Vec::new());
        }
        // A connection that is not captured reaches the pod without a check by the node's daemon.
        if (is_tunnel || unenforced.is_none())
            && let Err(reason) = self.admitted(workload, source_ip)
        {
            return (refused(reason), Vec::new());
        }
        if let Some(why) = unenforced {
            return (unjudged(why), vec![hints::enforce(workload, local, segment.address.port())]);
        }
        let connection = Connection {
            source: self.client.principal.clone().filter(|_| segment.expected().is_some()),
            source_ip,
            destination: segment.address,
        };
        self.judged(workload, &connection, traced)
    }

    /// Whether the destination's node accepts the connection for evaluation: the checks before policy.
    fn admitted(&self, workload: &Workload, source_ip: std::net::IpAddr) -> Result<(), String> {
        let segment = self.segment;
        let peer = PeerAddr::new((source_ip, ANY_PORT).into());
        match (&segment.hop, &self.client.principal) {
            (Some(Hop::Tunnel { to, .. }), Some(principal)) => {
                let host = segment.service.as_ref().map(|service| &*service.hostname);
                let authority = Authority::Address(segment.address);
                let (identity, name) = (principal.identity(), &workload.name);
                let found = target::target(self.sources.snapshot, *to, peer, identity, &authority, host, name);
                found.map(|_| ()).map_err(|error| error.to_string())
            }
            _ if segment.address.port() == HBONE_PORT => {
                Err(format!("port {HBONE_PORT} of Pod {} accepts HBONE only", workload.name))
            }
            _ => {
                let flow = Flow { direction: Direction::Inbound, peer, dst: OrigDst::new(segment.address) };
                let decided = decide::inbound(self.sources.snapshot, &flow, &workload.name);
                decided.map(|_| ()).map_err(|refusal| refusal.detail.unwrap_or_else(|| refusal.reason.to_string()))
            }
        }
    }

    fn judged(&self, workload: &Workload, connection: &Connection, traced: bool) -> (Judgement, Vec<String>) {
        let guard = self.sources.guard(workload);
        let denial = guard.judge(connection).err().map(|denied| denied.told(connection));
        let as_probe = denial.as_ref().is_some_and(|denial| is_probe(denial, workload, connection));
        if !traced {
            return (self.verdict_alone(denial.as_ref(), as_probe), Vec::new());
        }
        let sight = judgement::look(self.sources, workload, connection);
        let verdict = if denial.is_none() || as_probe { Verdict::Allowed } else { Verdict::Denied };
        let reason = match (&denial, as_probe) {
            (Some(denial), true) => format!(
                "allowed as a probe of the kubelet, if the client is a process of node {}; without this exception: \
                 {denial}",
                workload.node.as_deref().unwrap_or("(unnamed)")
            ),
            (Some(denial), false) => denial.to_string(),
            (None, _) => sight.what_allows(),
        };
        let case = Case {
            sources: self.sources,
            client: self.client,
            captured: self.captured,
            workload,
            connection,
            sight: &sight,
            denial: denial.as_ref(),
        };
        let hints = if as_probe { Vec::new() } else { hints::of(&case) };
        let Sight { authentication, considered, elsewhere } = sight;
        let aside = considered.iter().filter(|one| !one.told.applies).count();
        let (applying, others): (Vec<_>, Vec<_>) =
            considered.into_iter().map(|one| one.told).partition(|one| one.applies);
        let judgement = Judgement {
            verdict,
            reason,
            unenforced: None,
            as_probe,
            authentication: Some(authentication),
            policies: applying.into_iter().chain(others.into_iter().take(MOST_INAPPLICABLE)).collect(),
            more_policies: aside.saturating_sub(MOST_INAPPLICABLE).saturating_add(elsewhere),
        };
        (judgement, hints)
    }

    /// The verdict of the data path without a trace of each policy, for large numbers of endpoints or policies.
    fn verdict_alone(&self, denial: Option<&Denial>, as_probe: bool) -> Judgement {
        let more_policies = self.sources.snapshot.policies().authorization().len();
        let reason = match (denial, as_probe) {
            (Some(denial), true) => format!("allowed as a probe of the kubelet; without this exception: {denial}"),
            (Some(denial), false) => denial.to_string(),
            (None, _) => "policy allows it; the policy is named for the first endpoints only".to_owned(),
        };
        let verdict = if denial.is_none() || as_probe { Verdict::Allowed } else { Verdict::Denied };
        Judgement { verdict, as_probe, more_policies, ..refused(reason) }
    }
}

/// The data path asks the kernel whether the client is a process of the node. Here only the address is known.
fn is_probe(denial: &Denial, workload: &Workload, connection: &Connection) -> bool {
    PodPolicies::admit_probe(denial).is_some() && workload.node_addresses.contains(&connection.source_ip)
}

fn unjudged(unenforced: String) -> Judgement {
    Judgement {
        verdict: Verdict::Allowed,
        reason: format!("NO POLICY IS ENFORCED: {unenforced}"),
        unenforced: Some(unenforced),
        ..refused(String::new())
    }
}

fn refused(reason: String) -> Judgement {
    Judgement {
        verdict: Verdict::Denied,
        reason,
        unenforced: None,
        as_probe: false,
        authentication: None::<Authentication>,
        policies: Vec::new(),
        more_policies: 0,
    }
}

/// Why an endpoint is not reached through HBONE.
pub(super) fn why_plaintext(segment: &RouteSegment, client: &Client<'_>, captured: &Result<(), String>) -> String {
    if let Err(why) = captured {
        return why.clone();
    }
    let Some(workload) = &segment.workload else {
        return format!("the mesh has no pod with the address {}", segment.address.ip());
    };
    if client.pod.is_some_and(|pod| pod.name == workload.name) {
        return format!("{} connects to itself", workload.title());
    }
    is_in_mesh(workload).err().unwrap_or_else(|| CloseReason::Recursive.to_string())
}
