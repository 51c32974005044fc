//! The eBPF object: which one it is, the maps it defines, and having the verifier accept its programs.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use aya::maps::{MapData, MapInfo, MapType, ProgramArray};
use aya::programs::{Program, ProgramError, ProgramFd, SchedClassifier, loaded_programs};
use aya::{Ebpf, EbpfLoader};
use aya_obj::generated::bpf_map_type;
use nix::errno::Errno;
use nsnet_common::layout::names;
use object::Endianness;
use object::elf::{FileHeader64, SectionHeader64};
use object::read::elf::FileHeader as _;

use super::bpf::RawMap;
use super::dataplane::{io_errno, refused};
use super::error::{Doing as _, KernelError, Result};
use super::features::Features;
use super::netns::NetNs;
use super::xdp;

static EMBEDDED: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/nsnet-ebpf"));

/// Names a file whose object is used instead of the one in this binary: for tests, and to try one without building nsnet.
pub const OBJECT: &str = "NSNET_OBJECT";

/// An eBPF object.
#[derive(Clone, Debug)]
pub struct Object {
    bytes: Cow<'static, [u8]>,
    /// Read once: every verb compares pins with them, some twice.
    definitions: OnceLock<Definitions>,
}

/// The maps that are pinned, by name.
pub type Definitions = BTreeMap<&'static str, Definition>;

