//! The desired state: what edits grant and refuse, and that a plan and its undo lead there and back. No kernel here.

#![allow(clippy::unwrap_used, reason = "a test reports by panicking")]

use std::net::IpAddr;

use nsnet::model::mode::Mode;
use nsnet::model::name::Name;
use nsnet::model::plan::{Step, plan};
use nsnet::model::request::{AttachRequest, CableRequest, NetworkRequest, RouteRequest};
use nsnet::model::state::State;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn network(text: &str, subnets: &[&str]) -> NetworkRequest {
    NetworkRequest::new(name(text), subnets.iter().map(|net| net.parse().unwrap()).collect())
}

fn add(state: &mut State, request: &NetworkRequest) -> nsnet::model::Result<()> {
    state.add_network(request, 1500).map(drop)
}

fn attach(network: &str, ns: &str, ips: &[&str]) -> AttachRequest {
    AttachRequest { ip: ips.iter().map(|text| ip(text)).collect(), ..AttachRequest::new(name(network), name(ns)) }
}

fn cable(a: &str, b: &str, address_a: Option<&str>) -> CableRequest {
    CableRequest { a: name(a), b: name(b), address_a: address_a.map(|net| net.parse().unwrap()), address_b: None }
}

fn route(ns: &str, dest: &str, via: Option<&str>) -> RouteRequest {
    RouteRequest { ns: name(ns), dest: dest.parse().unwrap(), word: None, via: via.map(ip) }
}

/// Network v4 with red, network v6 with red and blue, a cable and a route.
fn state() -> State {
    let mut state = State::default();
    for ns in ["red", "blue"] {
        state.add_namespace(&name(ns), true);
    }
    add(&mut state, &network("v4", &["10.0.0.0/24"])).unwrap();
    add(&mut state, &network("v6", &["10.1.0.0/29", "fd00::/64"])).unwrap();
    state.attach(&attach("v4", "red", &[])).unwrap();
    state.attach(&attach("v6", "red", &[])).unwrap();
    state.attach(&attach("v6", "blue", &["10.1.0.4"])).unwrap();
    state.add_cable(&cable("red", "blue", Some("10.9.0.1/30"))).unwrap();
    state.add_route(&route("red", "192.168.0.0/16", Some("10.0.0.254"))).unwrap();
    state
}

#[test]
fn addresses_interfaces_and_macs_are_chosen() {
    let state = state();
    let [first, second, third] = state.attachments.as_slice() else { panic!("three attachments") };
    assert_eq!(first.ips, [ip("10.0.0.1")]);
    assert_eq!(second.ips, [ip("10.1.0.1"), ip("fd00::1")]);
    assert_eq!(third.ips, [ip("10.1.0.4"), ip("fd00::2")]);
    assert_eq!((first.inner.as_str(), first.outer.as_str()), ("veth-red", "veth-red-br"));
    assert_ne!((&second.inner, &second.outer), (&first.inner, &first.outer), "a second interface has another name");
    assert_ne!(first.mac, second.mac);
    assert_eq!(state.network(&name("v4")).unwrap().subnets[0].gateway, ip("10.0.0.254"));
    assert_eq!(state.members().len(), 5);
}

#[test]
fn the_same_again_changes_nothing() {
    let mut again = state();
    add(&mut again, &network("v4", &["10.0.0.0/24"])).unwrap();
    again.attach(&attach("v6", "blue", &["10.1.0.4"])).unwrap();
    again.attach(&attach("v6", "blue", &[])).unwrap();
    again.add_cable(&cable("blue", "red", None)).unwrap();
    again.add_route(&route("red", "192.168.0.0/16", Some("10.0.0.254"))).unwrap();
    assert_eq!(again, state());
    assert_eq!(plan(&state(), &again, &[]), []);
}

