//! What the dataplane says, as rows of `nsnet top`.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;

use nsnet_common::layout::{PortCounters, PortId};
use nsnet_common::verdict::DropReason;
use serde_json::Value;

use super::super::capture::time;
use super::super::ct::{Owners, flags};
use super::super::drops::{Kept, owner};
use super::super::output::{Format, text};
use super::super::stats;
use super::app::{App, Cell, Column, Order, Pane, Row, Tab};
use crate::kernel::clock::{clock_offset, monotonic};
use crate::kernel::flows::Look as Which;
use crate::kernel::host::Host;
use crate::model::capture::interfaces::Interfaces;
use crate::model::flow::{Connection, Filter, has_ports, protocol_name};
use crate::model::name::Name;
use crate::model::spec::endpoint;
use crate::model::traffic::{Look, PortName, Rates, short};

/// So many flows are kept of those that there are: the first in order.
const KEPT: usize = 1000;

const fn words(title: &'static str, rank: u8) -> Column {
    Column { title, rank, is_number: false }
}

const fn number(title: &'static str, rank: u8) -> Column {
    Column { title, rank, is_number: true }
}

pub(super) const PORT_COLUMNS: [Column; 8] = [
    words("PORT", 0),
    words("NS", 2),
    number("RX pps", 4),
    number("RX bit/s", 1),
    number("TX pps", 4),
    number("TX bit/s", 1),
    number("DROP/s", 3),
    words("NETWORK", 5),
];

const FLOW_COLUMNS: [Column; 6] = [
    words("PROTO", 2),
    words("SOURCE", 0),
    words("DESTINATION", 0),
    words("STATE", 1),
    words("NS", 4),
    number("EXPIRES", 3),
];

const DROP_COLUMNS: [Column; 7] = [
    words("REASON", 0),
    words("PORT", 1),
    words("NS", 4),
    number("DROP/s", 1),
    number("PACKETS", 2),
    number("AGE s", 3),
    words("LAST", 5),
];

/// Looks at the dataplane, and remembers the look before.
pub(super) struct Sampler<'a> {
    host: &'a Host,
    before: Look,
    now: Look,
    /// Why the last look was none.
    trouble: Option<anyhow::Error>,
    clock_offset: u64,
}

impl<'a> Sampler<'a> {
    pub(super) fn new(host: &'a Host) -> anyhow::Result<Self> {
        let now = stats::look(host)?;
        Ok(Self { host, before: now.clone(), now, trouble: None, clock_offset: clock_offset()? })
    }

    /// What is counted since then is a rate from here on. What goes wrong is told by [`Sampler::pane`].
    pub(super) fn look_again(&mut self) {
        match stats::look(self.host) {
            Ok(now) => self.before = std::mem::replace(&mut self.now, now),
            Err(error) => self.trouble = Some(error),
        }
    }

    /// What the chosen tab is to show.
    pub(super) fn pane(&mut self, app: &App) -> anyhow::Result<Pane> {
        if let Some(trouble) = self.trouble.take() {
            return Err(trouble);
        }
        match app.tab {
            Tab::Ports => Ok(self.ports()),
            Tab::Flows => self.flows(app.view().order),
            Tab::Drops => self.drops(),
        }
    }

    fn of_day(&self, at: u64) -> String {
        let time = time(self.clock_offset.wrapping_add(at), Format::Table);
        // Seconds will do.
        format!("{}Z", time.split('.').next().unwrap_or_default())
    }

    fn ports(&self) -> Pane {
        let rates = self.now.since(&self.before);
        let row = |((name, counters), rates): (&(PortName, PortCounters), &Rates)| {
            let Rates { received, sent, dropped } = rates;
            let [a, b, c, d, e] = [received.packets, received.bits, sent.packets, sent.bits, *dropped].map(rate);
            let cells =
                vec![cell(&name.interface), optional(name.ns.as_ref()), a, b, c, d, e, optional(name.network.as_ref())];
            let about = format!(
                "{}: {} in, {} out, {} flooded, {} answered, {} passed to the host, {} dropped so far",
                name.interface,
                counters.received.packets,
                counters.sent.packets,
                counters.flooded,
                counters.answered,
                counters.passed,
                self.now.dropped(name.port)
            );
            Row { id: name.interface.clone(), cells, about }
        };
        let rows: Vec<Row> = self.now.ports.iter().zip(&rates).map(row).collect();
        let sum = |value: fn(&Rates) -> f64| short(rates.iter().map(value).sum());
        let summary = format!(
            "{} ports, {} pps, {}bit/s in",
            rows.len(),
            sum(|rates| rates.received.packets),
            sum(|rates| rates.received.bits)
        );
        Pane { columns: &PORT_COLUMNS, rows, summary, taken: self.of_day(self.now.at) }
    }

    fn flows(&self, order: Order) -> anyhow::Result<Pane> {
        let (mut rows, mut states) = (Vec::new(), HashMap::<&str, u64>::new());
        let at = monotonic()?;
        if self.host.dataplane.is_loaded() {
            let names = Owners::of(&self.host.state()?);
            let which = Which { filter: &Filter::default(), halves: false };
            self.host.maps().flows()?.each(&which, |flow| {
                if flow.expires.is_some() {
                    *states.entry(flow.about.state.label()).or_default() += 1;
                    rows.push(flow_row(&flow, &names));
                    if rows.len() >= 2 * KEPT {
                        order.sort(&mut rows);
                        rows.truncate(KEPT);
                    }
                }
                anyhow::Ok(())
            })?;
        }
        let count: u64 = states.values().sum();
        let mut states: Vec<_> = states.into_iter().collect();
        states.sort_unstable_by_key(|(label, count)| (std::cmp::Reverse(*count), *label));
        let states: String = states.iter().map(|(label, count)| format!(", {count} {label}")).collect();
        let summary = format!("{count} flow{}{states}", if count == 1 { "" } else { "s" });
        Ok(Pane { columns: &FLOW_COLUMNS, rows, summary, taken: self.of_day(at) })
    }

