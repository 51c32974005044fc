//! `nsnet log`, in development builds: each dropped frame, as the programs tell it through aya-log.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Context as _;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use nsnet_common::layout::names;

use super::Answer;
use super::output;
use crate::kernel::host::Host;

/// How often the programs' buffers are emptied.
const INTERVAL: Duration = Duration::from_millis(100);

pub(super) fn log(host: &Host) -> Answer {
    let mut loggers = Vec::new();
    for name in names::PROGRAMS {
        let id = host.dataplane.program_id(name)?;
        let logger = EbpfLogger::init_from_id_with_logger(id, Stdout);
        loggers.push(logger.context("this dataplane does not log; build it with `cargo xtask build --log`")?);
    }
    loop {
        loggers.iter_mut().for_each(EbpfLogger::flush);
        sleep(INTERVAL);
    }
}

/// Records become lines of the answer.
#[derive(Clone, Copy)]
struct Stdout;

impl Log for Stdout {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        // A closed pipe ends the command by itself at the next signal; there is nobody left to tell.
        let _told = output::line(&record.args().to_string());
    }

    fn flush(&self) {}
}
