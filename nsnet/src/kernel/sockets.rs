//! The programs at the host's sockets: on the root cgroup, by links among the host's pins.
//!
//! They are an extra. Where a kernel or a container does not let us have them, the dataplane works without, and
//! programs of the host reach no published port: `nsnet doctor` tells so. That this was so is kept among the pins: what
//! is not there otherwise was taken away, and is drift.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData};
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr, Program};
use ipnet::IpNet;
use nsnet_common::layout::names;
use nsnet_common::wire::IpAddress;

use super::cgroup;
use super::dataplane::{Dataplane, exists, refused};
use super::error::{Doing as _, KernelError, Result};
use super::features::Features;
use super::file;
use super::host::Host;
use super::maps::{all, gone};
use super::object::{Object, random};
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
    install_those(ebpf, root, &names::SOCKET_PROGRAMS)
}

/// The same of these only.
fn install_those(ebpf: &mut Ebpf, root: &Path, which: &[&str]) -> Result<()> {
    let installed = load(ebpf).and_then(|()| cgroup::root()).and_then(|cgroup| {
        which.iter().try_for_each(|name| {
            pin_program(ebpf, name, root)?;
            install_link(ebpf, name, &cgroup, root)
        })
    });
    if installed.is_err() {
        // The first error is the one to report.
        let _reported_already = remove(root, which);
    }
    installed
}

/// Whether they are installed.
pub(crate) fn are_installed(root: &Path) -> bool {
    names::SOCKET_PROGRAMS.into_iter().all(|name| root.join("links").join(name).exists())
}

/// A folder among the pins that says so: they could not be installed. (A bpffs takes no files.)
const REFUSED: &str = "without_sockets";

/// Keeps in mind that they cannot be installed.
pub(super) fn set_refused(root: &Path) -> Result<()> {
    let folder = root.join(REFUSED);
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
    made.doing(|| format!("create {}", folder.display()))
}

/// Whether they could not be installed when it was tried last.
pub(super) fn were_refused(root: &Path) -> Result<bool> {
    exists(&root.join(REFUSED))
}

/// The pins that are not there and were not refused either, below `root`.
pub(super) fn missing_pins(root: &Path) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    if were_refused(root)? {
        return Ok(missing);
    }
    for folder in ["programs", "links"] {
        for name in names::SOCKET_PROGRAMS {
            let pin = format!("{folder}/{name}");
            if !exists(&root.join(&pin))? {
                missing.push(pin);
            }
        }
    }
    Ok(missing)
}

/// Installs what is not there of a dataplane that is loaded, with its maps. As when it is loaded, `Ok` tells why it has to
/// do without, if so.
pub(super) fn mend(dataplane: &Dataplane, features: Features) -> Result<Option<KernelError>> {
    let (pins, root) = (dataplane.pins(), &dataplane.pins().root);
    let missing = missing_pins(root)?;
    let is_lost = |name: &&str| missing.iter().any(|pin| pin.ends_with(&format!("/{name}")));
    let lost: Vec<&str> = names::SOCKET_PROGRAMS.into_iter().filter(is_lost).collect();
    if !features.cgroup || lost.is_empty() {
        return Ok(None);
    }
    // Which program is at which place of STAGES is the affair of those that are loaded.
    let maps = names::MAPS.into_iter().filter(|name| *name != names::STAGES).map(|name| (name, pins.map(name)));
    let secret = pins.build()?.map_or_else(random, |build| Ok(build.secret))?;
    let mut ebpf = Object::own()?.load(features, secret, &maps.collect::<Vec<_>>())?;
    // Of a pair, the other half would be of no use.
    remove(root, &lost)?;
    let without = install_those(&mut ebpf, root, &lost).err();
    // Where some could be had, the others may be, next time.
    if without.is_some() && lost.len() == names::SOCKET_PROGRAMS.len() {
        set_refused(root)?;
    }
    Ok(without)
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

fn remove(root: &Path, which: &[&str]) -> Result<()> {
    for folder in ["links", "programs"] {
        for name in which {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_is_not_missing() {
        let root = std::env::temp_dir().join(format!("nsnet-sockets-{}", std::process::id()));
        for name in names::SOCKET_PROGRAMS {
            for folder in ["programs", "links"] {
                std::fs::create_dir_all(root.join(folder).join(name)).unwrap();
            }
        }
        let missing = || missing_pins(&root).unwrap();
        assert!(missing().is_empty() && are_installed(&root));
        std::fs::remove_dir(root.join("links/bind4")).unwrap();
        std::fs::remove_dir(root.join("programs/connect6")).unwrap();
        assert_eq!(missing(), ["programs/connect6", "links/bind4"]);
        set_refused(&root).unwrap();
        set_refused(&root).unwrap();
        assert!(missing().is_empty() && were_refused(&root).unwrap());
        std::fs::remove_dir_all(&root).unwrap();
    }
}
