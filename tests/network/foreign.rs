//! What others have on the same interfaces, and do to the firewall: it stays, and concerns us as little as we do it.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::programs::tc::{NlOptions, TcAttachOptions, qdisc_add_clsact};
use aya::programs::{SchedClassifier, TcAttachType, loaded_programs};
use nix::errno::Errno;
use nix::libc;
use nsnet::kernel::netlink::Netlink;
use nsnet::lab::ping::ping;
use nsnet::lab::{HOST_IP, Lab, TcpServer, WAN_IP, tcp};
use nsnet_common::layout::names;

use super::cut_off::{ATTACH, NETWORK, host, red_is_attached};

/// Runs a tool in the lab's host; `None` when there is no such tool here, which is told.
fn command(lab: &Lab, words: &[&str]) -> Result<Option<String>> {
    let (program, arguments) = words.split_first().context("no tool")?;
    match lab.within("host", || Command::new(program).args(arguments).output())? {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: there is no {program} here");
            Ok(None)
        }
        output => {
            let output = output?;
            ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
            Ok(Some(String::from_utf8(output.stdout)?))
        }
    }
}

fn tool(lab: &Lab, line: &str) -> Result<Option<String>> {
    command(lab, &line.split(' ').collect::<Vec<_>>())
}

/// A place for a program of somebody's: the program's type and the link's (include/uapi/linux/bpf.h), the link's flags, and
/// what the program returns.
struct Hook {
    name: &'static str,
    program: u32,
    link: u32,
    flags: u32,
    verdict: u32,
}

const HOOKS: [Hook; 3] = [
    // XDP_PASS; in the stack's own way of doing it (XDP_FLAGS_SKB_MODE), which every driver has.
    Hook { name: "XDP", program: 6, link: 37, flags: 2, verdict: 2 },
    // TCX_NEXT: whoever comes next decides.
    Hook { name: "tcx ingress", program: 3, link: 46, flags: 0, verdict: u32::MAX },
    Hook { name: "tcx egress", program: 3, link: 47, flags: 0, verdict: u32::MAX },
];

impl Hook {
    /// A program that lets everything pass.
    fn program(&self) -> Result<OwnedFd> {
        const BPF_PROG_LOAD: libc::c_long = 5;
        /// The beginning of `union bpf_attr` for a program that is loaded.
        #[repr(C)]
        struct Load {
            kind: u32,
            count: u32,
            instructions: u64,
            license: u64,
        }
        // `r0 = verdict; exit` (RFC 9669): an instruction's immediate is its upper half.
        let instructions = [(u64::from(self.verdict) << 32) | 0xb7, 0x95];
        let license = c"GPL";
        let load = Load {
            kind: self.program,
            count: instructions.len() as u32,
            instructions: instructions.as_ptr() as u64,
            license: license.as_ptr() as u64,
        };
        // SAFETY: the structure is what the command reads, and what it points to outlives the call.
        let program = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) };
        descriptor(program).with_context(|| format!("load a program for {}", self.name))
    }
}

/// Has a program that lets everything pass on what comes in by an interface of the calling thread's namespace, in a filter
/// with this name. Tells the program's number.
pub(crate) fn filter(interface: &str, name: &'static str) -> Result<u32> {
    let program = HOOKS[1].program()?;
    let number: u32 = about(&program, "prog_id")?;
    let info = loaded_programs().flatten().find(|info| info.id() == number).context("it is not loaded")?;
    let mut program = SchedClassifier::from_program_info(info, name.into())?;
    qdisc_add_clsact(interface)?;
    let options = TcAttachOptions::Netlink(NlOptions::default());
    let link = program.attach_with_options(interface, TcAttachType::Ingress, options)?;
    // It goes with the interface.
    std::mem::forget(program.take_link(link)?);
    Ok(number)
}

/// A number of what is open, of those that the kernel tells in its `fdinfo`.
fn about(open: &OwnedFd, what: &str) -> Result<u32> {
    let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", open.as_raw_fd()))?;
    let of = |line: &str| Some(line.strip_prefix(what)?.strip_prefix(':')?.trim().to_owned());
    Ok(about.lines().find_map(of).with_context(|| format!("no {what} in fdinfo"))?.parse()?)
}

/// A program that lets everything pass, on an interface, for as long as this is open.
struct Foreign(OwnedFd);

impl Foreign {
    /// On the interface `index` of the calling thread's namespace.
    fn on(index: u32, hook: &Hook) -> Result<Self> {
        const BPF_LINK_CREATE: libc::c_long = 28;
        let program = hook.program()?;
        let link: [u32; 4] = [program.as_raw_fd() as u32, index, hook.link, hook.flags];
        // SAFETY: as above: a program, an interface, a type and flags.
        let link = unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_CREATE, link.as_ptr(), size_of_val(&link)) };
        Ok(Self(descriptor(link).with_context(|| format!("attach a program to {}", hook.name))?))
    }

    /// The interface that it is on; 0 when it was taken off.
    fn interface(&self) -> Result<u32> {
        about(&self.0, "ifindex")
    }
}

fn descriptor(result: libc::c_long) -> Result<OwnedFd> {
    let descriptor = Errno::result(result)?;
    // SAFETY: the call has just opened it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as i32) })
}

