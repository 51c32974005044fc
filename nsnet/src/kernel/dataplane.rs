//! The eBPF programs: load, pin, attach. Once pinned they forward with no process of ours running.
//!
//! ```text
//! /run/nsnet/bpf/<host>/        one folder for each namespace that acts as host, made whole by one rename
//!   programs/<name>  maps/<NAME>  links/<port id>
//! ```

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::ProgramArray;
use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLinkId, TcAttachOptions, qdisc_add_clsact};
use aya::programs::{Program, ProgramError, ProgramFd, ProgramInfo, SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader};
use nix::errno::Errno;
use nsnet_common::layout::{LAYOUT_VERSION, PortId, names};

use super::error::{Doing as _, KernelError, Result};
use super::features::Features;
use super::netlink::Netlink;
use super::netns::NetNs;
use super::{sockets, stages, xdp};

/// How long taking a program off may take.
const GRACE: Duration = Duration::from_secs(1);

pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/nsnet-ebpf"));

/// Which side of which interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// The host end of a namespace's veth: what the namespace sends.
    Namespace,
    /// The network's own interface: what the host sends.
    Host,
    /// An uplink: what comes from outside.
    Uplink,
}

impl Hook {
    /// The program that belongs there.
    pub fn program(self) -> &'static str {
        match self {
            Self::Namespace => names::FROM_NAMESPACE,
            Self::Host => names::FROM_HOST,
            Self::Uplink => names::FROM_UPLINK,
        }
    }

    fn attach_type(self) -> TcAttachType {
        match self {
            Self::Namespace | Self::Uplink => TcAttachType::Ingress,
            Self::Host => TcAttachType::Egress,
        }
    }
}

/// The pinned programs, maps and links of one host.
#[derive(Clone, Debug)]
pub struct Dataplane {
    root: PathBuf,
    host: String,
}

impl Dataplane {
    /// The dataplane whose pins are, or will be, below `bpffs` for the host `host`.
    pub fn at(bpffs: &Path, host: &str) -> Self {
        Self { root: bpffs.join(format!("{host}_v{LAYOUT_VERSION}")), host: host.to_owned() }
    }

    /// Whether it is loaded, for whoever acts on the answer.
    pub fn loaded(&self) -> Result<bool> {
        let program = self.root.join("programs").join(names::FROM_NAMESPACE);
        program.try_exists().doing(|| format!("look for {}", program.display()))
    }

    /// Whether it is loaded. Where that cannot be told, it is thought to be: using it tells why.
    pub fn is_loaded(&self) -> bool {
        self.loaded().unwrap_or(true)
    }

