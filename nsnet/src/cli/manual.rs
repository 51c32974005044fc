//! `nsnet man` and `nsnet completions`: what packages ship beside the program. Neither root nor a kernel is needed.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::Answer;
use super::examples;
use super::stream::until_closed;

/// For those who administer a system (man(1)).
const SECTION: &str = "8";

/// What every verb ends with.
const EXIT_STATUS: [(&str, &str); 3] = [
    ("0", "Done; also when there was nothing to do."),
    ("1", "Failed, with one line on stderr that says why. Of nsnet status: something is not as it should be."),
    ("2", "The command line could not be understood."),
];

const FILES: [(&str, &str); 2] = [
    ("/run/nsnet", "What should be, a file for each host, and a lock."),
    ("/run/nsnet/bpf", "A bpffs in which programs and maps are pinned: they forward packets without any process."),
];

/// Arguments of `man`.
#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// The folder for the pages of all verbs, which is made when it is not there; the main page is printed when left out
    #[arg(value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
}

/// Arguments of `completions`.
#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// For which shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Prints what has the shell complete verbs and options.
pub(super) fn completions(args: &CompletionsArgs) -> Answer {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut examples::command(), "nsnet", &mut script);
    print(&script)
}

/// Prints the manual's main page, or writes all of them.
pub(super) fn man(args: &ManArgs) -> Answer {
    let pages = pages()?;
    match &args.folder {
        Some(folder) => {
            write(&pages, folder)?;
            Ok(ExitCode::SUCCESS)
        }
        None => print(&pages.first().context("there is no page")?.text),
    }
}

fn print(text: &[u8]) -> Answer {
    let mut stdout = io::stdout().lock();
    until_closed(stdout.write_all(text).and_then(|()| stdout.flush()).map_err(anyhow::Error::from))
}

fn write(pages: &[Page], folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for page in pages {
        let path = folder.join(&page.file);
        fs::write(&path, &page.text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// A page of the manual.
struct Page {
    file: String,
    text: Vec<u8>,
}

/// All pages, the main one first.
fn pages() -> io::Result<Vec<Page>> {
    let mut whole = examples::command().disable_help_subcommand(true);
    // Fills in the names and global options of the verbs.
    whole.build();
    let mut pages = Vec::new();
    add(&whole, "", &mut pages)?;
    Ok(pages)
}

fn add(command: &Command, verb: &str, pages: &mut Vec<Page>) -> io::Result<()> {
    let name = format!("nsnet {verb}").trim_end().replace(' ', "-");
    pages.push(Page { file: format!("{name}.{SECTION}"), text: page(command, &name, verb)? });
    for below in command.get_subcommands() {
        add(below, format!("{verb} {}", below.get_name()).trim_start(), pages)?;
    }
    Ok(())
}

fn page(command: &Command, name: &str, verb: &str) -> io::Result<Vec<u8>> {
    let has_verbs = command.has_subcommands();
    let man = Man::new(command.clone())
        .title(name.to_owned())
        .section(SECTION)
        .source(concat!("nsnet ", env!("CARGO_PKG_VERSION")))
        .manual("nsnet manual");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if has_verbs {
        man.render_subcommands_section(&mut text)?;
    }
    let mut rest = Roff::new();
    rest.control("SH", ["EXAMPLES"]);
    for (line, what) in examples::of(verb) {
        rest.control("TP", []);
        rest.text([bold(line)]);
        rest.text([roman(what)]);
    }
    if verb.is_empty() {
        for (title, entries) in [("EXIT STATUS", &EXIT_STATUS[..]), ("FILES", &FILES[..])] {
            rest.control("SH", [title]);
            for (name, what) in entries {
                rest.control("TP", []);
                rest.text([bold(*name)]);
                rest.text([roman(*what)]);
            }
        }
        rest.control("SH", ["SEE ALSO"]);
        rest.text([bold("ip-netns"), roman("(8), "), bold("bpf"), roman("(2), "), bold("veth"), roman("(4)")]);
    } else {
        let above = name.rsplit_once('-').map_or("nsnet", |(above, _)| above);
        rest.control("SH", ["SEE ALSO"]);
        rest.text([bold(above), roman(format!("({SECTION})"))]);
    }
    rest.to_writer(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn every_verb_has_a_page_with_examples() {
        let pages = pages().unwrap();
        let mut verbs = 0;
        for (verb, examples) in
            [("nsnet", "nsnet down"), ("nsnet-ns", "nsnet ns del"), ("nsnet-ct-list", "nsnet ct list")]
        {
            let page = pages.iter().find(|page| page.file == format!("{verb}.8")).unwrap();
            let text = String::from_utf8(page.text.clone()).unwrap();
            assert!(text.contains(&examples.replace('-', "\\-")), "{text}");
        }
        for page in &pages {
            let text = String::from_utf8(page.text.clone()).unwrap();
            for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXAMPLES", "SEE ALSO"] {
                let heading = if section.contains(' ') { format!("\"{section}\"") } else { section.to_owned() };
                assert!(text.contains(&format!(".SH {heading}")), "{}: no {section}: {text}", page.file);
            }
            assert!(!text.contains("\u{1b}"), "{}: colours", page.file);
            verbs += 1;
        }
        assert!(verbs > 40, "{verbs}");
        let text = String::from_utf8(pages[0].text.clone()).unwrap();
        assert!(pages[0].file == "nsnet.8" && text.contains("EXIT STATUS") && text.contains(".TH nsnet 8"), "{text}");
        // Those below are named as their pages are.
        assert!(text.contains("nsnet\\-ct(8)"), "{text}");
    }

    #[test]
    fn every_shell_has_a_script_that_knows_the_verbs() {
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut examples::command(), "nsnet", &mut script);
            let script = String::from_utf8(script).unwrap();
            for word in ["masquerade", "flush", "host-ns", "spoofed-mac"] {
                // Possible values are not for each of them.
                assert!(script.contains(word) || word == "spoofed-mac", "{shell}: no {word}");
            }
        }
    }
}
