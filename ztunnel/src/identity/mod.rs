//! Certificates of the node's workloads: their sources, and the cache that always has a valid certificate.

pub mod cache;
pub mod certificate;
#[cfg(any(test, fuzzing))]
pub mod check;
pub(crate) mod clock;
mod credentials;
pub mod disk;
pub mod files;
pub mod handle;
pub mod local_ca;
pub(crate) mod poll;
pub mod request;
pub mod source;
pub mod x509;

pub use self::credentials::Credentials;
