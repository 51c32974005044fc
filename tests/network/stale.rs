//! Hosts whose namespace went without `nsnet down`: what they leave is removed, and nothing of one that lives.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nsnet::kernel::alive;
use nsnet::kernel::named;
use nsnet::kernel::netlink::Netlink;
use nsnet::kernel::netns::NetNs;
use nsnet::kernel::store::{BPFFS, RUN};
use nsnet::lab::Lab;

use super::bed::{DUAL, Scratch, binary, lab, until};

/// The files and pins of the host with this key.
fn belongings(key: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in [RUN, BPFFS] {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().context("an entry without a name")?.to_string_lossy().into_owned();
            let is_pin = name.strip_prefix(key).is_some_and(|rest| rest.starts_with(['.', '_']));
            if is_pin || path == alive::path_of(key) {
                found.push(path);
            }
        }
    }
    Ok(found)
}

fn key_of(lab: &Lab) -> Result<String> {
    Ok(format!("{:x}", lab.ns("host")?.cookie()?))
}

/// A host with one of each, and another.
fn two_hosts() -> Result<(Lab, Lab)> {
    let (one, other) = (lab()?, lab()?);
    for line in [
        "ns add @red @blue",
        &format!("network add v-net-0 {DUAL} --masquerade"),
        "attach v-net-0 @red",
        "publish add @red 8080:80",
        "cable add @red @blue",
    ] {
        one.nsnet(line)?;
    }
    Ok((one, other))
}

/// Has another host's verbs look; the namespace may take a moment to go.
fn swept(other: &Lab, key: &str) -> Result<()> {
    let is_swept = || {
        other.nsnet("ns add @x")?;
        Ok(belongings(key)?.is_empty())
    };
    until(Duration::from_secs(10), is_swept).with_context(|| format!("{:?} are left", belongings(key)))?;
    Ok(())
}

#[test]
fn what_is_left_of_a_host_is_removed_by_the_next_verb_of_another() -> Result<()> {
    let (one, other) = two_hosts()?;
    let key = key_of(&one)?;
    // What others may have put there, of the same host.
    fs::write(Path::new(RUN).join(format!("{key}.flows")), "")?;
    let left = belongings(&key)?;
    ensure!(left.len() == 5, "the file, its lock, the flows, the pins and the mark: {left:?}");
    named::delete(&one.name("host"))?;
    swept(&other, &key)?;
    // It is not there for those who come later, and what it has made is nobody's: as any namespace it may be used.
    other.nsnet("network add v-net-0 --subnet 10.1.0.0/24")?;
    let red = one.name("red");
    other.nsnet(&format!("attach v-net-0 {red}"))?;
    other.nsnet(&format!("detach v-net-0 {red}"))?;
    for name in ["red", "blue"] {
        named::delete(&one.name(name))?;
    }
    Ok(())
}

#[test]
fn a_host_without_a_dataplane_is_removed_too() -> Result<()> {
    let (one, other) = (lab()?, lab()?);
    one.nsnet("ns add @red")?;
    let key = key_of(&one)?;
    ensure!(belongings(&key)?.len() == 3, "the file, its lock and the mark: {:?}", belongings(&key)?);
    named::delete(&one.name("host"))?;
    swept(&other, &key)?;
    named::delete(&one.name("red"))?;
    Ok(())
}

/// A signal that comes meanwhile is held back until all is down, and its lock is not left either.
#[test]
fn a_signal_while_all_is_taken_down_leaves_nothing() -> Result<()> {
    let (one, _other) = two_hosts()?;
    let key = key_of(&one)?;
    let mut down = one.command(["-v", "down"]).stderr(Stdio::piped()).spawn()?;
    let mut told = BufReader::new(down.stderr.take().context("no stderr")?);
    told.read_line(&mut String::new())?;
    kill(Pid::from_raw(down.id().try_into()?), Signal::SIGTERM)?;
    std::io::copy(&mut told, &mut std::io::sink())?;
    let status = down.wait()?;
    ensure!(status.signal() == Some(Signal::SIGTERM as i32), "{status}");
    ensure!(belongings(&key)?.is_empty(), "left: {:?}", belongings(&key)?);
    Ok(())
}

#[test]
fn a_living_host_stays_whatever_it_looks_like() -> Result<()> {
    let (one, other) = two_hosts()?;
    let (key, host) = (key_of(&one)?, one.ns("host")?);
    let before = belongings(&key)?;
    // Without a name, without one of its interfaces, and only held open by this process.
    named::delete(&one.name("host"))?;
    let netlink = Netlink::inside(&host)?;
    for link in netlink.links()?.into_iter().filter(|link| link.index != 1) {
        netlink.delete_link(link.index)?;
    }
    for _ in 0..3 {
        other.nsnet("ns add @x")?;
        other.nsnet("ns del @x")?;
        ensure!(belongings(&key)? == before, "a living host lost something: {:?}", belongings(&key)?);
    }
    // And it is still to be had.
    let path = of_this_process(&host);
    let run = |verb: &[&str]| Command::new(binary()).arg("--host-ns").arg(&path).args(verb).output();
    let status = run(&["status"])?;
    ensure!(status.status.code() == Some(1), "nothing is said of what was deleted: {status:?}");
    let down = run(&["down"])?;
    ensure!(down.status.success(), "{down:?}");
    ensure!(belongings(&key)?.is_empty(), "{:?}", belongings(&key)?);
    drop((netlink, host));
    for name in ["red", "blue"] {
        ensure!(NetNs::find(&one.name(name))?.is_none(), "{name} is left");
    }
    Ok(())
}

/// A path by which others may open it, for as long as it is open here.
fn of_this_process(ns: &NetNs) -> OsString {
    use std::os::fd::{AsFd as _, AsRawFd as _};
    format!("/proc/{}/fd/{}", std::process::id(), ns.as_fd().as_raw_fd()).into()
}

#[test]
fn a_mark_that_is_none_is_told_and_nothing_is_removed() -> Result<()> {
    let (one, other) = (lab()?, lab()?);
    one.nsnet("ns add @red")?;
    // Somebody's pin with the name of a mark, of a host that has a file.
    let key = format!("f{}", key_of(&one)?);
    let file = Scratch(Path::new(RUN).join(format!("{key}.json")));
    fs::write(&file.0, "{}")?;
    let pin = Scratch(alive::path_of(&key));
    let map = aya::maps::Array::<_, u32>::create(1, 0)?;
    map.pin(&pin.0)?;
    let output = other.try_nsnet("ns add @x")?;
    ensure!(output.status.success(), "{output:?}");
    let note = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(note.contains(&key) && note.contains("none of ours"), "{note}");
    ensure!(file.0.exists() && pin.0.exists(), "something was removed");
    Ok(())
}
