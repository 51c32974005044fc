//! The `nsnet` command; see `nsnet help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    nsnet::cli::run()
}
