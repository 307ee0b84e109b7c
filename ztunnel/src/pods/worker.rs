//! A data worker: one thread, one single-threaded runtime, and on it, for each pod, listeners, connections and table.
//!
//! A connection is accepted, copied and closed on one worker and never moves.

use std::{cell::Cell, collections::HashMap, io, net::IpAddr, rc::Rc, sync::Arc, thread::JoinHandle, time::Duration};

use tokio::{
    runtime::Builder,
    sync::{Semaphore, mpsc, oneshot},
    task::LocalSet,
    time::timeout,
};
use tracing::{error, warn};

use crate::{
    flow::{
        PodContext,
        serve::serve,
        table::{Table, Upstreams, WorkerId},
    },
    lifecycle::{
        drain::{self, DrainTrigger, DrainWatch},
        tasks::{TaskCount, TaskSet},
    },
    metrics::traffic::Traffic,
    model::{
        close::CloseReason,
        flow::{Direction, Flow},
        workload::NamespacedName,
    },
    net::{copy::BufferPool, dial::Dialer, listen::Acceptor, netns::Netns, socket::Keepalive},
    store::publish::Reader,
};

/// What a worker is made of, the same for all.
#[derive(Clone)]
pub struct WorkerSettings {
    /// For accepted connections.
    pub keepalive: Keepalive,
    /// Bytes of a copy buffer.
    pub buffer_size: usize,
    /// Idle copy buffers that are kept.
    pub buffers_kept: usize,
    /// The mesh.
    pub mesh: Reader,
    /// Counters.
    pub traffic: Traffic,
    /// Tasks of the whole daemon.
    pub tasks: TaskCount,
}

/// A pod for one worker.
pub struct WorkerPod {
    /// The pod.
    pub name: NamespacedName,
    /// The cookie of its network namespace.
    pub cookie: u64,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// This worker's listeners in it.
    pub listeners: Listeners,
    /// Connects from within it.
    pub dialer: Dialer,
    /// Shared by the pod's workers.
    pub upstreams: Upstreams,
    /// Connections that the pod may have open, shared by its workers.
    pub open: OpenLimit,
}

/// How many connections may be open: each direction by itself, so that strangers can't take the pod's own away.
#[derive(Clone, Debug)]
pub struct OpenLimit {
    outbound: Arc<Semaphore>,
    inbound: Arc<Semaphore>,
}

impl OpenLimit {
    /// So many in each direction.
    #[must_use]
    pub fn new(connections: usize) -> Self {
        let limit = || Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS)));
        Self { outbound: limit(), inbound: limit() }
    }

    fn of(&self, direction: Direction) -> Arc<Semaphore> {
        match direction {
            Direction::Outbound => Arc::clone(&self.outbound),
            Direction::Inbound => Arc::clone(&self.inbound),
        }
    }
}

/// Listeners of one worker in a pod.
pub type Listeners = Vec<(Direction, std::net::TcpListener)>;

enum Command {
    Add(Box<WorkerPod>, oneshot::Sender<io::Result<()>>),
    Listen(u64, Listeners, oneshot::Sender<io::Result<()>>),
    Remove(u64, oneshot::Sender<()>),
    Flows(oneshot::Sender<Vec<(u64, Vec<Flow>)>>),
    Drain(Duration, oneshot::Sender<()>),
}

/// The narrow handle of a worker. Dropping it ends the worker, and its connections with resets.
pub struct WorkerHandle {
    commands: Option<mpsc::UnboundedSender<Command>>,
    thread: Option<JoinHandle<()>>,
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
        Ok(Self { commands: Some(commands), thread: Some(thread) })
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
    /// When they can't be used.
    pub async fn listen(&self, cookie: u64, listeners: Listeners) -> io::Result<()> {
        let answer = self.ask(|reply| Command::Listen(cookie, listeners, reply)).await;
        answer.unwrap_or_else(|| Err(io::ErrorKind::BrokenPipe.into()))
    }

    /// Whether the worker has ended, which it does by itself only when it panics.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Takes a pod from the worker; its connections are reset when this returns.
    pub async fn remove(&self, cookie: u64) {
        self.ask(|reply| Command::Remove(cookie, reply)).await;
    }

    /// The live connections, by cookie.
    pub async fn flows(&self) -> Vec<(u64, Vec<Flow>)> {
        self.ask(Command::Flows).await.unwrap_or_default()
    }

    /// Accepts nothing more, waits for the connections to end, and resets those that outlive the deadline.
    pub async fn drain(&self, deadline: Duration) {
        self.ask(|reply| Command::Drain(deadline, reply)).await;
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.as_ref()?.send(command(reply)).ok()?;
        answer.await.ok()
    }
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        drop(self.commands.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("a data worker panicked: this is a bug, please report it with the lines before");
        }
    }
}

