//! The hash that nobody outside can guess: by its order NAT tries ports.

use crate::layout::FlowKey;

/// A hash of the tuple with a secret (RFC 6056 section 3.3.3): rounds of a 64-bit mixer over its words.
#[inline(always)]
pub fn keyed_hash(secret: u64, key: &FlowKey, turn: u32) -> u32 {
    let half = |bytes: &[u8; 16]| {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *bytes;
        (u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u64::from_ne_bytes([i, j, k, l, m, n, o, p]))
    };
    let ((a, b), (c, d)) = (half(&key.source.0), half(&key.destination.0));
    let ([e, f], [g, h]) = (key.source_port, key.destination_port);
    let [i, j, k, l] = turn.to_ne_bytes();
    let last = u64::from_ne_bytes([e, f, g, h, i, j, k, l]);
    let mixed = mix(mix(mix(mix(mix(secret ^ a) ^ b) ^ c) ^ d) ^ last ^ u64::from(key.protocol().0));
    (mixed ^ secret) as u32
}

/// The finaliser of SplitMix64.
#[inline(always)]
fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::NetworkId;
    use crate::wire::{IpAddress, IpProtocol};

    /// Every turn, port and secret gives another order; the same ones always the same.
    #[test]
    fn depends_on_all_of_it() {
        let (near, far) = (IpAddress::v4([10, 1, 0, 2]), IpAddress::v4([198, 51, 100, 9]));
        let key = FlowKey::new(NetworkId(1), IpProtocol::UDP, (near, [1, 2]), (far, [3, 4]), true);
        let first = keyed_hash(1, &key, 1);
        assert_eq!(first, keyed_hash(1, &key, 1));
        let mut other = key;
        other.source_port = [1, 3];
        let tcp = key.with_protocol(IpProtocol::TCP);
        for hash in [keyed_hash(2, &key, 1), keyed_hash(1, &key, 2), keyed_hash(1, &other, 1), keyed_hash(1, &tcp, 1)] {
            assert_ne!(hash, first);
        }
    }

    /// One in a thousand ports is hit about as often as another.
    #[test]
    fn spreads_evenly() {
        let mut hits = [0u32; 16];
        for port in 0..16000u16 {
            let source = (IpAddress::v4([10, 1, 0, 2]), port.to_be_bytes());
            let key = FlowKey::new(NetworkId(1), IpProtocol::TCP, source, (IpAddress::v4([9; 4]), [0, 80]), true);
            hits[keyed_hash(7, &key, 1) as usize % 16] += 1;
        }
        assert!(hits.iter().all(|hits| (850..1150).contains(hits)), "{hits:?}");
    }
}