/// An edit that should be refused, with words that the refusal must have.
type Wrong<'a> = (&'a dyn Fn(&mut State) -> nsnet::model::Result<()>, &'a [&'a str]);

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let with = |change: fn(&mut NetworkRequest)| {
        let mut request = network("v9", &["10.9.0.0/24"]);
        change(&mut request);
        request
    };
    let gateway_outside = with(|request| request.gateway = vec![ip("10.8.0.1")]);
    let gateway_broadcast = with(|request| request.gateway = vec![ip("10.9.0.255")]);
    let small_mtu = with(|request| (request.subnet, request.mtu) = (vec!["fd09::/64".parse().unwrap()], Some(1279)));
    let taken_mac = |state: &mut State| {
        let mac = state.attachments[1].mac;
        state.attach(&AttachRequest { mac: Some(mac), ..attach("v6", "green", &[]) }).map(drop)
    };
    let attached_on_a_cable = |state: &mut State| {
        // The network is good, and is not kept.
        let mut tried = state.clone();
        add(&mut tried, &network("v9", &["10.9.0.0/24"])).unwrap();
        tried.attach(&attach("v9", "red", &[])).map(drop)
    };
    let mapped = with(|request| (request.masquerade, request.snat_source) = (true, vec![ip("::ffff:1.2.3.4")]));
    let mapped_source = |state: &mut State| add(state, &mapped);
    let wrong: &[Wrong<'_>] = &[
        (&|s| add(s, &network("v9", &["10.0.0.128/25"])), &["10.0.0.128/25", "overlaps", "v4"]),
        (&|s| add(s, &network("v9", &["10.9.0.0/24", "10.9.0.0/25"])), &["overlap"]),
        (&|s| add(s, &network("v9", &["10.9.0.1/24"])), &["10.9.0.1/24"]),
        (&|s| add(s, &network("v9", &[])), &["v9", "needs a subnet"]),
        (&|s| add(s, &gateway_outside), &["10.8.0.1", "10.9.0.0/24"]),
        (&|s| add(s, &gateway_broadcast), &["10.9.0.255"]),
        (&|s| add(s, &small_mtu), &["1279", "1280"]),
        (&|s| add(s, &network("v4", &["10.5.0.0/24"])), &["10.0.0.0/24", "10.5.0.0/24"]),
        (&|s| s.attach(&attach("nowhere", "red", &[])).map(drop), &["nowhere"]),
        (&|s| s.attach(&attach("v4", "blue", &["10.0.0.1"])).map(drop), &["10.0.0.1", "in use"]),
        (&|s| s.attach(&attach("v4", "blue", &["10.0.0.254"])).map(drop), &["10.0.0.254", "in use"]),
        (&|s| s.attach(&attach("v4", "blue", &["10.0.0.255"])).map(drop), &["10.0.0.255"]),
        (&|s| s.attach(&attach("v4", "blue", &["10.7.0.1"])).map(drop), &["10.7.0.1"]),
        (&|s| s.attach(&attach("v4", "blue", &["10.0.0.7", "10.0.0.7"])).map(drop), &["10.0.0.7", "given twice"]),
        (&|s| s.attach(&attach("v4", "red", &["10.0.0.9"])).map(drop), &["10.0.0.1", "10.0.0.9"]),
        (&taken_mac, &["MAC", "red"]),
        (&|s| s.delete_network(&name("v6"), false), &["red, blue", "--force"]),
        (&|s| s.delete_namespace(&name("red"), false), &["v4", "--force"]),
        (&|s| s.add_cable(&cable("red", "red", None)).map(drop), &["red"]),
        (&|s| s.add_cable(&cable("green", "blue", Some("10.8.0.0/30"))).map(drop), &["10.8.0.0/30", "host address"]),
        (&|s| s.add_cable(&cable("green", "blue", Some("::ffff:10.8.0.1/120"))).map(drop), &["IPv4"]),
        (&|s| s.add_cable(&cable("red", "green", Some("10.0.0.77/24"))).map(drop), &["10.0.0.0/24", "v4", "red"]),
        (&|s| s.add_cable(&cable("red", "green", Some("fd00::7/48"))).map(drop), &["fd00::/64", "v6"]),
        (&|s| s.add_cable(&cable("red", "green", Some("10.9.0.2/30"))).map(drop), &["10.9.0.1/30", "cable red-blue"]),
        (&attached_on_a_cable, &["10.9.0.0/24", "10.9.0.1/30", "cable red-blue"]),
        (&|s| s.add_route(&route("red", "::ffff:10.0.0.0/104", Some("fd00::1"))).map(drop), &["IPv4"]),
        (&|s| add(s, &network("v9", &["::ffff:10.0.0.0/120"])), &["::ffff:10.0.0.0/120", "IPv4"]),
        (&mapped_source, &["::ffff:1.2.3.4", "say that"]),
        (&|s| s.add_route(&route("red", "::/0", Some("10.0.0.254"))).map(drop), &["family"]),
        (&|s| s.add_route(&route("red", "0.0.0.0/0", None)).map(drop), &["several gateways"]),
        (&|s| s.add_route(&route("red", "0.0.0.0/0", Some("10.3.0.1"))).map(drop), &["10.3.0.1"]),
    ];
    for (edit, words) in wrong {
        let mut state = state();
        let refusal = edit(&mut state).unwrap_err().to_string();
        assert!(words.iter().all(|word| refusal.contains(word)), "{refusal:?} should have {words:?}");
        assert!(!refusal.contains('\n'));
        assert_eq!(state, self::state(), "refused, and yet changed: {refusal}");
    }
}

