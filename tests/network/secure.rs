//! Who may do what: namespaces that are none, folders that are others', people who are not root.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{MapData, loaded_maps};
use aya::programs::loaded_programs;
use nix::errno::Errno;
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use nsnet::kernel::named;
use nsnet::kernel::netlink::Netlink;
use nsnet::kernel::netns::NetNs;
use nsnet::kernel::store::{BPFFS, RUN};
use nsnet::lab::Lab;
use serde_json::json;

use super::bed::{Scratch, binary, lab};
use super::boot::shell;
use super::cut_off::{ATTACH, NETWORK, host, red_is_attached};
use super::file::given;
use super::world::{World, complaint, refused};

const NOBODY: u32 = 65534;

/// A name in /run/netns that leads to what `path` is, for the length of a test.
struct Alias(String);

impl Alias {
    fn of(lab: &Lab, short: &str, path: &Path) -> Result<Self> {
        let name = lab.name(short);
        let place = Path::new("/run/netns").join(&name);
        File::create(&place)?;
        let alias = Self(name);
        mount(Some(path), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Ok(alias)
    }
}

impl Drop for Alias {
    fn drop(&mut self) {
        if let Err(error) = named::delete(&self.0) {
            eprintln!("{}: {error}", self.0);
        }
    }
}

#[test]
fn the_host_is_no_member_under_any_name() -> Result<()> {
    let lab = lab()?;
    lab.nsnet("ns add @red")?;
    lab.nsnet(NETWORK)?;
    let _alias = Alias::of(&lab, "alias", &Path::new("/run/netns").join(lab.name("host")))?;
    for name in ["host", "alias"] {
        for line in [
            "ns add @NAME",
            "attach v-net-0 @NAME",
            "cable add @NAME @red",
            "cable add @red @NAME",
            "route add @NAME 192.0.2.0/24 via 192.168.15.254",
            "ns exec @NAME -- true",
        ] {
            let line = line.replace("NAME", name);
            let said = refused(&lab, &line)?;
            ensure!(said.contains("acts as host"), "`{line}`: {said}");
        }
    }
    Ok(())
}

#[test]
fn one_namespace_has_one_port_in_a_network_whatever_it_is_called() -> Result<()> {
    let lab = lab()?;
    lab.nsnet("ns add @red")?;
    lab.nsnet(NETWORK)?;
    lab.nsnet("network add v-net-1 --subnet 10.1.0.0/24")?;
    lab.nsnet(ATTACH)?;
    let _alias = Alias::of(&lab, "alias", &Path::new("/run/netns").join(lab.name("red")))?;
    let before = World::of(&lab)?;
    let said = refused(&lab, "attach v-net-0 @alias")?;
    ensure!(said.contains(&format!("{} is the same namespace", lab.name("red"))), "{said}");
    let file = "[[ns]]\nname = \"@red\"\n[[ns]]\nname = \"@alias\"\n\
                [[network]]\nname = \"v-net-0\"\nsubnet = \"192.168.15.0/24\"\n\
                [[attach]]\nnetwork = \"v-net-0\"\nns = \"@red\"\n[[attach]]\nnetwork = \"v-net-0\"\nns = \"@alias\"\n";
    for verb in ["plan", "apply"] {
        let output = given(&lab, &[verb, "-f", "-"], file)?;
        ensure!(output.status.code() == Some(1) && complaint(&output)?.contains("same namespace"), "{output:?}");
    }
    assert_eq!(World::of(&lab)?, before);
    // What is attached may be said again, and elsewhere the name is as good as the other.
    lab.nsnet(ATTACH)?;
    lab.nsnet("attach v-net-1 @alias --ifname other")?;
    Ok(())
}

#[test]
fn what_is_no_network_namespace_is_refused_whoever_made_it_look_so() -> Result<()> {
    let mut lab = lab()?;
    lab.make("other")?;
    lab.nsnet(NETWORK)?;
    let names = Path::new("/run/netns");
    let _of_another_kind = Alias::of(&lab, "uts", Path::new("/proc/self/ns/uts"))?;
    let _a_file = Alias::of(&lab, "proc", Path::new("/proc/version"))?;
    let link = Scratch(names.join(lab.name("link")));
    symlink(names.join(lab.name("other")), &link.0)?;
    let dangling = Scratch(names.join(lab.name("dangling")));
    symlink("/nowhere", &dangling.0)?;
    let pipe = Scratch(names.join(lab.name("pipe")));
    mkfifo(&pipe.0, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let folder = Scratch(names.join(lab.name("folder")));
    fs::create_dir(&folder.0)?;
    let before = World::of(&lab)?;
    for name in ["uts", "proc", "link", "dangling", "pipe", "folder"] {
        for line in ["ns add @NAME", "attach v-net-0 @NAME", "cable add @NAME @other", "ns exec @NAME -- true"] {
            let line = line.replace("NAME", name);
            let output = lab.try_nsnet(&line)?;
            ensure!(output.status.code() == Some(1), "`{line}`: {output:?}");
            ensure!(complaint(&output)?.contains(&lab.name(name)), "`{line}`: {output:?}");
        }
        World::of(&lab)?.check_similar(&before).with_context(|| name.to_owned())?;
    }
    // As the host, by a path.
    for path in ["/proc/version", "/proc/self/ns/mnt", "/run/netns", "/nowhere/at/all", "/dev/null"] {
        let output = Command::new(binary()).args(["--host-ns", path, "network", "list"]).output()?;
        ensure!(output.status.code() == Some(1), "{path}: {output:?}");
        complaint(&output)?;
    }
    Ok(())
}

#[test]
fn a_name_that_is_swapped_all_the_time() -> Result<()> {
    let lab = lab()?;
    lab.nsnet(NETWORK)?;
    let before = World::of(&lab)?;
    let name = lab.name("red");
    named::create(&name)?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let swapping = scope.spawn(|| -> Result<u32> {
            let mut swaps = 0;
            while !stop.load(Ordering::Relaxed) {
                named::delete(&name)?;
                if swaps % 3 == 0 {
                    // For a moment it is the host itself.
                    drop(Alias::of(&lab, "red", &Path::new("/run/netns").join(lab.name("host")))?);
                }
                named::create(&name)?;
                swaps += 1;
                thread::sleep(Duration::from_millis(2));
            }
            Ok(swaps)
        });
        let tried: Result<()> = (0..40).try_for_each(|_| {
            for line in ["attach v-net-0 @red", "detach v-net-0 @red"] {
                let output = lab.try_nsnet(line)?;
                let code = output.status.code();
                ensure!(code == Some(0) || code == Some(1), "`{line}`: {output:?}");
                if code == Some(1) {
                    ensure!(!complaint(&output)?.contains("taking it back failed"), "`{line}`: {output:?}");
                }
            }
            Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        let swaps = swapping.join().map_err(|_panic| anyhow::anyhow!("the swapping thread panicked"))??;
        println!("swapped {swaps} times");
        tried
    })?;
    lab.nsnet("detach v-net-0 @red")?;
    named::delete(&name)?;
    ensure!(lab.json("status")?["drift"] == json!([]), "there is drift");
    let host = Netlink::inside(&lab.ns("host")?)?.links()?;
    ensure!(host.len() == 4, "loopback, uplink and the network's own: {host:?}");
    World::of(&lab)?.check_similar(&before)
}

#[test]
fn everything_is_roots_alone() -> Result<()> {
    let lab = host()?;
    for line in [NETWORK, ATTACH, "publish add @red 8080:80"] {
        lab.nsnet(line)?;
    }
    let world = World::of(&lab)?;
    let key = format!("{:x}", lab.ns("host")?.cookie()?);
    let file = Path::new(RUN).join(format!("{key}.json"));
    let folders = [PathBuf::from(RUN), PathBuf::from(BPFFS)];
    let ours: Vec<PathBuf> = world.pins.iter().map(PathBuf::from).chain([file, Path::new(RUN).join("lock")]).collect();
    for path in folders.iter().chain(&ours) {
        let found = fs::symlink_metadata(path)?;
        ensure!(found.uid() == 0 && found.mode() & 0o077 == 0, "{} has mode {:o}", path.display(), found.mode());
    }
    // And as somebody sees it who is not root, with whatever he may guess.
    let seen = thread::spawn(move || -> Result<usize> {
        become_nobody()?;
        for path in &ours {
            let opened = File::open(path).map(drop).map_err(|error| error.kind());
            ensure!(opened == Err(ErrorKind::PermissionDenied), "{}: {opened:?}", path.display());
            let map = MapData::from_pin(path);
            ensure!(map.is_err(), "{} was opened by bpf(2)", path.display());
        }
        ensure!(fs::read_dir(RUN).is_err() && fs::read_dir(BPFFS).is_err(), "the folders can be listed");
        ensure!(File::create(Path::new(RUN).join("theirs")).is_err(), "a file can be made in {RUN}");
        ensure!(loaded_maps().next().is_none_or(|map| map.is_err()), "maps can be had by their numbers");
        ensure!(
            loaded_programs().next().is_none_or(|program| program.is_err()),
            "programs can be had by their numbers"
        );
        Ok(ours.len())
    });
    let count = seen.join().map_err(|_panic| anyhow::anyhow!("nobody panicked"))??;
    println!("{count} files and pins: closed to all but root");
    Ok(())
}

/// The calling thread, and no other, is nobody's from now on.
fn become_nobody() -> Result<()> {
    // SAFETY: numbers only; the raw calls, unlike those of the C library, concern the calling thread alone.
    let results = unsafe {
        [
            libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>()),
            libc::syscall(libc::SYS_setresgid, NOBODY, NOBODY, NOBODY),
            libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY),
        ]
    };
    results.into_iter().try_for_each(|result| Errno::result(result).map(drop))?;
    Ok(())
}

