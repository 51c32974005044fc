//! The eBPF programs: load, pin, attach. Once pinned they forward with no process of ours running.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::links::PinnedLink;
use aya::programs::{ProgramInfo, SchedClassifier};
use nix::errno::Errno;
use nsnet_common::layout::{LAYOUT_VERSION, PortId, names};

use super::error::{Doing as _, KernelError, Result};
use super::features::Features;
use super::file;
pub use super::hooks::Hook;
use super::hooks::{Order, Seat};
use super::netlink::Netlink;
pub use super::object::{Object, open_object, open_object_with, program_in};
use super::object::{missing, random};
use super::pins::{Build, Pins};
use super::{sockets, stages, xdp};

/// The pinned programs, maps and links of one host.
#[derive(Clone, Debug)]
pub struct Dataplane {
    pins: Pins,
    host: String,
}

impl Dataplane {
    /// The dataplane whose pins are, or will be, below `bpffs` for the host `host`.
    pub fn at(bpffs: &Path, host: &str) -> Self {
        Self { pins: Pins { root: bpffs.join(format!("{host}_v{LAYOUT_VERSION}")) }, host: host.to_owned() }
    }

    /// Whether it is loaded, for whoever acts on the answer.
    pub fn loaded(&self) -> Result<bool> {
        exists(&self.pins.program(names::FROM_NAMESPACE))
    }

    /// Whether it is loaded. Where that cannot be told, it is thought to be: using it tells why.
    pub fn is_loaded(&self) -> bool {
        self.loaded().unwrap_or(true)
    }

    /// The pins that are not there, below the host's folder.
    pub fn missing_pins(&self) -> Result<Vec<String>> {
        let programs = names::PROGRAMS.iter().map(|name| self.pins.program(name));
        let maps = names::MAPS.iter().map(|name| self.pins.map(name));
        let mut missing = Vec::new();
        for pin in programs.chain(maps) {
            if !exists(&pin)? {
                let below = pin.strip_prefix(&self.pins.root).unwrap_or(&pin);
                missing.push(below.display().to_string());
            }
        }
        Ok(missing)
    }

    /// Loads the programs and pins everything; nothing is left when anything fails. Loading again only mends what is
    /// wrong: where a pin is gone all goes, because programs that are loaded anew do not know the old maps.
    ///
    /// The dataplane works without its programs at the host's sockets: `Ok` tells why it has to, if so.
    pub fn load(&self, features: Features) -> Result<Option<KernelError>> {
        if self.missing_pins()?.is_empty() {
            if !stages::differences(self)?.is_empty() {
                stages::mend(self)?;
            }
            return sockets::mend(self, features);
        }
        let (draft, old) = (self.draft(), Pins { root: self.beside("old") });
        draft.pins.remove()?;
        old.remove()?;
        let pinned = draft.fill(features, Object::own()?, random()?, &[]).and_then(|mut ebpf| {
            let root = &draft.pins.root;
            let without = if features.cgroup { sockets::install(&mut ebpf, root).err() } else { None };
            if without.is_some() {
                sockets::set_refused(root)?;
            }
            if exists(&self.pins.root)? {
                rename(&self.pins.root, &old.root)?;
            }
            rename(root, &self.pins.root)?;
            old.remove()?;
            Ok(without)
        });
        if pinned.is_err() {
            // The first error is the one to report; what cannot be removed now is removed by the next load.
            let _reported_next_time = draft.pins.remove();
        }
        pinned
    }

    /// The dataplane beside this one that is being made, to be moved into its place.
    pub(super) fn draft(&self) -> Self {
        Self { pins: Pins { root: self.beside("new") }, host: self.host.clone() }
    }

