//! Tests of a pool with servers in memory.

use std::{
    cell::{Cell, RefCell},
    future::pending,
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use tokio::{
    io::DuplexStream,
    time::{Instant, sleep},
};

use super::{Connect, Connected, Key, OpenError, Opened, Pool, Stats};
use crate::{
    hbone::{
        Settings, Windows,
        server::End,
        stream::HboneStream,
        tests::{Served, Watched, buffers, finish, hear, hear_all, local, ok, say, serve, to},
    },
    identity::clock,
    lifecycle::tasks::{TaskCount, TaskSet},
    model::identity::SpiffeId,
    net::memory::Budget,
};

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("no route to host")]
struct NoRoute;

/// The result of a dial.
#[derive(Clone, Copy, Debug)]
enum Dial {
    /// A server, after this time.
    Serve(Duration),
    /// A failure, after this time.
    Fail(Duration),
    Never,
}

/// Servers that echo.
#[derive(Clone)]
struct Net(Rc<State>);

struct State {
    script: RefCell<Box<dyn FnMut(u32) -> Dial>>,
    dials: Cell<u32>,
    under_way: Cell<u32>,
    most_under_way: Cell<u32>,
    served: RefCell<Vec<Served>>,
    lifetime: Cell<Duration>,
    settings: RefCell<Settings>,
    answer: Cell<bool>,
    /// The budget of the clients' windows.
    memory: RefCell<Budget>,
}

impl Net {
    fn new(script: impl FnMut(u32) -> Dial + 'static) -> Self {
        Self(Rc::new(State {
            script: RefCell::new(Box::new(script)),
            dials: Cell::new(0),
            under_way: Cell::new(0),
            most_under_way: Cell::new(0),
            served: RefCell::default(),
            lifetime: Cell::new(Duration::from_secs(24 * 3600)),
            settings: RefCell::default(),
            answer: Cell::new(true),
            memory: RefCell::default(),
        }))
    }

    fn serving() -> Self {
        Self::new(|_| Dial::Serve(Duration::from_millis(1)))
    }

    fn dials(&self) -> u32 {
        self.0.dials.get()
    }

    fn ends(&self) -> Vec<Option<End>> {
        self.0.served.borrow().iter().map(|served| served.end.borrow().clone()).collect()
    }

    fn server(&self) -> DuplexStream {
        let working = RefCell::new(TaskSet::default());
        let state = Rc::clone(&self.0);
        let mut served = serve(&self.0.settings.borrow(), move |incoming| {
            if !state.answer.get() {
                working.borrow_mut().spawn_local(async move {
                    let mut responder = incoming.responder;
                    let _gone = responder.gone().await;
                });
                return;
            }
            let Ok(mut tunnel) = incoming.responder.accept(&ok()) else { return };
            working.borrow_mut().spawn_local(async move {
                while let Ok(heard) = hear(&mut tunnel).await {
                    if heard.is_empty() {
                        tunnel.finish();
                        return;
                    }
                    say(&mut tunnel, &buffers(), &heard).await;
                }
            });
        });
        let io = std::mem::replace(&mut served.far, tokio::io::duplex(1).0);
        self.0.served.borrow_mut().push(served);
        io
    }
}

impl Connect for Net {
    type Io = Watched<DuplexStream>;
    type Error = NoRoute;

    async fn connect(&self, key: &Key) -> Result<Connected<Self::Io>, NoRoute> {
        let state = &self.0;
        state.dials.set(state.dials.get() + 1);
        state.under_way.set(state.under_way.get() + 1);
        state.most_under_way.set(state.most_under_way.get().max(state.under_way.get()));
        let dial = (state.script.borrow_mut())(state.dials.get());
        let result = match dial {
            Dial::Serve(after) => {
                sleep(after).await;
                Ok(self.server())
            }
            Dial::Fail(after) => {
                sleep(after).await;
                Err(NoRoute)
            }
            Dial::Never => pending().await,
        };
        state.under_way.set(state.under_way.get() - 1);
        let (io, activity) = Watched::new(result?);
        let identity = key.expected[0].clone();
        let expires = clock::now() + state.lifetime.get();
        let (outdated, cut) = (Box::pin(pending()), Box::pin(pending()));
        let account = state.memory.borrow().pod().of_peer(key.to.ip());
        let windows = Windows::claim(&Settings::default(), &account).unwrap();
        let (local, guard) = (None, Box::new(()));
        Ok(Connected { io, identity, expires, local, activity, windows, outdated, cut, guard })
    }
}

