//! Applications in pods: real programs, and servers and clients in threads of this process.

pub mod client;
pub mod load;
pub mod nginx;
pub mod programs;
pub mod server;
pub mod transfer;
