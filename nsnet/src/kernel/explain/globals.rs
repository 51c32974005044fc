//! What the pinned programs were loaded with: constants in a map that only they have.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use aya::maps::MapInfo;
use nix::errno::Errno;
use nix::libc;
use nsnet_common::layout::names;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

use super::super::dataplane::{Dataplane, Hook, OBJECT, refused};
use super::super::error::{Doing as _, KernelError, Result};
use super::super::features::Features;
use super::copy::Copy;

/// The section of constants, and the map that it becomes.
const SECTION: &str = ".rodata";

/// The globals that matter to what becomes of a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Globals {
    pub(super) features: Features,
    pub(super) secret: u64,
}

impl Globals {
    /// Those of the pinned programs. `probed` is for what they do not tell: programs of another build may keep them elsewhere.
    pub(super) fn of(dataplane: &Dataplane, probed: Features) -> Result<Self> {
        let bytes = constants(dataplane)?;
        let section = Section::of_object()?;
        if bytes.len() != section.length {
            return Ok(Self { features: probed, secret: 0 });
        }
        let flag = |name| Ok::<_, KernelError>(section.read::<1>(&bytes, name)? != [0]);
        let features = Features {
            redirect_peer: flag(names::USE_REDIRECT_PEER)?,
            peer_scrubs: !flag(names::SET_PACKET_TYPE)?,
            fib_source: flag(names::USE_FIB_SOURCE)?,
            set_retval: flag(names::USE_SET_RETVAL)?,
            ..probed
        };
        Ok(Self { features, secret: u64::from_ne_bytes(section.read(&bytes, names::SECRET)?) })
    }
}

/// Whether the pinned programs have the same instructions as the copy's.
pub(super) fn is_same_build(dataplane: &Dataplane, copy: &Copy) -> Result<bool> {
    for name in names::PROGRAMS {
        if dataplane.program_info(name)?.tag() != copy.program_info(name)?.tag() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The bytes of the map of constants that the pinned programs use.
fn constants(dataplane: &Dataplane) -> Result<Vec<u8>> {
    let missing = || KernelError::refused("read the programs' constants", "they have no map of the name .rodata");
    let info = dataplane.program_info(Hook::Namespace.program())?;
    let ids = info.map_ids().map_err(|error| refused("list a program's maps", error))?;
    for id in ids.unwrap_or_default() {
        let map = MapInfo::from_id(id).map_err(|error| refused("look at a program's map", error))?;
        if map.name_as_str() == Some(SECTION) {
            let fd = map.fd().map_err(|error| refused("open a program's map", error))?;
            return first_value(fd.as_fd(), map.value_size() as usize).doing(|| "read the programs' constants");
        }
    }
    Err(missing())
}

/// The value of an array's first entry.
fn first_value(map: BorrowedFd<'_>, length: usize) -> nix::Result<Vec<u8>> {
    const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
    /// The part of `union bpf_attr` that this command uses (include/uapi/linux/bpf.h).
    #[repr(C)]
    struct Request {
        map_fd: u32,
        pad: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let (key, mut value) = (0u32, vec![0u8; length]);
    let request = Request {
        map_fd: map.as_raw_fd() as u32,
        pad: 0,
        key: &raw const key as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    // SAFETY: the request is as the kernel defines it. It points to a key of an array, and to as many bytes as the kernel
    // says that the map's value has; both outlive the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_ELEM, &raw const request, size_of::<Request>() as libc::c_ulong)
    };
    Errno::result(result).map(|_zero| value)
}

/// Where globals are in the section of constants, as this binary's object has it.
struct Section {
    length: usize,
    places: Vec<(String, usize)>,
}

impl Section {
    fn of_object() -> Result<Self> {
        let what = "read this nsnet's eBPF object";
        let file = object::File::parse(OBJECT).map_err(|error| KernelError::refused(what, error))?;
        let section = file.section_by_name(SECTION);
        let section = section.ok_or_else(|| KernelError::refused(what, "it has no constants"))?;
        let symbols = file.symbols().filter(|symbol| symbol.section_index() == Some(section.index()));
        let places = symbols.filter_map(|symbol| Some((symbol.name().ok()?.to_owned(), symbol.address() as usize)));
        Ok(Self { length: section.size() as usize, places: places.collect() })
    }

    fn read<const N: usize>(&self, bytes: &[u8], name: &str) -> Result<[u8; N]> {
        let place = self.places.iter().find(|(known, _)| known == name).map(|(_, place)| *place);
        let found = place.and_then(|place| bytes.get(place..place + N)?.try_into().ok());
        found.ok_or_else(|| {
            KernelError::refused(format!("read the programs' {name}"), "the eBPF object does not have it")
        })
    }
}
