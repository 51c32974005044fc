//! The pins of one dataplane: what they are called, and whether they are what nsnet made.
//!
//! ```text
//! /run/nsnet/bpf/<host>_v<layout>/
//!   programs/<name>
//!   maps/<NAME>            keys and values of version 1; else <NAME>_v<version>
//!   links/<port id>        of the program of a port or uplink;
//!         <socket hook>    of a program at the root cgroup
//! ```
//!
//! Whoever may write here decides what the programs do: the file system's root is root's alone, and before anything is
//! changed each pin is compared with what the object defines.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use aya::maps::{Array, Map, MapData, MapInfo};
use aya::programs::ProgramInfo;
use aya::programs::links::{FdLink, PinnedLink};
use aya_obj::generated::bpf_prog_type::{BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_PROG_TYPE_SCHED_CLS};
use nix::errno::Errno;
use nsnet_common::layout::{PortId, names, version_of};

use super::bpf;
use super::dataplane::refused;
use super::error::{Doing as _, KernelError, Result};
use super::object::{BuildId, Definition, Object};
use super::store::check_private;

/// What to do when the programs are another nsnet's.
pub(super) const UPGRADE: &str = "run `nsnet upgrade`";
/// What to do when a pin is nobody's that we know.
pub(crate) const CLEAR: &str = "somebody has put it there: `nsnet down` clears all of it away";

/// The folder of the pins.
#[derive(Clone, Debug)]
pub(crate) struct Pins {
    /// Where they are.
    pub(super) root: PathBuf,
}

impl Pins {
    pub(super) fn programs(&self) -> PathBuf {
        self.root.join("programs")
    }

