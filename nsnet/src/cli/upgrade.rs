//! `nsnet upgrade`.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::Answer;
use super::output::{self, Format, Table, with_progress};
use crate::kernel::host::Host;
use crate::kernel::upgrade::{Allowed, Outcome, upgrade};

/// Arguments of `upgrade`.
#[derive(Debug, Args)]
pub(super) struct UpgradeArgs {
    /// Also when this nsnet's programs are loaded already
    #[arg(long)]
    force: bool,
    /// Also when flows are lost: connections through NAT break
    #[arg(long)]
    allow_loss: bool,
}

pub(super) fn run(host: &Host, format: Format, args: &UpgradeArgs) -> Answer {
    let allowed = Allowed { same: args.force, loss: args.allow_loss };
    let outcome = with_progress("replacing the programs", || upgrade(host, allowed))?;
    let mut table = Table::new(&["result", "build", "before", "hooks", "kept", "copied", "emptied"]);
    let mut row = |result: &str, build: Value, before: Value, hooks: Value, maps: [Value; 3]| {
        let [kept, copied, emptied] = maps;
        table.row([json!(result), build, before, hooks, kept, copied, emptied]);
    };
    match &outcome {
        Outcome::NotLoaded => row("not loaded", Value::Null, Value::Null, json!(0), [json!(0), json!([]), json!([])]),
        Outcome::Current(build) => {
            let build = json!(build.to_string());
            row("current", build.clone(), build, json!(0), [json!(0), json!([]), json!([])]);
        }
        Outcome::Upgraded(done) => {
            let (kept, copied, emptied) = done.programs.plan.summary();
            let before = done.programs.from.as_ref().map(|build| build.id.to_string());
            let maps = [json!(kept), json!(copied), json!(emptied)];
            row("upgraded", json!(done.programs.to.to_string()), json!(before), json!(done.hooks), maps);
        }
    }
    output::print_one(format, &table)?;
    if let Outcome::Upgraded(done) = &outcome {
        for loss in done.programs.plan.losses() {
            output::note(&format!("lost: {loss}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}
