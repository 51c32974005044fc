//! Files of `nsnet plan` and `nsnet apply`, given to them on stdin.

use std::io::Write as _;
use std::process::{Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use nsnet::lab::Lab;
use serde_json::Value;

use super::world::World;

/// Runs `nsnet ARGS` with `text` on stdin; in it `@red` stands for the lab's namespace red.
pub(crate) fn given(lab: &Lab, args: &[&str], text: &str) -> Result<Output> {
    let mut command = lab.command(args);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let text = text.replace('@', &lab.name(""));
    child.stdin.take().context("no stdin")?.write_all(text.as_bytes())?;
    Ok(child.wait_with_output()?)
}

/// The steps that `verb` (plan or apply) answers.
pub(crate) fn steps(lab: &Lab, verb: &str, text: &str) -> Result<Vec<Value>> {
    let output = given(lab, &["-o", "json", verb, "-f", "-"], text)?;
    ensure!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout)?;
    Ok(answer["steps"].as_array().context("no steps")?.clone())
}

/// Applies a file, and sees that applying it again changes nothing: not in the kernel, and not in what is chosen.
pub(crate) fn apply(lab: &Lab, text: &str) -> Result<Vec<Value>> {
    let planned = steps(lab, "plan", text)?;
    let done = steps(lab, "apply", text)?;
    assert_eq!(done, planned, "`apply` did another thing than `plan` had said");
    let once = World::of(lab)?;
    for verb in ["plan", "apply"] {
        assert_eq!(steps(lab, verb, text)?, Vec::<Value>::new(), "`{verb}` of the same file");
    }
    assert_eq!(World::of(lab)?, once, "the same file again changed something");
    let status = lab.json("status")?;
    ensure!(status["drift"] == serde_json::json!([]) && status["steps"] == serde_json::json!([]), "{status}");
    Ok(done)
}

/// The objects of steps, with `+`, `~` or `-` before them, in the lab's short names.
pub(crate) fn objects(lab: &Lab, steps: &[Value]) -> Vec<String> {
    let sign = |step: &Value| match step["action"].as_str() {
        Some("add") => "+",
        Some("change") => "~",
        Some("remove") => "-",
        _ => "?",
    };
    let name = |step: &Value| step["object"].as_str().unwrap_or_default().replace(&lab.name(""), "@");
    steps.iter().map(|step| format!("{} {}", sign(step), name(step))).collect()
}

/// What differs of an object among steps: "what: is -> should".
pub(crate) fn differences(lab: &Lab, steps: &[Value], object: &str) -> Vec<String> {
    let object = object.replace('@', &lab.name(""));
    let of_object = steps.iter().filter(|step| step["object"] == object.as_str());
    let all = of_object.flat_map(|step| step["differences"].as_array().cloned().unwrap_or_default());
    let word = |value: &Value| value.as_str().unwrap_or("none").to_owned();
    all.map(|d| format!("{}: {} -> {}", word(&d["what"]), word(&d["is"]), word(&d["should"]))).collect()
}

/// Whatever an output says, for a message.
pub(crate) fn words(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
