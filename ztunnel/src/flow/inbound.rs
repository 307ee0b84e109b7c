//! An HBONE connection to the pod: TLS, HTTP/2, and for each stream a connection to the pod's application.

use std::{cell::RefCell, future::Future, rc::Rc, sync::Arc, time::Duration};

use futures_util::future::LocalBoxFuture;
use http::StatusCode;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tracing::debug;

use super::{
    FlowRefusal, PodContext,
    admission::Evicted,
    deliver::{self, Delivered},
    enforcement::Enforcement,
    established::{Established, TunnelEnds},
    in_two_parts,
    judge::judge,
    limits::{self, Admitted},
    record::{Facts, Recorded},
    reset_on_drop::ResetOnDrop,
    table::DeliveryEntry,
    tunnel::distrusted,
};
use crate::{
    hbone::{
        Settings, Windows,
        server::{self, End, Incoming},
    },
    lifecycle::{
        drain::{self, DrainWatch},
        poll_when_woken,
        tasks::TaskSet,
    },
    model::{
        addr::{OrigDst, PeerAddr},
        cause::causes,
        close::CloseReason,
        flow::{Direction, Flow},
        workload::Workload,
    },
    net::{
        buffer::BufferPool,
        copy::Side,
        listen::Accepted,
        memory::{Account, Claim},
        open::OpenPermit,
        packed::Packed,
        socket,
    },
    policy::{Connection, Principal},
    route::target,
    tls::{AcceptError, Endpoint, Peer, TlsStream},
    wire::{
        self,
        baggage::Baggage,
        connect::{ConnectRequest, ConnectResponse},
    },
};

/// How long a peer may take to close its side after this side has closed.
const SEE_OFF: Duration = Duration::from_secs(5);

/// A change of certificates, or a handover to another daemon, closes an HBONE connection only when the connection is this old. So the
/// stream for which it was made can be opened.
const FIRST_WORDS: Duration = Duration::from_secs(1);

/// This side does not wait for the close of a peer that has sent nothing for this long.
const SILENT: Duration = Duration::from_secs(1);

/// Serves an HBONE connection until its end. A peer that proves no identity gets a TLS alert, and no HTTP/2.
pub async fn serve(pod: Rc<PodContext>, accepted: Accepted, mut drain: DrainWatch) {
    let Accepted { stream, peer, dst, place: socket } = accepted;
    let Admitted { mut place, memory, windows } = match limits::hbone_connection(&pod, peer) {
        Ok(admitted) => admitted,
        Err(refused) => {
            pod.meter.traffic().handshake_failed(Direction::Inbound, refused.label());
            return pod.failures.tell(peer, dst, CloseReason::TooMany, &refused.to_string());
        }
    };
    pod.open.fit(&stream);
    let begun = Instant::now();
    let shaken = tokio::select! {
        shaken = shake_hands(&pod.tls, stream, &pod.buffers) => shaken.map_err(|error| (error.label(), causes(&error))),
        evicted = place.evicted() => Err((Evicted::LABEL, evicted.to_string())),
        // The peer has requested nothing yet, and would get a GOAWAY at once.
        () = drain.closing() => return debug!(src.addr = %peer, "a TLS handshake was ended, because the daemon is \
            stopping"),
    };
    let kept = |shaken| place.ready().map(|()| shaken).map_err(|evicted| (Evicted::LABEL, evicted.to_string()));
    let (mut io, identity) = match shaken.and_then(kept) {
        Ok(shaken) => shaken,
        Err((label, error)) => {
            pod.meter.traffic().handshake_failed(Direction::Inbound, label);
            return pod.failures.tell(peer, dst, CloseReason::TlsFailed, &error);
        }
    };
    pod.meter.traffic().handshake(Direction::Inbound, begun.elapsed());
    let _open = pod.meter.traffic().tunnel(Direction::Inbound);
    let link = Rc::new(Link { peer, local: dst, principal: Principal::new(identity.identity.clone()), memory });
    let streams = RefCell::new(TaskSet::new(pod.tasks.clone()));
    let spoken = speak(&mut io, (&pod.tls, &identity), (&pod.hbone, windows), drain, |incoming| {
        streams.borrow_mut().spawn_local(serve_stream(Rc::clone(&pod), Rc::clone(&link), incoming));
    });
    let end = tokio::select! {
        end = spoken => Some(end),
        () = pod.lost(dst.ip()) => None,
    };
    if matches!(end, Some(End::Cut(_)) | None) {
        // Bytes that wait to be sent are discarded.
        socket::reset_on_close(io.get_ref());
    }
    drop(io);
    if let Some((end, abuse)) = end.as_ref().and_then(|end| Some((end, end.abuse()?))) {
        pod.meter.traffic().abused(Direction::Inbound, abuse);
        pod.failures.tell(peer, dst, CloseReason::TooMany, &end.to_string());
    }
    let end = end.map_or_else(|| CloseReason::AddressRemoved.to_string(), |end| end.to_string());
    debug!(src.addr = %peer, src.identity = %link.principal.identity(), end, "a tunnel ended");
    // The streams end with the connection, which is gone.
    streams.into_inner().join_all().await;
    drop((place, socket));
}

