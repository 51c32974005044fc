//! Other objects than the one in the binary, and which programs are where.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use anyhow::{Context as _, Result, ensure};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType};
use nsnet::kernel::netlink::Netlink;
use nsnet::kernel::object::{Definition, OBJECT, Object};
use nsnet::kernel::store::BPFFS;
use nsnet::lab::Lab;
use nsnet_common::layout::{LAYOUT_VERSION, names};
use serde_json::Value;

use super::bed::{Scratch, text};
use super::world::{World, complaint};

/// Where the host's pins are.
pub(crate) fn pins(lab: &Lab) -> Result<PathBuf> {
    Ok(Path::new(BPFFS).join(format!("{:x}_v{LAYOUT_VERSION}", lab.ns("host")?.cookie()?)))
}

/// The numbers of the pinned programs.
pub(crate) fn programs(lab: &Lab) -> Result<BTreeSet<u32>> {
    let folder = pins(lab)?.join("programs");
    let entries = fs::read_dir(folder)?.map(|entry| Ok(ProgramInfo::from_pin(entry?.path())?.id()));
    entries.collect()
}

/// The programs on one side of an interface of the host's, in the order of their turns.
pub(crate) fn program_on(lab: &Lab, interface: &str, side: TcAttachType) -> Result<Vec<u32>> {
    let query = || -> Result<_> {
        let (_revision, programs) = SchedClassifier::query_tcx(interface, side)?;
        let netlink = Netlink::here()?;
        let index = netlink.existing_link(interface)?.index;
        let filters = match side {
            TcAttachType::Egress => netlink.bpf_filters_at_egress(index)?,
            TcAttachType::Ingress | TcAttachType::Custom(_) => netlink.bpf_filters(index)?,
        };
        // The kernel runs filters last.
        Ok(programs.iter().map(ProgramInfo::id).chain(filters.iter().map(|filter| filter.program)).collect())
    };
    lab.within("host", query)?
}

/// Runs a verb with another object than the binary's own.
pub(crate) fn with_object(lab: &Lab, object: &Path, line: &str) -> Result<Output> {
    let words = line.split(' ').map(|word| word.strip_prefix('@').map_or(word.to_owned(), |name| lab.name(name)));
    Ok(lab.command(words).env(OBJECT, object).output()?)
}

/// The same, which must do.
pub(crate) fn done_with(lab: &Lab, object: &Path, line: &str) -> Result<Value> {
    let output = with_object(lab, object, &format!("-o json {line}"))?;
    ensure!(output.status.success(), "`{line}`: {}", String::from_utf8_lossy(&output.stderr));
    if output.stdout.is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_slice(&output.stdout)?) }
}

/// The same, which must fail and change nothing; what it complained of.
pub(crate) fn refused_with(lab: &Lab, object: &Path, line: &str) -> Result<String> {
    let (before, ids) = (World::of(lab)?, programs(lab)?);
    let output = with_object(lab, object, line)?;
    ensure!(output.status.code() == Some(1), "`{line}`: {output:?}");
    assert_eq!(World::of(lab)?, before, "`{line}` failed and changed something");
    assert_eq!(programs(lab)?, ids, "`{line}` failed and left other programs");
    complaint(&output)
}

/// An object in a file.
pub(crate) fn object_file(lab: &Lab, name: &str, bytes: &[u8]) -> Result<Scratch> {
    let path = std::env::temp_dir().join(format!("{}.o", lab.name(name)));
    fs::write(&path, bytes)?;
    Ok(Scratch(path))
}

/// The binary's object with something behind its end: the same programs, but another object.
pub(crate) fn other_build(lab: &Lab) -> Result<Scratch> {
    let bytes = [Object::own()?.bytes(), b"another"].concat();
    object_file(lab, "other", &bytes)
}

/// The object with instructions changed: each that is `from` becomes `to`.
pub(crate) fn patched(lab: &Lab, name: &str, from: [u8; 8], to: [u8; 8]) -> Result<Scratch> {
    let mut bytes = Object::own()?.bytes().to_vec();
    let mut count = 0;
    for place in bytes.chunks_exact_mut(8).filter(|place| **place == from) {
        place.copy_from_slice(&to);
        count += 1;
    }
    ensure!(count > 0, "the object has no such instruction");
    object_file(lab, name, &bytes)
}

/// The object with maps of another size.
pub(crate) fn resized(lab: &Lab, name: &str, sizes: &[(&str, u32)]) -> Result<Scratch> {
    let object = Object::own()?;
    let definitions = object.definitions()?;
    let mut bytes = object.bytes().to_vec();
    for (map, entries) in sizes {
        let Definition { kind, key_size, value_size, max_entries, flags } = definitions[map];
        // `struct bpf_map_def`, of which the symbol table says whose it is. Maps of the same definition change together.
        let found = [kind as u32, key_size, value_size, max_entries, flags].map(u32::to_ne_bytes).concat();
        let places: Vec<usize> =
            object.bytes().windows(20).enumerate().filter(|(_, at)| *at == found).map(|(at, _)| at).collect();
        ensure!(!places.is_empty(), "the object has no definition of {map}");
        for at in places {
            bytes[at + 12..at + 16].copy_from_slice(&entries.to_ne_bytes());
        }
    }
    object_file(lab, name, &bytes)
}

/// Fails when a hook has another program than the pinned one of its name, or something is left over.
pub(crate) fn check_whole(lab: &Lab) -> Result<()> {
    let pins = pins(lab)?;
    let expected = |name: &str| anyhow::Ok(ProgramInfo::from_pin(pins.join("programs").join(name))?.id());
    let (behind, from_namespace) = (expected(names::CLOSED)?, expected(names::FROM_NAMESPACE)?);
    let uplink = expected(names::FROM_UPLINK)?;
    for port in lab.json("stats")?.as_array().context("no ports")? {
        let interface = text(&port["port"])?;
        let (side, wanted) = match (port["network"].as_str(), port["ns"].as_str()) {
            (None, _) => (TcAttachType::Ingress, vec![uplink]),
            (Some(_), Some(_)) => (TcAttachType::Ingress, vec![from_namespace, behind]),
            (Some(_), None) => (TcAttachType::Egress, vec![expected(names::FROM_HOST)?, behind]),
        };
        let found = program_on(lab, interface, side)?;
        ensure!(found == wanted, "{found:?} on {interface}, not {wanted:?}");
    }
    for name in names::SOCKET_PROGRAMS {
        let link = FdLink::from(PinnedLink::from_pin(pins.join("links").join(name))?);
        let (found, wanted) = (link.info()?.program_id(), expected(name)?);
        ensure!(found == wanted, "{found} at {name}, not {wanted}");
    }
    let draft = PathBuf::from(format!("{}_new", pins.display()));
    ensure!(!draft.exists(), "{} is left over", draft.display());
    Ok(())
}