#[test]
fn people_who_are_not_root_get_one_line() -> Result<()> {
    let lab = host()?;
    for line in [NETWORK, ATTACH] {
        lab.nsnet(line)?;
    }
    let folder = Scratch(std::env::temp_dir().join(lab.name("nobody")));
    fs::create_dir(&folder.0)?;
    let program = folder.0.join("nsnet");
    fs::copy(binary(), &program)?;
    let (host, red, blue) = (lab.name("host"), lab.name("red"), lab.name("blue"));
    let before = World::of(&lab)?;
    let as_nobody = |words: &[&str]| -> Result<Output> {
        Ok(Command::new(&program).args(words).uid(NOBODY).gid(NOBODY).current_dir("/").output()?)
    };
    // Root of a user namespace of his own.
    let as_own_root = |words: &[&str]| -> Result<Output> {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net", "--"]).arg(&program).args(words);
        command.uid(NOBODY).gid(NOBODY).current_dir("/").output().context("this test needs `unshare` of util-linux")
    };
    let verbs: &[&[&str]] = &[
        &["ns", "add", "x"],
        &["ns", "del", &red, "--force"],
        &["ns", "exec", &red, "--", "true"],
        &["cable", "add", &red, &blue],
        &["cable", "del", &red, &blue],
        &["cable", "list"],
        &["network", "add", "n1", "--subnet", "10.1.0.0/24"],
        &["network", "del", "v-net-0", "--force"],
        &["network", "list"],
        &["network", "show", "v-net-0"],
        &["attach", "v-net-0", &blue],
        &["detach", "v-net-0", &red],
        &["route", "add", &red, "10.0.0.0/8", "via", "192.168.15.254"],
        &["route", "del", &red, "default"],
        &["masquerade", "off", "v-net-0"],
        &["publish", "add", &red, "8080:80"],
        &["publish", "del", &red, "8080:80"],
        &["publish", "list"],
        &["fdb", "list"],
        &["neigh", "list"],
        &["ct", "list"],
        &["ct", "flush"],
        &["stats"],
        &["drops"],
        &["status"],
        &["down"],
    ];
    for verb in verbs {
        for words in [verb.to_vec(), [&["--host-ns", &host], *verb].concat()] {
            for (who, output) in [("nobody", as_nobody(&words)?), ("his own root", as_own_root(&words)?)] {
                let what = || format!("{words:?} as {who}");
                ensure!(output.status.code() == Some(1), "{}: {output:?}", what());
                let said = complaint(&output).with_context(what)?;
                let is_plain = ["os error", "root", "CAP_"].iter().any(|word| said.contains(word));
                ensure!(is_plain && !said.contains(".rs"), "{}: {said}", what());
            }
        }
    }
    ensure!(World::of(&lab)? == before, "something was changed");
    red_is_attached(&lab)
}