/// Authenticates the peer. Sockets of the listener are closed with a reset, which is right until the end of the handshake.
/// Later a reset would discard the last bytes of the HBONE connection that are still on their way. TLS distinguishes a regular
/// end from a loss without the reset.
pub(super) async fn shake_hands(
    tls: &Endpoint,
    stream: TcpStream,
    buffers: &BufferPool,
) -> Result<(TlsStream<TcpStream>, Peer), AcceptError> {
    let (io, peer) = tls.accept(stream, buffers).await?;
    socket::finish_on_close(io.get_ref());
    Ok((io, peer))
}

/// Serves HTTP/2 until the HBONE connection ends, and then waits for the peer's close. If the peer is not trusted any more, the
/// connection ends at once.
pub(super) async fn speak<S>(
    io: &mut TlsStream<S>,
    (tls, peer): (&Endpoint, &Peer),
    settings: (&Settings, Windows),
    drain: DrainWatch,
    on_request: impl FnMut(Incoming),
) -> End
where
    S: AsyncRead + Packed + Unpin,
{
    let (trigger, stop) = drain::channel();
    let activity = io.activity();
    let end = {
        let served = server::serve(&mut *io, activity.clone(), settings, stop, distrusted(tls, peer), on_request);
        tokio::pin!(served);
        tokio::select! {
            end = &mut served => end,
            () = poll_when_woken(until_stopped(drain, tls, peer)) => {
                trigger.start();
                served.await
            }
        }
    };
    let in_order =
        matches!(end, End::Drained | End::Idle | End::Stalled | End::Outgrown | End::Unused | End::PeerClosed);
    // A peer that did not react to the GOAWAY will not react to the FIN either.
    if in_order && activity.last().elapsed() < SILENT {
        see_off(io).await;
    }
    end
}

/// Reads until the peer has closed as well, and discards the bytes. A close with unread bytes would reset the connection, and
/// the peer would lose the bytes that have not arrived.
async fn see_off(io: &mut (impl AsyncRead + Unpin)) {
    let mut rest = [0; 512];
    let ended = async { while matches!(io.read(&mut rest).await, Ok(1..)) {} };
    let _too_late = timeout(SEE_OFF, ended).await;
}

/// Waits for the drain or a handover, or until the peer's certificate or the pod's own should not be used for new streams any more.
async fn until_stopped(drain: DrainWatch, tls: &Endpoint, peer: &Peer) {
    let (mut closing, mut started) = (drain.clone(), drain);
    let outdated = async {
        tokio::select! {
            () = tls.outdated(peer) => {}
            () = started.started() => {}
        }
    };
    tokio::select! {
        () = closing.closing() => {}
        _ = async { tokio::join!(outdated, sleep(FIRST_WORDS)) } => {}
    }
}

/// Both ends of an HBONE connection.
struct Link {
    peer: PeerAddr,
    local: OrigDst,
    principal: Principal,
    memory: Account,
}

/// The application of a stream, with the destination pod and the resources of the connection.
struct Opened {
    application: TcpStream,
    held: (DeliveryEntry, OpenPermit),
    destination: Option<Arc<Workload>>,
    enforcement: Enforcement,
    place: OpenPermit,
    memory: Claim,
}

fn serve_stream(pod: Rc<PodContext>, link: Rc<Link>, incoming: Incoming) -> impl Future<Output = ()> {
    in_two_parts(begin(pod, link, incoming))
}

