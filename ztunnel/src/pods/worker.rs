//! A data worker: one thread with a single-threaded runtime. For each pod, it has listeners, connections and a table.
//!
//! A connection is accepted, copied and closed on one worker and never moves. HBONE connections are distributed over
//! the workers before they are served ([`dispatch`]).

use std::{
    cell::Cell,
    collections::HashMap,
    io,
    net::IpAddr,
    os::fd::AsFd as _,
    rc::Rc,
    sync::{Arc, Weak},
    thread::JoinHandle,
    time::Duration,
};

use ebpf_common::Purpose;
use tokio::{
    runtime::Builder,
    sync::{mpsc, oneshot},
    task::LocalSet,
    time::{Instant, timeout, timeout_at},
};
use tracing::{error, warn};

use super::{
    describe::ConnectionInfo,
    dispatch::{self, Inbox, WorkerDispatch},
    syns::{self, SynDispatch, SynInbox},
};
use crate::{
    flow::{
        PodContext,
        admission::Admission,
        context::Addresses,
        enforcement::EnforcementPoint,
        events::Events,
        failures::{Failures, NodeLines},
        held::HeldConnects,
        inbound, outbound, plaintext,
        table::{Table, Upstreams, WorkerId},
        tunnel::{self, TunnelDialer},
    },
    hbone::{self, pool::Pool},
    lifecycle::{
        drain::{self, DrainTrigger, DrainWatch},
        tasks::{TaskCount, TaskSet},
    },
    metrics::traffic::{Meter, Traffic},
    model::{close::CloseReason, flow::Direction, workload::NamespacedName},
    net::{
        buffer::BufferPool,
        dial::Dialer,
        listen::{Acceptor, Deaf, Waits},
        memory::Account,
        netns::Netns,
        node::NodeConnections,
        open::OpenLimit,
        socket,
        syn::SynSource,
    },
    store::{publish::Reader, snapshot::Snapshot},
    tls,
};

/// The settings of all workers.
#[derive(Clone)]
pub struct WorkerSettings {
    /// Bytes of a copy buffer.
    pub buffer_size: usize,
    /// Idle copy buffers that are kept.
    pub buffers_kept: usize,
    /// HTTP/2 settings of the HBONE connections.
    pub hbone: hbone::Settings,
    /// The cluster's name, for telemetry.
    pub cluster: Arc<str>,
    /// The mesh.
    pub mesh: Reader,
    /// Distinguishes the kubelet from other clients, if the kernel supports that.
    pub node: Option<Arc<dyn NodeConnections>>,
    /// Counters.
    pub traffic: Traffic,
    /// Tasks of the whole daemon.
    pub tasks: TaskCount,
    /// The number of log lines about failed connections, for all pods.
    pub lines: NodeLines,
    /// Readers of connection events.
    pub events: Events,
}

/// The parts of a pod for one worker.
pub struct WorkerPod {
    /// The pod.
    pub name: NamespacedName,
    /// The cookie of its network namespace.
    pub cookie: u64,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// This worker's listeners in it.
    pub listeners: Listeners,
    /// Passes HBONE connections to the pod on to its other workers.
    pub dispatch: WorkerDispatch,
    /// HBONE connections from the other workers.
    pub inbox: Inbox,
    /// Passes the pod's connects that are held to its workers.
    pub syn_dispatch: SynDispatch,
    /// The connects for this worker.
    pub syn_inbox: SynInbox,
    /// Makes connections from within the pod's network namespace.
    pub dialer: Dialer,
    /// The local ports of the pod's upstream connections, shared by its workers.
    pub upstreams: Upstreams,
    /// Connections that the pod may have open, shared by its workers.
    pub open: OpenLimit,
    /// Set when somebody else closes a listener of the pod.
    pub deaf: Deaf,
    /// The pod's part of the daemon's memory, shared by its workers.
    pub memory: Account,
    /// Admission of HBONE connections to the pod, shared by its workers.
    pub admission: Admission,
    /// Decides who may connect to the pod, for all of its workers.
    pub enforcement_point: EnforcementPoint,
    /// The pod's side of TLS.
    pub tls: tls::Endpoint,
}

/// Listeners of one worker in a pod.
pub type Listeners = Vec<(Purpose, std::net::TcpListener)>;

