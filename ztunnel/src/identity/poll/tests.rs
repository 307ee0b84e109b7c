use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tracing::{Span, subscriber::DefaultGuard};
use tracing_subscriber::fmt::MakeWriter;

use super::{Polled, poll};
use crate::lifecycle::tasks::{TaskCount, TaskSet};

const SECOND: Duration = Duration::from_secs(1);

/// A polled object whose states are numbers; numbers from 100 on can't be used.
#[derive(Default)]
struct Number {
    now: Mutex<u32>,
    taken: Mutex<Vec<u32>>,
    in_force: AtomicU32,
    /// A poll waits for this channel.
    stuck: Mutex<Option<mpsc::Receiver<()>>>,
    /// The time from which on every number can be used.
    healed: Mutex<Option<Instant>>,
}

impl Number {
    fn set(&self, to: u32) {
        *self.now.lock().unwrap() = to;
    }

    fn taken(&self) -> Vec<u32> {
        self.taken.lock().unwrap().clone()
    }
}

impl Polled for Number {
    type State = u32;

    fn news(&self) -> Option<u32> {
        if let Some(stuck) = self.stuck.lock().unwrap().take() {
            stuck.recv().unwrap();
        }
        let now = *self.now.lock().unwrap();
        let in_force = self.in_force.load(Ordering::Relaxed);
        (now != in_force).then_some(now)
    }

    fn take_up(&self) -> Result<(), String> {
        let now = *self.now.lock().unwrap();
        let mut taken = self.taken.lock().unwrap();
        // A number may be tried several times.
        if taken.last() != Some(&now) {
            taken.push(now);
        }
        if now < 100 || self.healed.lock().unwrap().is_some_and(|healed| healed <= Instant::now()) {
            self.in_force.store(now, Ordering::Relaxed);
            return Ok(());
        }
        Err(format!("{now} is too much"))
    }

    fn name(&self) -> String {
        "a number".to_owned()
    }
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn start(&self) -> DefaultGuard {
        tracing::subscriber::set_default(tracing_subscriber::fmt().with_writer(self.clone()).with_ansi(false).finish())
    }

    fn count(&self, text: &str) -> usize {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap().matches(text).count()
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn start() -> (Arc<Number>, TaskSet) {
    let number = Arc::new(Number::default());
    let mut tasks = TaskSet::new(TaskCount::default());
    tasks.spawn(Span::none(), poll(Arc::clone(&number)));
    (number, tasks)
}

#[tokio::test(start_paused = true)]
async fn what_settles_is_taken_up_and_what_moves_is_waited_for() {
    let (number, _tasks) = start();
    sleep(5 * SECOND).await;
    assert!(number.taken().is_empty());
    number.set(1);
    sleep(2 * SECOND).await;
    assert_eq!(number.taken(), [1]);
    for moving in 2..60 {
        number.set(moving);
        sleep(SECOND / 10).await;
    }
    assert_eq!(number.taken(), [1]);
    sleep(2 * SECOND).await;
    assert_eq!(number.taken(), [1, 59]);
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_is_told_once_a_change_and_not_when_it_passes() {
    let log = Log::default();
    let _log = log.start();
    let (number, _tasks) = start();
    number.set(100);
    sleep(SECOND + SECOND / 2).await;
    number.set(1);
    sleep(5 * SECOND).await;
    assert_eq!((number.taken(), log.count("WARN")), (vec![100, 1], 0), "it was wrong for a moment only");
    number.set(101);
    sleep(60 * SECOND).await;
    assert_eq!((number.taken(), log.count("WARN"), log.count("101 is too much")), (vec![100, 1, 101], 1, 1));
    number.set(102);
    sleep(60 * SECOND).await;
    assert_eq!((log.count("WARN"), log.count("102 is too much")), (2, 1));
    number.set(1);
    sleep(60 * SECOND).await;
    assert_eq!((number.taken(), log.count("is in its earlier state again")), (vec![100, 1, 101, 102], 1));
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_used_for_a_while_is_taken_up_in_the_end() {
    let log = Log::default();
    let _log = log.start();
    let (number, _tasks) = start();
    *number.healed.lock().unwrap() = Some(Instant::now() + 300 * SECOND);
    number.set(100);
    sleep(290 * SECOND).await;
    assert_eq!((number.in_force.load(Ordering::Relaxed), log.count("WARN")), (0, 1));
    sleep(50 * SECOND).await;
    assert_eq!((number.in_force.load(Ordering::Relaxed), log.count("WARN")), (100, 1));
}

#[tokio::test]
async fn a_look_that_hangs_keeps_nobody_else_waiting() {
    let (number, mut tasks) = start();
    let (answer, stuck) = mpsc::channel();
    *number.stuck.lock().unwrap() = Some(stuck);
    number.set(1);
    // The thread of the other tasks continues: two polls would have been due by now.
    sleep(2 * SECOND + SECOND / 2).await;
    assert!(number.taken().is_empty());
    answer.send(()).unwrap();
    while number.taken().is_empty() {
        sleep(SECOND / 20).await;
    }
    tasks.abort_all().await;
}