async fn begin(pod: Rc<PodContext>, link: Rc<Link>, incoming: Incoming) -> Option<LocalBoxFuture<'static, ()>> {
    let Incoming { request, mut responder } = incoming;
    let flow = Flow { direction: Direction::Inbound, peer: link.peer, dst: link.local };
    let mut record = Recorded::open(Rc::clone(&pod), flow);
    let live = Rc::clone(record.live());
    let opened = match &request {
        Ok(request) => tokio::select! {
            opened = open(&pod, &flow, &link, request, &mut record) => opened,
            // The peer has reset the stream.
            _gone = responder.gone() => {
                record.end(CloseReason::ClientReset, None);
                return None;
            }
            reason = live.until_cut() => {
                let refusal = FlowRefusal::from(reason);
                Err((refusal.status(), refusal))
            }
        },
        Err(error) => {
            let refusal = FlowRefusal::new(error.reason(), error.to_string());
            Err((error.status(), refusal))
        }
    };
    let Opened { application, held, destination, enforcement, place, memory } = match opened {
        Ok(opened) => opened,
        Err((status, refusal)) => {
            pod.meter.traffic().refused(refusal.reason);
            let told = wire::refusal::HboneRefusal::new(refusal.reason, refusal.detail.clone().unwrap_or_default());
            // A peer that is gone needs no answer.
            let _peer_gone = responder.refuse(&ConnectResponse::refused(status, told));
            record.end(refusal.reason, refusal.detail);
            return None;
        }
    };
    let application = ResetOnDrop::new(application);
    let about = destination.as_deref().map(|workload| Baggage::of(workload, &pod.cluster));
    match responder.accept(&ConnectResponse::ok(about)) {
        Ok(mut tunnel) => {
            tunnel.hold(memory);
            record.connected();
            let ends = TunnelEnds { application, tunnel, tunnel_side: Side::Client };
            Some(Box::pin(Established { ends, held, enforcement: Some(enforcement), record, place }.copy()))
        }
        Err(error) => {
            drop((application, held));
            record.end(CloseReason::ClientReset, Some(error.to_string()));
            None
        }
    }
}

async fn open(
    pod: &PodContext,
    flow: &Flow,
    link: &Link,
    request: &ConnectRequest,
    record: &mut Recorded,
) -> Result<Opened, (StatusCode, FlowRefusal)> {
    let host = request.forwarded.as_ref().and_then(|forwarded| forwarded.host.as_deref());
    let facts = Facts {
        source_identity: Some(link.principal.identity().clone()),
        destination_identity: Some(pod.tls.identity().clone()),
        hbone_addr: Some(request.authority.to_string()),
        ..Facts::of(flow)
    };
    record.asked(facts.clone());
    let found = target::target(
        &pod.mesh.load(),
        link.local.socket(),
        link.peer,
        link.principal.identity(),
        &request.authority,
        host,
        &pod.name,
    );
    let target = found.map_err(|error| (error.status(), FlowRefusal::new(error.reason(), error.to_string())))?;
    record.facts(Facts {
        source: target.source,
        destination: target.destination.clone(),
        service: target.service,
        // As in Istio's log: the address of the HBONE connection, and the destination that the peer requested.
        dst_addr: link.local.socket(),
        hbone_addr: Some(target.to.to_string()),
        ..facts
    });
    let connection =
        Connection { source: Some(link.principal.clone()), source_ip: link.peer.ip(), destination: target.to };
    let mut enforcement = pod.enforcement_point.enter(connection);
    let permit = judge(pod, flow, &enforcement).map_err(|refusal| (refusal.status(), refusal))?;
    record.live().permit(permit.basis());
    let unavailable = |refusal| (StatusCode::SERVICE_UNAVAILABLE, refusal);
    let (place, memory) = limits::stream(pod, &link.memory).map_err(unavailable)?;
    let Delivered { application, held } = tokio::select! {
        opened = deliver::to_application(pod, &permit, link.peer.ip(), target.to) => opened.map_err(unavailable)?,
        denial = enforcement.stopped() => {
            let refusal = FlowRefusal::of_change(&denial);
            return Err((refusal.status(), refusal));
        }
    };
    Ok(Opened { application, held, destination: target.destination, enforcement, place, memory })
}