/// How long removed connections may take to close; closing waits for nothing outside this thread.
const REMOVAL: Duration = Duration::from_secs(2);

struct Worker {
    id: WorkerId,
    settings: WorkerSettings,
    buffers: BufferPool,
    pods: HashMap<u64, Served>,
}

/// A pod on this worker. Dropping it ends its listeners first, then its connections.
struct Served {
    context: Rc<PodContext>,
    accepting: TaskSet,
    drain: (DrainTrigger, DrainWatch),
    alive: TaskCount,
    open: OpenLimit,
}

impl Worker {
    fn new(id: WorkerId, settings: WorkerSettings) -> Self {
        let buffers = BufferPool::new(settings.buffer_size, settings.buffers_kept);
        Self { id, settings, buffers, pods: HashMap::new() }
    }

    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Command>) {
        while let Some(command) = inbox.recv().await {
            // Whoever asked may have gone away meanwhile; then nobody wants the answer.
            match command {
                Command::Add(pod, reply) => drop(reply.send(self.add(*pod))),
                Command::Listen(cookie, listeners, reply) => drop(reply.send(self.listen(cookie, listeners))),
                Command::Remove(cookie, reply) => {
                    self.remove(cookie, CloseReason::Released).await;
                    let _asker_gone = reply.send(());
                }
                Command::Flows(reply) => {
                    let flows = self.pods.iter().map(|(cookie, pod)| (*cookie, pod.context.table.flows()));
                    drop(reply.send(flows.collect()));
                }
                Command::Drain(deadline, reply) => {
                    if !self.drain(deadline, &mut inbox).await {
                        return;
                    }
                    let _asker_gone = reply.send(());
                }
            }
        }
    }

    fn add(&mut self, pod: WorkerPod) -> io::Result<()> {
        let alive = self.settings.tasks.child();
        let context = Rc::new(PodContext {
            name: pod.name,
            addresses: pod.addresses,
            dialer: pod.dialer,
            mesh: self.settings.mesh.clone(),
            table: Table::new(self.id),
            upstreams: pod.upstreams,
            buffers: self.buffers.clone(),
            traffic: self.settings.traffic.clone(),
            keepalive: self.settings.keepalive,
            ending: Cell::new(CloseReason::Released),
        });
        let accepting = TaskSet::new(alive.clone());
        self.pods.insert(pod.cookie, Served { context, accepting, drain: drain::channel(), alive, open: pod.open });
        self.listen(pod.cookie, pod.listeners)
    }

    fn listen(&mut self, cookie: u64, listeners: Listeners) -> io::Result<()> {
        let served = self.pods.get_mut(&cookie).ok_or(io::ErrorKind::NotFound)?;
        for (direction, listener) in listeners {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let acceptor = Acceptor::new(listener, served.open.of(direction));
            let (context, watch) = (Rc::clone(&served.context), served.drain.1.clone());
            served.accepting.spawn_local(accept(acceptor, direction, context, watch, served.alive.clone()));
        }
        Ok(())
    }

    async fn remove(&mut self, cookie: u64, reason: CloseReason) {
        let Some(mut served) = self.pods.remove(&cookie) else { return };
        served.context.ending.set(reason);
        served.accepting.abort_all().await;
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

    /// Whether the handle is still there at the end: without it there is nobody to wait for.
    async fn drain(&mut self, deadline: Duration, inbox: &mut mpsc::UnboundedReceiver<Command>) -> bool {
        for served in self.pods.values() {
            served.drain.0.start();
        }
        let ended = async {
            for served in self.pods.values_mut() {
                served.accepting.join_all().await;
            }
        };
        tokio::select! {
            ended = timeout(deadline, ended) => if ended.is_ok() {
                return true;
            },
            // Whatever is asked now goes without an answer.
            () = async { while inbox.recv().await.is_some() {} } => return false,
        }
        let cookies: Vec<_> = self.pods.keys().copied().collect();
        for cookie in cookies {
            self.remove(cookie, CloseReason::Drained).await;
        }
        true
    }
}

/// Serves one listener. On drain the listener is closed, and the task ends with its last connection.
async fn accept(
    mut acceptor: Acceptor,
    direction: Direction,
    pod: Rc<PodContext>,
    mut drain: DrainWatch,
    alive: TaskCount,
) {
    let mut flows = TaskSet::new(alive);
    loop {
        tokio::select! {
            accepted = acceptor.next() => flows.spawn_local(serve(Rc::clone(&pod), direction, accepted)),
            () = flows.reap_next(), if !flows.is_empty() => {}
            () = drain.started() => break,
        }
    }
    drop(acceptor);
    flows.join_all().await;
}