    /// Loads the object and pins its programs and maps here, but those `reused`, whose pins are given: they get another
    /// pin, here.
    pub(super) fn fill(
        &self,
        features: Features,
        object: &Object,
        secret: u64,
        reused: &[(&'static str, PathBuf)],
    ) -> Result<Ebpf> {
        self.pins.create()?;
        let mut ebpf = object.load(features, secret, reused)?;
        for name in names::PROGRAMS {
            let pin = program_in(&mut ebpf, name)?.pin(self.pins.program(name));
            pin.map_err(|error| refused(format!("pin program {name}"), error))?;
        }
        xdp::pin(&mut ebpf, &self.pins)?;
        for name in names::MAPS {
            let to = self.pins.map(name);
            if let Some((_, from)) = reused.iter().find(|(reused, _)| *reused == name) {
                fs::hard_link(from, &to).doing(|| format!("pin map {name}"))?;
            } else {
                let map = ebpf.map(names::in_object(name)).ok_or_else(|| missing("map", name))?;
                map.pin(to).map_err(|error| refused(format!("pin map {name}"), error))?;
            }
        }
        self.pins.set_build(&Build::here(object.build(features), secret))?;
        Ok(ebpf)
    }

    /// Removes all pins, those of other layouts too: the kernel frees programs and maps with the last of them.
    pub fn unload(&self) -> Result<()> {
        let Some(bpffs) = self.pins.root.parent() else { return self.pins.remove() };
        if self.loaded()? {
            // At once, so that what is half removed is never taken for a dataplane.
            self.abandon()?;
        }
        remove_all(bpffs, &self.host)
    }

    /// Puts the pins aside, where only [`Dataplane::unload`] looks. Programs go on, but this counts as not loaded: so what
    /// cannot be read can be taken down.
    pub(super) fn abandon(&self) -> Result<()> {
        let old = Pins { root: self.beside("old") };
        old.remove()?;
        rename(&self.pins.root, &old.root)
    }

    /// A folder that comes before ours, or after it. (A name in a bpffs has no dots.)
    fn beside(&self, when: &str) -> PathBuf {
        PathBuf::from(format!("{}_{when}", self.pins.root.display()))
    }

    /// Whether there are pins of this host, whatever their layout.
    pub(crate) fn has_pins(&self) -> Result<bool> {
        let Some(bpffs) = self.pins.root.parent() else { return Ok(false) };
        Ok(!pins_of(bpffs, &self.host)?.is_empty())
    }

    /// Whether the programs at the host's sockets are there.
    pub fn has_socket_hooks(&self) -> bool {
        sockets::are_installed(&self.pins.root)
    }

    /// The pins of programs at the host's sockets that somebody has taken away, below the host's folder.
    pub fn missing_socket_pins(&self) -> Result<Vec<String>> {
        sockets::missing_pins(&self.pins.root)
    }

    /// The pins.
    pub(crate) fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Refuses pins that others could have made or changed, and those that another nsnet has made otherwise.
    pub fn check(&self, features: Features) -> Result<()> {
        let object = Object::own()?;
        self.pins.check(object, object.build(features))
    }

    /// Which object the programs are from; `None` when they do not tell.
    pub fn build(&self) -> Result<Option<Build>> {
        self.pins.build()
    }

    /// The ports that a link is pinned for.
    pub(super) fn linked_ports(&self) -> Result<BTreeSet<PortId>> {
        // The others are of the programs at sockets and of the accelerator.
        let port_of = |name: &OsString| name.to_str().and_then(Pins::port_of_link);
        Ok(self.pins.link_names()?.iter().filter_map(port_of).collect())
    }

    /// A pinned program.
    pub(super) fn pinned(&self, name: &str) -> Result<SchedClassifier> {
        self.pins.classifier(name)
    }

    /// Puts the program of `hook` on `interface`, unless it is there: by a pinned tcx link, or a clsact filter where there
    /// is no tcx. Behind that of a port stands one that drops all, from before it is there until the interface goes.
    pub fn attach(
        &self,
        netlink: &Netlink,
        features: Features,
        port: PortId,
        interface: &str,
        hook: Hook,
    ) -> Result<()> {
        let seat = Seat::of(port, interface, hook);
        // A port that is new, as most are, has no link: then nobody need be asked.
        let is_new = features.tcx && !exists(&self.pins.link(port))?;
        let is_taken = |seat: &Seat| if is_new { Ok(false) } else { seat.is_taken_by(netlink, &self.pins) };
        if let Some(behind) = seat.behind()
            && !is_taken(&behind)?
        {
            behind.take(features, &self.pins, Order::Last)?;
        }
        if !is_taken(&seat)? {
            self.detach(port)?;
            seat.take(features, &self.pins, Order::Last)?;
        }
        Ok(())
    }

    /// Takes the program of a port off. What stands behind it stays, as all filters do, until the interface goes.
    pub fn detach(&self, port: PortId) -> Result<()> {
        remove_link(&self.pins.link(port))
    }

    /// [`Dataplane::detach`] for an interface that stays: the program is off when this returns.
    ///
    /// With the pin alone the kernel takes it off some time later. A descriptor's end is waited for (an RCU grace period).
    pub fn detach_and_wait(&self, port: PortId) -> Result<()> {
        let held = PinnedLink::from_pin(self.pins.link(port)).ok();
        self.detach(port)?;
        drop(held);
        Ok(())
    }

    /// The kernel's number of a loaded program.
    pub fn program_id(&self, name: &str) -> Result<u32> {
        self.pins.program_id(name)
    }

    /// The kernel's description of a loaded program.
    pub fn program_info(&self, name: &str) -> Result<ProgramInfo> {
        self.pins.program_info(name)
    }

    /// Whether our program is on `interface` now, as the kernel tells it.
    pub fn is_attached(&self, netlink: &Netlink, port: PortId, interface: &str, hook: Hook) -> Result<bool> {
        Seat::of(port, interface, hook).is_taken_by(netlink, &self.pins)
    }

    /// Whether what a port's program lets pass, or all when that is gone, ends behind it. (Behind an uplink's is the host.)
    pub fn is_closed(&self, netlink: &Netlink, port: PortId, interface: &str, hook: Hook) -> Result<bool> {
        let behind = Seat::of(port, interface, hook).behind();
        behind.map_or(Ok(true), |behind| behind.is_taken_by(netlink, &self.pins))
    }
}

impl Pins {
    /// A pinned program at a TC hook.
    pub(super) fn classifier(&self, name: &str) -> Result<SchedClassifier> {
        SchedClassifier::from_pin(self.program(name)).map_err(|error| refused(format!("open program {name}"), error))
    }

    /// The kernel's description of it.
    fn program_info(&self, name: &str) -> Result<ProgramInfo> {
        let info = ProgramInfo::from_pin(self.program(name));
        info.map_err(|error| refused(format!("read the description of program {name}"), error))
    }

    /// The kernel's number of it.
    pub(super) fn program_id(&self, name: &str) -> Result<u32> {
        Ok(self.program_info(name)?.id())
    }
}

pub(super) fn exists(path: &Path) -> Result<bool> {
    path.try_exists().doing(|| format!("look for {}", path.display()))
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).doing(|| format!("move the pins to {}", to.display()))
}

/// Removes all pins of `host`.
pub(crate) fn remove_all(bpffs: &Path, host: &str) -> Result<()> {
    pins_of(bpffs, host)?.iter().try_for_each(Pins::remove)
}

/// The folders of a host's pins: one for each layout, and drafts.
fn pins_of(bpffs: &Path, host: &str) -> Result<Vec<Pins>> {
    let what = || format!("list {}", bpffs.display());
    let entries = match fs::read_dir(bpffs) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.doing(what)?,
    };
    let ours = format!("{host}_");
    let mut pins = Vec::new();
    for entry in entries {
        let entry = entry.doing(what)?;
        if entry.file_name().to_string_lossy().starts_with(&ours) {
            pins.push(Pins { root: entry.path() });
        }
    }
    Ok(pins)
}

pub(super) fn remove_link(pin: &Path) -> Result<()> {
    file::remove(pin).doing(|| "remove a pinned link").map(drop)
}

/// An error of aya's, with the errno that lies at its bottom where there is one.
pub(crate) fn refused(what: impl std::fmt::Display, error: impl std::error::Error + 'static) -> KernelError {
    match io_errno(&error) {
        Some(errno) => KernelError::new(what, errno),
        None => KernelError::refused(what, one_line(&error)),
    }
}

pub(super) fn io_errno(error: &(dyn std::error::Error + 'static)) -> Option<Errno> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return io.raw_os_error().map(Errno::from_raw);
        }
        cause = error.source();
    }
    None
}

/// The error and its causes, up to the end of the first line: a verifier's log has thousands.
fn one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text.lines().next().unwrap_or_default().to_owned()
}
