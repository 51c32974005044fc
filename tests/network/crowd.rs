//! Many verbs at once on one host.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nsnet::kernel::store::RUN;
use nsnet::lab::Lab;

use super::bed::lab;
use super::churn::traced;

fn start(lab: &Lab, words: &[&str]) -> Result<Child> {
    let words = words.iter().map(|word| word.strip_prefix('@').map_or((*word).to_owned(), |name| lab.name(name)));
    Ok(lab.command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
}

/// What the three-hundredth needs of the kernel is what the first needed.
#[test]
fn the_last_attach_asks_for_no_more_than_the_first() -> Result<()> {
    let lab = lab()?;
    let mut text = String::from("[[network]]\nname = \"v-net-0\"\nsubnet = \"10.77.0.0/16\"\n");
    for number in 0..300 {
        text += &format!("[[ns]]\nname = \"@{number}\"\n[[attach]]\nnetwork = \"v-net-0\"\nns = \"@{number}\"\n");
    }
    let calls = || -> Result<usize> {
        lab.nsnet("detach v-net-0 @first")?;
        // Writes of settings are repeated by the kernel as long as somebody else has its lock (ERESTARTNOINTR).
        let run = traced(&lab, "attach v-net-0 @first")?;
        Ok(run.calls.iter().filter(|call| call.name != "write").count())
    };
    lab.nsnet("network add v-net-0 --subnet 10.77.0.0/16")?;
    lab.nsnet("ns add @first")?;
    lab.nsnet("attach v-net-0 @first")?;
    let first = calls()?;
    let began = Instant::now();
    let all = format!("{text}[[ns]]\nname = \"@first\"\n[[attach]]\nnetwork = \"v-net-0\"\nns = \"@first\"\n");
    super::file::steps(&lab, "apply", &all)?;
    println!("300 by a file: {:?}", began.elapsed());
    let last = calls()?;
    println!("system calls of an attach among 1: {first}, among 301: {last}");
    // An answer may come in one piece more.
    ensure!(last <= first + first / 20, "{first} grew to {last}");
    Ok(())
}

#[test]
fn who_waits_says_for_whom() -> Result<()> {
    let lab = lab()?;
    lab.nsnet("ns add @red")?;
    let key = format!("{:x}", lab.ns("host")?.cookie()?);
    let path = Path::new(RUN).join(format!("{key}.lock"));
    for (verb, is_silent) in [(&["ns", "add", "@blue"][..], false), (&["ns", "list"], true), (&["status"], false)] {
        let lock = File::options().write(true).create(true).truncate(false).open(&path)?;
        lock.lock()?;
        let mut child = start(&lab, verb)?;
        let mut stderr = BufReader::new(child.stderr.take().context("no stderr")?);
        // The lock is held until the verb has said so, or has ended without it; and not for ever.
        let (told, heard) = channel();
        let reader = std::thread::spawn(move || {
            let mut said = String::new();
            let first = stderr.read_line(&mut said);
            told.send(()).ok();
            first.and_then(|_length| stderr.read_to_string(&mut said)).map(|_length| said)
        });
        heard.recv_timeout(Duration::from_secs(20)).ok();
        drop(lock);
        let output = child.wait_with_output()?;
        let said = reader.join().expect("no panic")?;
        ensure!(output.status.success(), "{verb:?}: {output:?}, {said}");
        if is_silent {
            assert_eq!(said, "", "{verb:?} needs no lock");
        } else {
            let pid = std::process::id();
            let expected = format!("nsnet: waiting for process {pid} (");
            ensure!(said.starts_with(&expected) && said.contains(&path.display().to_string()), "{verb:?}: {said}");
        }
    }
    // Verbs of other hosts do not wait.
    let (other, lock) = (super::bed::lab()?, File::options().write(true).open(&path)?);
    lock.lock()?;
    other.nsnet("ns add @red")?;
    // Nothing is left of a lock when nothing is left of the host.
    drop(lock);
    lab.nsnet("down")?;
    assert!(!path.exists());
    Ok(())
}
