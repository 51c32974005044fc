//! What a stream carried, in sixteen bytes.

/// Length and FNV-1a hash of a stream, the same however it was cut into reads. The hash is against mistakes, not
/// against an adversary.
pub(super) struct Digest {
    pub(super) len: u64,
    pub(super) sum: u64,
}

impl Default for Digest {
    fn default() -> Digest {
        Digest { len: 0, sum: 0xcbf2_9ce4_8422_2325 }
    }
}

impl Digest {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.len += bytes.len() as u64;
        for byte in bytes {
            self.sum = (self.sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_does_not_depend_on_the_cuts() {
        let (mut whole, mut pieces) = (Digest::default(), Digest::default());
        whole.update(b"foobar");
        pieces.update(b"foo");
        pieces.update(b"bar");
        assert_eq!((pieces.len, pieces.sum), (whole.len, whole.sum));
        assert_eq!(whole.sum, 0x8594_4171_f739_67e8, "the published FNV-1a test vector");
    }
}
