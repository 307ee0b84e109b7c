//! Istio's traffic series: one [`Series`] for each label set. It is looked up once for each connection, and kept while it is
//! used.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};

use super::labels::{Labels, WithFlags};
use crate::model::close::CloseReason;

/// All values of `response_flags`.
const FLAGS: [&str; 7] =
    ["-", "DENY", "CONNECT", "TLS_FAILURE", "H2_HANDSHAKE_FAILURE", "NETWORK_POLICY", "IDENTITY_ERROR"];

/// The counters of one label set.
#[derive(Debug, Default)]
pub(super) struct Series {
    /// Connections that are open now, or [`RETIRED`].
    open: AtomicI64,
    opened: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    /// By index in [`FLAGS`].
    closed: [AtomicU64; FLAGS.len()],
    failed: [AtomicU64; FLAGS.len()],
}

/// The value instead of the number of open connections when the series has left the table and must not be used.
const RETIRED: i64 = i64::MIN;

impl Series {
    /// A connection is opened. `false`: the series has left the table.
    pub(super) fn open(&self) -> bool {
        let is_open = self.open.fetch_update(Relaxed, Relaxed, |open| (open != RETIRED).then_some(open + 1)).is_ok();
        if is_open {
            self.opened.fetch_add(1, Relaxed);
        }
        is_open
    }

    /// Adds bytes that came from the client, and bytes that were sent to the client.
    pub(super) fn add(&self, received: u64, sent: u64) {
        for (counter, bytes) in [(&self.received, received), (&self.sent, sent)] {
            if bytes > 0 {
                counter.fetch_add(bytes, Relaxed);
            }
        }
    }

    /// A connection that was opened has ended.
    pub(super) fn close(&self, reason: CloseReason) {
        let index = FLAGS.iter().position(|flags| *flags == reason.flags()).unwrap_or_default();
        if let (Some(closed), Some(failed)) = (self.closed.get(index), self.failed.get(index)) {
            closed.fetch_add(1, Relaxed);
            if is_failure(reason) {
                failed.fetch_add(1, Relaxed);
            }
        }
        self.open.fetch_sub(1, Relaxed);
    }

    /// Whether the series has left the table.
    pub(super) fn is_retired(&self) -> bool {
        self.open.load(Relaxed) == RETIRED
    }

    fn retire(&self) -> bool {
        self.open.compare_exchange(0, RETIRED, Relaxed, Relaxed).is_ok()
    }
}

/// Whether Istio counts the end as a failure. An end that an application or the mesh's operators caused is not a failure.
fn is_failure(reason: CloseReason) -> bool {
    let is_wanted = matches!(
        reason,
        CloseReason::ClientReset
            | CloseReason::ServerReset
            | CloseReason::Drained
            | CloseReason::Released
            | CloseReason::AddressRemoved
    );
    !reason.is_clean() && !is_wanted
}

/// All series. A series without an open connection is dropped when no connection was opened in it for a while: workloads come
/// and go, and their label sets with them. When it is needed again it begins at 0, which Prometheus treats as a counter reset.
#[derive(Debug)]
pub(super) struct SeriesTable {
    kept: Duration,
    entries: Mutex<SeriesEntries>,
}

#[derive(Debug)]
struct SeriesEntries {
    series: HashMap<Arc<Labels>, SeriesEntry>,
    swept: Instant,
}

#[derive(Debug)]
struct SeriesEntry {
    series: Arc<Series>,
    /// The number of connections that had been opened at the last sweep.
    opened: u64,
    /// The last time at which it was seen in use.
    used: Instant,
}

/// The minimum time between two sweeps.
const SWEEP: Duration = Duration::from_secs(10);

impl SeriesTable {
    pub(super) fn new(kept: Duration) -> Self {
        Self { kept, entries: Mutex::new(SeriesEntries { series: HashMap::new(), swept: Instant::now() }) }
    }

    /// The series of a label set, with one connection opened in it.
    pub(super) fn open(&self, labels: Labels) -> Arc<Series> {
        let now = Instant::now();
        let mut entries = self.lock();
        // The table has to be swept here as well, because it may never be scraped.
        entries.sweep(now, self.kept);
        let new = || SeriesEntry { series: Arc::default(), opened: 0, used: now };
        let series = Arc::clone(&entries.series.entry(Arc::new(labels)).or_insert_with(new).series);
        // A series in the table is not retired: insertion and retirement both happen under the lock.
        series.open();
        series
    }

    fn lock(&self) -> MutexGuard<'_, SeriesEntries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All series, ordered by their labels.
    fn all(&self, now: Instant) -> Vec<(Arc<Labels>, Arc<Series>)> {
        let mut entries = self.lock();
        entries.sweep(now, self.kept);
        let all = entries.series.iter().map(|(labels, entry)| (Arc::clone(labels), Arc::clone(&entry.series)));
        let mut all: Vec<_> = all.collect();
        drop(entries);
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        all
    }
}

