//! What others have on the same interfaces, and do to the firewall: it stays, and concerns us as little as we do it.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::programs::tc::{NlOptions, TcAttachOptions};
use aya::programs::{SchedClassifier, TcAttachType};
use nix::errno::Errno;
use nix::libc;
use nsnet::kernel::dataplane::{open_object, program_in};
use nsnet::kernel::features::Features;
use nsnet::kernel::netlink::Netlink;
use nsnet::lab::ping::ping;
use nsnet::lab::{HOST_IP, Lab, TcpServer, tcp};
use nsnet_common::layout::names;

use super::cut_off::{ATTACH, NETWORK, host, red_is_attached};

/// What stands for somebody else's program: one that no interface of these has otherwise.
const FOREIGN: &str = names::FROM_HOST;

/// Runs a tool in the lab's host; `None` when there is no such tool here, which is told.
fn tool(lab: &Lab, line: &str) -> Result<Option<String>> {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().context("no tool")?);
    command.args(words);
    match lab.within("host", || command.output())? {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: there is no tool for `{line}` here");
            Ok(None)
        }
        output => {
            let output = output?;
            ensure!(output.status.success(), "`{line}`: {}", String::from_utf8_lossy(&output.stderr));
            Ok(Some(String::from_utf8(output.stdout)?))
        }
    }
}

/// An XDP program that passes everything, on an interface of the calling thread's namespace, for as long as this is open.
struct Xdp(OwnedFd);

impl Xdp {
    fn on(index: u32) -> Result<Self> {
        /// `r0 = XDP_PASS; exit` (Documentation/bpf/standardization/instruction-set.rst).
        const PROGRAM: [u64; 2] = [0x0000_0002_0000_00b7, 0x0000_0000_0000_0095];
        const BPF_PROG_LOAD: libc::c_long = 5;
        const BPF_LINK_CREATE: libc::c_long = 28;
        const BPF_PROG_TYPE_XDP: u32 = 6;
        const BPF_XDP: u32 = 37;
        const XDP_FLAGS_SKB_MODE: u32 = 2;
        /// The beginning of `union bpf_attr` for a program that is loaded (include/uapi/linux/bpf.h).
        #[repr(C)]
        struct Load {
            kind: u32,
            count: u32,
            instructions: u64,
            license: u64,
        }
        let license = c"GPL";
        let load = Load {
            kind: BPF_PROG_TYPE_XDP,
            count: PROGRAM.len() as u32,
            instructions: PROGRAM.as_ptr() as u64,
            license: license.as_ptr() as u64,
        };
        // SAFETY: the structure is what the command reads, and what it points to outlives the call.
        let program = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) };
        let program = descriptor(program).context("load an XDP program")?;
        let link: [u32; 4] = [program.as_raw_fd() as u32, index, BPF_XDP, XDP_FLAGS_SKB_MODE];
        // SAFETY: as above: a program, an interface, a type and flags.
        let link = unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_CREATE, link.as_ptr(), size_of_val(&link)) };
        Ok(Self(descriptor(link).context("attach an XDP program")?))
    }

    /// The interface that it is on; 0 when it was taken off.
    fn interface(&self) -> Result<u32> {
        let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.0.as_raw_fd()))?;
        let line = about.lines().find_map(|line| line.strip_prefix("ifindex:")).context("no interface in fdinfo")?;
        Ok(line.trim().parse()?)
    }
}

fn descriptor(result: libc::c_long) -> Result<OwnedFd> {
    let descriptor = Errno::result(result)?;
    // SAFETY: the call has just opened it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as i32) })
}

