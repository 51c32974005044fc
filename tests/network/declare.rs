//! What a file declares: made, kept, changed and taken away; and what is refused.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nsnet::kernel::netlink::Netlink;
use nsnet::kernel::veth::VethSpec;
use nsnet::lab::{Lab, ping};
use serde_json::Value;

use super::bed::{Scratch, lab};
use super::file::{apply, differences, given, objects, steps, words};
use super::world::{World, complaint, refused};

/// One of everything.
const ALL: &str = r#"
    [[ns]]
    name = "@red"
    [[ns]]
    name = "@blue"
    [[ns]]
    name = "@orange"

    [[network]]
    name = "v-net-0"
    subnet = ["192.168.15.0/24", "fd15::/64"]
    gateway = ["192.168.15.5", "fd15::5"]
    masquerade = true
    uplink = "auto"
    [[network]]
    name = "v-net-1"
    subnet = "10.7.0.0/24"
    internal = true

    [[attach]]
    network = "v-net-0"
    ns = "@red"
    [[attach]]
    network = "v-net-0"
    ns = "@blue"
    ip = "192.168.15.1"
    mac = "02:aa:00:00:00:01"
    ifname = "eth0"
    [[attach]]
    network = "v-net-1"
    ns = "@blue"
    learn = true

    [[route]]
    ns = "@red"
    dest = "10.9.0.0/16"
    [[route]]
    ns = "@orange"
    dest = "192.168.15.0/24"
    via = "10.0.0.1"

    [[publish]]
    ns = "@red"
    port = ["8080:80/tcp", ":81"]
    [[publish]]
    ns = "@blue"
    port = "9000-9010:9000-9010/udp"
    network = "v-net-0"

    [[cable]]
    a = "@red"
    b = "@orange"
    address_a = "10.0.0.1/30"
    address_b = "10.0.0.2/30"
"#;

/// Three namespaces in a network, with nothing chosen by the file.
const THREE: &str = r#"
    [[ns]]
    name = "@red"
    [[ns]]
    name = "@blue"
    [[ns]]
    name = "@orange"
    [[network]]
    name = "v-net-0"
    subnet = "192.168.15.0/24"
    [[attach]]
    network = "v-net-0"
    ns = "@red"
    [[attach]]
    network = "v-net-0"
    ns = "@blue"
    [[attach]]
    network = "v-net-0"
    ns = "@orange"
"#;

fn pings(lab: &Lab, from: &str, to: &str) -> Result<bool> {
    let to: IpAddr = to.parse()?;
    Ok(lab.within(from, || ping::ping(to, 2, 56, Duration::from_millis(500)))??.received > 0)
}

/// What `network show` says of the port of a namespace.
fn port(lab: &Lab, name: &str) -> Result<Value> {
    let shown = lab.json("network show v-net-0")?;
    let ports = shown["ports"].as_array().context("no ports")?;
    ports.iter().find(|port| port["ns"] == lab.name(name)).cloned().with_context(|| format!("{name} in {shown}"))
}