/// Root, but without one of the capabilities, as in many containers: refused before anything is changed that could not be
/// taken back either.
#[test]
fn without_a_capability_nothing_is_begun() -> Result<()> {
    let lab = host()?;
    for line in [NETWORK, ATTACH] {
        lab.nsnet(line)?;
    }
    let (host, red, blue) = (lab.name("host"), lab.name("red"), lab.name("blue"));
    let before = World::of(&lab)?;
    let verbs: [&[&str]; 9] = [
        &["ns", "add", "x"],
        &["network", "add", "n1", "--subnet", "10.1.0.0/24"],
        &["network", "del", "v-net-0", "--force"],
        &["attach", "v-net-0", &blue],
        &["detach", "v-net-0", &red],
        &["route", "add", &red, "10.0.0.0/8", "via", "192.168.15.254"],
        &["masquerade", "on", "v-net-0"],
        &["publish", "add", &red, "8080:80"],
        &["down"],
    ];
    for (without, name) in [("-net_admin", "CAP_NET_ADMIN"), ("-sys_admin", "CAP_SYS_ADMIN")] {
        for verb in verbs {
            let mut command = Command::new("setpriv");
            command.args(["--bounding-set", without, "--inh-caps", without, "--"]).arg(binary());
            let output = command.args(["--host-ns", &host]).args(verb).output();
            let output = output.context("this test needs `setpriv` of util-linux")?;
            ensure!(output.status.code() == Some(1), "{verb:?} without {name}: {output:?}");
            let said = complaint(&output)?;
            ensure!(said.contains(name), "{verb:?} without {name}: {said}");
        }
    }
    ensure!(World::of(&lab)? == before, "something was changed");
    red_is_attached(&lab)
}

