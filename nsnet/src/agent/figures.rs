//! Figures, and their text as Prometheus reads it.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::{Registry, Unit};

/// The content type of what [`encode`] makes.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Names and values.
pub(super) type Labels = Vec<(&'static str, String)>;

/// Families of figures, in the order of their names.
#[derive(Debug, Default)]
pub(super) struct Families(BTreeMap<(&'static str, &'static str), Family>);

#[derive(Debug)]
struct Family {
    help: &'static str,
    unit: Option<Unit>,
    is_counter: bool,
    rows: Vec<(Labels, Value)>,
}

#[derive(Clone, Copy, Debug)]
enum Value {
    Whole(u64),
    Real(f64),
}

impl Value {
    fn encode(self, row: &mut MetricEncoder<'_>, is_counter: bool) -> fmt::Result {
        match (is_counter, self) {
            (true, Self::Whole(value)) => row.encode_counter(&value, NO_EXEMPLAR),
            (true, Self::Real(value)) => row.encode_counter(&value, NO_EXEMPLAR),
            (false, Self::Whole(value)) => row.encode_gauge(&value),
            (false, Self::Real(value)) => row.encode_gauge(&value),
        }
    }
}

impl Families {
    fn add(
        &mut self,
        name: &'static str,
        help: &'static str,
        unit: Option<Unit>,
        is_counter: bool,
        rows: impl IntoIterator<Item = (Labels, Value)>,
    ) {
        let order = match &unit {
            Some(Unit::Bytes) => "bytes",
            Some(_) => "other",
            None => "",
        };
        let family = || Family { help, unit, is_counter, rows: Vec::new() };
        self.0.entry((name, order)).or_insert_with(family).rows.extend(rows);
    }

    pub(super) fn counter(
        &mut self,
        name: &'static str,
        help: &'static str,
        unit: Option<Unit>,
        rows: impl IntoIterator<Item = (Labels, u64)>,
    ) {
        self.add(name, help, unit, true, rows.into_iter().map(|(labels, value)| (labels, Value::Whole(value))));
    }

    pub(super) fn gauge(
        &mut self,
        name: &'static str,
        help: &'static str,
        unit: Option<Unit>,
        rows: impl IntoIterator<Item = (Labels, u64)>,
    ) {
        self.add(name, help, unit, false, rows.into_iter().map(|(labels, value)| (labels, Value::Whole(value))));
    }

    pub(super) fn reals(
        &mut self,
        name: &'static str,
        help: &'static str,
        unit: Unit,
        rows: impl IntoIterator<Item = (Labels, f64)>,
    ) {
        self.add(name, help, Some(unit), false, rows.into_iter().map(|(labels, value)| (labels, Value::Real(value))));
    }

    pub(super) fn real_counter(
        &mut self,
        name: &'static str,
        help: &'static str,
        unit: Unit,
        rows: impl IntoIterator<Item = (Labels, f64)>,
    ) {
        self.add(name, help, Some(unit), true, rows.into_iter().map(|(labels, value)| (labels, Value::Real(value))));
    }

    /// How full tables are.
    pub(super) fn tables(&mut self, tables: impl IntoIterator<Item = (&'static str, u64, u64)>) {
        let label = |name: &str| vec![("table", name.to_ascii_lowercase())];
        for (name, entries, capacity) in tables {
            self.gauge(
                "table_entries",
                "Entries of a table, of hashes at the last sweep",
                None,
                [(label(name), entries)],
            );
            self.gauge("table_capacity", "Entries that it may have", None, [(label(name), capacity)]);
        }
    }

    /// These and those.
    pub(super) fn and(mut self, others: Self) -> Self {
        for (name, family) in others.0 {
            match self.0.get_mut(&name) {
                Some(known) => known.rows.extend(family.rows),
                None => drop(self.0.insert(name, family)),
            }
        }
        self
    }
}

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for ((name, _), family) in &self.0 {
            let kind = if family.is_counter { MetricType::Counter } else { MetricType::Gauge };
            let mut metric = encoder.encode_descriptor(name, family.help, family.unit.as_ref(), kind)?;
            for (labels, value) in &family.rows {
                // Empty braces are not understood by every reader.
                if labels.is_empty() {
                    value.encode(&mut metric, family.is_counter)?;
                } else {
                    value.encode(&mut metric.encode_family(labels)?, family.is_counter)?;
                }
            }
        }
        Ok(())
    }
}

const NO_EXEMPLAR: Option<&Exemplar<Labels, f64>> = None;

/// The figures as text.
pub(super) fn encode(families: Families) -> String {
    let mut registry = Registry::with_prefix("nsnet");
    registry.register_collector(Box::new(families));
    let mut page = String::new();
    // Writing to a string does not fail.
    let _written = text::encode(&mut page, &registry);
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_their_unit_and_labels_are_quoted() {
        let mut families = Families::default();
        let label = |port: &str| vec![("port", port.to_owned())];
        families.counter("rx", "Frames", Some(Unit::Other("packets".to_owned())), [(label("a\"b"), 7)]);
        families.counter("rx", "Bytes", Some(Unit::Bytes), [(label("a"), 8)]);
        families.gauge("drift", "Differences", None, [(vec![], 0)]);
        let mut others = Families::default();
        others.tables([("FLOWS4", 1, 2)]);
        let page = encode(families.and(others));
        let samples: Vec<&str> = page.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            samples,
            [
                "nsnet_drift 0",
                "nsnet_rx_bytes_total{port=\"a\"} 8",
                "nsnet_rx_packets_total{port=\"a\\\"b\"} 7",
                "nsnet_table_capacity{table=\"flows4\"} 2",
                "nsnet_table_entries{table=\"flows4\"} 1",
            ]
        );
        assert!(page.contains("# TYPE nsnet_rx_bytes counter\n") && page.ends_with("# EOF\n"), "{page}");
    }

    #[test]
    fn families_that_two_have_are_one() {
        let tables = |name| {
            let mut families = Families::default();
            families.tables([(name, 1, 2)]);
            families
        };
        let page = encode(tables("PORTS").and(tables("FLOWS4")));
        assert_eq!(page.matches("# TYPE nsnet_table_entries gauge").count(), 1);
        assert_eq!(page.matches("\nnsnet_table_entries{").count(), 2);
    }
}