impl SeriesEntries {
    fn sweep(&mut self, now: Instant, kept: Duration) {
        if now.duration_since(self.swept) < SWEEP.min(kept) {
            return;
        }
        self.swept = now;
        self.series.retain(|_, entry| {
            let opened = entry.series.opened.load(Relaxed);
            if opened != entry.opened || entry.series.open.load(Relaxed) > 0 {
                (entry.opened, entry.used) = (opened, now);
            }
            now.duration_since(entry.used) < kept || !entry.series.retire()
        });
    }
}

/// One metric: its name, its help, and its counters by flags.
struct Metric {
    name: &'static str,
    help: &'static str,
    value: fn(&Series) -> Vec<(&'static str, u64)>,
}

const METRICS: [Metric; 5] = [
    Metric {
        name: "istio_tcp_connections_opened",
        help: "Connections of pods that were opened",
        value: |series| without_flags(&series.opened),
    },
    Metric {
        name: "istio_tcp_connections_closed",
        help: "Connections of pods that ended, by response flags",
        value: |series| by_flags(&series.closed),
    },
    Metric {
        name: "istio_tcp_connections_failed",
        help: "Connections of pods that ended with an error; Istio calls this metric unstable",
        value: |series| by_flags(&series.failed),
    },
    Metric {
        name: "istio_tcp_received_bytes",
        help: "Bytes from clients to servers in connections of pods",
        value: |series| without_flags(&series.received),
    },
    Metric {
        name: "istio_tcp_sent_bytes",
        help: "Bytes from servers to clients in connections of pods",
        value: |series| without_flags(&series.sent),
    },
];

fn without_flags(counter: &AtomicU64) -> Vec<(&'static str, u64)> {
    vec![("-", counter.load(Relaxed))]
}

/// The counters of flags that have occurred.
fn by_flags(counters: &[AtomicU64]) -> Vec<(&'static str, u64)> {
    let counts = FLAGS.into_iter().zip(counters).map(|(flags, counter)| (flags, counter.load(Relaxed)));
    counts.filter(|(_, count)| *count > 0).collect()
}

/// Encodes the table for a scrape.
#[derive(Debug)]
pub(super) struct SeriesCollector(pub(super) Arc<SeriesTable>);

impl Collector for SeriesCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.0.all(Instant::now());
        for Metric { name, help, value } in METRICS {
            let mut lines = all.iter().flat_map(|(labels, series)| {
                value(series).into_iter().map(|(flags, count)| (WithFlags { labels, flags }, count))
            });
            let mut next = lines.next();
            if next.is_none() {
                continue;
            }
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            while let Some((labels, count)) = next {
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, u64>(&count, None)?;
                next = lines.next();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{FLAGS, SeriesTable};
    use crate::{
        metrics::{facts::Facts, labels::Labels},
        model::{close::CloseReason, flow::Direction},
    };
    use std::time::{Duration, Instant};

    const KEPT: Duration = Duration::from_secs(900);

    fn labels() -> Labels {
        let (src_addr, dst_addr) = ("10.0.0.1:4000".parse().unwrap(), "10.0.0.2:80".parse().unwrap());
        let direction = Direction::Outbound;
        let (source, source_identity, destination, destination_identity) = (None, None, None, None);
        let (hbone_addr, service) = (None, None);
        let facts = Facts {
            direction,
            src_addr,
            source,
            source_identity,
            dst_addr,
            hbone_addr,
            service,
            destination,
            destination_identity,
        };
        Labels::of(&facts, &"Kubernetes".into())
    }

    #[test]
    fn every_reason_has_a_flag_of_the_list() {
        for reason in CloseReason::ALL {
            assert!(FLAGS.contains(&reason.flags()), "{reason:?}");
        }
    }

    #[test]
    fn a_series_is_kept_while_it_is_used_and_a_while_longer() {
        let table = SeriesTable::new(KEPT);
        let begin = Instant::now();
        let series = table.open(labels());
        assert_eq!(table.all(begin + 10 * KEPT).len(), 1, "a connection is open");
        series.close(CloseReason::Complete);
        assert_eq!(table.all(begin + 11 * KEPT - Duration::from_secs(1)).len(), 1, "it was open a moment ago");
        // A short connection between two sweeps counts as use.
        assert!(series.open());
        series.close(CloseReason::Complete);
        assert_eq!(table.all(begin + 11 * KEPT + Duration::from_secs(10)).len(), 1);
        assert_eq!(table.all(begin + 12 * KEPT + Duration::from_secs(20)).len(), 0);
        assert!(!series.open(), "who still has it must ask again");
        let again = table.open(labels());
        assert!(again.open() && again.opened.load(super::Relaxed) == 2);
    }
}