fn identity(name: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/default/sa/{name}").parse().unwrap()
}

fn key(to: &str) -> Key {
    Key { to: to.parse::<SocketAddr>().unwrap(), expected: [identity("web")].into(), from: None }
}

fn pool(net: &Net) -> Pool<Net> {
    pool_with(net, Settings::default())
}

fn pool_with(net: &Net, settings: Settings) -> Pool<Net> {
    Pool::new(net.clone(), settings, TaskCount::default())
}

const A: &str = "10.0.0.1:15008";
const B: &str = "10.0.0.2:15008";

async fn open(pool: &Pool<Net>, place: &str) -> Result<HboneStream, OpenError<NoRoute>> {
    pool.open(&key(place), &to("10.0.0.1:80")).await.map(|Opened { tunnel, .. }| tunnel)
}

/// Opens this many streams at once; all of them succeed.
async fn open_many(pool: &Pool<Net>, count: usize) -> Vec<HboneStream> {
    let all = futures_util::future::join_all((0..count).map(|_| open(pool, A))).await;
    all.into_iter().map(Result::unwrap).collect()
}

/// Lets all other tasks run.
async fn settle() {
    sleep(Duration::from_millis(5)).await;
}

async fn echo(tunnel: &mut HboneStream) {
    say(tunnel, &buffers(), b"hello").await;
    assert_eq!(hear(tunnel).await.unwrap(), b"hello");
}

