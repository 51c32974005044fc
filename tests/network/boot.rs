//! After a power cut, and with a disk, a /proc or a bpffs that nothing can be written to.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use nsnet::kernel::named;
use nsnet::kernel::netlink::Netlink;
use nsnet::kernel::store::{BPFFS, RUN};
use nsnet::lab::Lab;

use super::bed::{Bed, DUAL, binary, lab, until};
use super::traffic::{Amount, exchange};
use super::world::{World, complaint};

const NETWORK: &str = "network add v-net-0 --subnet 192.168.15.0/24 fd15::/64";

fn key(lab: &Lab) -> Result<String> {
    Ok(format!("{:x}", lab.ns("host")?.cookie()?))
}

fn file(lab: &Lab) -> Result<PathBuf> {
    Ok(Path::new(RUN).join(format!("{}.json", key(lab)?)))
}

/// Removes the pins of a lab's host, as unmounting their file system would.
fn lose_pins(lab: &Lab) -> Result<()> {
    for path in World::of(lab)?.pins.iter().map(PathBuf::from).filter(|path| path.parent() == Some(Path::new(BPFFS))) {
        if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
    }
    Ok(())
}

/// Removes the host's interfaces, and with them those in namespaces.
fn lose_interfaces(lab: &Lab) -> Result<()> {
    let netlink = Netlink::inside(&lab.ns("host")?)?;
    for link in netlink.links()?.into_iter().filter(|link| link.index >= 1 << 24) {
        netlink.delete_link(link.index)?;
    }
    Ok(())
}

fn drift(lab: &Lab) -> Result<serde_json::Value> {
    let output = lab.try_nsnet("-o json status")?;
    let status: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    ensure!(output.status.success() == (status["drift"] == serde_json::json!([])), "{output:?}");
    Ok(status["drift"].clone())
}

#[test]
fn after_a_reboot_the_old_state_is_nothing() -> Result<()> {
    let bed = Bed::new(DUAL, &["red", "blue"])?;
    let text = fs::read_to_string(file(&bed.lab)?)?;
    bed.lab.nsnet("down")?;
    let empty = World::of(&bed.lab)?;
    // What a machine would find whose /run is no memory. (Namespaces, links and bpffs are gone with the power.)
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let old = text.replace(boot.trim(), "00000000-0000-4000-8000-000000000000");
    ensure!(old != text, "the file does not tell the boot: {text}");
    fs::write(file(&bed.lab)?, &old)?;
    assert_eq!(drift(&bed.lab)?, serde_json::json!([]));
    assert_eq!(bed.lab.json("network list")?, serde_json::json!([]));
    // It is replaced by what comes now.
    let bed = Bed::inside(bed.lab, DUAL, &["red", "blue"])?;
    bed.check_no_drift()?;
    exchange(&bed, "red", "blue", Amount::Little)?;
    bed.lab.nsnet("down")?;
    assert_eq!(World::of(&bed.lab)?, empty);
    Ok(())
}

#[test]
fn what_is_gone_comes_back_by_saying_it_again() -> Result<()> {
    let bed = Bed::new(DUAL, &["red", "blue"])?;
    lose_pins(&bed.lab)?;
    lose_interfaces(&bed.lab)?;
    for name in ["red", "blue"] {
        named::delete(&bed.lab.name(name))?;
    }
    ensure!(drift(&bed.lab)? != serde_json::json!([]), "nothing is said of what is gone");
    // In part it is refused: what would it stand on?
    for line in ["attach v-net-0 @red", "publish add @red 8080:80"] {
        let output = bed.lab.try_nsnet(line)?;
        assert_eq!(output.status.code(), Some(1), "{line}: {output:?}");
        complaint(&output)?;
    }
    for line in ["ns add @red @blue", NETWORK, "attach v-net-0 @red", "attach v-net-0 @blue"] {
        bed.lab.nsnet(line)?;
    }
    bed.check_no_drift()?;
    let bed = Bed::inside(bed.lab, DUAL, &["red", "blue"])?;
    exchange(&bed, "red", "blue", Amount::Little)?;
    exchange(&bed, "red", "host", Amount::Little)
}

#[test]
fn down_works_whatever_is_gone() -> Result<()> {
    type Loss<'a> = (&'a str, fn(&Lab) -> Result<()>);
    let losses: [Loss<'_>; 4] = [
        ("pins", lose_pins),
        ("interfaces", lose_interfaces),
        ("both", |lab| lose_pins(lab).and_then(|()| lose_interfaces(lab))),
        ("file", |lab| Ok(fs::remove_file(file(lab)?)?)),
    ];
    let lab = lab()?;
    let before = World::of(&lab)?;
    for (what, lose) in losses {
        for line in
            ["ns add @red", &format!("{NETWORK} --masquerade"), "attach v-net-0 @red", "publish add @red 8080:80"]
        {
            lab.nsnet(line)?;
        }
        lose(&lab)?;
        if what == "file" {
            // Not even a verb that would do is done on top of what nobody knows.
            for line in ["status", "ns add @blue", NETWORK, "network del v-net-0"] {
                let output = lab.try_nsnet(line)?;
                let said = [output.stdout, output.stderr].concat();
                let said = String::from_utf8_lossy(&said);
                ensure!(output.status.code() == Some(1) && said.contains("nsnet down"), "{line}: {said}");
            }
        }
        lab.nsnet("down").with_context(|| what.to_owned())?;
        if what == "file" {
            named::delete(&lab.name("red"))?;
        }
        World::of(&lab)?.check_similar(&before).with_context(|| format!("without {what}"))?;
    }
    Ok(())
}