#[test]
fn programs_filters_and_qdiscs_of_others_stay() -> Result<()> {
    let lab = host()?;
    lab.nsnet(NETWORK)?;
    let port = lab.json(ATTACH)?;
    let outer = port["host_ifname"].as_str().context("no host_ifname")?.to_owned();
    let netlink = Netlink::inside(&lab.ns("host")?)?;
    let interfaces = ["uplink", "v-net-0", &outer];
    let xdp = interfaces.map(|name| Xdp::on_host(&lab, netlink.existing_link(name)?.index));
    let xdp = xdp.into_iter().collect::<Result<Vec<_>>>()?;
    let mut ebpf = lab.within("host", || open_object(Features::probe()))??;
    let program = program_in(&mut ebpf, FOREIGN)?;
    // Behind ours, where only what we let pass to the host arrives; and on the side that we have nothing on.
    let mut links = Vec::new();
    for name in interfaces {
        let filter = || TcAttachOptions::Netlink(NlOptions::default());
        links.push(lab.within("host", || {
            let _had_one = aya::programs::tc::qdisc_add_clsact(name);
            program.attach_with_options(name, TcAttachType::Egress, filter())
        })??);
    }
    let has_qdiscs = interfaces.iter().all(|name| {
        matches!(
            tool(&lab, &format!("tc qdisc add dev {name} root tbf rate 1gbit burst 100kb latency 50ms")),
            Ok(Some(_))
        )
    });
    ensure!(has_qdiscs || tool(&lab, "tc -V")?.is_none(), "`tc` is here, and made no qdiscs");
    let check = |of: &[&str], after: &str| -> Result<()> {
        for (name, xdp) in interfaces.iter().zip(&xdp).filter(|(name, _)| of.contains(name)) {
            let index = netlink.existing_link(name)?.index;
            ensure!(xdp.interface()? == index, "the XDP program is off {name} after `{after}`");
            let filters = tool(&lab, &format!("tc filter show dev {name} egress"))?;
            ensure!(
                filters.is_none_or(|filters| filters.contains(FOREIGN)),
                "the filter is off {name} after `{after}`"
            );
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
        red_is_attached(&lab).with_context(|| format!("after `{line}`"))?;
    }
    lab.nsnet("detach v-net-0 @red")?;
    check(&["uplink", "v-net-0"], "detach")?;
    lab.nsnet("down")?;
    check(&["uplink"], "down")?;
    let (_revision, programs) =
        lab.within("host", || SchedClassifier::query_tcx("uplink", TcAttachType::Ingress))??;
    ensure!(programs.is_empty(), "ours is left on the uplink");
    for link in links.into_iter().take(1) {
        lab.within("host", || program.detach(link))??;
    }
    Ok(())
}

impl Xdp {
    fn on_host(lab: &Lab, index: u32) -> Result<Self> {
        lab.within("host", || Self::on(index))?
    }
}

#[test]
fn flushing_the_firewall_cuts_nothing() -> Result<()> {
    const RULES: &str = "add table inet filter; \
                         add chain inet filter input { type filter hook input priority 0; policy accept; }; \
                         add rule inet filter input ct state established,related accept";
    let lab = host()?;
    for line in [NETWORK, ATTACH, "publish add @red 8080:80"] {
        lab.nsnet(line)?;
    }
    let _server = lab.within("red", || TcpServer::start(SocketAddr::new("0.0.0.0".parse()?, 80)))??;
    let published = SocketAddr::new(HOST_IP.parse()?, 8080);
    let (wan, red) = (lab.ns("wan")?, lab.ns("red")?);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let flushes = std::thread::scope(|scope| -> Result<usize> {
        // A stream that goes on all the while, and pings, one after the other.
        let streams = scope.spawn(|| -> Result<usize> {
            let mut count = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                wan.run(|| tcp::transfer(published, 20 << 20))??;
                count += 1;
            }
            Ok(count)
        });
        let pings = scope.spawn(|| -> Result<(u32, u32)> {
            let (mut sent, mut received) = (0, 0);
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let pings = red.run(|| ping("192.168.1.3".parse()?, 10, 56, Duration::from_secs(2)))??;
                (sent, received) = (sent + pings.sent, received + pings.received);
            }
            Ok((sent, received))
        });
        let mut flushes = 0;
        let flushed: Result<()> = (0..20).try_for_each(|_| {
            for line in [RULES.split("; ").collect::<Vec<_>>().join(" ; "), "flush ruleset".to_owned()] {
                let mut command = Command::new("nft");
                command.arg(&line);
                match lab.within("host", || command.output())? {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
                    output => {
                        let output = output?;
                        ensure!(output.status.success(), "nft {line}: {}", String::from_utf8_lossy(&output.stderr));
                    }
                }
            }
            flushes += 1;
            std::thread::sleep(Duration::from_millis(50));
            Ok(())
        });
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let streams = streams.join().map_err(|_panic| anyhow::anyhow!("the streams panicked"))??;
        let (sent, received) = pings.join().map_err(|_panic| anyhow::anyhow!("the pings panicked"))??;
        flushed?;
        ensure!(sent == received && streams > 0, "{received} of {sent} pings answered, {streams} streams whole");
        println!("{flushes} flushes, {streams} streams whole, {received} of {sent} pings answered");
        Ok(flushes)
    })?;
    if flushes == 0 {
        println!("skipped: there is no nft here");
    }
    let status = lab.json("status")?;
    ensure!(status["drift"] == serde_json::json!([]), "{status}");
    Ok(())
}
