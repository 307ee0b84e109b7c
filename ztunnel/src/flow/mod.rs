//! One connection from accept to close: decide, connect, copy, record.
//!
//! All steps run on the worker that accepted the connection.

pub mod admission;
pub mod context;
mod deliver;
pub mod enforcement;
mod established;
pub mod events;
pub mod failures;
pub mod held;
pub mod inbound;
mod judge;
mod limits;
mod live;
pub mod outbound;
pub mod plaintext;
pub mod record;
mod refusal;
mod reset_on_drop;
pub mod table;
pub mod tunnel;
mod upstream;

use std::future::Future;

pub use context::PodContext;
use futures_util::future::LocalBoxFuture;
pub(crate) use refusal::FlowRefusal;

/// The task of a connection: its beginning, then the rest that the beginning returns. `None`: the connection has ended.
///
/// The beginning is short, but needs several times the memory of the rest. It is in a box of its own, which is freed before the
/// rest starts: a connection may be idle for days.
fn in_two_parts(
    beginning: impl Future<Output = Option<LocalBoxFuture<'static, ()>>> + 'static,
) -> impl Future<Output = ()> {
    let beginning = Box::pin(beginning);
    async move {
        if let Some(rest) = beginning.await {
            rest.await;
        }
    }
}

#[cfg(test)]
mod tests;
