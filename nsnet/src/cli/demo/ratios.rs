//! What a comparison says about one workload, for people and for programs.

use std::fmt;

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::lab::{Comparison, Measure, Ratio, Workload};

/// What the demo measures, with the name for people and the key for programs.
pub(super) const WORKLOADS: [(Workload, &str, &str); 4] = [
    (Workload::TcpStream, "TCP", "tcp_stream"),
    (Workload::UdpSmall, "UDP, 64 bytes", "udp_64_bytes"),
    (Workload::UdpPolled, "UDP, to a receiver that polls", "udp_64_bytes_polled"),
    (Workload::Connections, "connections", "connections"),
];

/// A variant that the subject is compared with: name, as people call it, and key for programs.
pub(super) type Peer = (&'static str, &'static str, &'static str);

/// Who is compared with whom.
#[derive(Clone, Copy, Debug)]
pub(super) struct Against {
    /// The variant that is judged.
    pub(super) subject: &'static str,
    /// The variants it is compared with, as far as they were measured.
    pub(super) peers: &'static [Peer],
    /// One path measured twice, and whose rate is told.
    pub(super) twice: [&'static str; 2],
}

/// The subject's ratios under one workload.
pub(super) struct Ratios<'a> {
    against: Against,
    peers: Vec<Peer>,
    comparison: &'a Comparison,
    workload: Workload,
    /// To each peer.
    rates: Vec<Ratio>,
    noise: Ratio,
    /// What the sender spends on a unit, relative to the peers: instructions, or CPU time where they are not counted.
    cost: Option<(&'static str, Vec<Ratio>)>,
}

impl<'a> Ratios<'a> {
    pub(super) fn of(comparison: &'a Comparison, workload: Workload, against: Against) -> Result<Self> {
        let is_measured = |peer: &&Peer| comparison.series(workload, peer.0).is_some();
        let peers: Vec<Peer> = against.peers.iter().filter(is_measured).copied().collect();
        let to_peers = |measure| {
            let to = |peer: &Peer| comparison.ratio(workload, against.subject, peer.0, measure);
            peers.iter().map(to).collect::<Result<Vec<Ratio>>>()
        };
        // Of a stream and of connections the sender does only a part of the work.
        let cost = matches!(workload, Workload::UdpSmall | Workload::UdpPolled).then(|| {
            let instructions = to_peers(Measure::Instructions).map(|ratios| ("instructions", ratios));
            instructions.or_else(|_not_counted| to_peers(Measure::Cpu).map(|ratios| ("CPU time", ratios)))
        });
        let [path, again] = against.twice;
        let (rates, cost) = (to_peers(Measure::Rate)?, cost.transpose()?);
        let noise = comparison.ratio(workload, again, path, Measure::Rate)?;
        Ok(Self { against, peers, comparison, workload, rates, noise, cost })
    }

    fn to_peers(&self, ratios: &[Ratio]) -> String {
        let labels = self.peers.iter().map(|(_, label, _)| label);
        let texts: Vec<String> = ratios.iter().zip(labels).map(|(ratio, label)| show(ratio, label)).collect();
        texts.join(", ")
    }

    /// The same for programs.
    pub(super) fn to_json(&self) -> Value {
        let ratio = |ratio: &Ratio| {
            let Ratio { median, low, high, blocks } = ratio;
            json!({ "median": median, "low": low, "high": high, "blocks": blocks, "differs": ratio.differs(&self.noise) })
        };
        let to_peers = |ratios: &[Ratio]| {
            let keys = self.peers.iter().map(|(_, _, key)| (*key).to_owned());
            keys.zip(ratios.iter().map(ratio)).collect::<Map<_, _>>()
        };
        let names = self.peers.iter().map(|(name, ..)| *name).chain([self.against.subject]);
        let medians = |measure, scale: f64| {
            let median = |name| self.comparison.median(self.workload, name, measure).map(|value| value * scale);
            names.clone().map(|name| (name.to_owned(), json!(median(name)))).collect::<Map<_, _>>()
        };
        let mut answer = to_peers(&self.rates);
        answer.insert("noise".to_owned(), ratio(&self.noise));
        answer.insert("unit".to_owned(), self.workload.unit().into());
        answer.insert("medians".to_owned(), medians(Measure::Rate, 1.0).into());
        answer.insert("losses".to_owned(), medians(Measure::Loss, 1.0).into());
        answer.insert("sender_cpu_nanoseconds".to_owned(), medians(Measure::Cpu, 1e9).into());
        answer.insert("sender_instructions".to_owned(), medians(Measure::Instructions, 1.0).into());
        if let Some((of, ratios)) = &self.cost {
            answer.insert("sender_cost".to_owned(), json!({ "of": of, "ratios": to_peers(ratios) }));
        }
        Value::Object(answer)
    }
}

impl fmt::Display for Ratios<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { comparison, workload, .. } = *self;
        let Ratio { median, low, high, .. } = self.noise;
        write!(f, "{}; A/A {median:.2} [{low:.2}-{high:.2}]", self.to_peers(&self.rates))?;
        if let Some((of, ratios)) = &self.cost {
            write!(f, "; {of} for a datagram: {}", self.to_peers(ratios))?;
        }
        let of = |name, measure| comparison.median(workload, name, measure).unwrap_or_default();
        let path = self.against.twice[0];
        write!(f, "; over {path}: {}", workload.show(of(path, Measure::Rate)))?;
        let names = self.peers.iter().map(|(name, ..)| *name).chain([self.against.subject]);
        let lost: Vec<String> = names
            .map(|name| (name, of(name, Measure::Loss)))
            .filter(|(_, loss)| *loss >= 0.001)
            .map(|(name, loss)| format!("{:.1} % over {name}", loss * 100.0))
            .collect();
        if lost.is_empty() { Ok(()) } else { write!(f, "; lost: {}", lost.join(", ")) }
    }
}

