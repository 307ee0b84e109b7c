//! The commands, one file each.

pub mod analyze;
mod ask;
mod bug_report;
pub mod ca;
mod certs;
pub mod check;
pub mod cleanup;
pub mod cni;
mod connections;
pub mod control_plane;
pub mod explain;
pub mod live;
mod log_level;
mod observe;
pub mod output;
mod pods;
mod policies;
mod proxy_status;
pub mod ready;
mod redact;
pub mod run;
mod samples;
mod services;
mod status;
mod table;
mod traffic;
pub mod version;
