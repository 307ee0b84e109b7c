//! The names of the files of one identity.

/// The leaf and its intermediates.
pub const CHAIN: &str = "cert-chain.pem";
/// The leaf's key.
pub const KEY: &str = "key.pem";
/// The trusted roots.
pub const ROOTS: &str = "root-cert.pem";