#[test]
fn a_file_is_made_so_kept_so_and_taken_down() -> Result<()> {
    let lab = lab()?;
    let before = World::of(&lab)?;
    let done = apply(&lab, ALL)?;
    assert!(done.iter().all(|step| step["action"] == "add"), "{done:?}");
    assert!(objects(&lab, &done).contains(&"+ attachment @blue to v-net-1".to_owned()));
    // blue was given what red would have been.
    assert_eq!(port(&lab, "blue")?["ip"][0], "192.168.15.1");
    assert_eq!(
        (&port(&lab, "blue")?["mac"], &port(&lab, "blue")?["ifname"]),
        (&"02:aa:00:00:00:01".into(), &"eth0".into())
    );
    assert_eq!(port(&lab, "red")?["ip"][0], "192.168.15.2");
    for (from, to) in [
        ("red", "192.168.15.1"),
        ("host", "192.168.15.2"),
        ("host", "fd15::1"),
        ("red", "192.168.1.3"),
        ("orange", "10.0.0.1"),
    ] {
        assert!(pings(&lab, from, to)?, "{from} to {to}");
    }
    // The order of tables does not matter, nor how they are written.
    let tables: Vec<&str> = ALL.split("\n    [[").collect();
    let turned: String = tables[1..].iter().rev().map(|table| format!("\n[[{table}")).collect();
    assert_eq!(steps(&lab, "plan", &turned)?, Vec::<Value>::new());
    // Nor whether verbs say it once more.
    lab.nsnet("attach v-net-0 @blue --ip 192.168.15.1")?;
    lab.nsnet("publish add @red 8080:80")?;
    assert_eq!(steps(&lab, "plan", ALL)?, Vec::<Value>::new());

    // A file of nothing is more likely one that somebody failed to write.
    let there = World::of(&lab)?;
    for verb in ["plan", "apply"] {
        let output = given(&lab, &[verb, "-f", "-"], "# nothing\n")?;
        assert_eq!(output.status.code(), Some(1), "{}", words(&output));
        let told = complaint(&output)?;
        assert_eq!(told, "nsnet: stdin: it declares nothing; `nsnet down` takes everything down\n");
    }
    assert_eq!(World::of(&lab)?, there);
    let gone = apply(&lab, "[[ns]]\nname = \"@red\"\n")?;
    assert!(gone.iter().all(|step| step["action"] == "remove"), "{gone:?}");
    lab.nsnet("ns del @red")?;
    assert_eq!(World::of(&lab)?, before);
    apply(&lab, ALL)?;
    lab.nsnet("down")?;
    assert_eq!(World::of(&lab)?, before);
    Ok(())
}

#[test]
fn a_change_of_one_leaves_the_others_alone() -> Result<()> {
    let lab = lab()?;
    apply(&lab, THREE)?;
    // A connection between the two others, that lives through all of it.
    let (red, blue) = (port(&lab, "red")?, port(&lab, "blue")?);
    let to = SocketAddr::new(blue["ip"][0].as_str().context("no ip")?.parse()?, 7000);
    let listener = lab.within("blue", || TcpListener::bind(to))??;
    let mut near = lab.within("red", || TcpStream::connect_timeout(&to, Duration::from_secs(3)))??;
    let (mut far, _) = listener.accept()?;
    let mut talks = |what: &str| -> Result<()> {
        let mut answer = [0; 4];
        for socket in [&near, &far] {
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        }
        near.write_all(b"ping")?;
        far.read_exact(&mut answer).with_context(|| format!("after {what}"))?;
        far.write_all(&answer)?;
        near.read_exact(&mut answer).with_context(|| format!("after {what}"))?;
        Ok(())
    };
    talks("the beginning")?;
    let orange = "ns = \"@orange\"\n";
    for (what, text, touched) in [
        (
            "another address",
            THREE.replace(orange, "ns = \"@orange\"\nip = \"192.168.15.77\"\n"),
            "~ attachment @orange to v-net-0",
        ),
        (
            "another MAC",
            THREE.replace(orange, "ns = \"@orange\"\nmac = \"02:aa:00:00:00:09\"\n"),
            "~ attachment @orange to v-net-0",
        ),
        (
            "a publish",
            format!("{THREE}[[publish]]\nns = \"@orange\"\nport = \"8080:80\"\n"),
            "+ publish 8080:80/tcp for @orange",
        ),
        ("a timeout", THREE.replace("/24\"\n", "/24\"\ntimeout = \"udp=200\"\n"), "~ network v-net-0"),
        ("masquerade", THREE.replace("/24\"\n", "/24\"\nmasquerade = true\n"), "~ network v-net-0"),
    ] {
        let done = objects(&lab, &apply(&lab, &text)?);
        assert!(done.contains(&touched.to_owned()), "{what}: {done:?}");
        let others = ["attachment @red", "attachment @blue", "namespace"];
        assert!(!done.iter().any(|object| others.iter().any(|other| object.contains(other))), "{what}: {done:?}");
        talks(what)?;
    }
    // Without orange; the two others have all that was chosen for them.
    let (head, rest) = THREE.rsplit_once("    [[attach]]").context("three")?;
    assert!(rest.contains("@orange"));
    let done = objects(&lab, &apply(&lab, head)?);
    assert!(done.contains(&"- attachment @orange to v-net-0".to_owned()), "{done:?}");
    assert_eq!((port(&lab, "red")?, port(&lab, "blue")?), (red, blue));
    talks("the end of orange")
}

