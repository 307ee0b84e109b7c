//! Figures: medians and their spread, as a table, as JSON, and against an earlier run.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use serde_json::{Value, json};

use super::stage::Mode;
use super::work::{Better, Sample, Work};

/// The measurements of one work in one mode.
#[derive(Debug, Clone)]
pub(super) struct Row {
    /// The work.
    pub(super) work: Work,
    /// The path of the connections.
    pub(super) mode: Mode,
    /// One sample for each round.
    pub(super) samples: Vec<Sample>,
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = values.get(middle)?;
    if values.len() % 2 == 1 {
        return Some(*upper);
    }
    Some((values.get(middle.checked_sub(1)?)? + upper) / 2.0)
}

impl Row {
    fn of(&self, field: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        median(self.samples.iter().filter_map(field).collect())
    }

    /// The median.
    #[must_use]
    pub(super) fn value(&self) -> Option<f64> {
        self.of(|sample| Some(sample.value))
    }

    fn spread(&self, field: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        spread(&self.samples.iter().filter_map(field).collect::<Vec<_>>())
    }
}

/// The difference between the largest and the smallest value, as a fraction of the median; `None` for a single value,
/// which says nothing about noise.
fn spread(values: &[f64]) -> Option<f64> {
    let (least, most) =
        (values.iter().copied().min_by(f64::total_cmp)?, values.iter().copied().max_by(f64::total_cmp)?);
    let median = median(values.to_vec()).filter(|median| *median != 0.0 && values.len() > 1)?;
    Some((most - least) / median)
}

/// All rows of a run.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// In the order of the table.
    pub(super) rows: Vec<Row>,
}

impl Report {
    fn without(&self, row: &Row) -> Option<&Row> {
        let without = row.mode.without();
        self.rows.iter().find(|other| other.work == row.work && other.mode == without && row.mode != without)
    }

    /// CPU relative to the copy chain in the same round: the cost of a unit depends on the machine, this ratio does
    /// not.
    fn of_chain(&self, row: &Row) -> Vec<f64> {
        let chain = self.rows.iter().find(|other| other.work == row.work && other.mode == Mode::Chain);
        let Some(chain) = chain.filter(|_| row.mode.has_chain()) else { return Vec::new() };
        let both = row.samples.iter().zip(&chain.samples);
        both.filter_map(|(row, chain)| Some(row.cpu_per_unit? / chain.cpu_per_unit.filter(|cpu| *cpu > 0.0)?)).collect()
    }

    /// The ratio to the run without the mesh. Each round is compared with itself, since the machine may be busier in
    /// one round than in another; the median of the ratios counts.
    fn ratios(&self, row: &Row) -> Vec<f64> {
        let Some(without) = self.without(row) else { return Vec::new() };
        row.samples.iter().zip(&without.samples).map(|(with, without)| with.value / without.value).collect()
    }

    fn added_us(&self, row: &Row) -> Option<f64> {
        let without = self.without(row)?;
        let added = row.samples.iter().zip(&without.samples);
        median(added.filter_map(|(with, without)| Some(with.p50_us? - without.p50_us?)).collect())
    }