/// What tells the programs of one object, and of one set of features, from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildId(pub u64);

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Object {
    /// The object of this binary, or of the file that [`OBJECT`] names.
    pub fn own() -> Result<&'static Self> {
        static OWN: OnceLock<Object> = OnceLock::new();
        if let Some(own) = OWN.get() {
            return Ok(own);
        }
        let bytes = if let Some(path) = std::env::var_os(OBJECT) {
            Cow::Owned(fs::read(&path).doing(|| format!("read {}", Path::new(&path).display()))?)
        } else if EMBEDDED.is_empty() {
            return Err(KernelError::refused("load the dataplane", "this nsnet was built without its eBPF object")
                .with_remedy("run `cargo xtask build`"));
        } else {
            Cow::Borrowed(EMBEDDED)
        };
        Ok(OWN.get_or_init(|| Self { bytes, definitions: OnceLock::new() }))
    }

    /// The ELF file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Which programs they are when they are loaded with these features. FNV-1a, eight bytes at a time: against
    /// mistakes, not an adversary.
    pub fn build(&self, features: Features) -> BuildId {
        let add = |sum: u64, word: u64| (sum ^ word).wrapping_mul(0x0000_0100_0000_01b3);
        let (words, rest) = self.bytes.as_chunks();
        let sum = words.iter().fold(0xcbf2_9ce4_8422_2325, |sum, word| add(sum, u64::from_le_bytes(*word)));
        let bytes = rest.iter().copied().chain(switches(features).map(|(_, on)| on));
        BuildId(bytes.fold(sum, |sum, byte| add(sum, u64::from(byte))))
    }

    /// The maps that are pinned, as the object defines them.
    pub fn definitions(&self) -> Result<&Definitions> {
        if let Some(definitions) = self.definitions.get() {
            return Ok(definitions);
        }
        let unread = |error: &dyn fmt::Display| KernelError::refused("read the eBPF object", error);
        let slim = without_lines(&self.bytes).map_err(|error| unread(&error))?;
        let parsed = aya_obj::Object::parse(&slim).map_err(|error| unread(&error))?;
        let define = |name: &'static str| {
            let map = parsed.maps.get(names::in_object(name)).ok_or_else(|| missing("map", name))?;
            Ok((name, Definition::of_object(map)?))
        };
        let definitions = names::MAPS.into_iter().map(define).collect::<Result<_>>()?;
        Ok(self.definitions.get_or_init(|| definitions))
    }

    /// Makes the maps, but for `reused` ones, whose pins are given and must be what the object defines; sets the
    /// globals, and has the verifier accept the programs for frames. `secret` is the key of the hash by which NAT
    /// chooses ports.
    pub fn load(&self, features: Features, secret: u64, reused: &[(&'static str, PathBuf)]) -> Result<Ebpf> {
        self.open(features, secret, Purpose::Real(reused))
    }

    fn open(&self, features: Features, secret: u64, purpose: Purpose<'_>) -> Result<Ebpf> {
        check_kernel()?;
        let cookie = NetNs::current()?.cookie()?;
        let switches = switches(features);
        let sends_copies = u8::from(!matches!(purpose, Purpose::Copy));
        let mut kept = Vec::new();
        let mut loader = EbpfLoader::new();
        // The programs use no kernel types, so the kernel's own BTF (several MB to parse) is not needed.
        loader.btf(None);
        for (name, on) in &switches {
            loader.override_global(name, on, true);
        }
        loader
            .override_global(names::SECRET, &secret, true)
            .override_global(names::HOST_COOKIE, &cookie, true)
            .override_global(names::SENDS_COPIES, &sends_copies, true);
        match purpose {
            Purpose::Real(reused) => {
                for (name, pin) in reused {
                    let name = names::in_object(name);
                    loader.map_pin_path(name, pin.as_path());
                    kept.extend(Section::read(name, pin)?);
                }
            }
            Purpose::Sized(sizes) => {
                for (name, entries) in sizes {
                    loader.map_max_entries(name, *entries);
                }
            }
            Purpose::Copy => {
                // A hash takes memory for its limit when it is made.
                const FEW: u32 = 1 << 12;
                for name in
                    [names::FLOWS4, names::FLOWS6, names::MAPPINGS, names::STATIONS, names::FOREIGN, names::DROPS]
                {
                    loader.map_max_entries(name, FEW);
                }
            }
        }
        let mut ebpf = loader.load(&self.bytes).map_err(|error| {
            refused("load the dataplane", error).with_remedy("`nsnet doctor` tells what is missing")
        })?;
        kept.iter().try_for_each(Section::restore)?;
        for name in names::PROGRAMS {
            load(program_in(&mut ebpf, name)?).map_err(|error| refused(format!("load program {name}"), error))?;
        }
        connect_stages(&mut ebpf)?;
        if !matches!(purpose, Purpose::Copy) {
            // What a kernel lacks for it, `nsnet doctor` tells, and who asks for it is told.
            let _extra = xdp::load(&mut ebpf);
        }
        Ok(ebpf)
    }
}

/// The loader tries what the kernel can do, and takes any failure, if only for want of memory, for a no: programs without
/// names and maps of another form would be loaded then, and the rest be refused with a riddle.
fn check_kernel() -> Result<()> {
    let found = aya::features();
    let has_functions = found.btf().is_some_and(aya_obj::btf::BtfFeatures::btf_func);
    if found.bpf_name() && found.bpf_global_data() && found.devmap_prog_id() && has_functions {
        return Ok(());
    }
    let why = "the kernel failed when the loader tried what those since Linux 5.8 can do";
    Err(KernelError::refused("load the dataplane", why).with_remedy("run it again: memory may have been short"))
}

/// The object without what tells the source lines of its instructions: reading them takes aya 10 ms, in each verb.
fn without_lines(object: &[u8]) -> object::Result<Vec<u8>> {
    let mut slim = object.to_vec();
    let header = FileHeader64::<Endianness>::parse(object)?;
    let endian = header.endian()?;
    if let Some((index, _section)) = header.sections(endian, object)?.section_by_name(endian, b".BTF.ext") {
        let at = header.e_shoff(endian) as usize + index.0 * size_of::<SectionHeader64<Endianness>>();
        // The name, which comes first, is then none.
        slim[at..at + size_of::<u32>()].fill(0);
    }
    Ok(slim)
}

/// What an object is loaded for.
#[derive(Clone, Copy)]
enum Purpose<'a> {
    /// To carry packets, with these maps that are there already.
    Real(&'a [(&'static str, PathBuf)]),
    /// The same, with maps of its own, and these of another size.
    Sized(&'a [(&'a str, u32)]),
    /// To try frames: it sends no copies of them, and has room for what one frame needs.
    Copy,
}

/// A map that is a section of the object, with what is in it: aya sets it to what the object has there, also when it is
/// reused.
struct Section<'a> {
    pin: &'a Path,
    value: Vec<u8>,
}

impl<'a> Section<'a> {
    /// `None` for other maps.
    fn read(name: &str, pin: &'a Path) -> Result<Option<Self>> {
        if !name.starts_with('.') {
            return Ok(None);
        }
        let map = open_raw(pin)?;
        let value = map.get(&0u32.to_ne_bytes()).doing(|| format!("read {}", pin.display()))?.unwrap_or_default();
        Ok(Some(Self { pin, value }))
    }

    fn restore(&self) -> Result<()> {
        let set = open_raw(self.pin)?.set(&0u32.to_ne_bytes(), &self.value, false);
        set.map(|_set| ()).doing(|| format!("write {}", self.pin.display()))
    }
}

