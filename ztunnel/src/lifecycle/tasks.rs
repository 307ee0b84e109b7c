//! The only `spawn`. A task belongs to a [`TaskSet`], and dropping the set ends its tasks. No task runs without an owner.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::FutureExt as _;
use tokio::task::JoinSet;
use tracing::{Instrument, Span, error};

/// The number of running tasks, over all sets that share the count.
#[derive(Clone, Debug, Default)]
pub struct TaskCount(Arc<Counter>);

#[derive(Debug, Default)]
struct Counter {
    alive: AtomicUsize,
    parent: Option<TaskCount>,
}

impl TaskCount {
    /// The number of running tasks.
    #[must_use]
    pub fn alive(&self) -> usize {
        self.0.alive.load(Ordering::Relaxed)
    }

    /// A separate count for some of the tasks, which are counted here as well.
    #[must_use]
    pub fn child(&self) -> Self {
        Self(Arc::new(Counter { alive: AtomicUsize::new(0), parent: Some(self.clone()) }))
    }

    fn enter(&self) -> Alive {
        let mut count = Some(self);
        while let Some(TaskCount(counter)) = count {
            counter.alive.fetch_add(1, Ordering::Relaxed);
            count = counter.parent.as_ref();
        }
        Alive(self.clone())
    }
}

struct Alive(TaskCount);

impl Drop for Alive {
    fn drop(&mut self) {
        let mut count = Some(&self.0);
        while let Some(TaskCount(counter)) = count {
            counter.alive.fetch_sub(1, Ordering::Relaxed);
            count = counter.parent.as_ref();
        }
    }
}

/// Tasks with one owner. A task that panics is logged by name, and the other tasks continue.
#[derive(Debug, Default)]
pub struct TaskSet {
    tasks: JoinSet<()>,
    count: TaskCount,
}

impl TaskSet {
    /// An empty set that counts its tasks in `count`.
    #[must_use]
    pub fn new(count: TaskCount) -> Self {
        Self { tasks: JoinSet::new(), count }
    }

    /// Starts a task that may move between threads.
    pub fn spawn(&mut self, span: Span, task: impl Future<Output = ()> + Send + 'static) {
        self.reap();
        let alive = self.count.enter();
        self.tasks.spawn(counted(alive, task).instrument(span));
    }

    /// Starts a task that stays on this thread; only within a `LocalSet`.
    pub fn spawn_local(&mut self, task: impl Future<Output = ()> + 'static) {
        self.reap();
        let alive = self.count.enter();
        self.tasks.spawn_local(counted(alive, task));
    }

    /// Whether there are no tasks.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// The number of tasks, with those that have ended since the last [`reap_next`](Self::reap_next).
    #[must_use]
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Waits for the next task to end; returns at once if there is none.
    pub async fn reap_next(&mut self) {
        if let Some(result) = self.tasks.join_next().await {
            report(result);
        }
    }

    /// Waits until every task has ended by itself.
    pub async fn join_all(&mut self) {
        while let Some(result) = self.tasks.join_next().await {
            report(result);
        }
    }

    /// Ends every task at its next await point, and waits for all of them.
    pub async fn abort_all(&mut self) {
        self.tasks.abort_all();
        self.join_all().await;
    }

    fn reap(&mut self) {
        while let Some(result) = self.tasks.try_join_next() {
            report(result);
        }
    }
}

/// This is not an `async fn`, because that would store the task twice: as its argument and as the future that it awaits.
fn counted<F: Future<Output = ()>>(alive: Alive, task: F) -> impl Future<Output = ()> {
    task.map(move |()| drop(alive))
}

fn report(result: Result<(), tokio::task::JoinError>) {
    if let Err(failure) = result
        && failure.is_panic()
    {
        error!(%failure, "a task panicked: this is a bug, please report it with this line");
    }
}

#[cfg(test)]
mod tests {
    use super::{TaskCount, TaskSet, counted};
    use std::future::pending;

    #[test]
    fn a_task_is_held_once() {
        let task = async {
            let much = vec![0u8; 1].into_iter().chain([0u8; 1000]);
            pending::<()>().await;
            drop(much);
        };
        let alone = size_of_val(&task);
        let count = TaskCount::default();
        assert!(size_of_val(&counted(count.enter(), task)) <= alone + 16);
    }

    #[tokio::test]
    async fn ended_tasks_are_not_counted_and_panics_stay_alone() {
        let count = TaskCount::default();
        let mut set = TaskSet::new(count.clone());
        set.spawn(tracing::Span::none(), async {});
        set.spawn(tracing::Span::none(), async { panic!("on purpose") });
        set.join_all().await;
        assert_eq!(count.alive(), 0);
        set.spawn(tracing::Span::none(), pending());
        assert_eq!(count.alive(), 1);
        let mut part = TaskSet::new(count.child());
        part.spawn(tracing::Span::none(), pending());
        assert_eq!((count.alive(), part.count.alive()), (2, 1));
        part.abort_all().await;
        set.abort_all().await;
        assert_eq!(count.alive(), 0);
        assert!(set.is_empty());
    }
}