#[test]
fn a_file_torn_at_any_byte_is_told_and_changes_nothing() -> Result<()> {
    let lab = lab()?;
    let before = World::of(&lab)?;
    for line in ["ns add @red", &format!("{NETWORK} --masquerade"), "attach v-net-0 @red", "publish add @red 8080:80"] {
        lab.nsnet(line)?;
    }
    let (path, whole) = (file(&lab)?, World::of(&lab)?);
    let text = fs::read(&path)?;
    // Each verb at some lengths, and one verb at each.
    let verbs =
        ["status", "network list", "attach v-net-0 @red", "network del v-net-0 --force", "ns add @blue", NETWORK];
    for length in 0..text.len() {
        fs::write(&path, &text[..length])?;
        let line = verbs[length % verbs.len()];
        let output = lab.try_nsnet(line)?;
        let said = complaint(&output).with_context(|| format!("`{line}` at {length} of {}", text.len()))?;
        ensure!(output.status.code() == Some(1) && said.contains("damaged") && said.contains("nsnet down"), "{said}");
    }
    fs::write(&path, &text)?;
    World::of(&lab)?.check_similar(&whole)?;
    assert_eq!(drift(&lab)?, serde_json::json!([]));
    for length in [0, 1, text.len() / 2, text.len() - 1] {
        fs::write(&path, &text[..length])?;
        let output = lab.try_nsnet("down")?;
        ensure!(output.status.success(), "{output:?}");
        let note = String::from_utf8_lossy(&output.stderr);
        ensure!(note.contains("damaged") && note.contains("namespaces"), "nobody says what is left: {note}");
        ensure!(named::delete(&lab.name("red"))?, "red is gone");
        World::of(&lab)?.check_similar(&before).with_context(|| format!("at {length}"))?;
        for line in
            ["ns add @red", &format!("{NETWORK} --masquerade"), "attach v-net-0 @red", "publish add @red 8080:80"]
        {
            lab.nsnet(line)?;
        }
    }
    println!("torn at each of {} bytes: told each time, nothing changed", text.len());
    Ok(())
}

/// A cable that `down` could not know of is taken for what it is, and not for somebody else's.
#[test]
fn a_cable_that_was_left_is_taken_again() -> Result<()> {
    let lab = lab()?;
    let before = World::of(&lab)?;
    let lines = ["ns add @red @blue", "cable add @red @blue --address-a 10.9.0.1/24 --address-b 10.9.0.2/24"];
    for line in lines {
        lab.nsnet(line)?;
    }
    let path = file(&lab)?;
    let text = fs::read(&path)?;
    fs::write(&path, &text[..text.len() / 2])?;
    lab.nsnet("down")?;
    for line in lines {
        lab.nsnet(line)?;
    }
    assert_eq!(drift(&lab)?, serde_json::json!([]));
    lab.nsnet("down")?;
    for short in ["red", "blue"] {
        ensure!(named::delete(&lab.name(short))?, "{short} is gone, which was not made by us this time");
    }
    World::of(&lab)?.check_similar(&before)
}

/// A shell in a mount namespace of its own, where /run/nsnet is a small disk and the bpffs is nobody else's.
pub(crate) fn shell(lab: &Lab, disk: &str, script: &str) -> Result<Output> {
    const PREPARE: &str = r#"
        names=$(mktemp -d)
        mount --rbind /run/netns "$names"
        mount -t tmpfs tmpfs /run
        mkdir /run/netns
        mount --move "$names" /run/netns
        rmdir "$names"
        mkdir -m 700 /run/nsnet
        mount -t tmpfs -o "mode=700,$DISK" tmpfs /run/nsnet
        mkdir -m 700 /run/nsnet/bpf
        mount -t bpf -o mode=700 bpf /run/nsnet/bpf
        nsnet() { "$NSNET" --host-ns "$HOST" "$@"; }
        world() { find /run/nsnet ! -name lock | sort; find /run/nsnet -name '*.json' -exec cat {} +; }
        # Has to fail, for this reason, and leave what was there.
        refused() {
            why=$1; shift
            before=$(world)
            if said=$(nsnet "$@" 2>&1); then echo "$*: was done" >&2; exit 9; fi
            case $said in *"$why"*) ;; *) echo "$*: says $said" >&2; exit 9 ;; esac
            after=$(world)
            [ "$before" = "$after" ] || { echo "$*: was $before, is $after" >&2; exit 9; }
        }
    "#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-euc", &format!("{PREPARE}\n{script}")]);
    command.env("DISK", disk).env("NSNET", fs::canonicalize(binary())?).env("HOST", lab.name("host"));
    command.env("RED", lab.name("red"));
    command.output().context("this test needs `unshare` and `mount` of util-linux")
}

