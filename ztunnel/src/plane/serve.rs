//! Accepts connections of nodes and answers their calls.

mod addresses;
mod calls;
mod connection;
mod server;

use std::sync::Arc;

use tokio::net::TcpListener;
use tracing::{Span, debug};

use self::calls::Calls;
pub use self::server::{Limits, Server};
use crate::{
    lifecycle::{
        drain::DrainWatch,
        tasks::{TaskCount, TaskSet},
    },
    net::{listen::Acceptor, open::OpenLimit},
};

/// Serves until `drain` starts and every stream has ended.
pub async fn serve(listener: TcpListener, server: Server, mut drain: DrainWatch, tasks: TaskCount) {
    let limits = server.limits;
    let serving = Arc::new(Calls::new(server));
    let mut acceptor = Acceptor::new(listener, OpenLimit::of_connections(limits.connections));
    let mut connections = TaskSet::new(tasks.clone());
    loop {
        tokio::select! {
            accepted = acceptor.next() => {
                let peer = accepted.peer.socket();
                match serving.addresses.enter(peer.ip()) {
                    Some(place) => {
                        let (serving, drain, tasks) = (Arc::clone(&serving), drain.clone(), tasks.clone());
                        connections.spawn(Span::none(), async move {
                            let _place = place;
                            let _open = accepted.place;
                            connection::serve(accepted.stream, peer, serving, drain, tasks).await;
                        });
                    }
                    None => {
                        debug!(
                            %peer,
                            "a connection was refused: its source address has reached the limit of connections"
                        );
                        serving.server.metrics.cut("address_limit");
                    }
                }
            }
            () = connections.reap_next(), if !connections.is_empty() => {}
            () = drain.started() => break,
        }
    }
    drop(acceptor);
    connections.join_all().await;
}
