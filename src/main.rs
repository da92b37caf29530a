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
            // In one piece, for another process may be writing there too.
            let _ = io::stderr().write_all(format!("batond: {error}\n").as_bytes());
            ExitCode::FAILURE
        }
    }
}