fn succeeds(lab: &Lab, disk: &str, script: &str) -> Result<()> {
    let before = World::of(lab)?;
    let output = shell(lab, disk, script)?;
    ensure!(output.status.success(), "on {disk}: {}", String::from_utf8_lossy(&output.stderr));
    // The pins went with the shell, and the programs with them, a moment later.
    let is_as_before = || Ok(World::of(lab)?.check_similar(&before).is_ok());
    until(std::time::Duration::from_secs(10), is_as_before).with_context(|| {
        format!("on {disk}: {}", World::of(lab).map_or_else(|error| error.to_string(), |now| before.difference(&now)))
    })?;
    Ok(())
}

#[test]
fn a_full_disk_refuses_before_anything_is_changed() -> Result<()> {
    let mut lab = lab()?;
    lab.make("red")?;
    // Room for no file; for one, where two are needed; for no name.
    for disk in ["size=4k,nr_inodes=3", "size=4k", "size=1m,nr_inodes=4"] {
        succeeds(&lab, disk, r#"refused "No space left" network add v-net-0 --subnet 192.168.15.0/24 --masquerade"#)?;
    }
    // Full later: what stands stays, and what was refused is done once there is room.
    succeeds(
        &lab,
        "size=16k",
        r#"
        nsnet network add v-net-0 --subnet 192.168.15.0/24 --masquerade
        dd if=/dev/zero of=/run/nsnet/filler bs=4k count=9 2>/dev/null || true
        refused "make room in /run" attach v-net-0 "$RED"
        refused "No space left" network del v-net-0
        nsnet status
        rm /run/nsnet/filler
        nsnet attach v-net-0 "$RED"
        nsnet status
        dd if=/dev/zero of=/run/nsnet/filler bs=4k count=9 2>/dev/null || true
        # Taking everything down needs no room.
        nsnet down
        "#,
    )
}

/// Where nothing can be written, what only reads still does, and what changes something says why it cannot.
#[test]
fn a_read_only_folder_can_be_read() -> Result<()> {
    let mut lab = lab()?;
    lab.make("red")?;
    succeeds(
        &lab,
        "size=1m",
        r#"
        nsnet network add v-net-0 --subnet 192.168.15.0/24 --masquerade
        mount -o remount,bind,ro /run/nsnet
        for verb in status plan "network list" drops; do nsnet $verb > /dev/null; done
        refused "Read-only file system (os error 30); mount /run/nsnet for writing" attach v-net-0 "$RED"
        mount -o remount,bind,rw /run/nsnet
        nsnet attach v-net-0 "$RED"
        nsnet down
        "#,
    )
}

#[test]
fn a_read_only_proc_or_bpffs_is_told_and_changes_nothing() -> Result<()> {
    let mut lab = lab()?;
    lab.make("red")?;
    let make = r#"nsnet network add v-net-0 --subnet 192.168.15.0/24 fd15::/64 --masquerade"#;
    succeeds(
        &lab,
        "size=1m",
        &format!(
            r#"
            mount --bind /proc /proc
            mount -o remount,bind,ro /proc
            refused "Read-only file system" network add v-net-0 --subnet 192.168.15.0/24 fd15::/64 --masquerade
            refused "mount /proc/sys writable" network add v-net-0 --subnet 192.168.15.0/24
            umount /proc
            {make}
            mount --bind /proc /proc
            mount -o remount,bind,ro /proc
            refused "Read-only file system" attach v-net-0 "$RED"
            nsnet status
            umount /proc
            nsnet attach v-net-0 "$RED"
            nsnet status
            nsnet down
            "#
        ),
    )?;
    succeeds(
        &lab,
        "size=1m",
        &format!(
            r#"
            mount -o remount,bind,ro /run/nsnet/bpf
            refused "Read-only file system" network add v-net-0 --subnet 192.168.15.0/24
            mount -o remount,bind,rw /run/nsnet/bpf
            {make}
            nsnet status
            mount -o remount,bind,ro /run/nsnet/bpf
            refused "Read-only file system" attach v-net-0 "$RED"
            nsnet status
            refused "Read-only file system" network del v-net-0
            nsnet status
            mount -o remount,bind,rw /run/nsnet/bpf
            nsnet attach v-net-0 "$RED"
            mount -o remount,bind,ro /run/nsnet/bpf
            refused "Read-only file system" detach v-net-0 "$RED"
            nsnet status
            if nsnet down; then exit 8; fi
            mount -o remount,bind,rw /run/nsnet/bpf
            nsnet down
            "#
        ),
    )
}
