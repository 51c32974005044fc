//! An explanation, as a list for people or JSON for programs.

use std::io;

use serde_json::{Map, Value, json};

use super::super::output;
use crate::kernel::explain::{Confirmed, Explained};
use crate::model::explain::entries::Entry;
use crate::model::explain::names::Names;
use crate::model::explain::stages::Part;
use crate::model::explain::story::Story;
use crate::model::explain::walk::Arrival;

/// An explanation with what it was made of.
pub(super) struct Answer<'a> {
    pub(super) arrival: &'a Arrival,
    pub(super) names: &'a Names,
    pub(super) stories: &'a [Story],
    pub(super) explained: &'a Explained,
    pub(super) is_same_build: bool,
    /// Whether every look-up is shown, and not only what decided.
    pub(super) lookups: bool,
}

impl Answer<'_> {
    fn comes_by(&self) -> String {
        self.names.port(self.arrival.entrance.port())
    }

    /// As a list.
    pub(super) fn list(&self) -> io::Result<()> {
        for (number, story) in self.stories.iter().enumerate() {
            if number > 0 {
                output::line("")?;
            }
            let again = if number == 0 { "" } else { ", again" };
            item("frame", &story.before)?;
            item("comes in", &format!("by {}{again}", self.comes_by()))?;
            // That a port was found is worth a line when nothing else is.
            let skipped = usize::from(!self.lookups && story.parts.len() > 1);
            story.parts.iter().skip(skipped).try_for_each(|part| self.part(part))?;
            item("VERDICT", &story.end.says)?;
            if !story.changed.is_empty() {
                item("becomes", &story.after)?;
            }
            let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
            let changed = story
                .changed
                .iter()
                .map(|field| format!("{}: {} > {}", field.name, value(&field.before), value(&field.after)));
            items("field", changed)?;
            let edits = story.edits.iter().map(|edit| format!("{} {}: {}", edit.table, edit.key, edit.change));
            items("would edit", edits)?;
            let counters = story.counters.iter().map(|counter| {
                let bytes = if counter.bytes == 0 { String::new() } else { format!(", {} bytes", counter.bytes) };
                format!("{} {}: {:+}{bytes}", counter.name, counter.counter, counter.packets)
            });
            items("would count", counters)?;
        }
        match &self.explained.confirmed {
            Confirmed::Yes => item("confirmed", "a copy of the programs, tried in the kernel, does the same"),
            Confirmed::No(_) => item("NOT CONFIRMED", "a copy of the programs, tried in the kernel, does otherwise"),
            Confirmed::Untried(why) => item("not tried", why),
        }
    }

    fn part(&self, part: &Part) -> io::Result<()> {
        item(part.name, &part.says)?;
        let line = |entry: &Entry| format!("{} {}: {}", entry.table, entry.key, entry.entry);
        if self.lookups {
            for entry in &part.lookups {
                let mark = if part.by.as_ref() == Some(entry) { "*" } else { " " };
                item("", &format!("{mark} {}", line(entry)))?;
            }
        } else if let Some(entry) = &part.by {
            item("", &format!("  by {}", line(entry)))?;
        }
        Ok(())
    }

    /// As JSON.
    pub(super) fn json(&self) -> Value {
        let (confirmed, differences, untried) = match &self.explained.confirmed {
            Confirmed::Yes => (json!(true), json!([]), Value::Null),
            Confirmed::No(lines) => (json!(false), json!(lines), Value::Null),
            Confirmed::Untried(why) => (Value::Null, json!([]), json!(why)),
        };
        let frames = self.stories.iter().zip(&self.explained.passes);
        let frames: Vec<Value> = frames.map(|(story, pass)| frame(story, &pass.before, &pass.after.bytes)).collect();
        json!({
            "from": self.comes_by(),
            "frames": frames,
            "confirmed": confirmed,
            "differences": differences,
            "not_tried": untried,
            "same_build": self.is_same_build,
        })
    }
}

fn frame(story: &Story, before: &[u8], after: &[u8]) -> Value {
    let entry = |entry: &Entry| json!({ "table": entry.table, "key": entry.key, "entry": entry.entry, "found": entry.is_found });
    let part = |part: &Part| {
        json!({
            "stage": part.name,
            "says": part.says,
            "by": part.by.as_ref().map(entry),
            "lookups": part.lookups.iter().map(entry).collect::<Vec<_>>(),
        })
    };
    let fields: Map<String, Value> =
        story.fields.iter().map(|field| (field.name.clone(), json!(field.value))).collect();
    json!({
        "summary": story.before,
        "bytes": hex(before),
        "fields": fields,
        "stages": story.parts.iter().map(part).collect::<Vec<_>>(),
        "verdict": story.end.verdict,
        "reason": story.end.reason.map(nsnet_common::verdict::DropReason::label),
        "says": story.end.says,
        "leaves_by": story.end.leaves_by,
        "becomes": story.after,
        "bytes_after": hex(after),
        "changed": story.changed.iter().map(|field| json!({ "field": field.name, "before": field.before, "after": field.after })).collect::<Vec<_>>(),
        "edits": story.edits.iter().map(|edit| json!({ "table": edit.table, "key": edit.key, "edit": edit.change })).collect::<Vec<_>>(),
        "counters": story.counters.iter().map(|counter| json!({ "port": counter.name, "counter": counter.counter, "packets": counter.packets, "bytes": counter.bytes })).collect::<Vec<_>>(),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A line of the list.
fn item(name: &str, text: &str) -> io::Result<()> {
    output::line(format!("{name:<13}{text}").trim_end())
}

/// Several, of which the first has the name.
fn items(name: &str, texts: impl Iterator<Item = String>) -> io::Result<()> {
    texts.enumerate().try_for_each(|(number, text)| item(if number == 0 { name } else { "" }, &text))
}