#[test]
fn what_was_chosen_stays_but_for_what_is_given() -> Result<()> {
    let lab = lab()?;
    apply(&lab, THREE)?;
    let [red, blue, orange] = ["red", "blue", "orange"].map(|name| port(&lab, name));
    let (red, blue, orange) = (red?, blue?, orange?);
    assert_eq!((&red["ip"][0], &blue["ip"][0]), (&"192.168.15.1".into(), &"192.168.15.2".into()));
    // red's address is given to blue: red gets another, and keeps the rest. orange is not concerned.
    let swapped = THREE.replace("ns = \"@blue\"\n", "ns = \"@blue\"\nip = \"192.168.15.1\"\n");
    let done = apply(&lab, &swapped)?;
    assert_eq!(differences(&lab, &done, "attachment @blue to v-net-0"), ["ip: 192.168.15.2 -> 192.168.15.1"]);
    assert_eq!(port(&lab, "red")?["mac"], red["mac"]);
    assert_eq!(port(&lab, "orange")?, orange);
    assert!(pings(&lab, "red", "192.168.15.1")?);
    // No longer given, it stays; and both at once can be changed into each other.
    assert_eq!(apply(&lab, THREE)?, Vec::<Value>::new());
    let red_has = port(&lab, "red")?["ip"][0].as_str().context("no ip")?.to_owned();
    let turned = swapped
        .replace("192.168.15.1\"\n", &format!("{red_has}\"\n"))
        .replace("ns = \"@red\"\n", "ns = \"@red\"\nip = \"192.168.15.1\"\n");
    apply(&lab, &turned)?;
    assert!(pings(&lab, "red", &red_has)? && pings(&lab, "blue", "192.168.15.1")?);
    // Networks may exchange their subnets, too.
    let two = |first: &str, second: &str| {
        format!("[[network]]\nname = \"n1\"\nsubnet = \"{first}\"\n[[network]]\nname = \"n2\"\nsubnet = \"{second}\"\n")
    };
    apply(&lab, &two("10.1.0.0/24", "10.2.0.0/24"))?;
    apply(&lab, &two("10.2.0.0/24", "10.1.0.0/24"))?;
    Ok(())
}

#[test]
fn published_ports_move_and_stay() -> Result<()> {
    let lab = lab()?;
    let with = |publishes: &str| format!("{THREE}{publishes}");
    let publish = |ns: &str, port: &str| format!("[[publish]]\nns = \"@{ns}\"\nport = \"{port}\"\n");
    let listed = || -> Result<Vec<String>> {
        let listed = lab.json("publish list")?;
        let rows = listed.as_array().context("no list")?.iter();
        let row =
            |row: &Value| format!("{} {}", row["host_ports"], row["ns"]).replace(&lab.name(""), "@").replace('"', "");
        let mut rows: Vec<String> = rows.map(row).collect();
        rows.sort();
        Ok(rows)
    };
    apply(&lab, &with(&(publish("red", "8080:80") + &publish("red", ":80"))))?;
    let chosen = listed()?.into_iter().find(|row| !row.starts_with("8080")).context("none was chosen")?;
    // A port that another had until now; the one that was chosen stays, and is avoided by nobody but those that choose.
    apply(&lab, &with(&(publish("blue", "8080:80") + &publish("red", ":80"))))?;
    assert_eq!(listed()?, [chosen.clone(), "8080 @blue".to_owned()]);
    // What is given in the file is not chosen for another.
    let free: u16 = chosen.split(' ').next().context("no port")?.parse::<u16>()? + 1;
    apply(&lab, &with(&(publish("orange", ":80") + &publish("blue", &format!("{free}:80")) + &publish("red", ":80"))))?;
    let rows = listed()?;
    assert!(rows.contains(&chosen) && rows.contains(&format!("{free} @blue")), "{rows:?}");
    // The port follows an address that changes.
    let moved = with(&publish("red", ":80"))
        .replace("ns = \"@red\"\n    [[", "ns = \"@red\"\n    ip = \"192.168.15.9\"\n    [[");
    let done = apply(&lab, &moved)?;
    assert_eq!(listed()?, [chosen]);
    assert!(objects(&lab, &done).iter().any(|object| object.starts_with("~ publish")), "{done:?}");
    Ok(())
}

