//! The accelerator: our programs at XDP, in front of those at TC, which see what these leave.
//!
//! It is an extra. Where the kernel does not take the programs, or a driver has no native XDP, TC does all of it.
//! Never generic XDP, which is slower than TC; never in the place of somebody else's program.

pub(crate) mod port;
pub(crate) mod uplink;

use std::ffi::OsString;
use std::path::PathBuf;

use aya::Ebpf;
use aya::maps::xdp::DevMap;
use aya::maps::{Map, MapData, PerCpuArray, PerCpuValues};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{XdpLinkId, XdpMode};
use aya::programs::{Program, Xdp};
use aya_obj::programs::XdpAttachType;
use nix::errno::Errno;
use nsnet_common::layout::{PortId, names};

use super::dataplane::{Dataplane, refused, remove_link};
use super::error::{KernelError, Result};
use super::maps::Maps;
use super::pins::Pins;

/// Which program of the accelerator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// For what namespaces send.
    Namespace,
    /// For what comes from outside.
    Uplink,
}

impl Side {
    const BOTH: [Self; 2] = [Self::Namespace, Self::Uplink];

    /// The program that belongs there.
    pub fn program(self) -> &'static str {
        match self {
            Self::Namespace => names::XDP_FROM_NAMESPACE,
            Self::Uplink => names::XDP_FROM_UPLINK,
        }
    }
}

/// The program of a loaded object.
pub fn program_in<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let missing = || KernelError::refused(format!("find program {name}"), "the eBPF object does not have it");
    let program: &mut Program = ebpf.program_mut(name).ok_or_else(missing)?;
    program.try_into().map_err(|_other_type| missing())
}

/// Has the verifier accept the programs. An error is no obstacle for the others.
pub fn load(ebpf: &mut Ebpf) -> Result<()> {
    for name in names::XDP_PROGRAMS {
        let program = program_in(ebpf, name)?;
        if program.fd().is_err() {
            program.load().map_err(|error| refused(format!("load program {name}"), error))?;
        }
    }
    Ok(())
}

/// Pins the programs, if the kernel has accepted them.
pub(super) fn pin(ebpf: &mut Ebpf, pins: &Pins) -> Result<()> {
    for name in names::XDP_PROGRAMS {
        let program = program_in(ebpf, name)?;
        if program.fd().is_ok() {
            let pin = program.pin(pins.program(name));
            pin.map_err(|error| refused(format!("pin program {name}"), error))?;
        }
    }
    Ok(())
}

/// Puts a program on an interface, natively: EOPNOTSUPP where the driver cannot, EBUSY or EEXIST where there is one.
pub(crate) fn put_on(program: &mut Xdp, ifindex: u32) -> std::result::Result<XdpLinkId, KernelError> {
    let attached = program.attach_to_if_index(ifindex, XdpMode::Driver);
    attached.map_err(|error| refused(format!("attach XDP to interface {ifindex}"), error))
}

/// What a refusal means for who asked for XDP on this interface.
fn refused_by(interface: &str, error: KernelError) -> KernelError {
    let what = format!("use XDP at {interface}");
    match error.errno() {
        Some(Errno::EBUSY | Errno::EEXIST) => KernelError::refused(what, "there is another XDP program, which stays")
            .with_remedy("take it off, or use mode tc"),
        Some(Errno::EOPNOTSUPP) => {
            KernelError::refused(what, "its driver has no native XDP, or not with its offloads as they are")
                .with_remedy(
                    "turn LRO, GRO_HW and checksum offload of a virtual machine's interface off, or use mode tc",
                )
        }
        Some(Errno::ERANGE | Errno::EINVAL) => KernelError::refused(what, format!("its driver refuses: {error}"))
            .with_remedy("lower the MTU, or use mode tc"),
        Some(_) | None => error.with_remedy("use mode tc"),
    }
}

/// The pin of the link of a port or uplink.
fn link_of(pins: &Pins, port: PortId, side: Side) -> PathBuf {
    pins.links().join(format!("{}_{}", port.0, side.program()))
}

/// The names of the pinned links of the accelerator, each with its side.
pub(super) fn links_at(pins: &Pins) -> Result<Vec<(OsString, Side)>> {
    let with_side = |name: OsString| {
        let side = Side::BOTH.into_iter().find(|side| name.to_string_lossy().ends_with(side.program()))?;
        Some((name, side))
    };
    Ok(pins.link_names()?.into_iter().filter_map(with_side).collect())
}

impl Dataplane {
    /// Whether the kernel has taken the accelerator's programs.
    pub fn has_accelerator(&self) -> bool {
        names::XDP_PROGRAMS.into_iter().all(|name| self.pins().program(name).exists())
    }

