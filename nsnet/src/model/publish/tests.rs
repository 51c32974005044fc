use std::cell::RefCell;

use super::*;
use crate::model::plan::{Reservation, Step, plan};
use crate::model::request::{AttachRequest, NetworkRequest};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn spec(text: &str) -> Spec {
    text.parse().unwrap()
}

/// Two networks: red is in both (v4 first), blue in the one with both families. green is in none.
fn state() -> State {
    let mut state = State::default();
    for (network, subnets) in [("v4", &["10.0.0.0/24"][..]), ("dual", &["10.1.0.0/24", "fd01::/64"])] {
        let subnets = subnets.iter().map(|net| net.parse().unwrap()).collect();
        let request = NetworkRequest::new(name(network), subnets);
        state.add_network(&request, 1500).unwrap();
    }
    for (network, ns) in [("v4", "red"), ("dual", "red"), ("dual", "blue")] {
        state.attach(&AttachRequest::new(name(network), name(ns))).unwrap();
    }
    state
}

/// A host with some addresses on which `busy` has sockets.
struct World {
    addresses: Vec<IpAddr>,
    automatic: PortRange,
    reserved: PortSet,
    busy: Vec<(Protocol, IpAddr, u16)>,
}

impl World {
    fn new(busy: &[(Protocol, &str, u16)]) -> Self {
        let busy = busy.iter().map(|(protocol, ip, port)| (*protocol, ip.parse().unwrap(), *port)).collect();
        let addresses = ["127.0.0.1", "::1", "192.0.2.1", "2001:db8::1", "fe80::1", "169.254.0.9"];
        Self {
            addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
            automatic: PortRange::new(40000, 40009).unwrap(),
            reserved: PortSet::default(),
            busy,
        }
    }

    fn add(&self, state: &mut State, ns: &str, text: &str) -> Result<Publish> {
        self.add_by(state, ns, text, None)
    }

    fn add_by(&self, state: &mut State, ns: &str, text: &str, network: Option<&str>) -> Result<Publish> {
        let first_busy = |protocol: Protocol, ip: IpAddr, ports: PortRange| {
            let here = |other: &IpAddr| *other == ip || (ip.is_unspecified() && other.is_ipv4() == ip.is_ipv4());
            let mine =
                self.busy.iter().filter(|(busy, at, port)| *busy == protocol && here(at) && ports.contains(*port));
            Ok(mine.map(|(_, _, port)| *port).min())
        };
        let host = HostPorts {
            addresses: &self.addresses,
            automatic: self.automatic,
            reserved: &self.reserved,
            first_busy: &first_busy,
        };
        let request = PublishRequest { ns: name(ns), network: network.map(name), spec: spec(text) };
        state.add_publish(&request, &host)
    }
}

fn host_ips(publish: &Publish) -> Vec<String> {
    publish.host_ips().map(|ip| ip.to_string()).collect()
}

#[test]
fn what_is_published_where() {
    let (mut state, world) = (state(), World::new(&[]));
    let both = world.add(&mut state, "blue", "8080:80").unwrap();
    assert_eq!(host_ips(&both), ["0.0.0.0", "::"]);
    assert_eq!((both.entries[0].place, both.entries[1].place), (1, 2));
    assert_ne!(both.entries[0].epoch, both.entries[1].epoch);
    let blue = state.attachment(&name("dual"), &name("blue")).unwrap();
    assert_eq!(both.entries.iter().map(|entry| entry.target).collect::<Vec<_>>(), blue.ips);
    assert_eq!((both.port, both.network_id), (blue.port, state.networks[&name("dual")].id));
    // The first network of red's, unless it lacks the family.
    assert_eq!(host_ips(&world.add(&mut state, "red", "81:80").unwrap()), ["0.0.0.0"]);
    let ipv6 = world.add(&mut state, "red", "[::]:81:80").unwrap();
    assert_eq!((ipv6.network.as_str(), host_ips(&ipv6)), ("dual", vec!["::".to_owned()]));
    assert_eq!(world.add_by(&mut state, "red", "82:80", Some("dual")).unwrap().entries.len(), 2);
    for text in ["127.0.0.1:83:80", "127.9.9.9:83:80", "192.0.2.1:83:80", "[::1]:83:80", "[2001:db8::1]:83:80"] {
        assert_eq!(world.add(&mut state, "blue", text).unwrap().entries.len(), 1, "{text}");
    }
    assert_eq!(state.reserved_ports().to_string(), "81-83,8080,16384-32767");
}