#[test]
fn a_prefix_moves_from_a_cable_to_a_network_and_back() -> Result<()> {
    let lab = lab()?;
    let both = "[[ns]]\nname = \"@red\"\n[[ns]]\nname = \"@blue\"\n";
    let cable = format!(
        "{both}[[cable]]\na = \"@red\"\nb = \"@blue\"\naddress_a = \"192.168.15.1/24\"\naddress_b = \"192.168.15.2/24\"\n"
    );
    let port = |ns: &str| format!("[[attach]]\nnetwork = \"n\"\nns = \"@{ns}\"\n");
    let network =
        format!("{both}[[network]]\nname = \"n\"\nsubnet = \"192.168.15.0/24\"\n{}{}", port("red"), port("blue"));
    for file in [&cable, &network, &cable] {
        apply(&lab, file)?;
        assert!(pings(&lab, "red", "192.168.15.2")?);
    }
    Ok(())
}

#[test]
fn verbs_and_files_are_one() -> Result<()> {
    let lab = lab()?;
    for line in [
        "ns add @red @blue @orange",
        "network add v-net-0 --subnet 192.168.15.0/24",
        "attach v-net-0 @orange",
        "attach v-net-0 @red",
        "attach v-net-0 @blue",
        "publish add @red 8080:80",
        "cable add @red @blue --address-a 10.0.0.1/30 --address-b 10.0.0.2/30",
    ] {
        lab.nsnet(line)?;
    }
    let all = format!(
        "{THREE}[[publish]]\nns = \"@red\"\nport = \"8080:80\"\n[[cable]]\na = \"@blue\"\nb = \"@red\"\n\
         address_b = \"10.0.0.1/30\"\naddress_a = \"10.0.0.2/30\"\n"
    );
    assert_eq!(steps(&lab, "plan", &all)?, Vec::<Value>::new(), "what verbs made is what the file says");
    let plan = objects(&lab, &steps(&lab, "plan", THREE)?);
    for object in ["- publish 8080:80/tcp for @red", "- cable @red-@blue"] {
        assert!(plan.contains(&object.to_owned()), "{plan:?}");
    }
    apply(&lab, THREE)?;
    lab.nsnet("detach v-net-0 @red")?;
    lab.nsnet("masquerade on v-net-0")?;
    let done = objects(&lab, &apply(&lab, THREE)?);
    assert!(done.contains(&"+ attachment @red to v-net-0".to_owned()), "{done:?}");
    assert!(done.contains(&"~ network v-net-0".to_owned()), "masquerade is off again: {done:?}");
    // For people it is lines.
    let output =
        given(&lab, &["plan", "-f", "-"], &format!("{all}[[route]]\nns = \"@red\"\ndest = \"10.8.0.0/16\"\n"))?;
    let text = words(&output);
    let expected = format!("+ route 10.8.0.0/16 in {}: via 192.168.15.254", lab.name("red"));
    assert!(text.contains(&expected) && text.ends_with("to add, 0 to change, 0 to remove\n"), "{text}");
    Ok(())
}