    /// The table for people.
    #[must_use]
    pub(super) fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header([
            "work",
            "mode",
            "value",
            "of no mesh",
            "CPU, both nodes",
            "of chain's",
            "p50 / p99 / p99.9 us",
            "RSS MB",
        ]);
        for row in &self.rows {
            table.add_row(self.cells(row));
        }
        table.to_string()
    }

    fn cells(&self, row: &Row) -> [Cell; 8] {
        let spread = row.spread(|sample| Some(sample.value));
        let spread = spread.map(|spread| format!(" ±{:.0} %", spread * 50.0)).unwrap_or_default();
        let taken = row.of(|sample| sample.taken);
        let taken = taken.map(|bytes| format!(" ({} MB taken each)", short(bytes / f64::from(1 << 20))));
        let taken = taken.unwrap_or_default();
        let value = row.value().map(short).unwrap_or_default() + " " + row.work.unit() + &spread + &taken;
        let added = self.added_us(row).map(|added| format!(" ({added:+.0} us)")).unwrap_or_default();
        let ratio = median(self.ratios(row)).map(|ratio| format!("{ratio:.2}{added}")).unwrap_or_default();
        let cpu = row.of(|sample| sample.cpu_per_unit).filter(|_| row.mode != row.mode.without());
        let cpu = cpu.map(|cpu| format!("{} {}", short(cpu), row.work.cpu_unit())).unwrap_or_default();
        let of_chain = median(self.of_chain(row)).map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
        let percentiles = [|s: &Sample| s.p50_us, |s: &Sample| s.p99_us, |s: &Sample| s.p999_us];
        let percentiles: Vec<_> = percentiles.iter().filter_map(|field| row.of(field)).map(short).collect();
        let rss = row.of(|sample| sample.rss_kb).filter(|_| row.mode.is_meshed());
        let rss = rss.map(|kb| format!("{:.1}", kb / 1024.0)).unwrap_or_default();
        let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
        let (work, mode) = (Cell::new(row.work.name()), Cell::new(row.mode.name()));
        let percentiles = percentiles.join(" / ");
        [work, mode, right(value), right(ratio), right(cpu), right(of_chain), right(percentiles), right(rss)]
    }

    /// JSON for programs: one object for each row, with stable keys.
    #[must_use]
    pub(super) fn json(&self, machine: &str) -> Value {
        let row = |row: &Row| {
            let (ratios, of_chain) = (self.ratios(row), self.of_chain(row));
            let better = if row.work.better() == Better::Higher { "higher" } else { "lower" };
            json!({
                "work": row.work.name(),
                "mode": row.mode.name(),
                "meshed": row.mode.is_meshed(),
                "value": row.value(),
                "unit": row.work.unit(),
                "better": better,
                "spread": row.spread(|sample| Some(sample.value)),
                "ratio": median(ratios.clone()),
                "ratio_spread": spread(&ratios),
                "cpu_per_unit": row.of(|sample| sample.cpu_per_unit),
                "cpu_unit": row.work.cpu_unit(),
                "cpu_spread": row.spread(|sample| sample.cpu_per_unit),
                "cpu_of_chain": median(of_chain.clone()),
                "cpu_of_chain_spread": spread(&of_chain),
                "added_p50_us": self.added_us(row),
                "p50_us": row.of(|sample| sample.p50_us),
                "p99_us": row.of(|sample| sample.p99_us),
                "p999_us": row.of(|sample| sample.p999_us),
                "rss_kb": row.of(|sample| sample.rss_kb),
                "taken_per_connection": row.of(|sample| sample.taken),
                "rss_spread": row.spread(|sample| sample.rss_kb),
                "rounds": row.samples.iter().map(|sample| sample.value).collect::<Vec<_>>(),
            })
        };
        json!({ "machine": machine, "rows": self.rows.iter().map(row).collect::<Vec<_>>() })
    }
}