#[test]
fn folders_of_others_are_not_used() -> Result<()> {
    let mut lab = lab()?;
    lab.make("red")?;
    let before = World::of(&lab)?;
    let lock = format!("/run/nsnet/{:x}.lock", lab.ns("host")?.cookie()?);
    let link = format!("rm -f {lock}; ln -s /run/theirs {lock}");
    for (what, prepare) in [
        ("not root's", "chown 65534 /run/nsnet"),
        ("others than root have access", "chmod 0755 /run/nsnet"),
        ("others than root have access", "chmod 0770 /run/nsnet"),
        ("not root's", "chown 65534 /run/nsnet/bpf"),
        ("others than root have access", "chmod 1777 /run/nsnet/bpf"),
        ("no directory", "umount -l /run/nsnet; rmdir /run/nsnet; touch /run/nsnet"),
        ("no directory", "umount -l /run/nsnet; rmdir /run/nsnet; mkdir /run/theirs; ln -s theirs /run/nsnet"),
        ("symbolic links", &link),
    ] {
        let script = format!("{prepare}\nrefused \"{what}\" network add v-net-0 --subnet 192.168.15.0/24");
        let output = shell(&lab, "size=1m", &script)?;
        ensure!(output.status.success(), "{prepare}: {}", String::from_utf8_lossy(&output.stderr));
        ensure!(World::of(&lab)? == before, "{prepare}: something was changed");
    }
    // One that is not there is made for root alone, whatever the umask is.
    let script = r#"
        umount -l /run/nsnet
        rmdir /run/nsnet
        umask 000
        nsnet ns list
        nsnet ns add "$RED"
        [ "$(stat -c %a /run/nsnet)" = 700 ]
        [ "$(stat -c %a /run/nsnet/*.lock)" = 600 ]
        nsnet down
    "#;
    let output = shell(&lab, "size=1m", script)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ensure!(NetNs::find(&lab.name("red"))?.is_some(), "red is gone");
    Ok(())
}
