//! What `nsnet bench` and its own programs share: the frames that are injected, and the names.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Injects the frames of [`Template`] as if they had come in by an interface (XDP).
pub const GENERATE: &str = "generate";
/// Counts UDP datagrams, and drops them (TC).
pub const SINK: &str = "sink";
/// Sends UDP datagrams back to where they came from (TC).
pub const ECHO: &str = "echo";
/// Does nothing (TC): what any program costs.
pub const NOTHING: &str = "nothing";
/// One [`Template`].
pub const TEMPLATE: &str = "TEMPLATE";
/// One u64 for each CPU: datagrams that [`SINK`] has counted.
pub const COUNTED: &str = "COUNTED";
/// One u64 for each CPU: the number of the next frame.
pub const NEXT: &str = "NEXT";

/// The longest headers that are written.
pub const HEADER_WORDS: usize = 32;

/// UDP over IPv4.
pub const SHAPE_V4: u32 = 4;
/// UDP over IPv6.
pub const SHAPE_V6: u32 = 6;
/// Nothing changes from frame to frame.
pub const SHAPE_FIXED: u32 = 0;

/// A series of frames: the same headers, with ports that go round. They are written anew for each frame, because a
/// frame's memory is used again as the stack has left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Template {
    /// Ethernet, IP and UDP headers as on the wire, two bytes each; ports and UDP checksum are 0.
    pub header: [u16; HEADER_WORDS],
    /// `SHAPE_*`.
    pub shape: u32,
    /// The sum of what is under the UDP checksum but for the ports, not folded, of words in network byte order.
    pub sum: u32,
    /// Source ports are this one and the next ones, `sources` altogether; host byte order.
    pub first_source: u32,
    /// At least 1.
    pub sources: u32,
    /// The same with destination ports, which change once all source ports have been used.
    pub first_destination: u32,
    /// At least 1.
    pub destinations: u32,
    /// 1 for frames that leave by the interface, as those of a sender of XDP frames behind it do; 0 for frames that seem to
    /// come in by it.
    pub leaves: u32,
}

impl Template {
    /// How many flows it makes.
    pub fn flows(&self) -> u64 {
        u64::from(self.sources) * u64::from(self.destinations)
    }

    /// The ports of frame `number`, host byte order.
    #[inline(always)]
    pub fn ports(&self, number: u64) -> (u16, u16) {
        // Never 0, but that the verifier does not know.
        let (sources, destinations) = (self.sources.max(1), self.destinations.max(1));
        let (round, source) = (number / u64::from(sources), number % u64::from(sources));
        let destination = round % u64::from(destinations);
        ((self.first_source + source as u32) as u16, (self.first_destination + destination as u32) as u16)
    }

    /// The UDP checksum of a frame with these ports, host byte order.
    #[inline(always)]
    pub fn checksum(&self, source: u16, destination: u16) -> u16 {
        let sum = self.sum + u32::from(source) + u32::from(destination);
        let once = (sum & 0xffff) + (sum >> 16);
        let twice = (once & 0xffff) + (once >> 16);
        // RFC 768: 0 stands for none.
        match !(twice as u16) {
            0 => 0xffff,
            checksum => checksum,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_go_round() {
        let template = Template {
            header: [0; HEADER_WORDS],
            shape: SHAPE_V4,
            sum: 0,
            first_source: 1000,
            sources: 3,
            first_destination: 53,
            destinations: 2,
            leaves: 0,
        };
        let ports: Vec<_> = (0..7).map(|number| template.ports(number)).collect();
        assert_eq!(ports, [(1000, 53), (1001, 53), (1002, 53), (1000, 54), (1001, 54), (1002, 54), (1000, 53)]);
        assert_eq!(template.flows(), 6);
        assert_eq!(template.checksum(1, 2), !3);
        assert_eq!(Template { sum: 0xffff - 3, ..template }.checksum(1, 2), 0xffff, "0 stands for no checksum");
    }
}
