//! Names of the programs and maps, as in the object and among the pins.

/// tcx ingress of the host end of a namespace's veth.
pub const FROM_NAMESPACE: &str = "from_namespace";
/// tcx egress of a network's own interface in the host.
pub const FROM_HOST: &str = "from_host";
/// tcx ingress of an uplink.
pub const FROM_UPLINK: &str = "from_uplink";
/// Called by `from_namespace` for what goes to the gateway.
pub const ROUTED: &str = "routed";
/// Called by `routed` and `from_uplink` for ICMP errors.
pub const RELATED: &str = "related";
/// Called by `routed` and `from_uplink` for what belongs to no flow.
pub const OPENED: &str = "opened";
/// Called by the others for a packet that is refused with an ICMP error.
pub const REFUSED: &str = "refused";
/// Called by `routed` and `from_uplink` for fragments.
pub const FRAGMENTED: &str = "fragmented";
/// Called by the others for a packet that is too long for the way out, and may be cut.
pub const CUT: &str = "cut";
/// Behind the program of each port, which lets no frame get this far: drops everything.
pub const CLOSED: &str = "closed";
/// At no hook and pinned nowhere: answers `nsnet explain` what the kernel would answer the others.
pub const ASK_HOST: &str = "ask_host";
/// Run by a process and at no hook: see [`sweep`](crate::sweep).
pub const SWEPT: &str = "swept";
/// Every program for frames: at a TC hook, called by one, or run by a process.
pub const PROGRAMS: [&str; 11] =
    [FROM_NAMESPACE, FROM_HOST, FROM_UPLINK, ROUTED, RELATED, OPENED, REFUSED, FRAGMENTED, CUT, SWEPT, CLOSED];
/// XDP of the host end of a namespace's veth.
pub const XDP_FROM_NAMESPACE: &str = "xdp_from_namespace";
/// XDP of an uplink.
pub const XDP_FROM_UPLINK: &str = "xdp_from_uplink";
/// The programs that accelerate the others. Where the kernel does not take them (before 5.18) nothing is missing.
pub const XDP_PROGRAMS: [&str; 2] = [XDP_FROM_NAMESPACE, XDP_FROM_UPLINK];
/// The programs at the root cgroup, which every socket meets; named like the hooks they are at.
pub const SOCKET_PROGRAMS: [&str; 10] = [
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
    "bind4",
    "bind6",
];
/// The programs that others call, by their place in [`STAGES`]. (Other places are another layout of `STAGES`: see
/// [`VERSIONS`].)
pub const CALLED: [&str; 6] = [ROUTED, OPENED, REFUSED, RELATED, FRAGMENTED, CUT];
/// Place of `routed` in [`STAGES`].
pub const ROUTED_STAGE: u32 = 0;
/// Place of `opened`.
pub const OPENED_STAGE: u32 = 1;
/// Place of `refused`.
pub const REFUSED_STAGE: u32 = 2;
/// Place of `related`.
pub const RELATED_STAGE: u32 = 3;
/// Place of `fragmented`.
pub const FRAGMENTED_STAGE: u32 = 4;
/// Place of `cut`.
pub const CUT_STAGE: u32 = 5;
/// Program array of what is called, in the order of [`CALLED`].
pub const STAGES: &str = "STAGES";

