//! The only `unsafe` of this crate: telling aya that our map keys and values are plain bytes.
//!
//! `pod!` asks the compiler for `zerocopy::IntoBytes` first, and a type with padding does not have it: bytes that were
//! never written cannot reach the kernel, nor make two equal keys differ.

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya::Pod is an unsafe trait; what it asks for is proved by the bounds in pod!")]
mod user {
    use zerocopy::{FromBytes, Immutable, IntoBytes};

    use crate::bench::Template;
    use crate::layout::{
        AddressKey, Capture, Capturing, DropKey, Dropped, Event, Flow, Flow4, FlowKey, FlowKey4, ForeignKey, Fragment,
        FragmentKey, Held, HeldKey, Holding, LastDrop, Mapping, MappingKey, Network, NetworkId, Original, OriginalKey,
        Policy, Port, PortCounters, PortId, Publish, PublishedKey, Station, StationKey, SubnetKey, Traffic, Usage,
    };
    use crate::wire::{IpAddress, Mac};

    const fn plain_bytes<T: Copy + 'static + FromBytes + IntoBytes + Immutable>() {}

    macro_rules! pod {
        ($($type:ty),* $(,)?) => {$(
            const _: () = plain_bytes::<$type>();
            // SAFETY: plain_bytes() compiled, so the type is Copy, has no padding, and any bytes are a value of it.
            unsafe impl aya::Pod for $type {}
        )*};
    }

    pod!(AddressKey, DropKey, ForeignKey, Mac, Network, NetworkId, Port, PortCounters, PortId, Station, StationKey);
    pod!(SubnetKey, Traffic, Flow, Flow4, FlowKey, FlowKey4, Mapping, MappingKey, Policy, Publish, PublishedKey, Usage);
    pod!(Capture, Capturing, Dropped, Event, LastDrop, Template);
    pod!(IpAddress, Original, OriginalKey, Fragment, FragmentKey, Held, HeldKey, Holding);
}
