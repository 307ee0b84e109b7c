//! A new daemon takes over the pods of the daemon that runs, and no connection is refused meanwhile.
//!
//! The new daemon starts beside the old one and finds that the state directory is locked. It [asks](ask) the old daemon over a socket in
//! that directory, which only this user can reach. The old daemon [answers](serve) in the [protocol] that both speak:
//!
//! | the new daemon | the old daemon |
//! |---|---|
//! | `ask`: its version, its node | checks version, layout and node; `granted`, with its lock and its HTTP listeners, or `refused` |
//! | reads the mesh, gets the certificates of the pods | serves as before |
//! | `begin` | stops to change kernel and records; `frozen`, with the sandboxes of pods that the CNI plugin has reported |
//! | enrols every pod: its listeners replace those of the old daemon | accepts the connections that still arrive at its listeners |
//! | `done` | retires: serves the connections that it has; `left` |
//!
//! Until `done` each side may abort. The old daemon then restores the capture of every pod for itself; it does the same if the new daemon
//! dies, or does not answer in time. If the old daemon dies, the new daemon has the lock and continues as after any start.

pub mod ask;
pub mod prepare;
pub mod protocol;
pub mod serve;
pub(super) mod socket;

pub use self::socket::in_charge;

#[cfg(test)]
mod tests;
