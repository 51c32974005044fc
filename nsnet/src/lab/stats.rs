//! Medians, and how far to trust them.

use std::fmt;

use super::random::Random;

/// Resamples of the bootstrap: more would move the interval's ends by less than the printed digits.
const RESAMPLES: usize = 4_000;

/// How one variant compares with a baseline measured in the same blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// Median of the per-block ratios; above 1 the variant is faster.
    pub median: f64,
    /// Lower end of the 95 % interval.
    pub low: f64,
    /// Upper end of the 95 % interval.
    pub high: f64,
    /// Blocks it rests on.
    pub blocks: usize,
}

impl Ratio {
    /// The median of `ratios` with a bootstrap interval: draw as many ratios with replacement, take the median, repeat,
    /// and cut 2.5 % off either end (the percentile method of Efron and Tibshirani, "An Introduction to the Bootstrap",
    /// chapter 13). It assumes no distribution. It cannot know what the blocks did not show: with fewer than about six
    /// the interval is optimistic, and a single block gives none (0 to infinity).
    ///
    /// `None` without ratios. The same ratios and seed give the same interval.
    pub fn of(ratios: &[f64], seed: u64) -> Option<Ratio> {
        let center = median(ratios)?;
        let (low, high) = if ratios.len() == 1 { (0.0, f64::INFINITY) } else { bootstrap(ratios, seed) };
        Some(Ratio { median: center, low, high, blocks: ratios.len() })
    }

    /// Half the width of the interval.
    pub fn half_width(&self) -> f64 {
        (self.high - self.low) / 2.0
    }

    /// Whether a difference may be claimed: the interval excludes 1 by more than the half width of `noise`, the ratio
    /// of one path measured twice.
    pub fn differs(&self, noise: &Ratio) -> bool {
        self.low > 1.0 + noise.half_width() || self.high < 1.0 - noise.half_width()
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} [{:.3}, {:.3}]", self.median, self.low, self.high)
    }
}

/// The middle value, or the mean of the two middle ones; `None` without values.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    Some(if sorted.len().is_multiple_of(2) { f64::midpoint(sorted[sorted.len() / 2 - 1], upper) } else { upper })
}

fn bootstrap(ratios: &[f64], seed: u64) -> (f64, f64) {
    let mut random = Random::new(seed);
    let mut draw = vec![0.0; ratios.len()];
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            draw.fill_with(|| ratios[random.below(ratios.len())]);
            median(&draw)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    let cut = medians.len() / 40; // 2.5 %
    (medians[cut], medians[medians.len() - 1 - cut])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), Some(3.0));
    }

    #[test]
    fn gives_an_interval_around_the_median() {
        let ratios: Vec<f64> = (0..21).map(|i| 0.9 + f64::from(i) * 0.01).collect();
        let ratio = Ratio::of(&ratios, 1).unwrap();
        assert_eq!(ratio.median, 1.0);
        // The exact 95 % interval for the median of 21 values runs from the 6th to the 16th: 0.95 to 1.05.
        assert!((0.94..=0.97).contains(&ratio.low) && (1.03..=1.06).contains(&ratio.high), "{ratio}");
        assert_eq!(Ratio::of(&ratios, 1), Some(ratio));
    }

    #[test]
    fn claims_nothing_from_too_little() {
        assert_eq!(Ratio::of(&[], 1), None);
        let one = Ratio::of(&[2.0], 1).unwrap();
        let tight = Ratio::of(&[1.0; 8], 1).unwrap();
        assert_eq!((tight.low, tight.high), (1.0, 1.0));
        assert!(!one.differs(&tight) && !tight.differs(&one));
    }

    #[test]
    fn claims_only_beyond_the_noise() {
        let noise = Ratio { median: 1.0, low: 0.97, high: 1.03, blocks: 8 };
        assert!(!Ratio { median: 1.05, low: 1.02, high: 1.08, blocks: 8 }.differs(&noise));
        assert!(Ratio { median: 1.08, low: 1.04, high: 1.12, blocks: 8 }.differs(&noise));
        assert!(Ratio { median: 0.8, low: 0.7, high: 0.9, blocks: 8 }.differs(&noise));
    }
}
