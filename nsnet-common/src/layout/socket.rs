//! What the hooks at the host's sockets know, and remember.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::wire::{IpAddress, IpProtocol};

/// Addresses of the host.
pub const MAX_LOCALS: u32 = 1 << 13;
/// Redirected sockets of the host whose peer is remembered: the one not used for longest is forgotten first.
pub const MAX_ORIGINALS: u32 = 1 << 15;

/// Key of `ORIGINALS`: a socket, and where it was led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct OriginalKey {
    socket: u64,
    ip: IpAddress,
    port: [u8; 2],
    protocol: u8,
    zero: [u8; 5],
}

impl OriginalKey {
    /// The socket with this cookie (never given out twice), led to this address and port (network byte order).
    #[inline(always)]
    pub fn new(socket: u64, protocol: IpProtocol, ip: IpAddress, port: [u8; 2]) -> Self {
        Self { socket, ip, port, protocol: protocol.0, zero: [0; 5] }
    }
}

/// The address and port that a program of the host asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Original {
    /// The address.
    pub ip: IpAddress,
    /// The port, network byte order.
    pub port: [u8; 2],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!((size_of::<OriginalKey>(), size_of::<Original>()), (32, 18));
    }
}