/// Array of [`Port`](super::Port) by port id.
pub const PORTS: &str = "PORTS";
/// Array of [`Network`](super::Network) by network id.
pub const NETWORKS: &str = "NETWORKS";
/// Hash of [`StationKey`](super::StationKey) to [`Station`](super::Station).
pub const STATIONS: &str = "STATIONS";
/// Hash of [`ForeignKey`](super::ForeignKey) to MAC: which foreign MACs a port has learned.
pub const FOREIGN: &str = "FOREIGN";
/// Hash of [`AddressKey`](super::AddressKey) to port id.
pub const ADDRESSES: &str = "ADDRESSES";
/// LPM trie of IP prefix to network id.
pub const SUBNETS: &str = "SUBNETS";
/// Per-CPU array of [`PortCounters`](super::PortCounters) by port id.
pub const COUNTERS: &str = "COUNTERS";
/// Per-CPU hash of [`DropKey`](super::DropKey) to [`Dropped`](super::Dropped).
pub const DROPS: &str = "DROPS";
/// Per-CPU array of [`LastDrop`](super::LastDrop) by the reason's code.
pub const LAST_DROPS: &str = "LAST_DROPS";
/// Global that user space writes, and so an array of one [`Capture`](super::Capture).
pub const CAPTURE: &str = "CAPTURE";
/// The section of [`CAPTURE`], after which the map is named in the object. (A bpffs takes no dots.)
pub const CAPTURE_SECTION: &str = ".data.capture";
/// Hash of u32 to a ring buffer of [`Event`](super::Event)s: that of the capture that is on, at 0.
pub const RINGS: &str = "RINGS";
/// Per-CPU array of one [`Capturing`](super::Capturing).
pub const CAPTURING: &str = "CAPTURING";
/// Array of u64 by port id: when the port's flood allowance is used up to, on the monotonic clock, nanoseconds.
pub const FLOOD_CLOCKS: &str = "FLOOD_CLOCKS";
/// Array of u64 by port id: when the port's allowance of ICMP errors is used up to, like `FLOOD_CLOCKS`.
pub const REFUSAL_CLOCKS: &str = "REFUSAL_CLOCKS";
/// Hash of interface index (u32) to the uplink's [`PortId`](super::PortId).
pub const UPLINKS: &str = "UPLINKS";
/// Array of [`Policy`](super::Policy) by network id.
pub const POLICIES: &str = "POLICIES";
/// Hash of [`FlowKey4`](super::FlowKey4) to [`Flow4`](super::Flow4): established flows.
pub const FLOWS4: &str = "FLOWS4";
/// Hash of [`FlowKey`](super::FlowKey) to [`Flow`](super::Flow): established flows.
pub const FLOWS6: &str = "FLOWS6";
/// LRU hash like `FLOWS4`: flows that are not established yet.
pub const YOUNG4: &str = "YOUNG4";
/// LRU hash like `FLOWS6`: flows that are not established yet.
pub const YOUNG6: &str = "YOUNG6";
/// Hash of [`MappingKey`](super::MappingKey) to [`Mapping`](super::Mapping).
pub const MAPPINGS: &str = "MAPPINGS";
/// Array of [`Usage`](super::Usage) by port id.
pub const USAGE: &str = "USAGE";
/// LPM trie of [`PublishedKey`](super::PublishedKey) to a place in `PUBLISHES` (u32).
pub const PUBLISHED: &str = "PUBLISHED";
/// Array of [`Publish`](super::Publish).
pub const PUBLISHES: &str = "PUBLISHES";
/// Per-CPU array of u64 by place in `PUBLISHES`: flows that were made for it.
pub const PUBLISH_HITS: &str = "PUBLISH_HITS";
/// LRU hash of [`FragmentKey`](super::FragmentKey) to [`Fragment`](super::Fragment).
pub const FRAGMENTS: &str = "FRAGMENTS";
/// LRU hash of [`HeldKey`](super::HeldKey) to [`Held`](super::Held).
pub const HELD: &str = "HELD";
/// Array of [`Holding`](super::Holding) by port id.
pub const HOLDING: &str = "HOLDING";
/// Hash of the host's addresses ([`IpAddress`](crate::wire::IpAddress) to u8, 1), all but link-local ones, and of its
/// subnets' broadcast addresses (0).
pub const LOCALS: &str = "LOCALS";
/// LRU hash of [`OriginalKey`](super::OriginalKey) to [`Original`](super::Original).
pub const ORIGINALS: &str = "ORIGINALS";
/// Map of devices by port id: where frames of XDP may be sent to.
pub const XDP_PORTS: &str = "XDP_PORTS";
/// Per-CPU array of u64 by port id: frames from there that XDP has forwarded. They are in `COUNTERS`, too.
pub const ACCELERATED: &str = "ACCELERATED";
/// Hash of [`MappingKey`](super::MappingKey) to u8: endpoints that a CPU is at. Pinned, so that programs that take the
/// place of others know of them.
pub const LOCKS: &str = "LOCKS";
/// Every map.
pub const MAPS: [&str; 34] = [
    PORTS,
    NETWORKS,
    STATIONS,
    FOREIGN,
    ADDRESSES,
    SUBNETS,
    COUNTERS,
    DROPS,
    FLOOD_CLOCKS,
    STAGES,
    UPLINKS,
    POLICIES,
    FLOWS4,
    FLOWS6,
    YOUNG4,
    YOUNG6,
    MAPPINGS,
    USAGE,
    PUBLISHED,
    PUBLISHES,
    PUBLISH_HITS,
    REFUSAL_CLOCKS,
    FRAGMENTS,
    HELD,
    HOLDING,
    LOCALS,
    ORIGINALS,
    LAST_DROPS,
    CAPTURE,
    RINGS,
    CAPTURING,
    XDP_PORTS,
    ACCELERATED,
    LOCKS,
];

/// The maps whose keys or values are not what they first were, and the version that they have come to; all others'
/// is 1.
///
/// Who changes what a key or value means enters its map here, and the way from the version before in nsnet's
/// kernel/migrate.rs. (Another size of the map itself is no other layout.)
pub const VERSIONS: [(&str, u32); 0] = [];
/// Array of one entry that no program reads: which object the programs are from, and the [`SECRET`] they have.
pub const BUILD: &str = "BUILD";

/// What one of [`MAPS`] is called in the object.
pub fn in_object(map: &str) -> &str {
    if map == CAPTURE { CAPTURE_SECTION } else { map }
}

/// Global of the programs: whether `bpf_redirect_peer` may be used (u8, 0 or 1).
pub const USE_REDIRECT_PEER: &str = "USE_REDIRECT_PEER";
/// Global: whether the programs must set the type of a frame that `bpf_redirect_peer` takes (u8, 0 or 1).
pub const SET_PACKET_TYPE: &str = "SET_PACKET_TYPE";
/// Global: whether the FIB tells the source address (u8, 0 or 1; Linux 6.7).
pub const USE_FIB_SOURCE: &str = "USE_FIB_SOURCE";
/// Global: the key of the hash that NAT chooses ports by (u64, random).
pub const SECRET: &str = "SECRET";
/// Global: whether copies of frames are sent (u8, 0 or 1); not where frames are only tried.
pub const SENDS_COPIES: &str = "SENDS_COPIES";
/// Global: the cookie of the host's network namespace (u64), by which socket hooks know its sockets.
pub const HOST_COOKIE: &str = "HOST_COOKIE";
/// Global: whether socket hooks may say with which error they refuse (u8, 0 or 1; Linux 5.18); else it is EPERM.
pub const USE_SET_RETVAL: &str = "USE_SET_RETVAL";
