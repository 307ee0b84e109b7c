//! A queue of lines for an output that may stall: the lines wait in one buffer, and a separate thread writes them.
//!
//! An empty queue holds little memory, a line needs no allocation of its own, and all waiting lines are written at once. The
//! first line is written at once. Lines that follow closely are collected for a moment, because waking the thread for each line
//! would cost the logging thread more than the line itself.

use std::{
    io::{self, Write},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use tracing_subscriber::fmt::MakeWriter;

/// How long the end of the process waits for a stalled output.
const TIMEOUT: Duration = Duration::from_secs(1);

/// How long lines are collected after a write.
const GATHER: Duration = Duration::from_millis(5);

/// The capacity in bytes that an empty buffer may keep: the lines of a busy moment.
const KEPT: usize = 64 << 10;

/// Accepts lines, and never waits for the output. Clones share the queue.
#[derive(Clone, Debug)]
pub(super) struct Queue(Arc<Shared>);

/// Dropping it writes the queued lines and ends the thread.
#[derive(Debug)]
pub(super) struct Guard(Arc<Shared>);

/// The count of lines that were dropped because the output did not take them.
#[derive(Clone, Debug)]
pub struct LostLines(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Notified when a line waits, or when the thread has to end.
    news: Condvar,
    /// The thread has ended.
    over: Condvar,
    most: usize,
    lost: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    /// The number of lines that wait or are being written.
    lines: usize,
    /// The thread waits on `news`.
    asleep: bool,
    ending: bool,
    ended: bool,
}

/// Starts a queue of this many lines, and the thread that writes them.
///
/// # Errors
/// If the thread can't be started.
pub(super) fn start(output: impl Write + Send + 'static, lines: usize) -> io::Result<(Queue, Guard)> {
    let (state, news, over) = (Mutex::default(), Condvar::default(), Condvar::default());
    let shared = Arc::new(Shared { state, news, over, most: lines, lost: AtomicU64::new(0) });
    let writing = Arc::clone(&shared);
    thread::Builder::new().name("ztunnel-log".to_owned()).spawn(move || writing.write_to(output))?;
    Ok((Queue(Arc::clone(&shared)), Guard(shared)))
}

impl LostLines {
    /// The number of dropped lines so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.lost.load(Ordering::Relaxed)
    }
}

impl Guard {
    pub(super) fn lost(&self) -> LostLines {
        LostLines(Arc::clone(&self.0))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lose(&self, lines: usize) {
        self.lost.fetch_add(lines as u64, Ordering::Relaxed);
    }

    fn write_to(&self, mut output: impl Write) {
        let mut batch = Vec::new();
        let mut written = 0;
        loop {
            batch.clear();
            batch.shrink_to(KEPT);
            {
                let mut state = self.lock();
                state.lines -= written;
                while state.waiting.is_empty() && !state.ending {
                    state.asleep = true;
                    state = self.news.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                state.asleep = false;
                if state.waiting.is_empty() {
                    state.ended = true;
                    self.over.notify_all();
                    return;
                }
                written = state.lines;
                std::mem::swap(&mut batch, &mut state.waiting);
            }
            if output.write_all(&batch).and_then(|()| output.flush()).is_err() {
                self.lose(written);
            }
            drop(self.news.wait_timeout_while(self.lock(), GATHER, |state| !state.ending));
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.ending = true;
        self.0.news.notify_one();
        // A stalled output must not delay the end of the process.
        drop(self.0.over.wait_timeout_while(state, TIMEOUT, |state| !state.ended));
    }
}

/// Each event is one write of one line.
impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let shared = &*self.0;
        let mut state = shared.lock();
        if state.lines >= shared.most || state.ended {
            drop(state);
            shared.lose(1);
            return Ok(line.len());
        }
        state.waiting.extend_from_slice(line);
        state.lines += 1;
        // The thread is notified only once until it wakes, because each notification is a system call.
        if std::mem::take(&mut state.asleep) {
            drop(state);
            shared.news.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
