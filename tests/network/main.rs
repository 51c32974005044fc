//! Network tests: what `nsnet` promises, seen from real namespaces with real traffic. They need root and a built
//! `nsnet` (`cargo xtask test network`, or NSNET_BIN), and leave nothing behind.
//!
//! ```text
//!   bed        a lab with a network and namespaces in it
//!   shot       forged frames, and where each arrived
//!   world      all that exists in a lab, to compare before and after
//!
//!   scenarios  what people do by hand today             lifecycle  twice, otherwise, in use, on two hosts, and down
//!   traffic    TCP, UDP and ICMP in every form          faults     what stands in the way, or changed behind our back
//!   switching  where frames go, and in which shape      races      many verbs at once, and killed ones
//!   limits     the longest frame, the most broadcasts   input      what is refused, and how
//!   isolation  what no namespace may do                 addresses  IPAM, MACs, learning and trusted ports
//!                                                       neighbours ARP and neighbour discovery
//! ```

mod addresses;
mod bed;
mod faults;
mod input;
mod isolation;
mod lifecycle;
mod limits;
mod neighbours;
mod races;
mod scenarios;
mod shot;
mod switching;
mod traffic;
mod world;