#[test]
fn cables_with_prefixes_of_others_elsewhere_are_laid() {
    let mut state = state();
    // Those of namespaces at neither end, and link-local ones.
    state.add_cable(&cable("green", "white", Some("10.9.0.1/30"))).unwrap();
    state.add_cable(&cable("red", "green", Some("fe80::1/64"))).unwrap();
    state.add_cable(&cable("red", "white", Some("fe80::1/64"))).unwrap();
}

#[test]
fn a_full_subnet_says_so() {
    let mut state = state();
    for number in 0..3 {
        state.attach(&attach("v6", &format!("n{number}"), &[])).unwrap();
    }
    let refusal = state.attach(&attach("v6", "late", &[])).unwrap_err().to_string();
    assert!(refusal.contains("no address"), "{refusal}");
}

#[test]
fn a_plan_builds_from_the_ground_and_takes_down_from_the_top() {
    let up = plan(&State::default(), &state(), &[]);
    let order: Vec<u8> = up.iter().map(rank).collect();
    assert!(order.is_sorted(), "{order:?}");
    assert_eq!(up.len(), 2 + 1 + 2 + 3 + 1 + 1);

    let down = plan(&state(), &State::default(), &[]);
    let order: Vec<u8> = down.iter().map(rank).collect();
    assert!(order.iter().rev().is_sorted(), "{order:?}");
    for step in &up {
        assert_eq!(step.undo().and_then(|undo| undo.undo()).as_ref(), Some(step));
        assert!(step.undo().is_some_and(|undo| down.contains(&undo)), "{step} is never taken back");
    }
}

/// What a step stands on has a lower rank.
fn rank(step: &Step) -> u8 {
    match step {
        Step::AddNamespace(_) | Step::DeleteNamespace(_) | Step::ReservePorts(_) => 0,
        Step::LoadDataplane | Step::UnloadDataplane => 1,
        Step::AddUplink(_) | Step::DeleteUplink(_) | Step::SetUplinkMode(..) => 2,
        Step::SetPools(..) => 3,
        Step::AddNetwork(_) | Step::DeleteNetwork(_) => 4,
        Step::SetPolicy(..) => 5,
        Step::Attach(..) | Step::Detach(..) | Step::SetMode(..) => 6,
        Step::AddCable(_) | Step::DeleteCable(_) => 7,
        Step::AddRoute(_) | Step::DeleteRoute(_) => 8,
        Step::AddPublish(_) | Step::DeletePublish(_) => 9,
        Step::TellLocals | Step::RemoveStray(_) | Step::Repair(_) => panic!("nothing was broken: {step}"),
    }
}

#[test]
fn a_mode_is_changed_at_the_ports_that_stay() {
    let (before, mut after) = (state(), state());
    after.set_modes(&name("v6"), Some(Mode::Xdp), None).unwrap();
    let steps = plan(&before, &after, &[]);
    let ports: Vec<&str> = steps
        .iter()
        .map(|step| if let Step::SetMode(port, ..) = step { port.ns.as_str() } else { panic!("{step}") })
        .collect();
    assert_eq!(ports, ["red", "blue"]);
    let back: Vec<Step> = steps.iter().filter_map(Step::undo).collect();
    assert_eq!(back, plan(&after, &before, &[]));
    // As fits is TC for them: nothing is to be done.
    after.set_modes(&name("v6"), Some(Mode::Auto), None).unwrap();
    assert_eq!(plan(&before, &after, &[]), []);
    // Asked for again, or left out, it is the same network; asked for otherwise it is not.
    let request = network("v6", &["10.1.0.0/29", "fd00::/64"]);
    for (mode, is_same) in [(None, true), (Some(Mode::Auto), true), (Some(Mode::Tc), false)] {
        assert_eq!(add(&mut after, &NetworkRequest { mode, ..request.clone() }).is_ok(), is_same, "{mode:?}");
    }
}

#[test]
fn force_takes_the_users_along() {
    let mut state = state();
    state.delete_namespace(&name("red"), true).unwrap();
    assert!(state.routes.is_empty() && state.cables.is_empty());
    assert_eq!(state.attachments.len(), 1);
    state.delete_network(&name("v6"), true).unwrap();
    assert!(state.attachments.is_empty());
}

#[test]
fn a_namespace_that_was_there_is_never_planned_for_deletion() {
    let mut state = State::default();
    state.add_namespace(&name("theirs"), false);
    state.add_namespace(&name("theirs"), true);
    assert_eq!(plan(&state, &State::default(), &[]), []);
}