#[test]
fn the_same_again_is_the_same_answer() {
    let (mut state, world) = (state(), World::new(&[]));
    let mut made = Vec::new();
    for text in ["8080:80", ":80", "8000-8010:80", "9000-9010:80-90/udp"] {
        made.push((text, world.add(&mut state, "blue", text).unwrap()));
    }
    let before = state.clone();
    for (text, publish) in made {
        assert_eq!(world.add(&mut state, "blue", text).unwrap(), publish);
        assert_eq!(world.add(&mut state, "blue", &publish.spec.to_string()).unwrap(), publish);
    }
    assert_eq!(state, before);
    let refusal = world.add_by(&mut state, "blue", "8080:80", Some("v4")).unwrap_err().to_string();
    assert!(refusal.contains("dual") && refusal.contains("v4"), "{refusal}");
}

#[test]
fn a_free_port_is_chosen() {
    let mut world = World::new(&[(Protocol::Tcp, "0.0.0.0", 40001), (Protocol::Tcp, "::", 40003)]);
    world.reserved = "40000".parse().unwrap();
    let mut state = state();
    let mut ports = |ns: &str, text: &str| world.add(&mut state, ns, text).map(|made| made.host().to_string());
    assert_eq!(ports("blue", "80").unwrap(), "40002");
    // 40003 is taken for IPv6 only, and red has no such address in its first network.
    assert_eq!(ports("red", ":80").unwrap(), "40003");
    assert_eq!(ports("blue", ":90-92").unwrap(), "40004-40006");
    assert_eq!(ports("blue", ":90-92/udp").unwrap(), "40001-40003");
    let refusal = ports("blue", ":190-195").unwrap_err().to_string();
    assert!(refusal.contains("40000-40009") && refusal.contains("6 in a row"), "{refusal}");
    // Out of a range that was asked for, reserved or not.
    assert_eq!(ports("blue", "39999-40001:80").unwrap(), "39999");
    assert_eq!(ports("red", "39999-40001:80").unwrap(), "40000");
    let refusal = ports("red", "39999-40001:81").unwrap_err().to_string();
    assert!(refusal.contains("39999-40001") && refusal.contains("0.0.0.0"), "{refusal}");
    assert_eq!(ports("red", "65535-65535:81").unwrap(), "65535");
    assert!(ports("red", "65534-65535:82").is_ok() && ports("red", "65534-65535:83").is_err());
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let world = World::new(&[(Protocol::Tcp, "192.0.2.1", 22), (Protocol::Udp, "::", 53)]);
    let mut state = state();
    world.add(&mut state, "blue", "8000-8010:80-90").unwrap();
    world.add(&mut state, "blue", "192.0.2.1:9000:80").unwrap();
    for (ns, text, words) in [
        ("green", "80:80", &["green", "attach"][..]),
        ("red", "192.0.2.2:80:80", &["192.0.2.2", "does not have"]),
        ("red", "169.254.0.9:80:80", &["169.254.0.9", "link-local"]),
        ("red", "[fe80::1]:80:80", &["fe80::1", "link-local"]),
        ("red", "224.0.0.1:80:80", &["224.0.0.1", "group"]),
        ("red", "255.255.255.255:80:80", &["255.255.255.255"]),
        ("red", "[ff02::1]:80:80", &["ff02::1"]),
        ("red", "22:22", &["0.0.0.0:22/tcp", "socket"]),
        ("red", "192.0.2.1:20-30:20-30", &["192.0.2.1:22/tcp", "socket"]),
        ("blue", "53:53/udp", &["[::]:53/udp", "socket"]),
        ("red", "8010:80", &["0.0.0.0:8010/tcp", "blue", "8000-8010:80-90/tcp", "8010:80/tcp"]),
        ("red", "127.0.0.1:8000:80", &["127.0.0.1:8000/tcp", "blue"]),
        ("red", "7000-8000:7000-8000", &["0.0.0.0:8000/tcp", "blue"]),
        ("red", "0.0.0.0:9000:80", &["0.0.0.0:9000/tcp", "192.0.2.1:9000:80/tcp"]),
        ("blue", "8000:81", &["8000-8010:80-90/tcp", "8000:81/tcp"]),
    ] {
        let before = state.clone();
        let refusal = world.add(&mut state, ns, text).unwrap_err().to_string();
        assert!(words.iter().all(|word| refusal.contains(word)), "{refusal:?} should have {words:?}");
        assert_eq!(state, before, "refused, and yet changed: {refusal}");
    }
    assert!(world.add_by(&mut state, "blue", "81:81", Some("v4")).unwrap_err().to_string().contains("attach v4 blue"));
    assert!(world.add_by(&mut state, "red", "[::]:81:81", Some("v4")).unwrap_err().to_string().contains("IPv6"));
    // What only looks alike.
    for (ns, text) in [
        ("red", "8000:80/udp"),
        ("red", "127.0.0.1:9000:80"),
        ("red", "[::]:9000:80"),
        ("red", "23:22"),
        ("red", "53:53/udp"),
    ] {
        world.add(&mut state, ns, text).unwrap_or_else(|refusal| panic!("{text}: {refusal}"));
    }
}

