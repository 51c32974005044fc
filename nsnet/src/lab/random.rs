//! A small seeded generator: payloads both ends can recompute, and shuffles that a report can repeat.
//!
//! Not for secrets. SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014) has
//! one word of state and passes the usual statistical batteries, which is more than test payloads need.

/// A generator whose whole sequence follows from its seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of this seed; any seed is as good as another.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next 64 bits.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`; zero when `limit` is zero.
    pub fn below(&mut self, limit: usize) -> usize {
        // The high half of the product: without a division, and with a bias far below anything measured here.
        ((u128::from(self.word()) * limit as u128) >> 64) as usize
    }

    /// Overwrites `bytes`. Filling two halves in turn gives the same bytes as filling the whole when the first half is
    /// a multiple of eight bytes long.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.word().to_le_bytes()[..chunk.len()]);
        }
    }

    /// A random permutation (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// A datagram's payload that carries its own key: eight bytes of seed, then the bytes that follow from it.
/// Shorter payloads keep the seed's first bytes.
pub(super) fn keyed_payload(seed: u64, len: usize) -> Vec<u8> {
    let mut payload = vec![0; len.max(8)];
    let (key, rest) = payload.split_at_mut(8);
    key.copy_from_slice(&seed.to_be_bytes());
    Random::new(seed).fill(rest);
    payload.truncate(len);
    payload
}

/// Whether `payload` is what [`keyed_payload`] makes of its own first eight bytes. Shorter ones cannot be judged and
/// pass.
pub(super) fn is_keyed_payload(payload: &[u8]) -> bool {
    let Some((key, _)) = payload.split_first_chunk::<8>() else { return true };
    keyed_payload(u64::from_be_bytes(*key), payload.len()) == payload
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_the_published_sequence() {
        // Reference values of the generator's C implementation for seed 1234567.
        let mut random = Random::new(1_234_567);
        assert_eq!([random.word(), random.word()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }

    #[test]
    fn fills_in_pieces_as_in_one_go() {
        let (mut whole, mut pieces) = ([0; 29], [0; 29]);
        Random::new(7).fill(&mut whole);
        let mut random = Random::new(7);
        random.fill(&mut pieces[..16]);
        random.fill(&mut pieces[16..]);
        assert_eq!(whole, pieces);
    }

    #[test]
    fn shuffles_without_losing_anything() {
        let mut items: Vec<usize> = (0..100).collect();
        Random::new(3).shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
        assert!((0..1000).all(|seed| Random::new(seed).below(3) < 3));
    }

    #[test]
    fn notices_a_changed_payload() {
        let mut payload = keyed_payload(42, 100);
        assert!(is_keyed_payload(&payload));
        payload[99] ^= 1;
        assert!(!is_keyed_payload(&payload));
        assert_eq!(keyed_payload(u64::MAX, 3), [255, 255, 255]);
    }
}
