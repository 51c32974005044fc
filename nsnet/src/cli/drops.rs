//! `nsnet drops`: what was dropped, where and why, and the last packet of each reason.

use std::process::ExitCode;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use nsnet_common::layout::{Dropped, LastDrop, PortId, Traffic};
use nsnet_common::verdict::DropReason;
use serde_json::{Value, json};

use super::Answer;
use super::output::{self, Format, Table};
use crate::kernel::clock::monotonic;
use crate::kernel::host::Host;
use crate::model::capture::interfaces::Interfaces;
use crate::model::capture::with_tag;
use crate::model::headers::Headers;

/// Arguments of `drops`.
#[derive(Debug, Args)]
pub(super) struct DropsArgs {
    /// Show the last packet that was dropped for this reason, byte by byte
    #[arg(long, value_name = "REASON", hide_possible_values = true, value_parser = reasons())]
    pub last: Option<DropReason>,
}

/// The reasons, by their labels.
fn reasons() -> impl clap::builder::TypedValueParser<Value = DropReason> {
    let of_label = |label: String| DropReason::ALL.iter().copied().find(|reason| reason.label() == label);
    let labels = DropReason::ALL.iter().map(|reason| reason.label());
    PossibleValuesParser::new(labels).try_map(move |label| of_label(label).ok_or("this is no reason"))
}

pub(super) fn drops(host: &Host, format: Format, args: &DropsArgs) -> Answer {
    let names = Interfaces::of(&host.state()?);
    let (is_loaded, maps, now) = (host.dataplane.is_loaded(), host.maps(), monotonic()?);
    if let Some(reason) = args.last {
        let last = if is_loaded { maps.last_drops(reason.code())? } else { Vec::new() };
        let newest = last.into_iter().max_by_key(|last| last.seen);
        return show(format, reason, newest.map(|last| Kept::new(&last, now, &names)).as_ref());
    }
    let mut table = Table::new(&["reason", "port", "ns", "packets", "bytes", "age_s", "last", "meaning"]);
    let drops = if is_loaded { maps.drops()? } else { Default::default() };
    for ((port, code), Dropped { traffic: Traffic { packets, bytes }, seen, .. }) in drops {
        let reason = DropReason::from_code(code);
        let last = maps.last_drops(code)?.into_iter().filter(|last| last.port == port).max_by_key(|last| last.seen);
        let (name, ns) = owner(port, &names);
        table.row([
            json!(reason.map_or_else(|| format!("code-{code}"), |reason| reason.label().to_owned())),
            name,
            ns,
            json!(packets),
            json!(bytes),
            age(seen, now),
            json!(last.map(|last| Kept::new(&last, now, &names).headers.to_string())),
            json!(reason.map(DropReason::sentence)),
        ]);
    }
    output::print(format, &table)?;
    Ok(ExitCode::SUCCESS)
}

/// The interface of a port, and the namespace behind it; nothing for what was no port.
pub(super) fn owner(port: PortId, names: &Interfaces) -> (Value, Value) {
    if port == PortId::NONE {
        return (Value::Null, Value::Null);
    }
    let index = names.index_of(port).unwrap_or(port.ifindex());
    (json!(names.name(index)), json!(names.get(index).and_then(|interface| interface.ns.as_ref())))
}

fn age(seen: u64, now: u64) -> Value {
    if seen == 0 { Value::Null } else { json!(now.saturating_sub(seen) / 1_000_000_000) }
}

/// A frame that was kept.
pub(super) struct Kept {
    port: Value,
    ns: Value,
    age: Value,
    bytes: Vec<u8>,
    pub(super) headers: Headers,
}

impl Kept {
    pub(super) fn new(last: &LastDrop, now: u64, names: &Interfaces) -> Self {
        let (port, ns) = owner(last.port, names);
        let kept = last.bytes.get(..usize::from(last.kept)).unwrap_or_default();
        let (bytes, length) = with_tag(kept, last.length, last.tag);
        let headers = Headers::read(&bytes, length);
        Self { port, ns, age: age(last.seen, now), bytes, headers }
    }
}

/// The last packet of a reason, whole as far as it was kept.
fn show(format: Format, reason: DropReason, kept: Option<&Kept>) -> Answer {
    let Some(kept) = kept else {
        output::note(&format!("no packet has been dropped for {}", reason.label()));
        if format == Format::Json {
            output::print_json(&Value::Null)?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    let Kept { port, ns, age, bytes, headers } = kept;
    match format {
        Format::Json => output::print_json(&json!({
            "reason": reason.label(),
            "meaning": reason.sentence(),
            "port": port,
            "ns": ns,
            "age_s": age,
            "packet": headers.to_string(),
            "length": headers.length,
            "kept": bytes.len(),
            "hex": bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
        }))?,
        Format::Table => {
            let of = if *ns == Value::Null { String::new() } else { format!(" ({})", output::text(ns)) };
            output::line(&format!("{}: {}", reason.label(), reason.sentence()))?;
            output::line(&format!("{}{of}, {} s ago: {headers}", output::text(port), output::text(age)))?;
            output::line(&hex(bytes))?;
            let left_out = headers.length as usize - bytes.len().min(headers.length as usize);
            if left_out > 0 {
                output::line(&format!("{left_out} more bytes were not kept"))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Bytes, 16 in a line, and what they are as characters.
fn hex(bytes: &[u8]) -> String {
    let line = |(number, chunk): (usize, &[u8])| {
        let digits: String = chunk
            .chunks(2)
            .map(|two| format!(" {}", two.iter().map(|b| format!("{b:02x}")).collect::<String>()))
            .collect();
        let letters: String =
            chunk.iter().map(|byte| if byte.is_ascii_graphic() { char::from(*byte) } else { '.' }).collect();
        format!("  {:04x} {digits:<40}  {letters}", number * 16)
    };
    bytes.chunks(16).enumerate().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_can_be_read() {
        assert_eq!(
            hex(b"\x00\x01abcdefghijklmnop~ "),
            "  0000  0001 6162 6364 6566 6768 696a 6b6c 6d6e  ..abcdefghijklmn\n  0010  6f70 7e20                                op~."
        );
    }
}
