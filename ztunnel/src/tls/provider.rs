//! The cryptography that is offered and accepted.

use std::sync::{Arc, LazyLock};

use rustls::crypto::{
    CryptoProvider, SupportedKxGroup,
    aws_lc_rs::{cipher_suite, default_provider, kx_group},
};

/// AES-128 first: it is as good as AES-256 here, and costs no more. A server follows the client's order, so a client that
/// prefers AES-256, as Istio's does, gets it. Post-quantum key exchange first: what is recorded today must not become
/// readable later.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        cipher_suites: vec![cipher_suite::TLS13_AES_128_GCM_SHA256, cipher_suite::TLS13_AES_256_GCM_SHA384],
        kx_groups: vec![HYBRID_GROUP, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1],
        ..default_provider()
    })
});

/// The same, and of key exchanges only the one that is hybrid.
static HYBRID: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(CryptoProvider { kx_groups: vec![HYBRID_GROUP], ..CryptoProvider::clone(&PROVIDER) }));

/// Classical and post-quantum in one.
pub(super) const HYBRID_GROUP: &dyn SupportedKxGroup = kx_group::X25519MLKEM768;

/// For a server whose client can do the hybrid key exchange.
pub(super) fn hybrid() -> Arc<CryptoProvider> {
    Arc::clone(&HYBRID)
}

/// The one of the whole program.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::clone(&PROVIDER)
}
