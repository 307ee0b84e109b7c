//! How long requests for certificates take.

use std::time::Duration;

use prometheus_client::{encoding::EncodeLabelSet, metrics::family::Family, registry::Registry};

use super::latency::Latency;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByResult {
    result: &'static str,
}

/// Requests for certificates. The default counts for nobody.
#[derive(Clone, Debug, Default)]
pub struct Fetches {
    issued: Latency,
    failed: Latency,
}

impl Fetches {
    /// Registers the series, which begin at 0.
    pub fn register(registry: &mut Registry) -> Self {
        let family = Family::<ByResult, Latency>::default();
        let of = |result| family.get_or_create_owned(&ByResult { result });
        let fetches = Self { issued: of("issued"), failed: of("failed") };
        registry.register(
            "ztunnel_certificate_fetch_duration_seconds",
            "Duration of requests for certificates of workloads to the authority, by result: issued, failed",
            family,
        );
        fetches
    }

    /// A request has ended.
    pub fn ended(&self, is_issued: bool, duration: Duration) {
        let histogram = if is_issued { &self.issued } else { &self.failed };
        histogram.observe(duration);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus_client::{encoding::text::encode, registry::Registry};

    use super::Fetches;

    #[test]
    fn requests_are_counted_by_their_result() {
        let mut registry = Registry::default();
        let fetches = Fetches::register(&mut registry);
        fetches.ended(true, Duration::from_millis(3));
        fetches.ended(true, Duration::from_secs(20));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "ztunnel_certificate_fetch_duration_seconds_count{result=\"issued\"} 2",
            "ztunnel_certificate_fetch_duration_seconds_count{result=\"failed\"} 0",
            "ztunnel_certificate_fetch_duration_seconds_bucket{le=\"0.005\",result=\"issued\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }
}