#[test]
fn programs_and_qdiscs_of_others_stay() -> Result<()> {
    let lab = host()?;
    lab.nsnet(NETWORK)?;
    let port = lab.json(ATTACH)?;
    let outer = port["host_ifname"].as_str().context("no host_ifname")?.to_owned();
    let netlink = Netlink::inside(&lab.ns("host")?)?;
    let interfaces = ["uplink", "v-net-0", &outer];
    let mut programs = Vec::new();
    for name in interfaces {
        let index = netlink.existing_link(name)?.index;
        for hook in &HOOKS {
            programs.push((name, hook.name, lab.within("host", || Foreign::on(index, hook))??));
        }
    }
    let qdisc = "root tbf rate 1gbit burst 100kb latency 50ms";
    for name in interfaces {
        tool(&lab, &format!("tc qdisc add dev {name} {qdisc}"))?;
    }
    let check = |of: &[&str], after: &str| -> Result<()> {
        for (name, hook, program) in programs.iter().filter(|(name, ..)| of.contains(name)) {
            let index = netlink.existing_link(name)?.index;
            ensure!(program.interface()? == index, "the program at {hook} is off {name} after `{after}`");
        }
        for name in of {
            let qdiscs = tool(&lab, &format!("tc qdisc show dev {name}"))?;
            ensure!(qdiscs.is_none_or(|qdiscs| qdiscs.contains("tbf")), "the qdisc of {name} is gone after `{after}`");
        }
        Ok(())
    };
    red_is_attached(&lab)?;
    for line in [
        NETWORK,
        ATTACH,
        "publish add @red 8080:80",
        "attach v-net-0 @blue",
        "network add v-net-1 --subnet 10.9.0.0/24 --masquerade",
        "masquerade off v-net-0",
        "masquerade on v-net-0",
        "network del v-net-1",
        "detach v-net-0 @blue",
        "publish del @red 8080:80",
    ] {
        lab.nsnet(line)?;
        check(&interfaces, line)?;
        // Without masquerade the outside has no way back.
        if line != "masquerade off v-net-0" {
            red_is_attached(&lab).with_context(|| format!("after `{line}`"))?;
        }
    }
    lab.nsnet("detach v-net-0 @red")?;
    check(&["uplink", "v-net-0"], "detach")?;
    lab.nsnet("down")?;
    check(&["uplink"], "down")?;
    let (_revision, left) = lab.within("host", || SchedClassifier::query_tcx("uplink", TcAttachType::Ingress))??;
    ensure!(left.iter().all(|program| program.name_as_str() != Some(names::FROM_UPLINK)), "ours is left on the uplink");
    Ok(())
}

#[test]
fn flushing_the_firewall_cuts_nothing() -> Result<()> {
    const RULES: &str = "add table inet filter; \
                         add chain inet filter input { type filter hook input priority 0; policy accept; }; \
                         add rule inet filter input ct state established,related accept";
    const FLUSHES: usize = 20;
    let lab = host()?;
    for line in [NETWORK, ATTACH, "publish add @red 8080:80"] {
        lab.nsnet(line)?;
    }
    if command(&lab, &["nft", "list", "ruleset"])?.is_none() {
        return Ok(());
    }
    let _server = lab.within("red", || TcpServer::start(SocketAddr::new("0.0.0.0".parse()?, 80)))??;
    let published = SocketAddr::new(HOST_IP.parse()?, 8080);
    let (wan, red, stop) = (lab.ns("wan")?, lab.ns("red")?, AtomicBool::new(false));
    thread::scope(|scope| -> Result<()> {
        // Streams and pings go on all the while, one after the other.
        let streams = scope.spawn(|| -> Result<u32> {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                wan.run(|| tcp::transfer(published, 20 << 20))??;
                count += 1;
            }
            Ok(count)
        });
        let pings = scope.spawn(|| -> Result<(u32, u32)> {
            let (mut sent, mut received) = (0, 0);
            while !stop.load(Ordering::Relaxed) {
                let pings = red.run(|| ping(WAN_IP.parse()?, 10, 56, Duration::from_secs(2)))??;
                (sent, received) = (sent + pings.sent, received + pings.received);
                // Each series has an identifier of its own, of which a namespace has a quota.
                thread::sleep(Duration::from_millis(5));
            }
            Ok((sent, received))
        });
        let flushed = (0..FLUSHES).try_for_each(|_| {
            command(&lab, &["nft", RULES])?;
            command(&lab, &["nft", "flush", "ruleset"])?;
            thread::sleep(Duration::from_millis(50));
            anyhow::Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        let streams = streams.join().map_err(|_panic| anyhow::anyhow!("the streams panicked"))??;
        let (sent, received) = pings.join().map_err(|_panic| anyhow::anyhow!("the pings panicked"))??;
        flushed?;
        ensure!(sent == received && streams > 0, "{received} of {sent} pings answered, {streams} streams whole");
        println!("{FLUSHES} flushes: {streams} streams whole, {received} of {sent} pings answered");
        Ok(())
    })?;
    let status = lab.json("status")?;
    ensure!(status["drift"] == serde_json::json!([]), "{status}");
    Ok(())
}