    pub(super) fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    pub(super) fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.programs().join(name)
    }

    /// A map of the layout that this nsnet knows.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.maps().join(map_pin(name, version_of(name)))
    }

    pub(super) fn link(&self, port: PortId) -> PathBuf {
        self.links().join(port.0.to_string())
    }

    /// The port whose link has this name.
    pub(super) fn port_of_link(name: &str) -> Option<PortId> {
        name.parse().ok().map(PortId)
    }

    /// The names of the links that are pinned: none, where the dataplane was killed while it came or went.
    pub(super) fn link_names(&self) -> Result<Vec<OsString>> {
        let folder = self.links();
        let what = || format!("list {}", folder.display());
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.doing(what)?,
        };
        entries.map(|entry| Ok(entry.doing(what)?.file_name())).collect()
    }

    /// Makes the folders.
    pub(super) fn create(&self) -> Result<()> {
        for folder in [self.programs(), self.maps(), self.links()] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
            made.doing(|| format!("create {}", folder.display()))?;
        }
        Ok(())
    }

    /// Removes all of them.
    pub(super) fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).doing(|| format!("remove the pins in {}", self.root.display()))
            }
            _ => Ok(()),
        }
    }

    /// Which object the programs are from. `None` when they do not tell: those of the first nsnet did not.
    pub(crate) fn build(&self) -> Result<Option<Build>> {
        let path = self.map(names::BUILD);
        let what = || format!("read {}", path.display());
        if !path.try_exists().doing(what)? {
            return Ok(None);
        }
        let map = MapData::from_pin(&path).map_err(|error| refused(what(), error))?;
        let map = Array::<_, [u64; WORDS]>::try_from(Map::Array(map)).map_err(|error| refused(what(), error))?;
        Ok(Some(Build::from_words(map.get(&0, 0).map_err(|error| refused(what(), error))?)))
    }

    /// Writes that down.
    pub(super) fn set_build(&self, build: &Build) -> Result<()> {
        let what = || format!("pin map {}", names::BUILD);
        let mut map = Array::<MapData, [u64; WORDS]>::create(1, 0).map_err(|error| refused(what(), error))?;
        map.set(0, build.to_words(), 0).map_err(|error| refused(what(), error))?;
        map.pin(self.map(names::BUILD)).map_err(|error| refused(what(), error))
    }

    /// Refuses pins that others could have made or changed, and those that are not what `object`, which is `build`, has
    /// made or would make. What is gone of its own is drift, which a verb may mend.
    pub(crate) fn check(&self, object: &Object, build: BuildId) -> Result<()> {
        self.check_owner()?;
        let is_ours = self.build()?.is_some_and(|loaded| loaded.id == build);
        for (name, wanted) in object.definitions()? {
            let path = self.map(name);
            match map_at(&path)? {
                None if is_ours && self.version_of(name)?.is_none() => {}
                None => return Err(others(&path, "there is none")),
                Some(found) => {
                    check_map(&path, &found, wanted)?;
                    if found != *wanted {
                        return Err(others(&path, format_args!("it is a {found}, and this nsnet's a {wanted}")));
                    }
                }
            }
        }
        self.check_programs(if is_ours { &[] } else { &names::PROGRAMS })?;
        self.check_use()
    }

    /// Refuses maps that look like those of the programs, and are others: what is entered there, no program sees. To be
    /// asked of programs that are what they are called.
    pub(super) fn check_use(&self) -> Result<()> {
        let mut used = HashSet::new();
        for name in names::PROGRAMS.into_iter().chain(names::SOCKET_PROGRAMS).chain(names::XDP_PROGRAMS) {
            let path = self.program(name);
            let what = || format!("read which maps {name} uses");
            match ProgramInfo::from_pin(&path).map_err(|error| refused(what(), error)) {
                Ok(info) => used.extend(info.map_ids().map_err(|error| refused(what(), error))?.unwrap_or_default()),
                Err(error) if error.errno() == Some(Errno::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
        for name in names::MAPS {
            let path = self.map(name);
            // Seldom: a map that no program of these uses, or another one than they use.
            if let Some(info) = info_at(&path)?.filter(|info| !used.contains(&info.id()))
                && has_one_called(&used, names::in_object(name))
            {
                let why = format_args!("it is map {}, and the programs use another", info.id());
                return Err(wrong(&path, why).with_remedy(CLEAR));
            }
        }
        Ok(())
    }

    /// Refuses folders that are not root's alone.
    pub(super) fn check_owner(&self) -> Result<()> {
        // Nobody else gets past the top, and nobody else may put something in.
        check_private(self.root.parent().unwrap_or(&self.root))?;
        for folder in [self.root.clone(), self.programs(), self.maps(), self.links()] {
            let found = match fs::symlink_metadata(&folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                found => found.doing(|| format!("look at {}", folder.display()))?,
            };
            if found.uid() != 0 || found.mode() & 0o022 != 0 {
                let why = format_args!("user {} has it, with mode {:04o}", found.uid(), found.mode() & 0o7777);
                return Err(wrong(&folder, why).with_remedy("it must be root's alone (mode 0700): see who changed it"));
            }
        }
        Ok(())
    }

    /// Refuses programs that are not what they are called, and misses the `needed` ones.
    pub(super) fn check_programs(&self, needed: &[&str]) -> Result<()> {
        for name in names::PROGRAMS.into_iter().chain(names::SOCKET_PROGRAMS) {
            let path = self.program(name);
            let info = match ProgramInfo::from_pin(&path).map_err(|error| refused("open the pin", error)) {
                Ok(info) => info,
                // Without those at sockets the dataplane works.
                Err(error) if error.errno() == Some(Errno::ENOENT) && !needed.contains(&name) => continue,
                Err(error) if error.errno() == Some(Errno::ENOENT) => return Err(others(&path, "there is none")),
                Err(error) => return Err(wrong(&path, error).with_remedy(CLEAR)),
            };
            let is_socket = names::SOCKET_PROGRAMS.contains(&name);
            let wanted = if is_socket { BPF_PROG_TYPE_CGROUP_SOCK_ADDR } else { BPF_PROG_TYPE_SCHED_CLS };
            // Where the kernel gives no names (or gave none when it had no memory to try), there is none.
            let called = info.name_as_str().filter(|called| !called.is_empty()).unwrap_or(name);
            if info.program_type() != wanted || called != name {
                let why = format_args!("it is {called}, a {:?} program", info.program_type());
                return Err(wrong(&path, why).with_remedy(CLEAR));
            }
        }
        Ok(())
    }

    /// The version of the layout that the pin of a map has, whichever that is.
    pub(super) fn version_of(&self, name: &str) -> Result<Option<u32>> {
        let folder = self.maps();
        let entries = fs::read_dir(&folder).doing(|| format!("list {}", folder.display()))?;
        let versions = entries.flatten().filter_map(|entry| {
            let pin = entry.file_name().to_string_lossy().into_owned();
            let rest = pin.strip_prefix(name)?;
            if rest.is_empty() { Some(1) } else { rest.strip_prefix("_v")?.parse().ok() }
        });
        Ok(versions.max())
    }
}

/// The name of a map's pin. (A name in a bpffs has no dots.)
pub(super) fn map_pin(name: &str, version: u32) -> String {
    if version == 1 { name.to_owned() } else { format!("{name}_v{version}") }
}

/// What the map pinned at `path` is.
pub(super) fn map_at(path: &Path) -> Result<Option<Definition>> {
    info_at(path)?.map(|info| Definition::of_loaded(&info)).transpose()
}

/// The kernel's description of the map pinned at `path`. Refuses what is no map.
fn info_at(path: &Path) -> Result<Option<MapInfo>> {
    let pin = match bpf::open_pin(path) {
        Err(Errno::ENOENT) => return Ok(None),
        opened => opened.map_err(|errno| wrong(path, KernelError::new("open the pin", errno)).with_remedy(CLEAR))?,
    };
    // A program or a link has a description, too, in which other things stand at the same places.
    let kind = fs::read_link(format!("/proc/self/fd/{}", pin.as_raw_fd()));
    if kind.doing(|| format!("look at {}", path.display()))? != Path::new("anon_inode:bpf-map") {
        return Err(wrong(path, "it is no map").with_remedy(CLEAR));
    }
    match MapInfo::from_pin(path).map_err(|error| refused("open the pin", error)) {
        Ok(info) => Ok(Some(info)),
        Err(error) => Err(wrong(path, error).with_remedy(CLEAR)),
    }
}

/// Whether one of these maps is called so.
fn has_one_called(maps: &HashSet<u32>, name: &str) -> bool {
    // The kernel keeps 15 bytes of a name.
    let name = name.get(..15).unwrap_or(name);
    let mut maps = maps.iter().filter_map(|id| MapInfo::from_id(*id).ok());
    maps.any(|map| map.name_as_str() == Some(name))
}

/// Refuses a map whose entries have another form than the version of their layout says.
pub(super) fn check_map(path: &Path, found: &Definition, wanted: &Definition) -> Result<()> {
    if found.holds_what(wanted) {
        return Ok(());
    }
    Err(wrong(path, format_args!("it is a {found}, not a {wanted}")).with_remedy(CLEAR))
}

/// Refuses what is no link.
pub(super) fn check_link(path: &Path) -> Result<()> {
    let what = |error| wrong(path, format_args!("it is no link ({error})")).with_remedy(CLEAR);
    let link = PinnedLink::from_pin(path).map_err(|error| what(refused("open it", error)))?;
    FdLink::from(link).info().map_err(|error| what(refused("ask the kernel", error))).map(|_info| ())
}

fn others(path: &Path, why: impl std::fmt::Display) -> KernelError {
    wrong(path, format_args!("{why}: the programs loaded are another nsnet's")).with_remedy(UPGRADE)
}

pub(super) fn wrong(path: &Path, why: impl std::fmt::Display) -> KernelError {
    KernelError::refused(format_args!("use the pin {}", path.display()), why)
}

/// Words of the value in `BUILD`: the version of its own form, the build, the secret, and 40 bytes of text.
const WORDS: usize = 8;

/// Which object the programs are from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Build {
    /// Object and features.
    pub id: BuildId,
    /// The nsnet that loaded it, such as "0.1.0".
    pub version: String,
    /// [`names::SECRET`] of its programs, which the next ones get, too: NAT goes on choosing ports as before.
    pub(super) secret: u64,
}

impl Build {
    /// What this nsnet has loaded.
    pub(super) fn here(id: BuildId, secret: u64) -> Self {
        Self { id, version: env!("CARGO_PKG_VERSION").to_owned(), secret }
    }

    fn to_words(&self) -> [u64; WORDS] {
        let mut text = [0; 40];
        text.iter_mut().zip(self.version.bytes()).for_each(|(to, byte)| *to = byte);
        let [a, b, c, d, e]: [u64; 5] = zerocopy::transmute!(text);
        [1, self.id.0, self.secret, a, b, c, d, e]
    }

    fn from_words([_form, id, secret, text @ ..]: [u64; WORDS]) -> Self {
        let text: Vec<u8> = text.iter().flat_map(|word| word.to_ne_bytes()).take_while(|byte| *byte != 0).collect();
        Self { id: BuildId(id), version: String::from_utf8_lossy(&text).into_owned(), secret }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_in_words_and_back() {
        for version in ["0.1.0", "", "10.20.30-a-version-of-forty-bytes-exactly"] {
            let version = version.get(..40).unwrap_or(version).to_owned();
            let build = Build { id: BuildId(7), version, secret: u64::MAX };
            assert_eq!(Build::from_words(build.to_words()), build);
        }
    }

    #[test]
    fn links_of_ports() {
        assert_eq!(Pins::port_of_link("12"), Some(PortId(12)));
        for other in ["connect4", "x", "12_xdp", "12_"] {
            assert_eq!(Pins::port_of_link(other), None, "{other}");
        }
    }

    #[test]
    fn the_version_is_part_of_the_name_from_the_second_on() {
        assert_eq!((map_pin("FLOWS4", 1).as_str(), map_pin("FLOWS4", 2).as_str()), ("FLOWS4", "FLOWS4_v2"));
    }
}
