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
//!   stream, object   packets that go on all the time; other programs than the binary's
//!   terminal     a program on a terminal of its own
//!   file         files of plan and apply, on stdin
//!
//!   scenarios  what people do by hand today             lifecycle  twice, otherwise, in use, on two hosts, and down
//!   traffic    TCP, UDP and ICMP in every form          faults     what stands in the way, or changed behind our back
//!   switching  where frames go, and in which shape      races      many verbs at once, and killed ones
//!   limits     the longest frame, the most broadcasts   input      what is refused, and how
//!   crash, cut_off  every system call killed and failed (tracer: who does that)
//!   undo       undoing that fails, too                  boot       power cuts, full disks, read-only files
//!   stale      hosts that are gone                      behind     each thing changed behind our back
//!   churn      nothing grows                            foreign    programs and rules of others
//!   secure     who may do what
//!   isolation  what no namespace may do                 addresses  IPAM, MACs, learning and trusted ports
//!                                                       neighbours ARP and neighbour discovery
//!   nat_out    source NAT with real traffic             nat_in     published ports, packet by packet
//!   nat_ports  who gets which external port             reach      who reaches a published port from where
//!   nat_tcp    TCP, segment by segment                  icmp       errors, in both directions
//!   nat_life   clocks, flush, addresses that change     fragments  in any order
//!   xdp        the accelerator, in every mixture of modes
//!   nat_addresses  those that come later, and two       nat_hairpin    published ports from inside
//!   networks   apart, opened and internal               bench      a very short run of it
//!   see        rates, the view on a terminal
//!   declare    files: made, kept, changed, refused      drift      what was changed behind our back, kind by kind
//!   examples   those that are shipped                   crowd      hundreds at once
//!   pins       those that others made                   closed     a port whose program is gone
//!   upgrade    other programs while packets go on; upgrade_maps, _cut (off), _others (beside those of others)
//!
//!   agent_bed  an agent, and what it answers
//!   agent      how it lives and dies                    agent_follow   addresses and uplinks that change
//!   agent_drift  what it repairs, and what it only says  agent_figures  what it counts, and sweeps
//! ```

mod addresses;
mod agent;
mod agent_bed;
mod agent_drift;
mod agent_figures;
mod agent_follow;
mod bed;
mod behind;
mod bench;
mod boot;
mod capture;
mod churn;
mod closed;
mod crash;
mod crowd;
mod ct;
mod cut_off;
mod declare;
mod dissect;
mod drift;
mod dump;
mod end;
mod examples;
mod explain;
mod explain_frames;
mod explain_words;
mod faults;
mod file;
mod film;
mod foreign;
mod fragments;
mod icmp;
mod input;
mod isolation;
mod leak;
mod lifecycle;
mod limits;
mod nat_addresses;
mod nat_hairpin;
mod nat_in;
mod nat_life;
mod nat_out;
mod nat_ports;
mod nat_tcp;
mod neighbours;
mod netfilter;
mod networks;
mod object;
mod outside;
mod outside_bed;
mod packet;
mod pins;
mod publish_verbs;
mod races;
mod reach;
mod scenarios;
mod secure;
mod see;
mod shot;
mod sockets;
mod stale;
mod stream;
mod switching;
mod terminal;
mod tracer;
mod traffic;
mod undo;
mod upgrade;
mod upgrade_cut;
mod upgrade_maps;
mod upgrade_others;
mod world;
mod xdp;
