//! Where another way is better than nsnet. The direct veth is none: it is the limit of all.

use super::peer::Peer;
use super::result::{Cell, Figure, Results, SEED};
use crate::lab::{Measure, Ratio};

/// What people see of a cell, and what its title lacks of it.
const SEEN: [(Measure, &str); 3] =
    [(Measure::Rate, ""), (Measure::TripP99, ", p99"), (Measure::Cpu, ", sender's CPU time")];

/// Something in which another way is better than nsnet.
#[derive(Clone, Debug)]
pub(super) struct Loss {
    /// In what.
    pub(super) what: String,
    /// Than whom.
    pub(super) to: Peer,
    /// How many times.
    pub(super) times: f64,
    /// What was found.
    pub(super) found: Lost,
}

/// What a loss is told by.
#[derive(Clone, Debug)]
pub(super) enum Lost {
    /// How much of the other's nsnet has.
    Blocks(Ratio),
    /// Two figures, ours and theirs, as people read them.
    Figures(String, String),
}

impl Cell {
    /// By more than the noise.
    fn losses(&self) -> Vec<Loss> {
        // Of streams the sender does only a part.
        let seen = SEEN.into_iter().filter(|(measure, _)| *measure != Measure::Cpu || self.load.is_packets());
        let lost = seen.flat_map(|(measure, name)| self.lost_to(measure).map(move |lost| (measure, name, lost)));
        lost.map(|(measure, name, (to, ratio))| {
            let times = if measure == Measure::Rate { 1.0 / ratio.median } else { ratio.median };
            Loss { what: format!("{}{name}", self.title()), to, times, found: Lost::Blocks(ratio) }
        })
        .collect()
    }

    fn lost_to(&self, measure: Measure) -> impl Iterator<Item = (Peer, Ratio)> {
        let noise = self.noise(measure).or_else(|| Ratio::of(&[1.0, 1.0], SEED));
        let others = self.rows.iter().map(|row| row.peer).filter(|peer| peer.is_another_way());
        let ratios = others.filter_map(move |peer| Some((peer, self.ratio(measure, Peer::Nsnet, peer)?)));
        ratios.filter(move |(_, ratio)| {
            let is_worse = if measure == Measure::Rate { ratio.median < 1.0 } else { ratio.median > 1.0 };
            is_worse && noise.is_some_and(|noise| ratio.differs(&noise))
        })
    }
}

impl Figure {
    /// Whether it is surely less than another.
    fn is_below(&self, other: &Figure) -> bool {
        let (most, least) =
            (self.range.map_or(self.value, |[_, high]| high), other.range.map_or(other.value, |[low, _]| low));
        self.value > 0.0 && most < least
    }
}

impl Results {
    /// Where another way is better than nsnet, the largest loss first.
    pub(super) fn losses(&self) -> Vec<Loss> {
        let mut losses: Vec<Loss> = self.cells.iter().flat_map(Cell::losses).collect();
        for ours in self.figures.iter().filter(|figure| figure.peer == Peer::Nsnet) {
            let of_same = self.figures.iter().filter(|other| other.of == ours.of && other.count == ours.count);
            for theirs in of_same.filter(|other| other.peer.is_another_way() && other.is_below(ours)) {
                losses.push(Loss {
                    what: format!("{}, {}", ours.of.name(), ours.count),
                    to: theirs.peer,
                    times: ours.value / theirs.value,
                    found: Lost::Figures(ours.show(), theirs.show()),
                });
            }
        }
        losses.sort_by(|a, b| b.times.total_cmp(&a.times));
        losses
    }
}
