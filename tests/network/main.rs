//! Network tests: what `nsnet` promises, seen from real namespaces with real traffic. They need root and a built
//! `nsnet` (`cargo xtask test network`, or NSNET_BIN), and leave nothing behind.
//!
//! ```text
//!   bed          a lab with a network and namespaces in it
//!   outside_bed  the same with a wire, servers and a router behind it, where nothing may leave as it is
//!   end, leak    its raw ends, and who watches the wire
//!   packet, dissect  IP packets in plain fields: made, and read again
//!   shot         forged frames, and where each arrived
//!   world        all that exists in a lab, to compare before and after
//!
//!   scenarios  what people do by hand today             lifecycle  twice, otherwise, in use, on two hosts, and down
//!   traffic    TCP, UDP and ICMP in every form          faults     what stands in the way, or changed behind our back
//!   switching  where frames go, and in which shape      races      many verbs at once, and killed ones
//!   limits     the longest frame, the most broadcasts   input      what is refused, and how
//!   isolation  what no namespace may do                 addresses  IPAM, MACs, learning and trusted ports
//!                                                       neighbours ARP and neighbour discovery
//!   nat_out    source NAT with real traffic             nat_in     published ports, packet by packet
//!   nat_ports  who gets which external port             reach      who reaches a published port from where
//!   nat_tcp    TCP, segment by segment                  icmp       errors, in both directions
//!   nat_life   clocks, flush, addresses that change     fragments  in any order
//!   networks   apart, opened and internal              bench      a very short run of it
//!   xdp        the accelerator, in every mixture of modes
//! ```

mod addresses;
mod bed;
mod bench;
mod crash;
mod ct;
mod cut_off;
mod dissect;
mod dump;
mod end;
mod explain;
mod explain_frames;
mod explain_words;
mod faults;
mod fragments;
mod icmp;
mod input;
mod isolation;
mod leak;
mod lifecycle;
mod limits;
mod nat_in;
mod nat_life;
mod nat_out;
mod nat_ports;
mod nat_tcp;
mod neighbours;
mod netfilter;
mod networks;
mod outside;
mod outside_bed;
mod packet;
mod publish_verbs;
mod races;
mod reach;
mod scenarios;
mod shot;
mod sockets;
mod switching;
mod tracer;
mod traffic;
mod world;
mod xdp;