#[test]
fn deleted_as_given_or_as_printed() {
    let (mut state, world) = (state(), World::new(&[]));
    let before = state.publishes.clone();
    for (added, deleted) in [("8080:80", "8080:80/tcp"), (":80", ":80"), ("80", "40000:80"), ("70-79:80", "70-79:80")] {
        world.add(&mut state, "blue", added).unwrap();
        state.delete_publish(&name("red"), &spec(deleted));
        state.delete_publish(&name("blue"), &spec("8081:80"));
        assert_eq!(state.publishes.len(), 1, "{deleted}");
        state.delete_publish(&name("blue"), &spec(deleted));
        assert_eq!(state.publishes, before, "{deleted}");
    }
}

#[test]
fn places_are_used_again_under_another_epoch() {
    let (mut state, world) = (state(), World::new(&[]));
    let first = world.add(&mut state, "blue", "1:1").unwrap();
    world.add(&mut state, "blue", "2:2").unwrap();
    state.delete_publish(&name("blue"), &spec("1:1"));
    let again = world.add(&mut state, "red", "1:1").unwrap();
    assert_eq!(again.entries[0].place, first.entries[0].place);
    assert_ne!(again.entries[0].epoch, first.entries[0].epoch);
    let mut places: Vec<u16> = state.publishes.iter().flat_map(|p| &p.entries).map(|entry| entry.place).collect();
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), 3);
}

#[test]
fn the_table_has_an_end() {
    let (state, world) = (RefCell::new(state()), World::new(&[]));
    // 30 prefixes each and two families: the prefixes run out before the places.
    let fill = |number: u32| {
        let text = format!("127.0.{}.{}:1-65534:1-65534", number / 256, number % 256);
        world.add(&mut state.borrow_mut(), "blue", &text)
    };
    let full = (0..MAX_PUBLISHES).map(fill).find_map(Result::err).unwrap().to_string();
    assert!(full.contains("full"), "{full}");
    assert_eq!(state.borrow().publishes.len(), MAX_PUBLISHED_PREFIXES as usize / 30);
}

#[test]
fn what_is_detached_publishes_no_more() {
    let (mut state, world) = (state(), World::new(&[]));
    for (ns, text) in [("red", "1:1"), ("blue", "2:2"), ("blue", "3:3")] {
        world.add(&mut state, ns, text).unwrap();
    }
    world.add_by(&mut state, "red", "4:4", Some("dual")).unwrap();
    let left = |state: &State| state.reserved_ports().to_string();
    let mut detached = state.clone();
    detached.detach(&name("v4"), &name("red"));
    assert_eq!(left(&detached), "2-4,16384-32767");
    let mut deleted = state.clone();
    deleted.delete_namespace(&name("red"), true).unwrap();
    assert_eq!(left(&deleted), "2-3,16384-32767");
    state.delete_network(&name("dual"), true).unwrap();
    assert_eq!(left(&state), "1,16384-32767");
    state.delete_publish(&name("red"), &spec("1:1"));
    assert_eq!(left(&state), "");
}

#[test]
fn the_plan_there_and_back() {
    let (old, world) = (state(), World::new(&[]));
    let mut new = old.clone();
    world.add(&mut new, "blue", "8080:80").unwrap();
    world.add(&mut new, "red", "1:1").unwrap();
    new.reserved_before = Some("7,8080".parse().unwrap());
    let there = plan(&old, &new, &[]);
    let [Step::ReservePorts(reservation), Step::SetPools(pools, _), Step::AddPublish(one), Step::AddPublish(other)] =
        there.as_slice()
    else {
        panic!("{there:?}");
    };
    assert_eq!(pools.to_string(), "16384-32767");
    assert_eq!([one, other], [&new.publishes[0], &new.publishes[1]]);
    assert_eq!(reservation.to.to_string(), "1,8080,16384-32767");
    let back = plan(&new, &old, &[]);
    let undone: Vec<Step> = there.iter().filter_map(Step::undo).collect();
    assert!(undone.iter().all(|step| back.contains(step)), "{back:?}");
    assert!(matches!(back.last(), Some(Step::ReservePorts(_))), "released before it is deleted: {back:?}");
    assert_eq!(there.iter().filter_map(|step| step.undo()?.undo()).collect::<Vec<_>>(), there);
    let kept: Step = serde_json::from_str(&serde_json::to_string(&there[0]).unwrap()).unwrap();
    assert_eq!(kept, there[0]);
    assert_eq!(plan(&new, &new.clone(), &[]), []);
}