    fn xdp_program(&self, side: Side) -> Result<Xdp> {
        let program = Xdp::from_pin(self.pins().program(side.program()), XdpAttachType::Interface);
        program.map_err(|error| refused(format!("open program {}", side.program()), error))
    }

    /// The kernel's number of a program.
    pub(super) fn xdp_program_id(&self, side: Side) -> Result<u32> {
        let info = self.xdp_program(side)?.info();
        Ok(info.map_err(|error| refused(format!("read the description of program {}", side.program()), error))?.id())
    }

    /// Puts the program on the interface of a port or uplink, by a pinned link.
    pub(super) fn attach_xdp(&self, port: PortId, ifindex: u32, side: Side) -> Result<()> {
        let what = || format!("attach XDP to interface {ifindex}");
        self.detach_xdp(port)?;
        let mut program = self.xdp_program(side)?;
        let link = put_on(&mut program, ifindex)?;
        let link = program.take_link(link).map_err(|error| refused(what(), error))?;
        let link = FdLink::try_from(link).map_err(|error| refused(what(), error))?;
        let pin = link.pin(link_of(self.pins(), port, side));
        pin.map(|_pinned| ()).map_err(|error| refused(format!("pin the XDP link of interface {ifindex}"), error))
    }

    /// Takes the program of a port or uplink off; it is off when this returns.
    pub(super) fn detach_xdp(&self, port: PortId) -> Result<()> {
        for path in Side::BOTH.map(|side| link_of(self.pins(), port, side)) {
            // As in detach_and_wait(): a descriptor's end is waited for.
            let held = PinnedLink::from_pin(&path).ok();
            remove_link(&path)?;
            drop(held);
        }
        Ok(())
    }

    /// Whether an XDP link is pinned for a port or uplink.
    pub(super) fn has_xdp_link(&self, port: PortId) -> bool {
        Side::BOTH.into_iter().any(|side| link_of(self.pins(), port, side).exists())
    }
}

impl Maps {
    fn xdp_ports(&self) -> Result<DevMap<MapData>> {
        self.open(names::XDP_PORTS, Map::DevMap)
    }

    /// The interface that frames of XDP for this port or uplink are sent to.
    pub(super) fn xdp_port(&self, id: PortId) -> Result<Option<u32>> {
        let found = super::maps::found(self.xdp_ports()?.get(u32::from(id.0), 0), names::XDP_PORTS)?;
        Ok(found.map(|device| device.if_index))
    }

    /// Has frames of XDP for this port or uplink sent to an interface.
    pub(super) fn set_xdp_port(&self, id: PortId, ifindex: u32) -> Result<()> {
        let set = self.xdp_ports()?.set(u32::from(id.0), ifindex, None, 0);
        set.map_err(|error| refused(format!("enter interface {ifindex} into {}", names::XDP_PORTS), error))
    }

    /// Has no frames of XDP sent to this port or uplink any more. Their flags must have gone before.
    pub(super) fn clear_xdp_port(&self, id: PortId) -> Result<()> {
        // What the kernel takes for none (__dev_map_alloc_node's callers, kernel/bpf/devmap.c).
        const NO_INTERFACE: u32 = 0;
        self.set_xdp_port(id, NO_INTERFACE)
    }

    /// How many frames from each of these ports and uplinks the accelerator has forwarded.
    pub fn accelerated(&self, ids: impl IntoIterator<Item = PortId>) -> Result<Vec<u64>> {
        let Some(map) = self.accelerated_map()? else { return Ok(ids.into_iter().map(|_id| 0).collect()) };
        let sum = |id: PortId| {
            let values = map.get(&u32::from(id.0), 0).map_err(|error| refused("read counters", error))?;
            Ok(values.iter().sum())
        };
        ids.into_iter().map(sum).collect()
    }

    /// Sets that to 0 for a port or uplink.
    pub(super) fn reset_accelerated(&self, id: PortId) -> Result<()> {
        let what = "reset counters";
        let cpus = aya::util::nr_cpus().map_err(|(what, error)| KernelError::new(format!("read {what}"), error))?;
        let zeros = PerCpuValues::try_from(vec![0; cpus]).map_err(|error| KernelError::new(what, error))?;
        match self.accelerated_map()? {
            Some(mut map) => map.set(u32::from(id.0), zeros, 0).map_err(|error| refused(what, error)),
            None => Ok(()),
        }
    }

    /// `None` in a dataplane that was loaded before there was an accelerator, which `status` tells and `apply` loads anew.
    fn accelerated_map(&self) -> Result<Option<PerCpuArray<MapData, u64>>> {
        match self.open(names::ACCELERATED, Map::PerCpuArray) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(None),
            map => map.map(Some),
        }
    }
}
