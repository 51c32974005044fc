//! What was shown: a line for each step, or all of them as JSON at the end.

use std::io::{self, IsTerminal as _};

use anyhow::Result;
use serde_json::{Value, json};

use super::super::interrupt::Interrupt;
use super::super::output::{self, Format};

/// The steps so far.
#[derive(Debug)]
pub(super) struct Report {
    format: Format,
    marks: Marks,
    interrupt: Interrupt,
    scenario: &'static str,
    steps: Vec<Step>,
}

/// Something that was to be shown.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    scenario: &'static str,
    name: String,
    ok: bool,
    /// What was proven, or why not.
    detail: String,
}

/// What stands in front of a step.
#[derive(Clone, Copy, Debug)]
enum Marks {
    Words,
    Colours,
}

impl Report {
    /// No steps yet.
    pub(super) fn new(format: Format, interrupt: Interrupt) -> Self {
        let colours = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let marks = if colours { Marks::Colours } else { Marks::Words };
        Self { format, marks, interrupt, scenario: "", steps: Vec::new() }
    }

    /// Begins a scenario: `name` for programs, `title` for people.
    pub(super) fn scenario(&mut self, name: &'static str, title: &str) -> io::Result<()> {
        let space = if self.steps.is_empty() { "" } else { "\n" };
        self.scenario = name;
        self.line(&format!("{space}{title}"))
    }

    /// Does a step, whose proof says what it has proven or why it could not; says whether it could.
    ///
    /// # Errors
    /// When the user has asked for an end or the answer cannot be written; not when the step fails.
    pub(super) fn step(&mut self, name: &str, proof: impl FnOnce() -> Result<String>) -> Result<bool> {
        self.interrupt.check()?;
        let outcome = proof();
        // What fails because the user ended it has not failed.
        self.interrupt.check()?;
        let ok = outcome.is_ok();
        let detail = outcome.unwrap_or_else(|error| format!("{error:#}"));
        let detail = detail.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let step = Step { scenario: self.scenario, name: name.to_owned(), ok, detail };
        self.line(&self.marks.show(&step))?;
        self.steps.push(step);
        Ok(ok)
    }

    /// A line for people only.
    pub(super) fn line(&self, text: &str) -> io::Result<()> {
        match self.format {
            Format::Table => output::line(text),
            Format::Json => Ok(()),
        }
    }

    /// Ends the report; says whether every step succeeded.
    pub(super) fn finish(&self, comparison: &Value, nat: &Value) -> io::Result<bool> {
        let failed = self.steps.iter().filter(|step| !step.ok).count();
        match self.format {
            Format::Table => output::line(&format!("\n{}", summary(self.steps.len(), failed)))?,
            Format::Json => output::print_json(&json!({
                "steps": self.steps.iter().map(Step::to_json).collect::<Vec<_>>(),
                "comparison": comparison,
                "nat_comparison": nat,
            }))?,
        }
        Ok(failed == 0)
    }

    /// What tells that the user has asked for an end.
    pub(super) fn interrupt(&self) -> Interrupt {
        self.interrupt.clone()
    }
}

impl Step {
    fn to_json(&self) -> Value {
        json!({ "scenario": self.scenario, "step": self.name, "ok": self.ok, "detail": self.detail })
    }
}

impl Marks {
    fn show(self, step: &Step) -> String {
        let Step { name, detail, .. } = step;
        match (self, step.ok) {
            (Self::Words, true) => format!("  ok {name}: {detail}"),
            (Self::Words, false) => format!("  FAILED: {name}: {detail}"),
            (Self::Colours, true) => format!("  \x1b[32m✓\x1b[0m {name}: {detail}"),
            (Self::Colours, false) => format!("  \x1b[31mFAILED\x1b[0m: {name}: {detail}"),
        }
    }
}

fn summary(steps: usize, failed: usize) -> String {
    match failed {
        0 => format!("all {steps} steps proven"),
        _ => format!("{failed} of {steps} steps FAILED"),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    fn report(interrupt: Interrupt) -> Report {
        Report { format: Format::Json, marks: Marks::Words, interrupt, scenario: "", steps: Vec::new() }
    }

    #[test]
    fn goes_on_after_a_failure() {
        let mut report = report(Interrupt::never());
        report.scenario("cable", "Cable").unwrap();
        assert!(!report.step("ping", || bail!("no\nanswer")).unwrap());
        assert!(report.step("tables", || Ok("empty".into())).unwrap());
        let failed = Step { scenario: "cable", name: "ping".into(), ok: false, detail: "no answer".into() };
        assert_eq!(report.steps[0], failed);
        assert_eq!(Marks::Words.show(&report.steps[0]), "  FAILED: ping: no answer");
        assert_eq!(Marks::Words.show(&report.steps[1]), "  ok tables: empty");
        assert_eq!(Marks::Colours.show(&report.steps[1]), "  \x1b[32m✓\x1b[0m tables: empty");
        assert_eq!(summary(2, 1), "1 of 2 steps FAILED");
    }

    #[test]
    fn stops_when_interrupted() {
        let mut report = report(Interrupt::now());
        assert!(report.step("ping", || panic!("begun")).is_err());
        assert!(report.steps.is_empty());
    }
}
