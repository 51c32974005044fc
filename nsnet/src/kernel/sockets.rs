//! The programs at the host's sockets: on the root cgroup, by links among the host's pins.
//!
//! They are an extra. Where a kernel or a container does not let us have them, the dataplane works without, and
//! programs of the host reach no published port: `nsnet doctor` tells so.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;

use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData};
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr, Program};
use ipnet::IpNet;
use nsnet_common::layout::names;
use nsnet_common::wire::IpAddress;

use super::cgroup;
use super::dataplane::refused;
use super::error::{Doing as _, KernelError, Result};
use super::file;
use super::host::Host;
use super::maps::{all, gone};
use crate::model::drift::Difference;

/// Loads the programs, attaches them, and takes them off again: what `nsnet doctor` goes by.
pub fn try_out(ebpf: &mut Ebpf) -> Result<()> {
    load(ebpf)?;
    let cgroup = cgroup::root()?;
    names::SOCKET_PROGRAMS.into_iter().try_for_each(|name| attach(ebpf, name, &cgroup).map(|_link| ()))
}

/// Has the verifier accept every program.
pub fn load(ebpf: &mut Ebpf) -> Result<()> {
    names::SOCKET_PROGRAMS.into_iter().try_for_each(|name| {
        let loaded = program_in(ebpf, name)?.load();
        loaded.map_err(|error| refused(format!("load program {name}"), error))
    })
}

/// Loads the programs, attaches them to the root cgroup, and pins both below `root`: all of them, or none.
pub(crate) fn install(ebpf: &mut Ebpf, root: &Path) -> Result<()> {
    let installed = load(ebpf).and_then(|()| cgroup::root()).and_then(|cgroup| {
        names::SOCKET_PROGRAMS.into_iter().try_for_each(|name| {
            pin_program(ebpf, name, root)?;
            install_link(ebpf, name, &cgroup, root)
        })
    });
    if installed.is_err() {
        // The first error is the one to report.
        let _reported_already = remove(root);
    }
    installed
}

/// Whether they are installed.
pub(crate) fn are_installed(root: &Path) -> bool {
    names::SOCKET_PROGRAMS.into_iter().all(|name| root.join("links").join(name).exists())
}

/// Pins a program that is loaded.
pub(super) fn pin_program(ebpf: &mut Ebpf, name: &str, root: &Path) -> Result<()> {
    let pinned = program_in(ebpf, name)?.pin(root.join("programs").join(name));
    pinned.map_err(|error| refused(format!("pin program {name}"), error))
}

/// Attaches it, and pins the link.
pub(super) fn install_link(ebpf: &mut Ebpf, name: &str, cgroup: &impl AsFd, root: &Path) -> Result<()> {
    let pinned = attach(ebpf, name, cgroup)?.pin(root.join("links").join(name));
    pinned.map(|_link| ()).map_err(|error| refused(format!("pin the link of {name}"), error))
}

fn attach(ebpf: &mut Ebpf, name: &str, cgroup: &impl AsFd) -> Result<FdLink> {
    let what = || format!("attach {name} to the root cgroup");
    let program = program_in(ebpf, name)?;
    // A link is beside those of others, and of programs in the cgroups below, whatever is asked for: the kernel adds
    // BPF_F_ALLOW_MULTI, and refuses it as a flag (cgroup_bpf_link_attach).
    let link = program.attach(cgroup, CgroupAttachMode::Single).map_err(|error| refused(what(), error))?;
    let link = program.take_link(link).map_err(|error| refused(what(), error))?;
    FdLink::try_from(link).map_err(|error| refused(what(), error))
}

fn remove(root: &Path) -> Result<()> {
    for folder in ["links", "programs"] {
        for name in names::SOCKET_PROGRAMS {
            file::remove(&root.join(folder).join(name)).doing(|| format!("remove the pin {folder}/{name}"))?;
        }
    }
    Ok(())
}

/// The program `name` of an object.
pub fn program_in<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut CgroupSockAddr> {
    let missing = || KernelError::refused(format!("find program {name}"), "the eBPF object does not have it");
    let program: &mut Program = ebpf.program_mut(name).ok_or_else(missing)?;
    program.try_into().map_err(|_other_type| missing())
}

/// Tells the programs which addresses the host has now. Only what differs is written. Whether anything did.
///
/// Needs no lock: whoever has written looks again, so the last to write has written what is.
pub(crate) fn refresh_locals(host: &Host) -> Result<bool> {
    const TURNS: usize = 10;
    if !host.dataplane.loaded()? {
        return Ok(false);
    }
    let mut locals = locals(host)?;
    for turn in 0..TURNS {
        let (wanted, known) = (addresses(host)?, known(&locals)?);
        if wanted == known {
            return Ok(turn > 0);
        }
        for (ip, kind) in wanted.iter().filter(|(ip, kind)| known.get(*ip) != Some(*kind)) {
            locals.insert(ip, kind, 0).map_err(|error| refused("enter an address of the host", error))?;
        }
        for ip in known.keys().filter(|ip| !wanted.contains_key(*ip)) {
            gone(locals.remove(ip), names::LOCALS)?;
        }
    }
    Err(KernelError::refused("enter the addresses of the host", "they change all the time"))
}

/// Where the programs know other addresses than the host has now.
pub(crate) fn local_differences(host: &Host) -> Result<Vec<Difference>> {
    let (wanted, known) = (addresses(host)?, known(&locals(host)?)?);
    let lost = wanted.iter().filter(|(ip, kind)| known.get(*ip) != Some(*kind));
    let stale = known.keys().filter(|ip| !wanted.contains_key(*ip));
    let lost = lost.map(|(ip, _)| Difference::lacks("entry of address", IpAddr::from(*ip)));
    Ok(lost.chain(stale.map(|ip| Difference::extra("entry of address", IpAddr::from(*ip)))).collect())
}

fn locals(host: &Host) -> Result<HashMap<MapData, IpAddress, u8>> {
    host.maps().open(names::LOCALS, Map::HashMap)
}

/// What the programs know.
fn known(locals: &HashMap<MapData, IpAddress, u8>) -> Result<BTreeMap<IpAddress, u8>> {
    Ok(all(locals.iter(), names::LOCALS)?.into_iter().collect())
}

/// The host's addresses (1), and the broadcast addresses of its subnets (0).
fn addresses(host: &Host) -> Result<BTreeMap<IpAddress, u8>> {
    let mut addresses = BTreeMap::new();
    for (_, address) in host.netlink.all_addresses()? {
        // RFC 3021: a /31 has no broadcast address.
        if let IpNet::V4(v4) = address
            && v4.prefix_len() < 31
        {
            addresses.entry(IpAddress::from(IpAddr::V4(v4.broadcast()))).or_insert(0);
        }
        // A link-local address says nothing without its link: a router elsewhere may have the same.
        let ip = IpAddress::from(address.addr());
        if !ip.is_link_local_v6() {
            addresses.insert(ip, 1);
        }
    }
    Ok(addresses)
}