/// The open connections of a pod on one worker.
#[derive(Clone, Debug, Default)]
pub struct Connections {
    /// Connections of applications.
    pub live: Vec<ConnectionInfo>,
    /// HBONE connections that the pod has made.
    pub tunnels: usize,
}

enum Command {
    Add(Box<WorkerPod>, oneshot::Sender<io::Result<()>>),
    Listen(u64, Listeners, oneshot::Sender<io::Result<()>>),
    Hold(u64, Option<Box<dyn SynSource>>, oneshot::Sender<()>),
    Readdress(u64, Vec<IpAddr>, oneshot::Sender<()>),
    Remove(u64, oneshot::Sender<()>),
    Connections(oneshot::Sender<Vec<(u64, Connections)>>),
    Count(oneshot::Sender<()>),
    Load(oneshot::Sender<Load>),
    Listeners(oneshot::Sender<Vec<(u64, Purpose, std::net::TcpListener)>>),
    HandOver(oneshot::Sender<()>),
    Drain(Duration, oneshot::Sender<()>),
}

/// The load of a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Live connections of applications.
    pub connections: usize,
    /// Listeners at which connections wait to be accepted.
    pub waiting: usize,
}

/// A drain that has begun.
struct Draining {
    deadline: Instant,
    done: oneshot::Sender<()>,
}

/// The handle of a worker. When it is dropped, the worker ends and resets its connections.
pub struct WorkerHandle {
    commands: Option<mpsc::UnboundedSender<Command>>,
    running: Running,
}

/// The thread or task in which a worker runs.
enum Running {
    /// On a thread of its own. `None`: the thread has been joined.
    Thread(Option<JoinHandle<()>>),
    /// On the thread of the test that uses it, so that both have the same clock.
    #[cfg(test)]
    Beside(TaskSet),
}

impl WorkerHandle {
    /// Starts a worker.
    ///
    /// # Errors
    /// When the thread or its runtime can't be made.
    pub fn start(id: WorkerId, settings: WorkerSettings) -> io::Result<Self> {
        let (commands, inbox) = mpsc::unbounded_channel();
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        let thread = std::thread::Builder::new().name(format!("ztunnel-data-{}", id.index)).spawn(move || {
            if let Err(error) = Netns::anchor_thread() {
                error!(%error, "a data worker cannot open its network namespace");
            }
            let local = LocalSet::new();
            local.block_on(&runtime, Worker::new(id, settings).run(inbox));
        })?;
        Ok(Self { commands: Some(commands), running: Running::Thread(Some(thread)) })
    }

    /// Starts a worker on this thread; only within a `LocalSet`.
    #[cfg(test)]
    pub(super) fn beside(id: WorkerId, settings: WorkerSettings) -> Self {
        let (commands, inbox) = mpsc::unbounded_channel();
        let mut tasks = TaskSet::new(settings.tasks.clone());
        tasks.spawn_local(Worker::new(id, settings).run(inbox));
        Self { commands: Some(commands), running: Running::Beside(tasks) }
    }

    /// Gives the worker a pod.
    ///
    /// # Errors
    /// When its listeners can't be used.
    pub async fn add(&self, pod: WorkerPod) -> io::Result<()> {
        self.ask(|reply| Command::Add(Box::new(pod), reply))
            .await
            .unwrap_or_else(|| Err(io::ErrorKind::BrokenPipe.into()))
    }

    /// Gives the worker more listeners in a pod that it has.
    ///
    /// # Errors
    /// When the listeners can't be used.
    pub async fn listen(&self, cookie: u64, listeners: Listeners) -> io::Result<()> {
        let answer = self.ask(|reply| Command::Listen(cookie, listeners, reply)).await;
        answer.unwrap_or_else(|| Err(io::ErrorKind::BrokenPipe.into()))
    }

    /// Has the worker read the SYNs of a pod, for all workers, from this source in place of an earlier one. `None`: from none.
    pub async fn hold(&self, cookie: u64, source: Option<Box<dyn SynSource>>) {
        self.ask(|reply| Command::Hold(cookie, source, reply)).await;
    }