/// A pinned map, as bytes.
pub(super) fn open_raw(pin: &Path) -> Result<RawMap> {
    let what = || format!("open the pin {}", pin.display());
    RawMap::new(MapData::from_pin(pin).map_err(|error| refused(what(), error))?)
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

/// The globals that tell the programs what the kernel can do.
fn switches(features: Features) -> [(&'static str, u8); 4] {
    [
        (names::USE_REDIRECT_PEER, u8::from(features.redirect_peer)),
        (names::SET_PACKET_TYPE, u8::from(!features.peer_scrubs)),
        (names::USE_FIB_SOURCE, u8::from(features.fib_source)),
        (names::USE_SET_RETVAL, u8::from(features.set_retval)),
    ]
}

/// Opens the object with its globals set, and has the verifier accept its programs.
pub fn open_object(features: Features) -> Result<Ebpf> {
    open_object_with(features, random()?, &[])
}

/// The same, with the key of the hash that NAT chooses ports by, and with these maps of another size.
pub fn open_object_with(features: Features, secret: u64, sizes: &[(&str, u32)]) -> Result<Ebpf> {
    Object::own()?.open(features, secret, Purpose::Sized(sizes))
}

/// The same for an instance that only tries frames: it sends no copies of them, and has room for what one frame needs.
pub(super) fn open_copy(features: Features, secret: u64) -> Result<Ebpf> {
    Object::own()?.open(features, secret, Purpose::Copy)
}

/// Enters the programs that others call where those look for them.
fn connect_stages(ebpf: &mut Ebpf) -> Result<()> {
    let what = |error| refused(format!("enter programs into {}", names::STAGES), error);
    let mut stages = Vec::new();
    for name in names::CALLED {
        let fd = program_in(ebpf, name)?.fd().map_err(|error| refused(format!("use program {name}"), error))?;
        stages.push(ProgramFd::try_clone(fd).doing(|| format!("use program {name}"))?);
    }
    let map = ebpf.map_mut(names::STAGES).ok_or_else(|| missing("map", names::STAGES))?;
    let mut array = ProgramArray::try_from(map).map_err(what)?;
    for (place, program) in stages.iter().enumerate() {
        array.set(place as u32, program, 0).map_err(what)?;
    }
    Ok(())
}

/// 64 bits that nobody can guess.
pub(super) fn random() -> Result<u64> {
    let mut bytes = [0; 8];
    let source = fs::File::open("/dev/urandom").and_then(|mut file| io::Read::read_exact(&mut file, &mut bytes));
    source.doing(|| "read /dev/urandom")?;
    Ok(u64::from_ne_bytes(bytes))
}

/// The program `name` of a loaded object.
pub fn program_in<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program: &mut Program = ebpf.program_mut(name).ok_or_else(|| missing("program", name))?;
    program.try_into().map_err(|_other_type| missing("program", name))
}

pub(super) fn missing(kind: &str, name: &str) -> KernelError {
    KernelError::refused(format!("find {kind} {name}"), "the eBPF object does not have it")
}

/// Whether a loaded program works with maps called as ours are, and of the form of ours, which the first program at an
/// uplink cannot do without. A name of its own anybody may choose; this holds for other builds of ours, too.
pub(super) fn has_our_maps(program: u32) -> Result<bool> {
    let Some(info) = loaded_programs().flatten().find(|info| info.id() == program) else { return Ok(false) };
    let ids = info.map_ids().map_err(|error| refused("read which maps a program uses", error))?.unwrap_or_default();
    let maps: Vec<MapInfo> = ids.into_iter().filter_map(|id| MapInfo::from_id(id).ok()).collect();
    let definitions = Object::own()?.definitions()?;
    let is_there = |name: &str| {
        let ours = maps.iter().filter(|map| map.name_as_str() == Some(name));
        let found = ours.map(Definition::of_loaded).collect::<Result<Vec<_>>>()?;
        Ok(definitions.get(name).is_some_and(|wanted| found.iter().any(|found| found.holds_what(wanted))))
    };
    [names::UPLINKS, names::PORTS, names::STAGES].into_iter().try_fold(true, |all, name| Ok(all && is_there(name)?))
}

/// `BPF_F_RDONLY_PROG` (include/uapi/linux/bpf.h).
const BPF_F_RDONLY_PROG: u32 = 1 << 7;

/// What a map is: all that can be known of it without knowing what its bytes mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Definition {
    /// Hash, array, ...
    pub kind: MapType,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value; of one CPU's, where each has its own.
    pub value_size: u32,
    /// The most entries.
    pub max_entries: u32,
    /// `BPF_F_*`.
    pub flags: u32,
}

