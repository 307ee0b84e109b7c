//! A histogram of durations without a lock: several workers observe at the same time.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, TypedMetric},
};

/// Upper bounds in seconds: a handshake takes about one millisecond, a deadline ten seconds.
const BOUNDS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Upper bounds in seconds for times in which a connection is open: a request takes milliseconds, a connection of a pool hours.
const LONG_BOUNDS: [f64; 14] =
    [0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0, 43_200.0, 86_400.0];

/// A histogram of durations.
#[derive(Clone, Debug)]
pub(super) struct Latency(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bounds: &'static [f64; BOUNDS.len()],
    buckets: [AtomicU64; BOUNDS.len()],
    larger: AtomicU64,
    microseconds: AtomicU64,
}

impl Default for Latency {
    fn default() -> Self {
        Self::with(&BOUNDS)
    }
}

impl Latency {
    fn with(bounds: &'static [f64; BOUNDS.len()]) -> Self {
        let (buckets, larger, microseconds) = Default::default();
        Self(Arc::new(Inner { bounds, buckets, larger, microseconds }))
    }

    /// A histogram of times in which connections are open.
    pub(super) fn of_connections() -> Self {
        Self::with(&LONG_BOUNDS)
    }

    pub(super) fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = self.0.bounds.iter().zip(&self.0.buckets).find(|(bound, _)| seconds <= **bound);
        bucket.map_or(&self.0.larger, |(_, count)| count).fetch_add(1, Relaxed);
        self.0.microseconds.fetch_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }
}

impl EncodeMetric for Latency {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let counts = self.0.buckets.iter().map(|count| count.load(Relaxed));
        let mut buckets: Vec<(f64, u64)> = self.0.bounds.iter().copied().zip(counts).collect();
        buckets.push((f64::INFINITY, self.0.larger.load(Relaxed)));
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = Duration::from_micros(self.0.microseconds.load(Relaxed)).as_secs_f64();
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Latency {
    const TYPE: MetricType = MetricType::Histogram;
}
