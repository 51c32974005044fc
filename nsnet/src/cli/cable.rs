//! `nsnet cable`.

use std::process::ExitCode;

use serde_json::json;

use super::Answer;
use super::args::CableVerb;
use super::output::{self, Format, Table};
use crate::kernel::host::Host;
use crate::kernel::observe::Scope;
use crate::model::drift::Object;
use crate::model::state::Cable;

pub(super) fn run(host: &Host, format: Format, verb: &CableVerb) -> Answer {
    match verb {
        CableVerb::Add(request) => {
            for ns in [&request.a, &request.b] {
                host.member(ns.as_str())?;
            }
            let change = host.change_and_repair(
                |state| Ok(state.add_cable(request)?),
                |_state, cable| Scope::these([Object::cable(cable)]),
            )?;
            output::print_one(format, &table(&[change.answer]))?;
        }
        CableVerb::Del { ns_a, ns_b } => {
            host.change(|state| {
                state.delete_cable(ns_a, ns_b);
                Ok(())
            })?;
        }
        CableVerb::List => output::print(format, &table(&host.state()?.cables))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn table(cables: &[Cable]) -> Table {
    let mut table = Table::new(&["a", "ifname_a", "address_a", "b", "ifname_b", "address_b"]);
    for Cable { a, b } in cables {
        table.row([
            json!(a.ns),
            json!(a.interface),
            json!(a.address),
            json!(b.ns),
            json!(b.interface),
            json!(b.address),
        ]);
    }
    table
}
