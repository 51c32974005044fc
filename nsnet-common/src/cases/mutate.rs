//! Broken frames, made of the cases' frames: cut, grown, bits turned, fields replaced by others that mean something.

use crate::layout::PortId;

use super::sequence::Sequence;
use super::world::{AFAR_V4, AFAR_V6, BLUE_SECOND_V4, BLUE_SECOND_V6, ENDS, NARROW_V4, STRANGER, UPLINK};
use super::{Case, Hook, all, sequences};

/// A small generator of random numbers (SplitMix64): the same seed gives the same frames everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator that begins with `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, or 0.
    pub fn below(&mut self, limit: usize) -> usize {
        if limit == 0 { 0 } else { (self.bits() % limit as u64) as usize }
    }

    /// One of `items`.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

/// A frame that nobody has thought of.
#[derive(Clone, Debug)]
pub struct Mutant {
    /// Where it arrives.
    pub hook: Hook,
    /// The port it arrives at.
    pub port: PortId,
    /// Its bytes.
    pub frame: Vec<u8>,
    /// Payload of each segment, when it is a GSO frame.
    pub gso_size: u32,
    /// The case whose frame it was made of.
    pub parent: String,
}

/// Makes mutants without end.
#[derive(Debug)]
pub struct Mutants {
    random: Random,
    parents: Vec<Mutant>,
    /// Frames that belong together: the later ones mean something only after the others.
    families: Vec<Vec<Mutant>>,
    /// What is left of such.
    rest: Vec<Mutant>,
    words: Vec<Vec<u8>>,
}

/// Bytes that have a meaning somewhere: versions, protocols, extension headers, ND types, DHCP ports, option lengths.
const BYTES: &[u8] = &[
    0, 1, 2, 4, 6, 14, 17, 43, 44, 51, 58, 59, 60, 67, 68, 127, 128, 133, 134, 135, 136, 137, 224, 240, 254, 255, 0x22,
    0x23, 0x40, 0x44, 0x45, 0x46, 0x4f, 0x60, 0x65, 0x81, 0x86, 0x88, 0xdd,
];

impl Mutants {
    /// The sequence that belongs to `seed`, of frames that come in at hooks.
    pub fn new(seed: u64) -> Self {
        let families = sequences().iter().map(family).collect::<Vec<_>>();
        Self { families, ..Self::of(seed, |case| !case.is_refused()) }
    }

    /// The sequence that belongs to `seed`, of packets that are refused.
    pub fn refused(seed: u64) -> Self {
        Self::of(seed, Case::is_refused)
    }

    fn of(seed: u64, is_parent: impl Fn(&Case) -> bool) -> Self {
        let mut words = vec![BLUE_SECOND_V4.to_vec(), BLUE_SECOND_V6.to_vec(), STRANGER.0.to_vec(), vec![0; 16]];
        for end in ENDS {
            words.extend([end.mac.0.to_vec(), end.ipv4.to_vec(), end.ipv6.to_vec(), end.link_local().to_vec()]);
        }
        words.extend([vec![0xff; 6], vec![127, 0, 0, 1], vec![0x86, 0xdd], vec![0x81, 0], vec![8, 0], vec![8, 6]]);
        words.extend([UPLINK.mac.0.to_vec(), UPLINK.ipv4.to_vec(), UPLINK.ipv6.to_vec()]);
        words.extend([AFAR_V4.to_vec(), AFAR_V6.to_vec(), NARROW_V4.to_vec()]);
        let parents = all().into_iter().filter(is_parent).map(parent).collect();
        Self { random: Random::new(seed), parents, families: Vec::new(), rest: Vec::new(), words }
    }

    /// The next one.
    pub fn next_mutant(&mut self) -> Mutant {
        if self.rest.is_empty() && !self.families.is_empty() && self.random.below(3) == 0 {
            self.rest.clone_from(self.random.pick(&self.families));
        }
        if let Some(mut mutant) = self.rest.pop() {
            // Most must get through for the next ones to mean something.
            for _ in 0..self.random.below(6).saturating_sub(3) {
                self.change(&mut mutant.frame);
            }
            return mutant;
        }
        let mut mutant = self.random.pick(&self.parents).clone();
        // Another sender for some: nearly every frame of one port is a forgery at another.
        if self.random.below(4) == 0 {
            let end = *self.random.pick(&ENDS);
            mutant.port = end.id;
        }
        for _ in 0..self.random.below(4) {
            self.change(&mut mutant.frame);
        }
        mutant
    }

    fn change(&mut self, frame: &mut Vec<u8>) {
        let at = self.random.below(frame.len());
        match self.random.below(8) {
            0 => frame.truncate(at),
            1 => frame.extend(vec![*self.random.pick(BYTES); self.random.below(40)]),
            2 => frame.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << self.random.below(8)),
            3 => frame.iter_mut().skip(at).take(1).for_each(|byte| *byte = self.random.bits() as u8),
            4 => frame.iter_mut().skip(at).take(1).for_each(|byte| *byte = *self.random.pick(BYTES)),
            // Headers are where decisions are made.
            5 => {
                let at = self.random.below(frame.len().min(90));
                frame.iter_mut().skip(at).take(1).for_each(|byte| *byte = *self.random.pick(BYTES));
            }
            6 => {
                let word = self.random.pick(&self.words).clone();
                // Where the MACs, types and addresses of the headers are, or anywhere.
                let at = *self.random.pick(&[0, 6, 12, 22, 26, 28, 30, 32, 38, 54, 62, 78, 80, at]);
                for (byte, new) in frame.iter_mut().skip(at).zip(word) {
                    *byte = new;
                }
            }
            _ => {
                let other = self.random.pick(&self.parents).frame.clone();
                let tail = other.get(at..).unwrap_or_default().to_vec();
                frame.truncate(at);
                frame.extend(tail);
            }
        }
    }
}

fn parent(case: Case) -> Mutant {
    Mutant { hook: case.hook, port: case.port, frame: case.frame, gso_size: case.gso_size, parent: case.name }
}

/// The frames of a sequence, the first one last.
fn family(sequence: &Sequence) -> Vec<Mutant> {
    let frames = sequence.steps.iter().rev();
    let mutant = |step: &super::sequence::Step| Mutant {
        hook: step.hook,
        port: step.port,
        frame: step.frame.clone(),
        gso_size: step.gso_size,
        parent: sequence.name.clone(),
    };
    frames.map(mutant).collect()
}