    /// The pins that are not there, below the host's folder.
    pub fn missing_pins(&self) -> Result<Vec<String>> {
        let programs = names::PROGRAMS.iter().map(|name| format!("programs/{name}"));
        let maps = names::MAPS.iter().map(|name| format!("maps/{name}"));
        let mut missing = Vec::new();
        for pin in programs.chain(maps) {
            if !self.root.join(&pin).try_exists().doing(|| format!("look for {pin}"))? {
                missing.push(pin);
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
            return Ok(None);
        }
        let (draft, old) = (self.beside("new"), self.beside("old"));
        remove_pins(&draft)?;
        remove_pins(&old)?;
        let mut ebpf = open_object(features)?;
        let pinned = pin_all(&mut ebpf, &draft).and_then(|()| {
            let without = if features.cgroup { sockets::install(&mut ebpf, &draft).err() } else { None };
            if self.root.try_exists().doing(|| format!("look for {}", self.root.display()))? {
                fs::rename(&self.root, &old).doing(|| format!("move the pins to {}", old.display()))?;
            }
            fs::rename(&draft, &self.root).doing(|| format!("move the pins to {}", self.root.display()))?;
            remove_pins(&old)?;
            Ok(without)
        });
        if pinned.is_err() {
            // The first error is the one to report; what cannot be removed now is removed by the next load.
            let _reported_next_time = remove_pins(&draft);
        }
        pinned
    }

    /// Removes all pins, those of other layouts too: the kernel frees programs and maps with the last of them.
    pub fn unload(&self) -> Result<()> {
        let Some(bpffs) = self.root.parent() else { return remove_pins(&self.root) };
        if self.loaded()? {
            // At once, so that what is half removed is never taken for a dataplane.
            let old = self.beside("old");
            remove_pins(&old)?;
            fs::rename(&self.root, &old).doing(|| format!("move the pins to {}", old.display()))?;
        }
        remove_all(bpffs, &self.host)
    }

    /// A folder that comes before ours, or after it. (A name in a bpffs has no dots.)
    fn beside(&self, when: &str) -> PathBuf {
        PathBuf::from(format!("{}_{when}", self.root.display()))
    }

    /// Whether there are pins of this host, whatever their layout.
    pub(crate) fn has_pins(&self) -> Result<bool> {
        let Some(bpffs) = self.root.parent() else { return Ok(false) };
        Ok(!pins_of(bpffs, &self.host)?.is_empty())
    }

    /// Whether the programs at the host's sockets are there.
    pub fn has_socket_hooks(&self) -> bool {
        sockets::are_installed(&self.root)
    }

    /// The folder of the pinned maps.
    pub(crate) fn maps_dir(&self) -> PathBuf {
        self.root.join("maps")
    }

    fn link_path(&self, port: PortId) -> PathBuf {
        self.link_path_of(&port.0.to_string())
    }

    pub(super) fn link_path_of(&self, name: &str) -> PathBuf {
        self.root.join("links").join(name)
    }

    pub(super) fn program_path(&self, name: &str) -> PathBuf {
        self.root.join("programs").join(name)
    }

    /// The ports that a link is pinned for.
    pub(super) fn linked_ports(&self) -> Result<Vec<PortId>> {
        let folder = self.root.join("links");
        let what = || format!("list {}", folder.display());
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.doing(what)?,
        };
        let mut ports = Vec::new();
        for entry in entries {
            // The others are of the programs at sockets and of the accelerator.
            ports.extend(entry.doing(what)?.file_name().to_str().and_then(|name| name.parse().ok()).map(PortId));
        }
        Ok(ports)
    }

    /// A pinned program.
    pub(super) fn pinned(&self, name: &str) -> Result<SchedClassifier> {
        let program = SchedClassifier::from_pin(self.root.join("programs").join(name));
        program.map_err(|error| refused(format!("open program {name}"), error))
    }

    /// Puts the program of `hook` on `interface`: by a pinned tcx link, or a clsact filter where there is no tcx.
    pub fn attach(&self, features: Features, port: PortId, interface: &str, hook: Hook) -> Result<()> {
        let what = || format!("attach {} to {interface}", hook.program());
        let mut program = self.pinned(hook.program())?;
        self.detach(port)?;
        let began = Instant::now();
        let link = loop {
            match put_on(&mut program, features, interface, hook) {
                // A link whose pin is gone is taken off after an RCU grace period, and no program is there twice.
                Err(error) if error.errno() == Some(Errno::EEXIST) && began.elapsed() < GRACE => {
                    thread::sleep(GRACE / 100);
                }
                put => break put?,
            }
        };
        let link = program.take_link(link).map_err(|error| refused(what(), error))?;
        if !features.tcx {
            // The filter belongs to the interface and goes with it: dropping the link must not take it off.
            std::mem::forget(link);
            return Ok(());
        }
        let link = FdLink::try_from(link).map_err(|error| refused(what(), error))?;
        let pin = link.pin(self.link_path(port));
        pin.map(|_pinned| ()).map_err(|error| refused(format!("pin the link of {interface}"), error))
    }

