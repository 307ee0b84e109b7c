//! The cryptography that is offered and accepted.

use std::sync::{Arc, LazyLock};

use rustls::crypto::{
    CryptoProvider, SupportedKxGroup,
    aws_lc_rs::{cipher_suite, default_provider, kx_group},
};

/// AES-128 is preferred: it is as secure as AES-256 here, and not slower. A server follows the client's order, so a client that
/// prefers AES-256, such as Istio's, gets AES-256. Post-quantum key exchange is preferred, so that traffic that is recorded
/// today can't be decrypted later.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        cipher_suites: vec![cipher_suite::TLS13_AES_128_GCM_SHA256, cipher_suite::TLS13_AES_256_GCM_SHA384],
        kx_groups: vec![HYBRID_GROUP, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1],
        ..default_provider()
    })
});

/// The same, with the hybrid key exchange only.
static HYBRID: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(CryptoProvider { kx_groups: vec![HYBRID_GROUP], ..CryptoProvider::clone(&PROVIDER) }));

/// Combines classical and post-quantum key exchange.
pub(super) const HYBRID_GROUP: &dyn SupportedKxGroup = kx_group::X25519MLKEM768;

/// The provider for clients that support the hybrid key exchange.
pub(super) fn hybrid() -> Arc<CryptoProvider> {
    Arc::clone(&HYBRID)
}

/// The provider of the whole program.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::clone(&PROVIDER)
}
