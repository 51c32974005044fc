//! Upgrades beside programs of others at our hooks.

use anyhow::Result;
use aya::programs::tc::{NlOptions, TcAttachOptions};
use aya::programs::{LinkOrder, TcAttachType};
use nsnet::kernel::clsact::BpfFilter;
use nsnet::kernel::dataplane::{open_object, program_in};
use nsnet::kernel::features::Features;
use nsnet::kernel::netlink::Netlink;
use nsnet_common::layout::names;

use super::object::program_on;
use super::outside_bed::Outside;
use super::stream::Traffic;

/// Programs of others at our hooks, with the names of ours: a first and a last one.
#[test]
fn programs_of_others_stay() -> Result<()> {
    let bed = Outside::new()?;
    let lab = &bed.lab;
    let interfaces = ["uplink", &bed.at("c1").port];
    // With nothing in its maps it lets everything pass.
    let open = || lab.within("host", || open_object(Features::probe()));
    let (mut first, mut last) = (open()??, open()??);
    let mut ids = Vec::new();
    for (object, order) in [(&mut first, LinkOrder::first as fn() -> LinkOrder), (&mut last, LinkOrder::last)] {
        let program = program_in(object, names::FROM_UPLINK)?;
        ids.push(program.info()?.id());
        for interface in interfaces {
            let options = TcAttachOptions::TcxOrder(order());
            lab.within("host", || program.attach_with_options(interface, TcAttachType::Ingress, options))??;
        }
    }
    let around = |interface: &str| -> Result<Vec<u32>> { program_on(lab, interface, TcAttachType::Ingress) };
    let before = interfaces.iter().map(|interface| around(interface)).collect::<Result<Vec<_>>>()?;
    let traffic = Traffic::start(&bed)?;
    for _ in 0..3 {
        lab.nsnet("upgrade --force")?;
        traffic.go_on()?;
        for (interface, before) in interfaces.iter().zip(&before) {
            let after = around(interface)?;
            let places = |programs: &[u32]| {
                (programs.len(), ids.iter().map(|id| programs.iter().position(|at| at == id)).collect::<Vec<_>>())
            };
            assert_eq!(places(&after), places(before), "{interface}");
            let is_other = |id: &u32| ids.contains(id) || !before.contains(id);
            assert!(after.iter().all(is_other), "{before:?} became {after:?}");
        }
    }
    traffic.finish()?;
    lab.nsnet("down")?;
    assert_eq!(around("uplink")?, ids);
    Ok(())
}

/// The same with filters.
#[test]
fn filters_of_others_stay() -> Result<()> {
    let mut lab = super::bed::lab()?;
    lab.treat_as_missing("tcx");
    let bed = Outside::inside(lab, "--masquerade", &["c1", "c2"])?;
    let lab = &bed.lab;
    let interfaces = ["uplink", &bed.at("c1").port];
    let netlink = Netlink::inside(&lab.ns("host")?)?;
    let mut theirs = lab.within("host", || open_object(Features::probe()))??;
    let program = program_in(&mut theirs, names::FROM_UPLINK)?;
    let id = program.info()?.id();
    for interface in interfaces {
        let options = TcAttachOptions::Netlink(NlOptions::default());
        lab.within("host", || program.attach_with_options(interface, TcAttachType::Ingress, options))??;
    }
    let filters = |interface: &str| anyhow::Ok(netlink.bpf_filters(netlink.existing_link(interface)?.index)?);
    let of = |interface: &str, ours: bool| -> Result<Vec<BpfFilter>> {
        Ok(filters(interface)?.into_iter().filter(|filter| (filter.program != id) == ours).collect())
    };
    let before = interfaces.iter().map(|interface| anyhow::Ok((of(interface, false)?, of(interface, true)?)));
    let before = before.collect::<Result<Vec<_>>>()?;
    let traffic = Traffic::start(&bed)?;
    for _ in 0..3 {
        lab.nsnet("upgrade --force")?;
        traffic.go_on()?;
        for (interface, (theirs, ours)) in interfaces.iter().zip(&before) {
            assert_eq!(&of(interface, false)?, theirs, "{interface}");
            let now = of(interface, true)?;
            // In the same places, with other programs.
            let numbers = |filters: &[BpfFilter]| -> Vec<u32> { filters.iter().map(|filter| filter.program).collect() };
            assert!(now.len() == ours.len() && numbers(&now).iter().all(|id| !numbers(ours).contains(id)), "{now:?}");
        }
    }
    traffic.finish()?;
    Ok(())
}