/// A ratio with its interval.
fn show(ratio: &Ratio, to: &str) -> String {
    format!("{:.2}x {to} [{:.2}-{:.2}]", ratio.median, ratio.low, ratio.high)
}

/// How far the measurement is to be trusted.
pub(super) fn circumstances(comparison: &Comparison) -> String {
    let blocks = comparison.series.first().map_or(0, |series| series.rates.len());
    let mut text = format!("{blocks} blocks in random order, ratios within a block; [95 % interval]");
    if !comparison.pinned {
        text += "; with one CPU for both ends, which hides differences";
    }
    if comparison.disturbed > 0 {
        text += &format!("; the hypervisor disturbed {} of the blocks' parts", comparison.disturbed);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::compare::Series;

    const AGAINST: Against = Against {
        subject: "nsnet",
        peers: &[("bridge", "the bridge", "to_bridge"), ("veth", "a direct veth", "to_veth")],
        twice: ["veth", "veth again"],
    };

    fn series(variant: &str, rate: f64, loss: f64, instructions: Option<f64>) -> Series {
        let blocks = |value: f64| vec![value; 6];
        Series {
            rates: blocks(rate),
            losses: blocks(loss),
            cpu: blocks(1.0 / rate),
            instructions: instructions.map(blocks).unwrap_or_default(),
            ..Series::new(Workload::UdpSmall, variant)
        }
    }

    fn comparison(instructions: Option<f64>) -> Comparison {
        let times = |factor: f64| instructions.map(|count| count * factor);
        let series = vec![
            series("veth", 200e3, 0.0, times(1.0)),
            series("veth again", 200e3, 0.0, times(1.0)),
            series("bridge", 160e3, 0.02, times(1.3)),
            series("nsnet", 192e3, 0.0, times(1.04)),
        ];
        Comparison::of(series)
    }

    #[test]
    fn a_line_for_each_workload() {
        let counted = comparison(Some(1000.0));
        let ratios = Ratios::of(&counted, Workload::UdpSmall, AGAINST).unwrap();
        let text = "1.20x the bridge [1.20-1.20], 0.96x a direct veth [0.96-0.96]; A/A 1.00 [1.00-1.00]; \
                    instructions for a datagram: 0.80x the bridge [0.80-0.80], 1.04x a direct veth [1.04-1.04]; \
                    over veth: 200.0 kpps; lost: 2.0 % over bridge";
        assert_eq!(ratios.to_string(), text);
        let json = ratios.to_json();
        assert_eq!(json["to_bridge"]["differs"], true);
        assert_eq!(json["sender_instructions"]["nsnet"], 1040.0);
        assert_eq!(json["sender_cpu_nanoseconds"]["veth"], 5000.0);
    }

    #[test]
    fn cpu_time_where_instructions_are_not_counted() {
        let not_counted = comparison(None);
        let ratios = Ratios::of(&not_counted, Workload::UdpSmall, AGAINST).unwrap();
        assert!(ratios.to_string().contains("; CPU time for a datagram: 0.83x the bridge [0.83-0.83], 1.04x"));
        assert_eq!(ratios.to_json()["sender_instructions"]["nsnet"], Value::Null);
    }
}