#[test]
fn foreign_namespaces_are_used_and_left() -> Result<()> {
    let mut lab = lab()?;
    lab.make("theirs")?;
    let before = World::of(&lab)?;
    // Adopted by name, or used without it.
    let network = "[[network]]\nname = \"v-net-0\"\nsubnet = \"192.168.15.0/24\"\n";
    let attach = "[[attach]]\nnetwork = \"v-net-0\"\nns = \"@theirs\"\n";
    let declared = format!("[[ns]]\nname = \"@theirs\"\n{network}{attach}");
    for text in [format!("{network}{attach}"), declared.clone()] {
        apply(&lab, &text)?;
        assert!(pings(&lab, "host", "192.168.15.1")?);
        let gone = apply(&lab, "[[ns]]\nname = \"@wan\"\n")?;
        assert!(gone.iter().any(|step| step["action"] == "remove"), "{gone:?}");
        lab.nsnet("ns del @wan")?;
        assert_eq!(World::of(&lab)?, before);
    }
    // Gone, it is made by us, and goes with us.
    apply(&lab, &declared)?;
    nsnet::kernel::named::delete(&lab.name("theirs"))?;
    let done = objects(&lab, &steps(&lab, "apply", &declared)?);
    assert!(done.contains(&"~ namespace @theirs".to_owned()), "{done:?}");
    assert!(pings(&lab, "host", "192.168.15.1")?);
    lab.nsnet("down")?;
    assert!(lab.ns("theirs").is_err(), "it was ours by then");
    lab.make("theirs")?;
    Ok(())
}