#[test]
fn pools_in_use_are_reserved() {
    let (mut state, world) = (state(), World::new(&[]));
    let pools = |state: &State| state.pools().to_string();
    state.networks.get_mut(&name("dual")).unwrap().outside.snat_ports = Some("2000-2999".parse().unwrap());
    assert_eq!(pools(&state), "");
    // Nothing is masqueraded, but a namespace that comes by an address of the host's needs a port.
    world.add(&mut state, "blue", "8080:80").unwrap();
    assert_eq!((pools(&state), state.reserved_ports().to_string()), ("2000-2999".into(), "2000-2999,8080".into()));
    state.set_masquerade(&name("v4"), true).unwrap();
    assert_eq!(pools(&state), "2000-2999,16384-32767");
    // A published port may be in a pool; it is reserved for as long as either wants it.
    world.add(&mut state, "red", "20000:80").unwrap();
    state.set_masquerade(&name("v4"), false).unwrap();
    assert_eq!(pools(&state), "2000-2999,16384-32767");
    state.delete_publish(&name("red"), &spec("20000:80"));
    state.delete_publish(&name("blue"), &spec("8080:80"));
    assert_eq!(state.reserved_ports().to_string(), "");
}

#[test]
fn reserved_ports_of_others_stay() {
    let set = |text: &str| text.parse::<PortSet>().unwrap();
    let change = |before: &str, from: &str, to: &str| Reservation { before: set(before), from: set(from), to: set(to) };
    let applied = |change: &Reservation, current: &str| change.applied_to(&set(current)).to_string();
    let add = change("7,80", "", "80-90");
    assert_eq!(applied(&add, "7,80"), "7,80-90");
    assert_eq!(applied(&add, "7,80-90"), "7,80-90");
    let remove = change("7,80", "80-90", "");
    assert_eq!(applied(&remove, "7,80-90"), "7,80");
    assert_eq!(applied(&remove, "7,80"), "7,80");
    // What others have done meanwhile.
    assert_eq!(applied(&remove, "80-90,100"), "80,100");
    assert_eq!(applied(&change("7", "80", "80,90"), "80,100"), "80,90,100");
}

#[test]
fn kept_in_the_file() {
    let (mut state, world) = (state(), World::new(&[]));
    world.add(&mut state, "blue", "[2001:db8::1]:8000-8010:80").unwrap();
    state.reserved_before = Some("1-3,7".parse().unwrap());
    let text = serde_json::to_string(&state).unwrap();
    assert!(text.contains(r#""spec":"[2001:db8::1]:8000:80/tcp""#), "{text}");
    assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state);
}

#[test]
fn nothing_comes_in_by_an_internal_network() {
    let world = World::new(&[]);
    let mut state = state();
    let request =
        NetworkRequest { internal: true, ..NetworkRequest::new(name("inner"), vec!["10.2.0.0/24".parse().unwrap()]) };
    state.add_network(&request, 1500).unwrap();
    state.attach(&AttachRequest::new(name("inner"), name("green"))).unwrap();
    state.attach(&AttachRequest::new(name("inner"), name("blue"))).unwrap();
    let before = state.clone();
    for (ns, network) in [("green", None), ("green", Some("inner")), ("blue", Some("inner"))] {
        let refusal = world.add_by(&mut state, ns, "8080:80", network).unwrap_err().to_string();
        assert!(refusal.contains("inner is internal"), "{refusal}");
    }
    assert_eq!(state, before);
    // By another one it does, and no more when that becomes internal, too.
    let publish = world.add(&mut state, "blue", "8080:80").unwrap();
    assert_eq!(publish.network, name("dual"));
    let request = PublishRequest { ns: name("blue"), network: None, spec: spec("8080:80") };
    assert!(state.still_leads(&request, &publish));
    state.networks.get_mut(&name("dual")).unwrap().outside.internal = true;
    assert!(!state.still_leads(&request, &publish));
}
