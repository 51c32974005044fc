//! What a network may do beyond itself, in the desired state: what is kept, compared, planned and taken back.

#![allow(clippy::unwrap_used, reason = "a test reports by panicking")]

use nsnet::model::name::Name;
use nsnet::model::plan::{Step, plan};
use nsnet::model::policy::{Outside, UplinkChoice};
use nsnet::model::request::{AttachRequest, NetworkRequest, RouteRequest};
use nsnet::model::state::State;
use nsnet::model::uplink::Candidate;

const NET: &str = "v-net-0";

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn request(outside: Outside) -> NetworkRequest {
    let subnets = vec!["10.0.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()];
    let Outside { masquerade, internal, isolated, uplink, .. } = outside;
    NetworkRequest { masquerade, internal, isolate: isolated, uplink, ..NetworkRequest::new(name(NET), subnets) }
}

fn masquerade() -> Outside {
    Outside { masquerade: true, ..Outside::default() }
}

fn named(uplink: &str) -> Outside {
    Outside { uplink: Some(uplink.parse().unwrap()), ..Outside::default() }
}

fn with_network(outside: Outside) -> State {
    let mut state = State::default();
    state.add_network(&request(outside), 1500).unwrap();
    state
}

fn attach(state: &mut State, ns: &str) {
    let attach = AttachRequest::new(name(NET), name(ns));
    let port = state.attach(&attach).unwrap();
    state.add_default_routes(&port, |_v4| false);
}

fn eth(name: &str, ifindex: u32) -> Candidate {
    Candidate {
        name: name.to_owned(),
        ifindex,
        is_ethernet: true,
        is_up: true,
        is_enslaved: false,
        addresses: vec!["192.0.2.1/24".parse().unwrap()],
        routes: Vec::new(),
        has_qdisc: false,
        stays: false,
    }
}

#[test]
fn the_same_arguments_again_and_others() {
    let mut state = with_network(Outside { isolated: false, ..masquerade() });
    let before = state.clone();
    state.add_network(&request(Outside { isolated: false, ..masquerade() }), 1500).unwrap();
    // Masquerade has a verb of its own: who says nothing of it does not ask for it to be off.
    state.add_network(&request(Outside { isolated: false, ..Outside::default() }), 1500).unwrap();
    assert_eq!(state, before);
    for (asked, word) in [(masquerade(), "--isolate false"), (named("eth0"), "--uplink eth0")] {
        let refusal = state.add_network(&request(asked), 1500).unwrap_err().to_string();
        assert!(refusal.contains(word) && refusal.contains("--masquerade"), "{refusal}");
    }
    let mut plain = with_network(Outside::default());
    assert!(plain.add_network(&request(masquerade()), 1500).unwrap_err().to_string().contains("--masquerade"));
}

#[test]
fn masquerade_changes_the_policy_and_nothing_else() {
    let off = with_network(Outside::default());
    let mut on = off.clone();
    on.set_masquerade(&name(NET), true).unwrap();
    let network = |state: &State| state.networks[&name(NET)].clone();
    let steps = plan(&off, &on, &[]);
    let [Step::ReservePorts(reservation), Step::SetPools(pools, _), last] = steps.as_slice() else {
        panic!("{steps:?}")
    };
    assert_eq!((reservation.to.to_string().as_str(), pools), ("16384-32767", &on.pools()));
    assert_eq!(*last, Step::SetPolicy(network(&on), network(&off)));
    let back = plan(&on, &off, &[]);
    assert_eq!(back.len(), 3);
    assert!(steps.iter().all(|step| step.undo().is_some_and(|undo| back.contains(&undo))), "{back:?}");
    on.set_masquerade(&name(NET), true).unwrap();
    on.set_masquerade(&name(NET), false).unwrap();
    assert_eq!(on, off);

    let mut internal = with_network(Outside { internal: true, ..Outside::default() });
    assert!(internal.set_masquerade(&name(NET), true).unwrap_err().to_string().contains("internal"));
    assert!(internal.set_masquerade(&name("nowhere"), true).unwrap_err().to_string().contains("nowhere"));
}

#[test]
fn uplinks_and_ports_come_before_the_network_and_go_after_it() {
    let mut up = with_network(masquerade());
    up.choose_uplinks(&[eth("eth0", 2), eth("eth1", 3)], false).unwrap();
    let steps = plan(&State::default(), &up, &[]);
    let [
        Step::ReservePorts(_),
        Step::LoadDataplane,
        Step::AddUplink(one),
        Step::AddUplink(two),
        Step::SetPools(..),
        Step::AddNetwork(_),
    ] = steps.as_slice()
    else {
        panic!("{steps:?}")
    };
    assert_eq!((one.interface.as_str(), two.interface.as_str()), ("eth0", "eth1"));
    let down = plan(&up, &State::default(), &[]);
    assert!(steps.iter().all(|step| step.undo().is_some_and(|undo| down.contains(&undo))), "{down:?}");
    assert!(matches!(down.as_slice(), [.., Step::UnloadDataplane, Step::ReservePorts(_)]), "{down:?}");
}

#[test]
fn an_uplink_that_is_another_interface_now() {
    let mut before = with_network(named("eth0"));
    before.choose_uplinks(&[eth("eth0", 2)], false).unwrap();
    let mut after = before.clone();
    after.choose_uplinks(&[eth("eth0", 9)], false).unwrap();
    let steps = plan(&before, &after, &[]);
    // The network is bound to the new one.
    assert!(matches!(steps.as_slice(), [Step::DeleteUplink(_), Step::AddUplink(_), Step::SetPolicy(..)]), "{steps:?}");
    // Another name is no other interface, but not the one that was asked for either.
    let mut renamed = before.clone();
    renamed.choose_uplinks(&[eth("wan", 2)], false).unwrap();
    assert!(renamed.uplinks.is_empty());
    let mut auto = with_network(Outside { uplink: Some(UplinkChoice::Auto), ..Outside::default() });
    auto.choose_uplinks(&[eth("eth0", 2)], false).unwrap();
    let mut renamed = auto.clone();
    renamed.choose_uplinks(&[eth("wan", 2)], false).unwrap();
    assert_eq!(plan(&auto, &renamed, &[]), []);
}

#[test]
fn a_way_out_brings_default_routes() {
    let dests = |state: &State| state.routes.iter().map(|route| route.dest.to_string()).collect::<Vec<_>>();
    let both = ["0.0.0.0/0", "::/0"];
    let auto = Outside { uplink: Some(UplinkChoice::Auto), ..Outside::default() };
    for (outside, expected) in
        [(masquerade(), &both[..]), (auto, &both), (named("eth0"), &both), (Outside::default(), &[])]
    {
        let mut state = with_network(outside);
        attach(&mut state, "red");
        assert_eq!(dests(&state), expected);
    }
    // Not where somebody has given one, here or by `route add`; and they go with the attachment.
    let mut state = with_network(masquerade());
    attach(&mut state, "red");
    let port = state.attachments[0].clone();
    state.add_default_routes(&port, |_v4| false);
    assert_eq!(dests(&state), both);
    state.delete_route(&name("red"), "::/0".parse().unwrap());
    state.add_default_routes(&port, |v4| !v4);
    assert_eq!(dests(&state), both[..1]);
    let gateway = state.networks[&name(NET)].subnets[0].gateway;
    assert_eq!(state.routes[0].via, gateway);
    let request = RouteRequest { ns: name("red"), dest: "default".parse().unwrap(), word: None, via: None };
    state.add_route(&request).unwrap();
    state.detach(&name(NET), &name("red"));
    assert!(state.routes.is_empty());
}