#[test]
fn what_is_wrong_is_refused_with_its_line() -> Result<()> {
    let lab = lab()?;
    apply(&lab, ALL)?;
    let before = World::of(&lab)?;
    let network = "[[network]]\nname = \"n\"\nsubnet = \"10.1.0.0/24\"\n";
    let ns = |name: &str| format!("[[ns]]\nname = \"@{name}\"\n");
    let red = format!("{}{network}[[attach]]\nnetwork = \"n\"\nns = \"@red\"\n", ns("red"));
    for (text, expected) in [
        ("[[ns]]\nname = \"a\"\nnome = \"b\"\n".to_owned(), "line 3: [[ns]] has no key nome, did you mean name?"),
        (
            "[[network]]\nname = \"n\"\nsubnet = 7\n".to_owned(),
            "line 3: subnet in [[network]]: invalid type: integer `7`",
        ),
        ("[[bridge]]\nname = \"n\"\n".to_owned(), "line 1: there is no table bridge (tables: ns, network"),
        ("[[ns]]\nname = \n".to_owned(), "line 2: this is no TOML"),
        (ns("red") + &ns("red"), "line 3: namespace @red is there already, from line 1; delete one"),
        (
            red.clone() + "[[attach]]\nns = \"@red\"\nnetwork = \"n\"\n",
            "line 9: attachment @red to n is there already, from line 6",
        ),
        (ns("host"), "line 1: cannot use namespace @host: it is the one that acts as host"),
        (network.replace("/24", "/32"), "line 1: network n: subnet 10.1.0.0/32: it has no room"),
        (
            format!("{network}{}", network.replace("\"n\"", "\"m\"")),
            "line 4: network m: subnet 10.1.0.0/24 overlaps 10.1.0.0/24 of network n",
        ),
        (format!("{network}mtu = 60\n"), "line 1: network n: MTU 60 is below the 68"),
        (
            format!("{network}internal = true\nmasquerade = true\n"),
            "line 1: network n: an internal network has no way out",
        ),
        (
            red.replace("\"@red\"\n[[network", "\"@blue\"\n[[network"),
            "line 6: namespace @red was made by nsnet and would be deleted",
        ),
        (
            format!("{network}[[attach]]\nnetwork = \"n\"\nns = \"@nobody\"\n"),
            "line 4: namespace @nobody does not exist",
        ),
        (red.replace("network = \"n\"", "network = \"m\""), "line 6: no network m;"),
        (
            format!("{red}ip = \"10.2.0.1\"\n"),
            "line 6: attach @red: address 10.2.0.1 is in no subnet of network n (10.1.0.0/24)",
        ),
        (
            format!("{red}ip = [\"10.1.0.1\", \"10.1.0.1\"]\n"),
            "line 6: attach @red: address 10.1.0.1 is given twice; leave one out",
        ),
        (
            format!("{red}ifname = \"lo\"\n"),
            "line 6: attach @red: its interface cannot be called lo, which the kernel keeps for itself",
        ),
        (network.replace("\"n\"", "\"all\""), "line 1: network all: its interface cannot have this name"),
        (
            network.replace("10.1.0.0/24", "10.1.2.3/24"),
            "line 1: network n: subnet 10.1.2.3/24: it has bits set after the prefix; say 10.1.2.0/24",
        ),
        (
            format!("{network}gateway = \"10.2.0.1\"\n"),
            "line 1: network n: gateway 10.2.0.1 is in no subnet of it (10.1.0.0/24)",
        ),
        (
            format!("{network}snat_ports = \"0-10\"\n"),
            "line 1: network n: SNAT ports 0-10 begin below 1024, where the host's own services are; say 1024",
        ),
        (
            format!("{network}uplink = \"nope\"\n"),
            "network n: uplink nope: the host has no interface of this name; name one that it has (uplink",
        ),
        (format!("{red}mac = \"ff:ff:ff:ff:ff:ff\"\n"), "line 6: ff:ff:ff:ff:ff:ff cannot be an interface's MAC"),
        (
            format!("{red}[[route]]\nns = \"@red\"\ndest = \"10.9.0.0/16\"\nvia = \"10.3.0.1\"\n"),
            "line 9: route to 10.9.0.0/16: gateway 10.3.0.1",
        ),
        (
            format!("{red}[[publish]]\nns = \"@red\"\nport = \"10.9.9.9:80:80\"\n"),
            "line 9: publish 10.9.9.9:80:80/tcp for @red: the host does not have",
        ),
        (
            format!("{red}[[publish]]\nns = \"@red\"\nport = [\"80:80\", \"80:81\"]\n"),
            "line 9: publish 80:81/tcp for @red: 0.0.0.0:80/tcp is published",
        ),
        (
            format!(
                "{}internal = true\n{}[[publish]]\nns = \"@red\"\nport = \"80:80\"\n",
                network,
                red.replace(network, "")
            ),
            "line 10: publish 80:80/tcp for @red: network n is internal",
        ),
        (
            red.replace(&ns("red"), &(ns("red") + &ns("blue")))
                + "[[cable]]\na = \"@red\"\nb = \"@blue\"\naddress_a = \"10.1.0.77/24\"\n",
            "line 11: cable @red-@blue: address 10.1.0.77/24 overlaps subnet 10.1.0.0/24 of network n",
        ),
        (format!("{}[[cable]]\na = \"@red\"\nb = \"@red\"\n", ns("red")), "line 3: a cable needs two namespaces"),
    ] {
        let expected = expected.replace('@', &lab.name(""));
        for verb in ["plan", "apply"] {
            let output = given(&lab, &[verb, "-f", "-"], &text)?;
            assert_eq!(output.status.code(), Some(1), "{text}: {}", words(&output));
            let complaint = complaint(&output)?;
            // What the kernel has otherwise is found later, when nobody knows of lines.
            let at = if expected.starts_with("line ") { "stdin: " } else { "" };
            assert!(complaint.starts_with(&format!("nsnet: {at}{expected}")), "{text}: {complaint}");
        }
        let output = given(&lab, &["-o", "json", "plan", "-f", "-"], &text)?;
        let error: Value = serde_json::from_slice(&output.stderr)?;
        assert!(error["error"].as_str().is_some_and(|error| error.contains(&expected)), "{error}");
    }
    // Files that are none.
    let folder = std::env::temp_dir();
    for (path, expected) in [("/no/such/file", "/no/such/file"), (folder.to_str().context("no folder")?, "directory")] {
        let complaint = refused(&lab, &format!("apply -f {path}"))?;
        assert!(complaint.contains(expected), "{complaint}");
    }
    assert_eq!(World::of(&lab)?, before, "something was changed");
    Ok(())
}

