//! Waits for a rare event in the same task as a busy future.

use std::future::{Future, pending};

use futures_util::stream::{FuturesUnordered, StreamExt as _};

/// The same future, polled only when it was woken itself.
///
/// A future in the same task as a connection is polled with every message. Polling a channel or a timer each time costs more
/// than waiting to be woken: channels take a lock, which other threads may hold.
pub async fn poll_when_woken<T>(future: impl Future<Output = T>) -> T {
    let mut alone: FuturesUnordered<_> = [future].into_iter().collect();
    match alone.next().await {
        Some(output) => output,
        // This can't happen: the set contains the future until it has ended.
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::poll_when_woken;
    use futures_util::poll;
    use std::{
        cell::Cell,
        future::poll_fn,
        pin::pin,
        task::{Poll, Waker},
    };

    #[tokio::test]
    async fn it_is_polled_once_and_then_when_it_is_woken() {
        let (polls, waker) = (Cell::new(0), Cell::new(None::<Waker>));
        let rare = poll_fn(|cx| {
            polls.set(polls.get() + 1);
            waker.set(Some(cx.waker().clone()));
            if polls.get() == 3 { Poll::Ready("news") } else { Poll::Pending }
        });
        let mut rare = pin!(poll_when_woken(rare));
        for _ in 0..1000 {
            assert_eq!(poll!(rare.as_mut()), Poll::Pending);
        }
        assert_eq!(polls.get(), 1);
        waker.take().unwrap().wake();
        assert_eq!((poll!(rare.as_mut()), polls.get()), (Poll::Pending, 2));
        waker.take().unwrap().wake();
        assert_eq!(rare.await, "news");
    }

    #[tokio::test]
    async fn what_it_waits_for_wakes_the_task() {
        let (news, told) = tokio::sync::oneshot::channel();
        let (told, ()) = tokio::join!(poll_when_woken(told), async {
            tokio::task::yield_now().await;
            news.send(7).unwrap();
        });
        assert_eq!(told, Ok(7));
    }
}
