//! `nsnet top`: ports, flows and drops on a terminal, as they are now.
//!
//! ```text
//!   app    what is shown, and how keys change it: no terminal, no kernel
//!   panes  what the dataplane says, as rows of it
//!   draw   the same on so many columns and lines
//! ```

mod app;
mod draw;
mod panes;

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};

use super::Answer;
use super::args::seconds;
use super::interrupt::Interrupt;
use super::output::Format;
use crate::kernel::host::Host;
use app::App;
use panes::Sampler;

/// How soon there are rates at all.
const FIRST: Duration = Duration::from_millis(250);
/// How long a signal may have to wait.
const PATIENCE: Duration = Duration::from_millis(100);

/// Arguments of `top`.
#[derive(Debug, Args)]
pub(super) struct TopArgs {
    /// How often to look
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    pub interval: Duration,
}

pub(super) fn top(host: &Host, format: Format, args: &TopArgs) -> Answer {
    if format == Format::Json {
        bail!("top draws, and has no JSON; `nsnet stats --watch -o json` prints the rates of ports");
    }
    if !io::stdout().is_terminal() {
        bail!("top draws on a terminal, and stdout is none; `nsnet stats --watch` prints the rates of ports in lines");
    }
    let interrupt = Interrupt::catch()?;
    let mut sampler = Sampler::new(host)?;
    let mut screen = Screen::open().context("cannot draw on this terminal")?;
    match run(&mut screen.0, &mut sampler, args.interval, &interrupt) {
        // A terminal that is gone says so in more than one way.
        Err(_) if interrupt.is_set() => Ok(ExitCode::SUCCESS),
        outcome => outcome.map(|()| ExitCode::SUCCESS),
    }
}

fn run(
    terminal: &mut DefaultTerminal,
    sampler: &mut Sampler<'_>,
    interval: Duration,
    interrupt: &Interrupt,
) -> anyhow::Result<()> {
    let mut app = App::default();
    app.show(sampler.pane(&app));
    let mut next = Instant::now() + FIRST.min(interval);
    while !app.is_over && !interrupt.is_set() {
        terminal.draw(|frame| draw::draw(frame, &mut app))?;
        let shown = app.tab;
        while !interrupt.is_set() && Instant::now() < next {
            if event::poll(PATIENCE.min(next.saturating_duration_since(Instant::now())))? {
                match event::read()? {
                    Event::Key(key) if key.kind != KeyEventKind::Release => app.press(key),
                    // Another size, for one, wants another drawing.
                    Event::Key(_)
                    | Event::Mouse(_)
                    | Event::Paste(_)
                    | Event::Resize(..)
                    | Event::FocusGained
                    | Event::FocusLost => {}
                }
                break;
            }
        }
        let is_due = Instant::now() >= next;
        if is_due && !app.is_paused {
            sampler.look_again();
        }
        if (is_due && !app.is_paused) || app.tab != shown {
            app.show(sampler.pane(&app));
        }
        if is_due {
            // Whatever it took: keys are to be heard in between.
            next = Instant::now() + interval;
        }
    }
    Ok(())
}

/// The terminal while it is drawn on. It becomes what it was when this is dropped, and before a panic is told.
struct Screen(DefaultTerminal);

impl Screen {
    fn open() -> io::Result<Self> {
        ratatui::try_init().inspect_err(|_| restore()).map(Self)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    // A terminal that is gone needs nothing.
    let _restored = ratatui::try_restore();
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;
    use std::process::Command;

    use nix::pty::openpty;
    use nix::sys::termios::{LocalFlags, tcgetattr};

    use super::*;

    /// What makes the test below panic on a terminal, in a process of its own.
    const PANICS: &str = "NSNET_TEST_PANICS_ON_A_TERMINAL";

    #[test]
    fn a_panic_leaves_the_terminal_as_it_was() {
        if std::env::var_os(PANICS).is_some() {
            let _screen = Screen::open().unwrap();
            panic!("while drawing");
        }
        let pty = openpty(None, None).unwrap();
        let before = tcgetattr(&pty.slave).unwrap();
        assert!(before.local_flags.contains(LocalFlags::ECHO | LocalFlags::ICANON));
        let end = || pty.slave.try_clone().unwrap();
        let name = "cli::top::tests::a_panic_leaves_the_terminal_as_it_was";
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "--nocapture", name]).env(PANICS, "1");
        command.stdin(end()).stdout(end()).stderr(end());
        assert!(!command.status().unwrap().success());
        assert_eq!(tcgetattr(&pty.slave).unwrap(), before);
        let mut said = vec![0; 1 << 16];
        let length = File::from(pty.master).read(&mut said).unwrap();
        let said = String::from_utf8_lossy(&said[..length]).into_owned();
        let place = |text: &str| said.find(text).unwrap_or_else(|| panic!("no {text:?} in {said:?}"));
        // The alternate screen is left before the panic is told, which would be lost with it.
        assert!(place("\u{1b}[?1049h") < place("\u{1b}[?1049l") && place("\u{1b}[?1049l") < place("while drawing"));
    }
}