#[test]
fn a_file_has_its_name_in_the_complaint() -> Result<()> {
    let lab = lab()?;
    let file = Scratch(std::env::temp_dir().join(lab.name("declared.toml")));
    std::fs::write(&file.0, "[[ns]]\nname = 5\n")?;
    let path = file.0.display().to_string();
    let complaint = refused(&lab, &format!("plan -f {path}"))?;
    assert!(complaint.starts_with(&format!("nsnet: {path}: line 2: name in [[ns]]")), "{complaint}");
    std::fs::write(&file.0, format!("[[ns]]\nname = \"{}\"\n", lab.name("red")))?;
    lab.nsnet(&format!("apply -f {path}"))?;
    assert!(lab.ns("red").is_ok());
    Ok(())
}

#[test]
fn what_cannot_be_done_is_refused_or_taken_back() -> Result<()> {
    let lab = lab()?;
    lab.nsnet("ns add @red @blue")?;
    let red = lab.ns("red")?;
    // Somebody's interface stands where the last object should go: nothing is begun.
    let plain = format!("veth-{}", lab.name("red"));
    let taken = VethSpec { name: &plain, ..VethSpec::default() };
    let link = Netlink::inside(&red)?.create_veth(&taken, &VethSpec { name: "other", ..VethSpec::default() }, None)?;
    let text = "[[ns]]\nname = \"@red\"\n[[ns]]\nname = \"@blue\"\n[[ns]]\nname = \"@new\"\n[[cable]]\na = \"@red\"\nb = \"@blue\"\n";
    let before = World::of(&lab)?;
    for verb in ["plan", "apply"] {
        let output = given(&lab, &[verb, "-f", "-"], text)?;
        assert!(!output.status.success() && complaint(&output)?.contains(&plain), "{}", words(&output));
        assert_eq!(World::of(&lab)?, before);
    }
    Netlink::inside(&red)?.delete_link(link.index)?;
    apply(&lab, text)?;

    // What shows only with the last step: all before it is taken back.
    let text = format!(
        "{text}address_a = \"10.0.0.1/30\"\naddress_b = \"10.0.0.2/30\"\n[[network]]\nname = \"n\"\n\
        subnet = \"10.1.0.0/24\"\n[[attach]]\nnetwork = \"n\"\nns = \"@new\"\n[[publish]]\nns = \"@new\"\nport = \"80:80\"\n"
    );
    let hits = || -> Result<std::path::PathBuf> {
        let key = format!("{:x}", lab.ns("host")?.cookie()?);
        let version = nsnet_common::layout::LAYOUT_VERSION;
        Ok(Path::new(nsnet::kernel::store::BPFFS).join(format!("{key}_v{version}/maps/PUBLISH_HITS")))
    };
    lab.nsnet("network add m --subnet 10.2.0.0/24")?;
    let before = World::of(&lab)?;
    // Another map stands where the last table should be: it opens, and does not fit.
    let (hits, other) = (hits()?, hits()?.with_file_name("SUBNETS"));
    let (kept, wrong) = (aya::maps::MapData::from_pin(&hits)?, aya::maps::MapData::from_pin(&other)?);
    std::fs::remove_file(&hits)?;
    wrong.pin(&hits)?;
    let output = given(&lab, &["apply", "-f", "-"], &text)?;
    std::fs::remove_file(&hits)?;
    kept.pin(&hits)?;
    ensure!(output.status.code() == Some(1) && words(&output).contains("PUBLISH_HITS"), "{}", words(&output));
    assert_eq!(World::of(&lab)?, before, "not all was taken back");
    let status = lab.json("status")?;
    assert_eq!(status["drift"], serde_json::json!([]), "{status}");
    apply(&lab, &text)?;
    Ok(())
}
