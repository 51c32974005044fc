//! `nsnet bench`, for as little as it can: every part of it once.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nsnet::bench::result::{Load, Results};
use nsnet::kernel::named;

use super::bed::{Scratch, binary};

#[test]
fn a_very_short_run_writes_a_report_and_leaves_nothing() -> Result<()> {
    let folder = Scratch(std::env::temp_dir().join(format!("nsnet-bench-test-{}", std::process::id())));
    let mut command = Command::new(binary());
    command.args(["-o", "json", "bench", "--smoke", "--peers", "bridge", "--report"]).arg(&folder.0);
    let child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn()?;
    // The names of a lab's namespaces begin with the process's number.
    let prefix = format!("{:x}", child.id() & 0xf_ffff);
    let output = child.wait_with_output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "it ended with {}: {stderr}", output.status);
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).context("it printed no JSON")?;
    ensure!(answer["goals"].as_array().is_some_and(|goals| goals.len() > 20), "goals are missing: {answer}");

    let json = std::fs::read_to_string(folder.0.join("report.json"))?;
    let results: Results = serde_json::from_str(&json).context("report.json is not what it should be")?;
    ensure!(results.cells.len() == 3, "{} cells, left out: {:?}", results.cells.len(), results.left_out);
    for cell in &results.cells {
        ensure!(cell.rows.len() == 4, "{}: {} peers, left out: {:?}", cell.title(), cell.rows.len(), results.left_out);
        for row in &cell.rows {
            ensure!(
                row.rate.iter().all(|rate| *rate > 1000.0),
                "{}: {:?} carried {:?}",
                cell.title(),
                row.peer,
                row.rate
            );
        }
        if matches!(cell.load, Load::Injected64 | Load::InjectedV6) {
            let lost: Vec<f64> = cell.rows.iter().flat_map(|row| row.loss.clone()).collect();
            ensure!(lost.iter().all(|loss| *loss < 0.01), "injected frames were lost: {lost:?}");
        }
    }
    ensure!(std::fs::read_to_string(folder.0.join("report.html"))?.contains("</html>"), "the page has no end");
    let left: Vec<String> = named::list()?.into_iter().filter(|name| is_of(name, &prefix)).collect();
    ensure!(left.is_empty(), "namespaces are left: {left:?}");
    Ok(())
}

/// A run that measures nothing says why, and leaves no folder for a report.
#[test]
fn a_choice_of_nothing_is_told_and_leaves_nothing() -> Result<()> {
    let folder = Scratch(std::env::temp_dir().join(format!("nsnet-bench-none-{}", std::process::id())));
    let mut command = Command::new(binary());
    command.args(["bench", "--ways", "ns-to-host", "--loads", "injected64", "--report"]).arg(&folder.0);
    let output = command.output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "it ended with {}: {stderr}", output.status);
    ensure!(stderr.contains("nothing was measured: namespace to host: no cell or curve has it"), "{stderr}");
    ensure!(!folder.0.exists(), "the folder is left");
    Ok(())
}

/// Whether a namespace is one of the labs of a process: its number, then letters beyond hexadecimal digits.
fn is_of(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|c: char| ('g'..='z').contains(&c)))
}
