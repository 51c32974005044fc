//! Pins that are not what nsnet made, or that others could change: named, and left as they are.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, MapData};
use nsnet_common::layout::{MAX_PORTS, Port, names};

use super::bed::{Bed, V4};
use super::object::pins;
use super::world::{World, complaint, refused};

/// What puts something there.
type Plant = Box<dyn FnOnce(&Path) -> Result<()>>;

/// Something else in the place of a pin, for as long as it is kept.
struct Planted {
    pin: PathBuf,
    kept: PathBuf,
}

impl Planted {
    fn new(pin: PathBuf, plant: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        let kept = pin.with_file_name(format!("{}_kept", pin.file_name().context("no name")?.display()));
        fs::rename(&pin, &kept)?;
        let planted = Self { pin, kept };
        plant(&planted.pin)?;
        Ok(planted)
    }
}

impl Drop for Planted {
    fn drop(&mut self) {
        fs::remove_file(&self.pin).ok();
        fs::rename(&self.kept, &self.pin).ok();
    }
}

/// Verbs that change something.
const VERBS: [&str; 4] =
    ["detach v-net-0 @red", "network add n9 --subnet 10.9.0.0/24", "publish add @red 80", "upgrade"];

/// Each verb refuses, in one line with these words, and changes nothing.
fn all_refuse(bed: &Bed, what: &str, words: &[&str]) -> Result<()> {
    for line in VERBS {
        let complaint = refused(&bed.lab, line).with_context(|| what.to_owned())?;
        for word in words {
            assert!(complaint.contains(word), "{what}: `{line}` does not say {word}: {complaint}");
        }
    }
    Ok(())
}

#[test]
fn what_others_made_is_refused() -> Result<()> {
    let bed = Bed::new(V4, &["red", "blue"])?;
    let root = pins(&bed.lab)?;
    let (maps, programs) = (root.join("maps"), root.join("programs"));
    let twin = |of: PathBuf| move |pin: &Path| Ok(fs::hard_link(of, pin)?);
    // A verb that only looks does not take it for what it is called either.
    for (map, line) in
        [(names::PORTS, "explain --from @red tcp 192.168.15.2:80"), (names::COUNTERS, "stats"), (names::DROPS, "drops")]
    {
        let other = |pin: &Path| Ok(HashMap::<MapData, [u8; 6], [u8; 6]>::create(16, 0)?.pin(pin)?);
        let _planted = Planted::new(maps.join(map), other)?;
        let complaint = complaint(&bed.lab.try_nsnet(line)?).with_context(|| line.to_owned())?;
        assert!(complaint.contains(map) && complaint.contains("nsnet down"), "`{line}`: {complaint}");
    }
    let plants: [(PathBuf, Plant); 7] = [
        // Right in all, but no program looks there.
        (maps.join(names::PORTS), Box::new(|pin| Ok(Array::<MapData, Port>::create(MAX_PORTS, 0)?.pin(pin)?))),
        // Values of another size.
        (maps.join(names::FLOWS4), Box::new(|pin| Ok(HashMap::<MapData, [u8; 16], [u8; 8]>::create(16, 0)?.pin(pin)?))),
        // The right sizes in another kind of map.
        (maps.join(names::MAPPINGS), Box::new(|pin| Ok(Array::<MapData, [u8; 24]>::create(16, 0)?.pin(pin)?))),
        // No map at all.
        (maps.join(names::NETWORKS), Box::new(twin(programs.join(names::CUT)))),
        // Another program, and one of another type.
        (programs.join(names::FROM_HOST), Box::new(twin(programs.join(names::CUT)))),
        (programs.join("bind4"), Box::new(twin(programs.join(names::CUT)))),
        (programs.join(names::FROM_NAMESPACE), Box::new(twin(maps.join(names::NETWORKS)))),
    ];
    let expected = BTreeMap::from([(names::PORTS, "the programs use another"), (names::NETWORKS, "it is no map")]);
    for (pin, plant) in plants {
        let name = pin.display().to_string();
        let planted = Planted::new(pin, plant)?;
        let why = expected.get(name.rsplit('/').next().unwrap_or_default());
        all_refuse(&bed, &name, &[&name, "nsnet down", why.copied().unwrap_or_default()])?;
        let status = bed.lab.try_nsnet("status")?;
        let said = String::from_utf8_lossy(&status.stdout);
        assert!(status.status.code() == Some(1) && said.contains(&name), "{said}");
        assert!(bed.at("red").reaches(bed.at("blue").v4.into())?, "{name}: packets are no matter of pins");
        drop(planted);
        bed.check_no_drift()?;
    }
    // With all of that in place it can still be taken down.
    let _planted = Planted::new(maps.join(names::NETWORKS), twin(programs.join(names::CUT)))?;
    bed.lab.nsnet("down")?;
    let left = World::of(&bed.lab)?;
    assert_eq!((left.pins, left.file), (Vec::new(), None));
    Ok(())
}

#[test]
fn folders_of_others_are_refused() -> Result<()> {
    let bed = Bed::new(V4, &["red", "blue"])?;
    let root = pins(&bed.lab)?;
    for folder in [root.clone(), root.join("maps"), root.join("links")] {
        let name = folder.display().to_string();
        let mode = fs::metadata(&folder)?.permissions();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777))?;
        let outcome = all_refuse(&bed, &name, &[&name, "0777", "root's alone"]);
        fs::set_permissions(&folder, mode)?;
        outcome?;
        chown(&folder, Some(1234), None)?;
        let outcome = all_refuse(&bed, &name, &[&name, "user 1234", "root's alone"]);
        chown(&folder, Some(0), None)?;
        outcome?;
    }
    bed.check_no_drift()
}
