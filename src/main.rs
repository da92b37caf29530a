//! Arguments to command to exit code: 0 when all went well, 1 when something failed, 2 for a wrong
//! command line.

use std::io::{self, Write};
use std::process::ExitCode;

use batond::cli::{Cli, run};
use clap::Parser;

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell when stderr is closed; the exit code still says it.
            let _ = writeln!(io::stderr(), "batond: {error}");
            ExitCode::FAILURE
        }
    }
}