impl Definition {
    fn of_object(map: &aya_obj::Map) -> Result<Self> {
        let what = || "read the eBPF object";
        let kind = bpf_map_type::try_from(map.map_type()).map_err(|_invalid| {
            KernelError::refused(what(), format_args!("its map type {} is not known", map.map_type()))
        })?;
        Ok(Self {
            kind: kind.try_into().map_err(|error| refused(what(), error))?,
            key_size: map.key_size(),
            value_size: map.value_size(),
            max_entries: map.max_entries(),
            flags: map.map_flags(),
        })
    }

    /// Of a loaded map.
    pub(super) fn of_loaded(info: &MapInfo) -> Result<Self> {
        let kind = info.map_type().map_err(|error| refused("read a map's description", error))?;
        // The kernel's own: programs must not write into it (dev_map_init_map(), kernel/bpf/devmap.c).
        let set_by_kernel = if kind == MapType::DevMap { BPF_F_RDONLY_PROG } else { 0 };
        Ok(Self {
            kind,
            key_size: info.key_size(),
            value_size: info.value_size(),
            max_entries: info.max_entries(),
            flags: info.map_flags() & !set_by_kernel,
        })
    }

    /// Bytes of a value as the kernel hands it over: where each CPU has its own, of all of them, each rounded up to 8.
    pub(super) fn whole_value_size(&self) -> Result<usize> {
        let one = self.value_size as usize;
        if !matches!(self.kind, MapType::PerCpuHash | MapType::LruPerCpuHash | MapType::PerCpuArray) {
            return Ok(one);
        }
        let cpus = aya::util::nr_cpus().map_err(|(what, error)| KernelError::new(format!("read {what}"), error))?;
        Ok(one.next_multiple_of(8) * cpus)
    }

    /// Whether the entries of the two are the same, though one may hold more of them, or forget the oldest.
    pub fn holds_what(&self, other: &Self) -> bool {
        let kinds = (self.kind, other.kind);
        let both = |one, lru| [kinds.0, kinds.1].iter().all(|kind| [one, lru].contains(kind));
        let is_same = kinds.0 == kinds.1
            || both(MapType::Hash, MapType::LruHash)
            || both(MapType::PerCpuHash, MapType::LruPerCpuHash);
        is_same && (self.key_size, self.value_size) == (other.key_size, other.value_size)
    }
}

impl fmt::Display for Definition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, key_size, value_size, max_entries, flags } = self;
        write!(f, "{kind:?} of {max_entries} x {key_size}+{value_size} bytes, flags {flags}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: Definition = Definition { kind: MapType::Hash, key_size: 16, value_size: 56, max_entries: 9, flags: 1 };

    #[test]
    fn entries_are_the_same_whatever_holds_them() {
        for same in [
            Definition { max_entries: 10, ..HASH },
            Definition { flags: 0, ..HASH },
            Definition { kind: MapType::LruHash, ..HASH },
        ] {
            assert!(HASH.holds_what(&same) && HASH != same, "{same}");
        }
        for other in [
            Definition { key_size: 8, ..HASH },
            Definition { value_size: 64, ..HASH },
            Definition { kind: MapType::PerCpuHash, ..HASH },
            Definition { kind: MapType::Array, ..HASH },
        ] {
            assert!(!HASH.holds_what(&other), "{other}");
        }
    }

    #[test]
    fn other_bytes_or_features_are_another_build() {
        let all = Features {
            tcx: true,
            redirect_peer: true,
            peer_scrubs: true,
            fib_source: true,
            cgroup: true,
            set_retval: true,
        };
        let object = |bytes: &'static [u8]| Object { bytes: Cow::Borrowed(bytes), definitions: OnceLock::new() };
        let build = object(b"abc").build(all);
        assert_eq!(build, object(b"abc").build(Features { tcx: false, ..all }), "the programs are the same");
        assert_ne!(build, object(b"abd").build(all));
        assert_ne!(object(b"0123456789").build(all), object(b"1123456789").build(all));
        assert_ne!(object(b"0123456789").build(all), object(b"0123456780").build(all));
        assert_ne!(build, object(b"abc").build(Features { redirect_peer: false, ..all }));
        assert_eq!(BuildId(0xab).to_string(), "00000000000000ab");
    }
}