    /// Whether the worker has ended. It ends by itself only when it panics.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        match &self.running {
            Running::Thread(thread) => thread.as_ref().is_none_or(JoinHandle::is_finished),
            #[cfg(test)]
            Running::Beside(tasks) => tasks.is_empty(),
        }
    }

    /// Replaces the addresses of a pod. Connections of removed addresses end.
    pub async fn readdress(&self, cookie: u64, addresses: Vec<IpAddr>) {
        self.ask(|reply| Command::Readdress(cookie, addresses, reply)).await;
    }

    /// Removes a pod from the worker. Its connections have been reset when this returns.
    pub async fn remove(&self, cookie: u64) {
        self.ask(|reply| Command::Remove(cookie, reply)).await;
    }

    /// A handle by which the bytes of this worker's live connections are counted.
    #[must_use]
    pub fn carried(&self) -> ByteCount {
        ByteCount(self.commands.as_ref().map(mpsc::UnboundedSender::downgrade))
    }

    /// The live connections, by cookie. Their bytes have been counted when this returns.
    pub async fn connections(&self) -> Vec<(u64, Connections)> {
        self.ask(Command::Connections).await.unwrap_or_default()
    }

    /// The current load.
    pub async fn load(&self) -> Load {
        self.ask(Command::Load).await.unwrap_or_default()
    }

    /// Copies of all its open listeners, each with the cookie of its pod.
    pub async fn listeners(&self) -> Vec<(u64, Purpose, std::net::TcpListener)> {
        self.ask(Command::Listeners).await.unwrap_or_default()
    }

    /// Tells the peers of HBONE connections to open new streams elsewhere, because another process serves them now.
    /// Streams that are on their way are still accepted.
    pub async fn hand_over(&self) {
        self.ask(Command::HandOver).await;
    }

    /// Accepts no more connections, waits for the open ones to end, and resets those that are open at the deadline.
    /// Meanwhile the worker obeys other commands. The future does not borrow the handle.
    pub fn drain(&self, deadline: Duration) -> impl Future<Output = ()> + Send + use<> {
        let (reply, answer) = oneshot::channel();
        let sent = self.commands.as_ref().map(|commands| commands.send(Command::Drain(deadline, reply)));
        async move {
            if matches!(sent, Some(Ok(()))) {
                let _worker_ended = answer.await;
            }
        }
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.as_ref()?.send(command(reply)).ok()?;
        answer.await.ok()
    }
}

/// Has a worker count the bytes of its live connections in the metrics. Does not keep the worker alive.
#[derive(Clone, Debug)]
pub struct ByteCount(Option<mpsc::WeakUnboundedSender<Command>>);

impl ByteCount {
    /// Returns when the bytes are counted, or when the worker has ended.
    pub async fn count(&self) {
        let (reply, answer) = oneshot::channel();
        let Some(commands) = self.0.as_ref().and_then(mpsc::WeakUnboundedSender::upgrade) else { return };
        let sent = commands.send(Command::Count(reply)).is_ok();
        // The worker ends with the last sender.
        drop(commands);
        if sent {
            let _worker_ended = answer.await;
        }
    }
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        drop(self.commands.take());
        if let Running::Thread(thread) = &mut self.running
            && let Some(thread) = thread.take()
            && thread.join().is_err()
        {
            error!("a data worker panicked: this is a bug, please report it with the log lines before this one");
        }
    }
}

/// How long removed connections may take to close. Closing waits for nothing outside this thread.
const REMOVAL: Duration = Duration::from_secs(2);

/// How long the peers of HBONE connections without streams may take to close them.
const GOODBYE: Duration = Duration::from_secs(2);

struct Worker {
    id: WorkerId,
    settings: WorkerSettings,
    buffers: BufferPool,
    meter: Meter,
    pods: HashMap<u64, Served>,
}

/// A pod on this worker. When it is dropped, its listeners end first, then its connections.
struct Served {
    context: Rc<PodContext>,
    accepting: TaskSet,
    drain: (DrainTrigger, DrainWatch),
    alive: TaskCount,
    open: OpenLimit,
    deaf: Deaf,
    dispatch: Rc<WorkerDispatch>,
    /// The connects that wait for their destinations.
    held: Rc<HeldConnects>,
    syn_dispatch: SynDispatch,
    /// Reads the SYNs of the pod, if this worker does.
    reading: Option<TaskSet>,
    /// The listeners that are not closed yet.
    listeners: Vec<(Purpose, Weak<tokio::net::TcpListener>)>,
}