    /// Takes the program of a port off. (A clsact filter goes with its interface.)
    pub fn detach(&self, port: PortId) -> Result<()> {
        let path = self.link_path(port);
        // What is not there need not be removed; a file system that is read-only would refuse even that.
        if !path.try_exists().doing(|| "look for a pinned link")? {
            return Ok(());
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).doing(|| "remove a pinned link"),
            _ => Ok(()),
        }
    }

    /// The same for an interface that stays: the program is off when this returns.
    ///
    /// With the pin alone the kernel takes it off some time later. A descriptor's end is waited for (an RCU grace period).
    pub fn detach_and_wait(&self, port: PortId) -> Result<()> {
        let held = PinnedLink::from_pin(self.link_path(port)).ok();
        self.detach(port)?;
        drop(held);
        Ok(())
    }

    /// The kernel's number of a loaded program.
    pub fn program_id(&self, name: &str) -> Result<u32> {
        Ok(self.program_info(name)?.id())
    }

    /// The kernel's description of a loaded program.
    pub fn program_info(&self, name: &str) -> Result<ProgramInfo> {
        let program = SchedClassifier::from_pin(self.root.join("programs").join(name));
        let info = program.and_then(|program| program.info());
        info.map_err(|error| refused(format!("read the description of program {name}"), error))
    }

    /// Whether our program is on `interface` now, as the kernel tells it.
    pub fn is_attached(&self, features: Features, port: PortId, interface: &str, hook: Hook) -> Result<bool> {
        if !features.tcx {
            let netlink = Netlink::inside(&NetNs::current()?)?;
            let Some(link) = netlink.link(interface)? else { return Ok(false) };
            let ours = self.program_id(hook.program())?;
            let filters = match hook {
                Hook::Namespace | Hook::Uplink => netlink.bpf_filters(link.index)?,
                Hook::Host => netlink.bpf_filters_at_egress(link.index)?,
            };
            return Ok(filters.iter().any(|filter| filter.program == ours));
        }
        if PinnedLink::from_pin(self.link_path(port)).is_err() {
            return Ok(false);
        }
        let program = self.pinned(hook.program())?;
        let ours = program.info().map_err(|error| refused("read a program's description", error))?.id();
        match SchedClassifier::query_tcx(interface, hook.attach_type()) {
            Ok((_revision, programs)) => Ok(programs.iter().any(|program| program.id() == ours)),
            Err(_no_such_interface) => Ok(false),
        }
    }
}

/// Puts `program` on the side of `interface` that `hook` says: a tcx link, or a clsact filter where there is no tcx.
pub(crate) fn put_on(
    program: &mut SchedClassifier,
    features: Features,
    interface: &str,
    hook: Hook,
) -> Result<SchedClassifierLinkId> {
    let what = || format!("attach {} to {interface}", hook.program());
    let options = if features.tcx {
        TcAttachOptions::TcxOrder(LinkOrder::default())
    } else {
        match qdisc_add_clsact(interface) {
            Err(error) if io_errno(&error) != Some(Errno::EEXIST) => return Err(refused(what(), error)),
            _ => TcAttachOptions::Netlink(NlOptions::default()),
        }
    };
    program.attach_with_options(interface, hook.attach_type(), options).map_err(|error| refused(what(), error))
}

/// Opens the embedded object with its globals set, and has the verifier accept its programs.
pub fn open_object(features: Features) -> Result<Ebpf> {
    open_object_with(features, random()?)
}

/// The same, with the key of the hash that NAT chooses ports by.
pub fn open_object_with(features: Features, secret: u64) -> Result<Ebpf> {
    open(features, secret, true)
}

/// The same for an instance that only tries frames: it sends no copies of them, and has room for what one frame needs.
pub(super) fn open_copy(features: Features, secret: u64) -> Result<Ebpf> {
    open(features, secret, false)
}

fn open(features: Features, secret: u64, is_real: bool) -> Result<Ebpf> {
    if OBJECT.is_empty() {
        return Err(KernelError::refused("load the dataplane", "this nsnet was built without its eBPF object")
            .with_remedy("run `cargo xtask build`"));
    }
    let (use_peer, use_source) = (u8::from(features.redirect_peer), u8::from(features.fib_source));
    let set_type = u8::from(!features.peer_scrubs);
    let use_retval = u8::from(features.set_retval);
    let sends_copies = u8::from(is_real);
    let cookie = NetNs::current()?.cookie()?;
    let mut loader = EbpfLoader::new();
    if !is_real {
        // A hash takes memory for its limit when it is made.
        const FEW: u32 = 1 << 12;
        for name in [names::FLOWS4, names::FLOWS6, names::MAPPINGS, names::STATIONS, names::FOREIGN, names::DROPS] {
            loader.map_max_entries(name, FEW);
        }
    }
    let mut ebpf = loader
        // The programs use no kernel types, so the kernel's own BTF (several MB to parse) is not needed.
        .btf(None)
        .override_global(names::USE_REDIRECT_PEER, &use_peer, true)
        .override_global(names::SET_PACKET_TYPE, &set_type, true)
        .override_global(names::USE_FIB_SOURCE, &use_source, true)
        .override_global(names::SECRET, &secret, true)
        .override_global(names::HOST_COOKIE, &cookie, true)
        .override_global(names::USE_SET_RETVAL, &use_retval, true)
        .override_global(names::SENDS_COPIES, &sends_copies, true)
        .load(OBJECT)
        .map_err(|error| refused("load the dataplane", error).with_remedy("`nsnet doctor` tells what is missing"))?;
    for name in names::PROGRAMS {
        load(program_in(&mut ebpf, name)?).map_err(|error| refused(format!("load program {name}"), error))?;
    }
    connect_stages(&mut ebpf)?;
    if is_real {
        // What a kernel lacks for it, `nsnet doctor` tells, and who asks for it is told.
        let _extra = xdp::load(&mut ebpf);
    }
    Ok(ebpf)
}

