//! Services whose own address is not in any manifest: aliases in DNS, and manifests that no cluster has filled in yet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::client::Client;
use super::explanation::{Destination, Explanation, Route, Verdict};
use super::query::{Meant, Port, Query, QueryError, To};
use super::remarks;
use super::sources::Sources;
use crate::model::addr::OrigDst;
use crate::model::service::{Addressing, Service};
use crate::route::survey;
use crate::store::change::{Batch, Change};

/// A placeholder for an unknown address. It is reserved for documentation (RFC 5737, RFC 3849), so no object has it.
const ANY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 253));
const ANY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xfd));

/// The function that explains a connection to the replacement of the service.
type Explain = fn(Sources<'_>, &Query) -> Result<Explanation, QueryError>;

/// The explanation of a connection to a service of this kind. `None`: the service is of another kind.
pub(super) fn explain(
    sources: Sources<'_>,
    query: &Query,
    client: &Client<'_>,
    service: &Arc<Service>,
    port: u16,
    explain: Explain,
) -> Option<Result<Explanation, QueryError>> {
    match &service.addressing {
        Addressing::Alias(target) => Some(alias(sources, query, client, (service, target), port, explain)),
        Addressing::Unknown if service.vips.is_empty() => Some(unknown(sources, query, service, port, explain)),
        Addressing::Unknown | Addressing::Given | Addressing::Headless => None,
    }
}

/// The destination of an alias: a service of the mesh, or the address that the client's resolver finds.
fn alias(
    sources: Sources<'_>,
    query: &Query,
    client: &Client<'_>,
    (service, target): (&Service, &Arc<str>),
    port: u16,
    explain: Explain,
) -> Result<Explanation, QueryError> {
    let note = format!(
        "Service {} is an alias in DNS: its clients connect to {target}, and no policy or route that names the Service applies",
        service.name
    );
    let of_target = Query { from: query.from.clone(), to: To::Host(target.to_string()), port: Port::Number(port) };
    let is_of_mesh = of_target.meant(sources.snapshot, client.namespace());
    // Aliases of aliases may form a loop.
    let is_alias = |found: &Service| matches!(found.addressing, Addressing::Alias(_));
    let leads_on = matches!(&is_of_mesh, Ok(Meant::Service(found)) if is_alias(found));
    if is_of_mesh.is_ok() && !leads_on {
        let mut explanation = explain(sources, &of_target)?;
        explanation.notes.insert(0, note);
        return Ok(explanation);
    }
    let address = if client.address_towards(ANY_V4).is_some() { ANY_V4 } else { ANY_V6 };
    let captured = client.capture(address, port);
    let dst = OrigDst::new((address, port).into());
    let refusal = match (client.pod, &client.principal) {
        (Some(pod), _) if captured.is_ok() => survey::of_pod(sources.snapshot, pod, dst).refusal,
        (None, Some(principal)) if captured.is_ok() => {
            survey::of_identity(sources.snapshot, principal.identity(), dst).refusal
        }
        _ => None,
    };
    let refusal = client.closed().or_else(|| refusal.map(|refusal| super::journey::told(&refusal)));
    let (verdict, reason) = match &refusal {
        Some(refusal) => (Verdict::Failed, refusal.text.clone()),
        None => (
            Verdict::Allowed,
            format!(
                "NO POLICY IS ENFORCED: it is passed on, in plaintext, to the address to which the client's resolver \
                 resolves {target}"
            ),
        ),
    };
    let text = match &captured {
        Ok(()) => format!("captured, and passed on to an address of {target}"),
        Err(why) => format!("NOT CAPTURED at the client: {why}"),
    };
    let would_change = match (&refusal, &client.state) {
        (Some(_), _) if sources.snapshot.is_registry_only() => {
            vec![format!("add a ServiceEntry for host {target}, with port {port} and its addresses")]
        }
        _ => Vec::new(),
    };
    let mut explanation = Explanation {
        verdict,
        reason,
        from: client.told(query, &captured),
        to: Destination {
            asked: super::journey::asked(&query.to),
            pod: None,
            service: Some(service.name.to_string()),
            address: None,
            port,
        },
        route: Route { text, service: None, refusal },
        endpoints: Vec::new(),
        would_change,
        notes: client.notes.iter().cloned().chain([note]).collect(),
        warnings: Vec::new(),
        mesh_version: sources.snapshot.version(),
    };
    explanation
        .notes
        .push(format!("if {target} resolves to an address of a pod or a service of the mesh, give --to that address"));
    explanation.warnings = remarks::warnings(sources, &explanation);
    Ok(explanation)
}

/// Explains a service as if its address were known: the behaviour of a daemon that knows the address.
fn unknown(
    sources: Sources<'_>,
    query: &Query,
    service: &Arc<Service>,
    port: u16,
    explain: Explain,
) -> Result<Explanation, QueryError> {
    let families = service.families;
    let vips = [(families.v4, ANY_V4), (families.v6, ANY_V6)];
    let vips = vips.into_iter().filter_map(|(has, address)| has.then_some(address)).collect();
    let imagined = Service { vips, addressing: Addressing::Given, ..Service::clone(service) };
    let mesh = sources.snapshot.apply(Batch::of(vec![Change::Service(Arc::new(imagined))]));
    let of_service =
        Query { from: query.from.clone(), to: To::Service(service.name.clone()), port: Port::Number(port) };
    let mut explanation = explain(Sources { snapshot: &mesh, ..sources }, &of_service)?;
    explanation.to.asked = super::journey::asked(&query.to);
    explanation.to.address = None;
    explanation.mesh_version = sources.snapshot.version();
    // The address of the other family is a placeholder as well.
    explanation.notes.retain(|note| !note.contains("has other addresses"));
    explanation.notes.insert(
        0,
        format!(
            "Service {} has no clusterIP in its manifest, so its address is not known here. This answer assumes that the daemon knows \
             the address. A daemon that reads this manifest does not, and passes connections to the address on in plaintext",
            service.name
        ),
    );
    Ok(explanation)
}