impl Served {
    /// Counts the bytes of the live connections.
    fn count(&self) {
        self.context.table.live().iter().for_each(|live| live.flush());
    }

    /// Reads SYNs from this source in place of the one before. Connects that wait already are not affected.
    fn read_syns(&mut self, source: Option<Box<dyn SynSource>>) {
        self.reading = source.map(|source| {
            let mut reading = TaskSet::new(self.alive.clone());
            reading.spawn_local(syns::read(source, self.syn_dispatch.clone(), Rc::clone(&self.context)));
            reading
        });
    }

    fn listeners(&self) -> impl Iterator<Item = (Purpose, Arc<tokio::net::TcpListener>)> {
        self.listeners.iter().filter_map(|(purpose, listener)| Some((*purpose, listener.upgrade()?)))
    }

    fn connections(&self) -> Connections {
        // The bytes are counted first, because the caller reads the metrics as well.
        self.count();
        let live = self.context.table.live();
        Connections {
            live: live.iter().map(|live| ConnectionInfo::from(&**live)).collect(),
            tunnels: self.context.pool.stats().connections,
        }
    }
}

impl Worker {
    fn new(id: WorkerId, settings: WorkerSettings) -> Self {
        let buffers = BufferPool::new(settings.buffer_size, settings.buffers_kept);
        let meter = settings.traffic.meter();
        Self { id, settings, buffers, meter, pods: HashMap::new() }
    }

    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Command>) {
        let mut changes = self.settings.mesh.subscribe();
        let mut draining: Option<Draining> = None;
        loop {
            let deadline = draining.as_ref().map(|draining| draining.deadline);
            let command = tokio::select! {
                command = inbox.recv() => command,
                // Without a publisher the mesh does not change any more, and only commands can arrive.
                Some(mesh) = changes.changed() => {
                    self.follow(&mesh);
                    continue;
                }
                in_time = self.ended(deadline) => {
                    let goodbye = self.say_goodbye(in_time);
                    tokio::select! {
                        () = goodbye => {}
                        // Without the handle nobody waits for the drain. Commands that arrive now get no answer.
                        () = async { while inbox.recv().await.is_some() {} } => return,
                    }
                    if let Some(Draining { done, .. }) = draining.take() {
                        let _asker_gone = done.send(());
                    }
                    continue;
                }
            };
            let Some(command) = command else { return };
            if let Command::Drain(deadline, done) = command {
                self.pods.values().for_each(|served| served.drain.0.start());
                draining = Some(Draining { deadline: Instant::now() + deadline, done });
                continue;
            }
            self.obey(command).await;
        }
    }

    async fn obey(&mut self, command: Command) {
        // The caller may have gone away. Then the answer is dropped.
        match command {
            Command::Add(pod, reply) => drop(reply.send(self.add(*pod))),
            Command::Listen(cookie, listeners, reply) => drop(reply.send(self.listen(cookie, listeners))),
            Command::Hold(cookie, source, reply) => {
                if let Some(served) = self.pods.get_mut(&cookie) {
                    served.read_syns(source);
                }
                let _asker_gone = reply.send(());
            }
            Command::Readdress(cookie, addresses, reply) => {
                if let Some(served) = self.pods.get(&cookie) {
                    served.context.readdress(addresses);
                }
                let _asker_gone = reply.send(());
            }
            Command::Remove(cookie, reply) => {
                self.remove(cookie, CloseReason::Released).await;
                let _asker_gone = reply.send(());
            }
            Command::Connections(reply) => {
                let connections = self.pods.iter().map(|(cookie, pod)| (*cookie, pod.connections()));
                drop(reply.send(connections.collect()));
            }
            Command::Count(reply) => {
                self.pods.values().for_each(Served::count);
                let _asker_gone = reply.send(());
            }
            Command::Load(reply) => {
                let connections = self.pods.values().map(|pod| pod.context.table.live().len()).sum();
                let listeners = self.pods.values().flat_map(Served::listeners);
                let waiting = listeners.filter(|(_, listener)| socket::has_waiting(listener)).count();
                let _asker_gone = reply.send(Load { connections, waiting });
            }
            Command::Listeners(reply) => {
                let copies = self.pods.iter().flat_map(|(cookie, pod)| {
                    pod.listeners().filter_map(|(purpose, listener)| {
                        Some((*cookie, purpose, listener.as_fd().try_clone_to_owned().ok()?.into()))
                    })
                });
                drop(reply.send(copies.collect()));
            }
            Command::HandOver(reply) => {
                for served in self.pods.values() {
                    served.drain.0.hand_over();
                    served.held.leave_all();
                }
                let _asker_gone = reply.send(());
            }
            // The caller handles it, because it changes the loop of the worker.
            Command::Drain(..) => {}
        }
    }

    /// HBONE connections to workloads that are gone or changed get no new streams.
    fn follow(&self, mesh: &Snapshot) {
        for served in self.pods.values() {
            served.context.pool.retain(|key, identity| tunnel::still_leads(mesh, key, identity));
        }
    }

    fn add(&mut self, pod: WorkerPod) -> io::Result<()> {
        let alive = self.settings.tasks.child();
        let buffers = self.buffers.of(pod.memory.clone());
        let dialer = TunnelDialer {
            dialer: pod.dialer.clone(),
            tls: pod.tls.clone(),
            upstreams: pod.upstreams.clone(),
            buffers: buffers.clone(),
            memory: pod.memory.clone(),
            hbone: self.settings.hbone.clone(),
            traffic: self.settings.traffic.clone(),
        };
        let context = Rc::new(PodContext {
            name: pod.name,
            addresses: Addresses::new(pod.addresses),
            dialer: pod.dialer,
            tls: pod.tls,
            pool: Pool::new(dialer, self.settings.hbone.clone(), alive.clone()),
            hbone: self.settings.hbone.clone(),
            enforcement_point: pod.enforcement_point,
            node: self.settings.node.clone(),
            admission: pod.admission,
            open: pod.open.clone(),
            tasks: alive.clone(),
            mesh: self.settings.mesh.clone(),
            table: Table::new(self.id),
            upstreams: pod.upstreams,
            buffers,
            memory: pod.memory,
            cluster: Arc::clone(&self.settings.cluster),
            failures: Failures::new(self.settings.lines.clone(), Instant::now()),
            meter: self.meter.clone(),
            events: self.settings.events.clone(),
            ending: Cell::new(CloseReason::Released),
        });
        let mut accepting = TaskSet::new(alive.clone());
        let drain = drain::channel();
        accepting.spawn_local(receive(pod.inbox, Rc::clone(&context), drain.1.clone(), alive.clone()));
        let held = Rc::<HeldConnects>::default();
        let connects =
            syns::serve(pod.syn_inbox, Rc::clone(&context), Rc::clone(&held), drain.1.clone(), alive.clone());
        accepting.spawn_local(connects);
        let served = Served {
            context,
            accepting,
            drain,
            alive,
            open: pod.open,
            deaf: pod.deaf,
            dispatch: Rc::new(pod.dispatch),
            held,
            syn_dispatch: pod.syn_dispatch,
            reading: None,
            listeners: Vec::new(),
        };
        self.pods.insert(pod.cookie, served);
        self.listen(pod.cookie, pod.listeners)
    }

    fn listen(&mut self, cookie: u64, listeners: Listeners) -> io::Result<()> {
        let served = self.pods.get_mut(&cookie).ok_or(io::ErrorKind::NotFound)?;
        for (purpose, listener) in listeners {
            let listener = Arc::new(tokio::net::TcpListener::from_std(listener)?);
            served.listeners.retain(|(_, listener)| listener.strong_count() > 0);
            served.listeners.push((purpose, Arc::downgrade(&listener)));
            let sockets = Arc::clone(served.context.dialer.sockets());
            let waits = match purpose {
                Purpose::Outbound => Waits::ForAPlace(Direction::Outbound),
                Purpose::Inbound => Waits::ForAPlace(Direction::Inbound),
                // Admission limits HBONE connections, and their streams count as inbound connections.
                Purpose::Hbone => Waits::Never,
            };
            let acceptor = Acceptor::of_pod(listener, sockets, served.open.clone(), waits, served.deaf.clone());
            let (context, watch) = (Rc::clone(&served.context), served.drain.1.clone());
            let dispatch = (purpose == Purpose::Hbone).then(|| Rc::clone(&served.dispatch));
            let held = Rc::clone(&served.held);
            served.accepting.spawn_local(accept(
                acceptor,
                purpose,
                (context, held),
                dispatch,
                watch,
                served.alive.clone(),
            ));
        }
        Ok(())
    }

    async fn remove(&mut self, cookie: u64, reason: CloseReason) {
        let Some(mut served) = self.pods.remove(&cookie) else { return };
        served.context.ending.set(reason);
        served.reading = None;
        served.accepting.abort_all().await;
        served.context.pool.close();
        // The connections belong to the tasks that ended; they are dropped when this thread next polls them.
        let closed = async {
            while served.alive.alive() > 0 {
                tokio::task::yield_now().await;
            }
        };
        if timeout(REMOVAL, closed).await.is_err() {
            warn!(pod = %served.context.name, tasks = served.alive.alive(), "connections of a released pod did not close");
        }
    }

    /// Waits until the connections have ended. Returns whether they ended before the deadline. Without a deadline, it
    /// never completes.
    async fn ended(&mut self, deadline: Option<Instant>) -> bool {
        let Some(deadline) = deadline else { return std::future::pending().await };
        let ended = async {
            for served in self.pods.values_mut() {
                served.accepting.join_all().await;
            }
        };
        timeout_at(deadline, ended).await.is_ok()
    }

    /// Ends a drain. Connections that are still open are reset.
    async fn say_goodbye(&mut self, in_time: bool) {
        if in_time {
            // Data of the last streams may still wait for their HBONE connection. A peer that does not read delays the
            // end by [`GOODBYE`] at most.
            let goodbyes = self.pods.values().map(|served| served.context.pool.finish());
            let _too_late = timeout(GOODBYE, futures_util::future::join_all(goodbyes)).await;
            return;
        }
        let cookies: Vec<_> = self.pods.keys().copied().collect();
        for cookie in cookies {
            self.remove(cookie, CloseReason::Drained).await;
        }
    }
}

