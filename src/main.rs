//! Arguments to command to exit code: 0 when all went well, 1 when something failed, 2 for a wrong
//! command line.

use std::process::ExitCode;

use batond::cli::{Cli, complain, run};
use clap::Parser;

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}