    fn drops(&self) -> anyhow::Result<Pane> {
        let mut rows = Vec::new();
        let mut total = 0.0;
        if self.host.dataplane.is_loaded() {
            let (names, maps) = (Interfaces::of(&self.host.state()?), self.host.maps());
            let mut last = HashMap::new();
            for (key @ (port, code), dropped) in &self.now.drops {
                let last = match last.entry(*code) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(new) => new.insert(maps.last_drops(*code)?),
                };
                let last = last.iter().filter(|last| last.port == *port).max_by_key(|last| last.seen);
                let packet = last.map(|last| Kept::new(last, self.now.at, &names).headers.to_string());
                let a_second = self.now.dropped_since(&self.before, key);
                total += a_second;
                let age = self.now.at.saturating_sub(dropped.seen) / 1_000_000_000;
                rows.push(drop_row(*port, *code, &names, a_second, dropped.traffic.packets, age, packet));
            }
        }
        let summary = format!("{} reasons at ports, {} dropped/s", rows.len(), short(total));
        Ok(Pane { columns: &DROP_COLUMNS, rows, summary, taken: self.of_day(self.now.at) })
    }
}

fn cell(text: &str) -> Cell {
    Cell::Text(text.to_owned())
}

fn optional(name: Option<&Name>) -> Cell {
    name.map_or_else(|| cell("-"), |name| cell(name.as_str()))
}

fn rate(number: f64) -> Cell {
    Cell::Number(number, short(number))
}

fn count(number: u64) -> Cell {
    Cell::Number(number as f64, number.to_string())
}

fn of(value: &Value) -> Cell {
    Cell::Text(text(value))
}

fn flow_row(flow: &Connection, owners: &Owners) -> Row {
    let Connection { opener, answers, about, expires, .. } = flow;
    let end = |ip, port: [u8; 2]| {
        let ip = IpAddr::from(ip);
        if has_ports(opener.protocol()) { endpoint(ip, u16::from_be_bytes(port)) } else { ip.to_string() }
    };
    let (network, ns) = owners.of_port(about.owner);
    let (source, destination) =
        (end(opener.source, opener.source_port), end(opener.destination, opener.destination_port));
    let protocol = protocol_name(opener.protocol());
    let about_it = format!(
        "answers from {} to {}; network {}; {}",
        end(answers.source, answers.source_port),
        end(answers.destination, answers.destination_port),
        text(&network),
        flags(flow, flow.is_young).join(" ")
    );
    Row {
        id: format!("{protocol} {source} {destination} {}", opener.side.0),
        cells: vec![
            cell(&protocol),
            cell(&source),
            cell(&destination),
            cell(about.state.label()),
            of(&ns),
            count(expires.unwrap_or(0).into()),
        ],
        about: about_it,
    }
}

fn drop_row(
    port: PortId,
    code: u16,
    names: &Interfaces,
    a_second: f64,
    packets: u64,
    age: u64,
    last: Option<String>,
) -> Row {
    let reason = DropReason::from_code(code);
    let label = reason.map_or_else(|| format!("code-{code}"), |reason| reason.label().to_owned());
    let meaning = reason.map_or("This nsnet does not know the reason.", DropReason::sentence);
    let (name, ns) = owner(port, names);
    let last = last.unwrap_or_else(|| "-".to_owned());
    Row {
        id: format!("{label} {}", port.0),
        cells: vec![cell(&label), of(&name), of(&ns), rate(a_second), count(packets), count(age), cell(&last)],
        about: format!("{meaning} Last: {last}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::app::tests::ports;
    use super::*;

    #[test]
    fn each_tab_is_sorted_by_a_column_that_it_has() {
        let mut app = App::default();
        for (tab, columns) in
            [(Tab::Ports, &PORT_COLUMNS[..]), (Tab::Flows, &FLOW_COLUMNS[..]), (Tab::Drops, &DROP_COLUMNS[..])]
        {
            app.tab = tab;
            assert!(columns[app.view().order.column].is_number, "{tab:?}");
        }
        assert_eq!(ports(&[("a", 1.0)]).rows[0].cells.len(), PORT_COLUMNS.len());
    }

    #[test]
    fn a_drop_says_what_it_means() {
        let reason = DropReason::NoRoute;
        let row = drop_row(PortId(7), reason.code(), &Interfaces::default(), 2.5, 9, 3, Some("10.0.0.1 > x".into()));
        let texts: Vec<&str> = row.cells.iter().map(Cell::text).collect();
        assert_eq!(texts, ["no-route", "port-7", "-", "2.5", "9", "3", "10.0.0.1 > x"]);
        assert_eq!(row.about, format!("{} Last: 10.0.0.1 > x", reason.sentence()));
        assert_eq!(row.cells.len(), DROP_COLUMNS.len());
        let unknown = drop_row(PortId::NONE, 9999, &Interfaces::default(), 0.0, 1, 0, None);
        assert_eq!((unknown.cells[0].text(), unknown.cells[6].text()), ("code-9999", "-"));
    }
}