/// Serves one listener. On drain the listener is closed, and the task ends with its last connection.
async fn accept(
    mut acceptor: Acceptor,
    purpose: Purpose,
    (pod, held): (Rc<PodContext>, Rc<HeldConnects>),
    dispatch: Option<Rc<WorkerDispatch>>,
    mut drain: DrainWatch,
    alive: TaskCount,
) {
    let mut flows = TaskSet::new(alive);
    let stop = drain.clone();
    loop {
        tokio::select! {
            accepted = acceptor.next() => {
                let kept = match &dispatch {
                    Some(dispatch) => dispatch.pass(accepted),
                    None => Some(accepted),
                };
                let Some(accepted) = kept else { continue };
                let pod = Rc::clone(&pod);
                match purpose {
                    Purpose::Outbound => flows.spawn_local(outbound::serve(pod, Rc::clone(&held), accepted)),
                    Purpose::Inbound => flows.spawn_local(plaintext::serve(pod, accepted)),
                    Purpose::Hbone => flows.spawn_local(inbound::serve(pod, accepted, stop.clone())),
                }
            }
            () = flows.reap_next(), if !flows.is_empty() => {}
            () = drain.closing() => break,
        }
    }
    drop(acceptor);
    flows.join_all().await;
}

/// Serves the HBONE connections that other workers have accepted. On drain it accepts no more, and ends with the last
/// of them.
async fn receive(mut inbox: Inbox, pod: Rc<PodContext>, mut drain: DrainWatch, alive: TaskCount) {
    let mut flows = TaskSet::new(alive);
    let stop = drain.clone();
    loop {
        tokio::select! {
            Some(accepted) = inbox.recv() => {
                if let Some(accepted) = dispatch::receive(accepted) {
                    flows.spawn_local(inbound::serve(Rc::clone(&pod), accepted, stop.clone()));
                }
            }
            () = flows.reap_next(), if !flows.is_empty() => {}
            () = drain.closing() => break,
        }
    }
    // HBONE connections that still wait in the queue have no streams yet, and are reset.
    drop(inbox);
    flows.join_all().await;
}