/// The value with three significant digits.
pub(super) fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 10_000.0 => format!("{:.1}k", value / 1000.0),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::compare::losses;
    use anyhow::Result;

    fn row(work: Work, mode: Mode, values: &[f64]) -> Row {
        let samples = values.iter().map(|value| Sample { value: *value, ..Sample::default() }).collect();
        Row { work, mode, samples }
    }

    #[test]
    fn the_middle_is_the_median() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(vec![]), None);
    }

    fn run(with: f64) -> Report {
        Report {
            rows: vec![
                row(Work::Bulk(1), Mode::None, &[40.0, 41.0, 39.0]),
                row(Work::Bulk(1), Mode::Mesh, &[with, with * 1.02, with * 0.98]),
                row(Work::Start, Mode::Mesh, &[400.0 / with]),
            ],
        }
    }

    #[test]
    fn a_loss_is_told_noise_is_not() -> Result<()> {
        let before = run(20.0).json("a machine");
        let lost = |with: f64| losses(&run(with).json("a machine"), &before);
        for with in [20.0, 20.5, 19.0, 30.0] {
            assert_eq!(lost(with)?, Vec::<String>::new(), "{with}");
        }
        let told = lost(10.0)?;
        let of_bulk = "iperf3, 1 stream, mesh: 0.25 of no mesh, was 0.50; noise 10 %";
        assert_eq!(told, [of_bulk, "start to ready, mesh: 40.0 ms, was 20.0; noise 10 %"]);
        assert!(losses(&before, &json!({})).is_err());
        assert!(losses(&before, &json!({ "rows": [] })).is_err(), "nothing was compared");
        Ok(())
    }

    #[test]
    fn cpu_and_memory_are_losses_too_but_not_next_to_nothing() -> Result<()> {
        let sample = |value, cpu, kb| Sample { value, cpu_per_unit: cpu, rss_kb: Some(kb), ..Sample::default() };
        let of = |work, samples| Report { rows: vec![Row { work, mode: Mode::Mesh, samples }] }.json("");
        let bulk = |cpu, kb| of(Work::Bulk(8), vec![sample(10.0, Some(cpu), kb)]);
        let told = losses(&bulk(0.7, 20_000.0), &bulk(0.5, 10_000.0))?;
        let of_cpu = "iperf3, 8 streams, mesh: 0.70 s/GB, was 0.50; noise 10 %";
        assert_eq!(told, [of_cpu, "iperf3, 8 streams, mesh: 20.0k kB, was 10.0k; noise 10 %"]);
        let idle = |value| of(Work::Idle(0), vec![sample(value, None, 10_000.0)]);
        assert_eq!(losses(&idle(0.4), &idle(0.0))?, Vec::<String>::new());
        assert_eq!(losses(&idle(5.0), &idle(0.0))?, ["idle, mesh: 5.00 % CPU, was 0.00; noise 10 %"]);
        Ok(())
    }

    #[test]
    fn cpu_is_compared_with_the_chain_of_the_same_run() -> Result<()> {
        let of = |mode, cpu: [f64; 2]| {
            let sample = |cpu| Sample { value: 10.0, cpu_per_unit: Some(cpu), ..Sample::default() };
            Row { work: Work::Bulk(1), mode, samples: cpu.map(sample).to_vec() }
        };
        let run = |mesh: f64, chain: f64| {
            // In the second round the machine is busier by half.
            let rows = [(Mode::Chain, chain), (Mode::Mesh, mesh), (Mode::SameNode, mesh)];
            Report { rows: rows.map(|(mode, cpu)| of(mode, [cpu, cpu * 1.5])).to_vec() }.json("")
        };
        let before = run(1.0, 0.5);
        let of_chain = ["/rows/0/cpu_of_chain", "/rows/1/cpu_of_chain", "/rows/2/cpu_of_chain"];
        assert_eq!(
            of_chain.map(|key| before.pointer(key)),
            [Some(&Value::Null), Some(&json!(2.0)), Some(&Value::Null)]
        );
        assert_eq!(losses(&run(1.3, 0.65), &before)?, Vec::<String>::new(), "a slower machine is no loss");
        let told = losses(&run(1.3, 0.5), &before)?;
        assert_eq!(told, ["iperf3, 1 stream, mesh: 2.60 of the copy chain's CPU, was 2.00; noise 10 %"]);
        Ok(())
    }

    #[test]
    fn the_keys_stay() -> Result<()> {
        let json = run(20.0).json("a machine");
        let rows = json.get("rows").and_then(Value::as_array).expect("there are rows");
        for row in rows {
            for key in ["work", "mode", "value", "unit", "ratio", "cpu_per_unit", "p50_us", "p99_us", "rss_kb"] {
                assert!(row.get(key).is_some(), "{key} in {row}");
            }
        }
        assert_eq!(rows[1].get("ratio"), Some(&json!(0.5)));
        assert_eq!(rows[2].get("ratio"), Some(&Value::Null), "nothing to compare with is no ratio");
        let names: Vec<_> = Work::all().iter().map(|(work, _)| work.name()).collect();
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(names.len(), distinct.len(), "{names:?}");
        Ok(())
    }
}
