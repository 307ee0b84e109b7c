//! Until when the pods' certificates are valid.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IdentityLabel {
    identity: String,
}

/// Registers `ztunnel_certificate_expiry_seconds` with one series for each identity and the Unix time at which its
/// certificate ends; called with fresh values for every exposition.
pub fn register_expiry(registry: &mut Registry, certificates: impl IntoIterator<Item = (String, f64)>) {
    let expiry = Family::<IdentityLabel, Gauge<f64, std::sync::atomic::AtomicU64>>::default();
    for (identity, time) in certificates {
        expiry.get_or_create(&IdentityLabel { identity }).set(time);
    }
    registry.register(
        "ztunnel_certificate_expiry_seconds",
        "Expiry of the certificate of an identity, as Unix time",
        expiry,
    );
}