/// Has the verifier look at a program; again when a signal has interrupted it (EAGAIN, `do_check()` in
/// kernel/bpf/verifier.c).
fn load(program: &mut SchedClassifier) -> std::result::Result<(), ProgramError> {
    const ATTEMPTS: u32 = 20;
    for _ in 1..ATTEMPTS {
        match program.load() {
            Err(error) if io_errno(&error) == Some(Errno::EAGAIN) => {}
            outcome => return outcome,
        }
    }
    program.load()
}

/// Enters the programs that others call where those look for them.
fn connect_stages(ebpf: &mut Ebpf) -> Result<()> {
    let what = |error| refused(format!("enter programs into {}", names::STAGES), error);
    let mut stages = Vec::new();
    for name in names::CALLED {
        let fd = program_in(ebpf, name)?.fd().map_err(|error| refused(format!("use program {name}"), error))?;
        stages.push(ProgramFd::try_clone(fd).doing(|| format!("use program {name}"))?);
    }
    let missing = || KernelError::refused(format!("find map {}", names::STAGES), "the eBPF object does not have it");
    let mut array = ProgramArray::try_from(ebpf.map_mut(names::STAGES).ok_or_else(missing)?).map_err(what)?;
    for (place, program) in stages.iter().enumerate() {
        array.set(place as u32, program, 0).map_err(what)?;
    }
    Ok(())
}

/// 64 bits that nobody can guess.
fn random() -> Result<u64> {
    let mut bytes = [0; 8];
    let source = fs::File::open("/dev/urandom").and_then(|mut file| io::Read::read_exact(&mut file, &mut bytes));
    source.doing(|| "read /dev/urandom")?;
    Ok(u64::from_ne_bytes(bytes))
}

/// The program `name` of a loaded object.
pub fn program_in<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let missing = || KernelError::refused(format!("find program {name}"), "the eBPF object does not have it");
    let program: &mut Program = ebpf.program_mut(name).ok_or_else(missing)?;
    program.try_into().map_err(|_other_type| missing())
}

fn pin_all(ebpf: &mut Ebpf, root: &Path) -> Result<()> {
    for folder in ["programs", "maps", "links"] {
        let folder = root.join(folder);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .doing(|| format!("create {}", folder.display()))?;
    }
    for name in names::PROGRAMS {
        let pin = program_in(ebpf, name)?.pin(root.join("programs").join(name));
        pin.map_err(|error| refused(format!("pin program {name}"), error))?;
    }
    xdp::pin(ebpf, root)?;
    for name in names::MAPS {
        let missing = || KernelError::refused(format!("find map {name}"), "the eBPF object does not have it");
        let map = ebpf.map(names::in_object(name)).ok_or_else(missing)?;
        let pin = map.pin(root.join("maps").join(name));
        pin.map_err(|error| refused(format!("pin map {name}"), error))?;
    }
    Ok(())
}

/// Removes all pins of `host`.
pub(crate) fn remove_all(bpffs: &Path, host: &str) -> Result<()> {
    pins_of(bpffs, host)?.iter().try_for_each(|path| remove_pins(path))
}

/// The folders of a host's pins: one for each layout, and drafts.
fn pins_of(bpffs: &Path, host: &str) -> Result<Vec<PathBuf>> {
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
            pins.push(entry.path());
        }
    }
    Ok(pins)
}

fn remove_pins(root: &Path) -> Result<()> {
    match fs::remove_dir_all(root) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).doing(|| format!("remove the pins in {}", root.display()))
        }
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

fn io_errno(error: &(dyn std::error::Error + 'static)) -> Option<Errno> {
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
