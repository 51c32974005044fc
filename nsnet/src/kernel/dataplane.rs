//! The eBPF programs: load, pin, attach. Once pinned they forward with no process of ours running.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::SchedClassifier;
use aya::programs::links::PinnedLink;
use nix::errno::Errno;
use nsnet_common::layout::{LAYOUT_VERSION, PortId, names};

use super::error::{Doing as _, KernelError, Result};
use super::features::Features;
pub use super::hooks::Hook;
use super::hooks::{Order, Seat};
use super::netlink::Netlink;
pub use super::object::{Object, open_object, open_object_with, program_in};
use super::object::{missing, random};
use super::pins::{Build, Pins};
use super::sockets;

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

    /// Whether it is loaded.
    pub fn is_loaded(&self) -> bool {
        self.pins.program(names::FROM_NAMESPACE).exists()
    }

    /// Loads the programs and pins everything; nothing is left when anything fails. Loading again does nothing.
    pub fn load(&self, features: Features) -> Result<()> {
        if self.is_loaded() {
            return Ok(());
        }
        let draft = self.draft();
        draft.pins.remove()?;
        let loaded = draft.fill(features, &Object::own()?, random()?, &[]).and_then(|mut ebpf| {
            if features.cgroup {
                // Without them the dataplane works still: `nsnet doctor` and `nsnet status` tell.
                let _told_there = sockets::install(&mut ebpf, &draft.pins.root);
            }
            let to = &self.pins.root;
            fs::rename(&draft.pins.root, to).doing(|| format!("move the pins to {}", to.display()))
        });
        if loaded.is_err() {
            // The first error is the one to report; what cannot be removed now is removed by the next load.
            let _reported_next_time = draft.pins.remove();
        }
        loaded
    }

    /// The dataplane beside this one that is being made, to be moved into its place.
    pub(super) fn draft(&self) -> Self {
        // A name in a bpffs has no dots.
        let root = PathBuf::from(format!("{}_new", self.pins.root.display()));
        Self { pins: Pins { root }, host: self.host.clone() }
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
        for name in names::MAPS {
            let to = self.pins.map(name);
            if let Some((_, from)) = reused.iter().find(|(reused, _)| *reused == name) {
                fs::hard_link(from, &to).doing(|| format!("pin map {name}"))?;
            } else {
                let map = ebpf.map(name).ok_or_else(|| missing("map", name))?;
                map.pin(to).map_err(|error| refused(format!("pin map {name}"), error))?;
            }
        }
        self.pins.set_build(&Build::here(object.build(features), secret))?;
        Ok(ebpf)
    }

    /// Removes all pins, those of other layouts too: the kernel frees programs and maps with the last of them.
    pub fn unload(&self) -> Result<()> {
        let Some(bpffs) = self.pins.root.parent() else { return self.pins.remove() };
        let entries = match fs::read_dir(bpffs) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).doing(|| format!("list {}", bpffs.display())),
        };
        let ours = format!("{}_", self.host);
        for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(&ours)) {
            Pins { root: entry.path() }.remove()?;
        }
        Ok(())
    }

    /// Puts the pins aside, where only [`Dataplane::unload`] looks. Programs go on, but this counts as not loaded: so what
    /// cannot be read can be taken down.
    pub(super) fn abandon(&self) -> Result<()> {
        let aside = Pins { root: PathBuf::from(format!("{}_gone", self.pins.root.display())) };
        aside.remove()?;
        fs::rename(&self.pins.root, &aside.root).doing(|| format!("move the pins to {}", aside.root.display()))
    }

    /// Whether the programs at the host's sockets are there.
    pub fn has_socket_hooks(&self) -> bool {
        sockets::are_installed(&self.pins.root)
    }

    /// The pins.
    pub(crate) fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Refuses pins that others could have made or changed, and those that are not what this nsnet knows.
    pub fn check(&self) -> Result<()> {
        self.pins.check(&Object::own()?)
    }

    /// Which object the programs are from; `None` when they do not tell.
    pub fn build(&self) -> Result<Option<Build>> {
        self.pins.build()
    }

    /// Puts the program of `hook` on `interface`: by a pinned tcx link, or a clsact filter where there is no tcx. Behind
    /// that of a port stands one that drops all.
    pub fn attach(&self, features: Features, port: PortId, interface: &str, hook: Hook) -> Result<()> {
        self.detach(port)?;
        let seat = Seat::of(port, interface, hook);
        let Some(behind) = seat.behind() else { return seat.take(features, &self.pins, Order::Last) };
        let is_closed = behind.is_taken_by(&Netlink::here, &self.pins)?;
        if !is_closed {
            self.release(port)?;
        }
        seat.take(features, &self.pins, if is_closed { Order::Before(&behind, &self.pins) } else { Order::Last })?;
        if is_closed { Ok(()) } else { behind.take(features, &self.pins, Order::Last) }
    }

    /// Takes the program of a port off. What stands behind it stays: see [`Dataplane::release`]. (A clsact filter goes with
    /// its interface.)
    pub fn detach(&self, port: PortId) -> Result<()> {
        remove_link(&self.pins.link(port))
    }

    /// Forgets a port whose interface is gone: nothing stands behind its program any more.
    pub fn release(&self, port: PortId) -> Result<()> {
        remove_link(&self.pins.closed_link(port))
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

    /// Whether our program is on `interface` now, as the kernel tells it.
    pub fn is_attached(&self, port: PortId, interface: &str, hook: Hook) -> Result<bool> {
        Seat::of(port, interface, hook).is_taken_by(&Netlink::here, &self.pins)
    }

    /// Whether what a port's program lets pass, or all when that is gone, ends behind it.
    pub fn is_closed(&self, port: PortId, interface: &str, hook: Hook) -> Result<bool> {
        let behind = Seat::of(port, interface, hook).behind();
        behind.map_or(Ok(true), |behind| behind.is_taken_by(&Netlink::here, &self.pins))
    }
}

impl Pins {
    /// A pinned program at a TC hook.
    pub(super) fn classifier(&self, name: &str) -> Result<SchedClassifier> {
        SchedClassifier::from_pin(self.program(name)).map_err(|error| refused(format!("open program {name}"), error))
    }

    /// The kernel's number of it.
    pub(super) fn program_id(&self, name: &str) -> Result<u32> {
        let what = || format!("read the description of program {name}");
        let info = self.classifier(name)?.info().map_err(|error| refused(what(), error))?;
        Ok(info.id())
    }
}

fn remove_link(pin: &Path) -> Result<()> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).doing(|| "remove a pinned link"),
        _ => Ok(()),
    }
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
