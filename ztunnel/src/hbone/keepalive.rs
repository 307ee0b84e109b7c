//! Detects a dead peer: a peer that has sent nothing for some time gets a PING, and has to send something then. Bytes of any
//! kind count, so a busy connection gets no PING.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep_until};

use super::settings::Settings;
use crate::net::activity::Activity;

/// Watches one connection.
pub(super) struct Keepalive {
    ping: Option<PingPong>,
    activity: Activity,
    settings: (std::time::Duration, std::time::Duration),
    timer: Pin<Box<Sleep>>,
    /// A PING has not been answered yet; h2 allows one at a time.
    unanswered: bool,
    /// When this side began to wait for bytes of the peer.
    asked: Option<Instant>,
}

impl Keepalive {
    pub(super) fn new(ping: Option<PingPong>, activity: Activity, settings: &Settings) -> Self {
        let timer = Box::pin(sleep_until(activity.last() + settings.ping_interval));
        let settings = (settings.ping_interval, settings.ping_timeout);
        Self { ping, activity, settings, timer, unanswered: false, asked: None }
    }

    /// Ready when the peer is dead. It has to be polled after the connection, so that all bytes that have arrived are read.
    pub(super) fn poll_dead(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.unanswered
            && let Some(ping) = &mut self.ping
            && let Poll::Ready(Ok(_pong)) = ping.poll_pong(cx)
        {
            self.unanswered = false;
            self.activity.touch();
        }
        let (interval, timeout) = self.settings;
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let heard = self.activity.last();
            if self.asked.is_some_and(|asked| heard < asked) {
                return Poll::Ready(());
            }
            let now = Instant::now();
            let due = heard + interval;
            if due > now {
                self.asked = None;
                self.timer.as_mut().reset(due);
                continue;
            }
            // A peer that sends, but has not answered the last PING, gets no further PING: its answer is still expected.
            if !self.unanswered
                && let Some(ping) = &mut self.ping
            {
                self.unanswered = ping.send_ping(Ping::opaque()).is_ok();
                // Registers for the answer.
                let _pending = ping.poll_pong(cx);
            }
            self.asked = Some(now);
            self.timer.as_mut().reset(now + timeout);
        }
    }
}