#[tokio::test(start_paused = true)]
async fn many_streams_share_few_connections() {
    for (streams, connections) in [(1, 1), (99, 1), (100, 1), (150, 2), (250, 3)] {
        local(async {
            let net = Net::serving();
            let pool = pool(&net);
            let mut tunnels = open_many(&pool, streams).await;
            assert_eq!(pool.stats(), Stats { connections, streams, dials: 0, waiting: 0 });
            assert_eq!((net.dials() as usize, net.0.most_under_way.get()), (connections, 1), "one dial at a time");
            for tunnel in &mut tunnels {
                echo(tunnel).await;
            }
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_connection_is_used_again_when_streams_end() {
    local(async {
        let net = Net::serving();
        let pool = pool(&net);
        let mut tunnels = open_many(&pool, 200).await;
        for _ in 0..50 {
            tunnels.truncate(150);
            settle().await;
            tunnels.extend(open_many(&pool, 50).await);
        }
        assert_eq!((net.dials(), pool.stats().streams), (2, 200));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_dial_that_fails_fails_with_it_at_once() {
    local(async {
        let net = Net::new(|_| Dial::Fail(Duration::from_secs(10)));
        let pool = pool(&net);
        let start = Instant::now();
        let all = futures_util::future::join_all((0..5).map(|_| open(&pool, A))).await;
        assert_eq!((start.elapsed().as_secs(), net.dials()), (10, 1));
        for result in all {
            let error = result.unwrap_err();
            assert!(matches!(&error, OpenError::Connect(cause) if **cause == NoRoute), "{error}");
        }
        assert_eq!(pool.stats(), Stats::default());
        // A dial to another key is not affected.
        let net = Net::new(|dial| match dial {
            1 => Dial::Never,
            _ => Dial::Serve(Duration::ZERO),
        });
        let pool = pool_with(&net, Settings::default());
        let start = Instant::now();
        let (stuck, other) = tokio::join!(open(&pool, A), async {
            let other = open(&pool, B).await;
            (other, start.elapsed())
        });
        assert!(other.0.is_ok() && other.1 < Duration::from_secs(1));
        assert!(matches!(stuck.unwrap_err(), OpenError::NoConnection { .. }));
        assert_eq!(start.elapsed(), Settings::default().dial_timeout);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_second_dial_that_fails_leaves_the_first_connection_in_use() {
    local(async {
        let net = Net::new(|dial| match dial {
            1 => Dial::Serve(Duration::from_secs(1)),
            _ => Dial::Fail(Duration::from_secs(1)),
        });
        let pool = pool(&net);
        let all = futures_util::future::join_all((0..150).map(|_| open(&pool, A))).await;
        let (good, bad): (Vec<_>, Vec<_>) = all.into_iter().partition(Result::is_ok);
        assert_eq!((good.len(), bad.len(), net.dials()), (100, 50, 2));
        drop(good);
        settle().await;
        open(&pool, A).await.unwrap();
        assert_eq!(net.dials(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_impatient_waiter_takes_nobody_with_it() {
    local(async {
        let net = Net::new(|_| Dial::Serve(Duration::from_secs(2)));
        let pool = pool(&net);
        let impatient = tokio::time::timeout(Duration::from_secs(1), open(&pool, A));
        let (gone, there) = tokio::join!(impatient, open(&pool, A));
        assert!(gone.is_err() && there.is_ok());
        assert_eq!((net.dials(), pool.stats().streams), (1, 1));
        // When all waiting requests are dropped, the dial serves later ones.
        let place = B;
        tokio::time::timeout(Duration::from_secs(1), open(&pool, place)).await.unwrap_err();
        sleep(Duration::from_secs(5)).await;
        let start = Instant::now();
        open(&pool, place).await.unwrap();
        assert_eq!((net.dials(), start.elapsed()), (2, Duration::ZERO));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_given_up_gives_its_place_to_another() {
    local(async {
        let net = Net::serving();
        let settings = Settings { streams_per_connection: 1, connections_per_key: 2, ..Settings::default() };
        let pool = pool_with(&net, settings);
        net.0.answer.set(false);
        let never = Duration::from_secs(1);
        let (a, b) =
            tokio::join!(tokio::time::timeout(never, open(&pool, A)), tokio::time::timeout(never, open(&pool, A)));
        assert!(a.is_err() && b.is_err());
        assert_eq!(pool.stats(), Stats { connections: 2, ..Stats::default() });
        net.0.answer.set(true);
        // The limit of connections: the third stream waits for a slot, with a deadline.
        let held = (open(&pool, A).await.unwrap(), open(&pool, A).await.unwrap());
        let start = Instant::now();
        let error = open(&pool, A).await.unwrap_err();
        assert!(matches!(error, OpenError::NoConnection { .. }), "{error}");
        assert_eq!(start.elapsed(), Settings::default().dial_timeout);
        let (third, ()) = tokio::join!(open(&pool, A), async {
            sleep(Duration::from_secs(3)).await;
            drop(held);
        });
        third.unwrap();
        assert_eq!(net.dials(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_was_not_looked_at_is_opened_elsewhere() {
    local(async {
        let net = Net::serving();
        let pool = pool(&net);
        let mut old = open(&pool, A).await.unwrap();
        // The GOAWAY crosses the request.
        net.0.served.borrow()[0].drain.start();
        let mut new = open(&pool, A).await.unwrap();
        echo(&mut old).await;
        echo(&mut new).await;
        settle().await;
        let mut newer = open(&pool, A).await.unwrap();
        echo(&mut newer).await;
        assert!(net.dials() <= 2, "{}", net.dials());
        // A peer that disappears without a GOAWAY.
        drop((old, new, newer));
        settle().await;
        net.0.served.borrow_mut().clear();
        let mut after = open(&pool, A).await.unwrap();
        echo(&mut after).await;
        assert_eq!(pool.stats().streams, 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_allows_no_stream_costs_no_more_than_its_connections() {
    local(async {
        let net = Net::serving();
        net.0.settings.replace(Settings { max_streams: 0, ..Settings::default() });
        let pool = pool(&net);
        for _ in 0..70 {
            open(&pool, A).await.unwrap_err();
        }
        assert!(net.dials() <= 70 && pool.stats().connections <= 64, "{:?}", pool.stats());
        assert_eq!(pool.stats().waiting, 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn idle_connections_are_released() {
    local(async {
        let net = Net::serving();
        let pool = pool(&net);
        let tunnel = open(&pool, A).await.unwrap();
        sleep(Duration::from_secs(3600)).await;
        assert_eq!(pool.stats().connections, 1, "it has a stream");
        drop(tunnel);
        sleep(Duration::from_secs(299)).await;
        drop(open(&pool, A).await.unwrap());
        sleep(Duration::from_secs(299)).await;
        assert_eq!((pool.stats().connections, net.dials()), (1, 1));
        sleep(Duration::from_secs(2)).await;
        assert_eq!(pool.stats(), Stats::default());
        assert_eq!(net.ends(), [Some(End::PeerClosed)]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn connections_whose_workload_has_left_take_no_more_streams() {
    local(async {
        let net = Net::serving();
        let pool = pool(&net);
        let (mut a, b) = (open(&pool, A).await.unwrap(), open(&pool, B).await.unwrap());
        pool.retain(|key, identity| key.to.to_string() != A && identity.service_account.as_ref() == "web");
        sleep(Duration::from_secs(60)).await;
        echo(&mut a).await;
        let again = (open(&pool, A).await.unwrap(), open(&pool, B).await.unwrap());
        assert_eq!(net.dials(), 3);
        drop(a);
        settle().await;
        assert_eq!(net.ends(), [Some(End::PeerClosed), None, None]);
        // The pod has a new certificate.
        pool.retire_all();
        drop((b, again));
        settle().await;
        assert_eq!(pool.stats(), Stats::default());
        // The same during a dial.
        let (tunnel, ()) = tokio::join!(open(&pool, A), async { pool.retire_all() });
        let other = open(&pool, A).await.unwrap();
        assert_eq!(net.dials(), 5, "what was dialled with the old one is not shared");
        drop((tunnel.unwrap(), other));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_expired_peer_takes_no_more_streams() {
    local(async {
        let net = Net::serving();
        net.0.lifetime.set(Duration::from_secs(100));
        let pool = pool(&net);
        let mut tunnel = open(&pool, A).await.unwrap();
        sleep(Duration::from_secs(101)).await;
        echo(&mut tunnel).await;
        let _new = open(&pool, A).await.unwrap();
        assert_eq!((net.dials(), pool.stats().connections), (2, 2));
        drop(tunnel);
        settle().await;
        assert_eq!(pool.stats().connections, 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_pool_is_the_end_of_its_connections() {
    local(async {
        let net = Net::serving();
        let pool = pool(&net);
        let mut tunnel = open(&pool, A).await.unwrap();
        drop(pool);
        let error = hear(&mut tunnel).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted);
        settle().await;
        assert_eq!(Rc::strong_count(&net.0), 1, "a task is left that holds the pool");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_finishes_says_goodbye_after_its_last_bytes() {
    local(async {
        let net = Net::serving();
        let pool = pool(&net);
        let mut tunnel = open(&pool, A).await.unwrap();
        drop(open(&pool, B).await.unwrap());
        let said = vec![7; 200 << 10];
        say(&mut tunnel, &buffers(), &said).await;
        finish(&mut tunnel);
        let (heard, ()) = tokio::join!(
            async {
                let heard = hear_all(&mut tunnel).await.unwrap();
                drop(tunnel);
                heard
            },
            pool.finish()
        );
        assert!(heard == said);
        settle().await;
        assert_eq!(net.ends(), [Some(End::PeerClosed), Some(End::PeerClosed)]);
        assert_eq!(pool.stats(), Stats::default());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn two_thousand_streams_at_once() {
    local(async {
        let net = Net::serving();
        let pool = pool(&net);
        let mut tunnels = open_many(&pool, 2000).await;
        assert_eq!(pool.stats(), Stats { connections: 20, streams: 2000, dials: 0, waiting: 0 });
        let all = tunnels.iter_mut().enumerate().map(|(index, tunnel)| async move {
            let said = index.to_string().repeat(100);
            say(tunnel, &buffers(), said.as_bytes()).await;
            let mut heard = Vec::new();
            while heard.len() < said.len() {
                heard.extend(hear(tunnel).await.unwrap());
            }
            assert_eq!(heard, said.as_bytes());
            assert!(tunnel.finish());
            assert_eq!(hear(tunnel).await.unwrap(), b"");
        });
        futures_util::future::join_all(all).await;
        drop(tunnels);
        settle().await;
        assert_eq!(pool.stats(), Stats { connections: 20, ..Stats::default() });
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_on_which_much_is_stalled_takes_no_more_streams() {
    local(async {
        let net = Net::serving();
        let pool = pool(&net);
        let first = open_many(&pool, 3).await;
        let stalled: Vec<_> = first.iter().take(2).map(HboneStream::stall).collect();
        let beside = open(&pool, A).await.unwrap();
        assert_eq!(net.dials(), 1, "two fill half of the window");
        let third = beside.stall();
        let _elsewhere = open(&pool, A).await.unwrap();
        drop((stalled, third));
        let _again = open(&pool, A).await.unwrap();
        assert_eq!((net.dials(), pool.stats().connections, pool.stats().streams), (2, 2, 6));
    })
    .await;
}

/// A peer that has sent a GOAWAY may leave a stream unanswered until its connection ends, although it has to serve it.
#[tokio::test(start_paused = true)]
async fn a_connect_that_a_leaving_peer_does_not_answer_is_tried_elsewhere_after_a_second() {
    local(async {
        let net = Net::serving();
        let pool = pool(&net);
        let kept = open(&pool, A).await.unwrap();
        net.0.answer.set(false);
        let mut waiting = std::pin::pin!(open(&pool, A));
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        settle().await;
        net.0.served.borrow()[0].drain.start();
        net.0.answer.set(true);
        let left = Instant::now();
        let mut tunnel = waiting.await.unwrap();
        assert!(left.elapsed() < Duration::from_millis(1500), "{:?}", left.elapsed());
        echo(&mut tunnel).await;
        assert_eq!(net.dials(), 2);
        drop(kept);
    })
    .await;
}

/// An unused connection keeps its windows as long as there is enough memory.
#[tokio::test(start_paused = true)]
async fn a_connection_without_streams_is_given_up_where_memory_is_short_if_it_has_grown() {
    local(async {
        let (net, budget) = (Net::serving(), Budget::new(512 << 20));
        net.0.memory.replace(budget.clone());
        let pool = pool(&net);
        let (mut tunnel, mut small) = (open(&pool, A).await.unwrap(), open(&pool, B).await.unwrap());
        echo(&mut small).await;
        let begun = budget.used();
        for _ in 0..(24 << 20) / (16 << 10) {
            let bytes = vec![7; 16 << 10];
            say(&mut tunnel, &buffers(), &bytes).await;
            let mut heard = 0;
            while heard < bytes.len() {
                heard += hear(&mut tunnel).await.unwrap().len();
            }
        }
        drop((tunnel, small));
        sleep(Duration::from_secs(60)).await;
        assert_eq!((pool.stats().connections, budget.used() > begun), (2, true), "nothing is short");
        let others: Vec<_> = (0..4).map(|_| budget.pod().claim(100 << 20).unwrap()).collect();
        sleep(Duration::from_secs(30)).await;
        assert_eq!(pool.stats().connections, 1, "the one that has not grown stays");
        assert!(budget.used() < (400 << 20) + begun, "{}", budget.used());
        drop(others);
        echo(&mut open(&pool, A).await.unwrap()).await;
    })
    .await;
}
