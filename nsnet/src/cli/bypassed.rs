//! Rules of the host's firewall that packets of ours do not pass, as `doctor` and the first network tell of them.

use serde_json::json;

use super::output::{self, Table};
use crate::kernel::netfilter::{self, Bypassed};
use crate::model::name::Name;
use crate::model::state::State;

/// How many rules the first network tells of.
const TOLD: usize = 10;

/// Tells of each rule on stderr, up to [`TOLD`]. That they cannot be listed is told, too, and is no failure.
pub(super) fn tell(state: &State) {
    match netfilter::bypassed(&networks(state)) {
        Ok(rules) => notes(&rules).iter().for_each(|note| output::note(note)),
        Err(error) => output::note(&format!("whether firewall rules are bypassed is not known: {error}")),
    }
}

/// The networks' own interfaces.
pub(super) fn networks(state: &State) -> Vec<&str> {
    state.networks.keys().map(Name::as_str).collect()
}

fn notes(rules: &[Bypassed]) -> Vec<String> {
    let mut notes: Vec<String> = rules.iter().take(TOLD).map(ToString::to_string).collect();
    if rules.len() > TOLD {
        notes.push(format!("and {} more, see `nsnet doctor`", rules.len() - TOLD));
    }
    notes
}

/// How many there are.
pub(super) fn summary(rules: &[Bypassed]) -> String {
    match rules.len() {
        1 => "1 rule of the host's firewall is not seen by packets of nsnet".to_owned(),
        count => format!("{count} rules of the host's firewall are not seen by packets of nsnet"),
    }
}

/// The rules, a row for each.
pub(super) fn table(rules: &[Bypassed]) -> Table {
    let mut table = Table::new(&["source", "family", "table", "chain", "hooks", "rule", "what", "comment"]);
    for rule in rules {
        table.row([
            json!(rule.source.name()),
            json!(rule.family),
            json!(rule.table),
            json!(rule.chain),
            json!(rule.hooks),
            json!(rule.rule.to_string()),
            json!(rule.what),
            json!(rule.comment),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netfilter::{Rule, Source};

    #[test]
    fn ten_are_told_and_the_others_counted() {
        let rule = |number| Bypassed {
            source: Source::Legacy,
            family: "ip",
            table: "filter".to_owned(),
            chain: "FORWARD".to_owned(),
            hooks: vec!["forward"],
            rule: Rule::Number(number),
            comment: None,
            what: String::new(),
        };
        let rules: Vec<Bypassed> = (1..=12).map(rule).collect();
        assert!(notes(&[]).is_empty());
        assert_eq!(notes(&rules[..10]).len(), 10);
        let notes = notes(&rules);
        assert_eq!((notes.len(), notes[10].as_str()), (11, "and 2 more, see `nsnet doctor`"));
        assert_eq!(notes[0], "legacy ip filter FORWARD: rule 1 is not seen by packets of nsnet");
    }
}
