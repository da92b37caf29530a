//! The program `batond`. Everything is in the library; see its `cli` module.

use std::process::ExitCode;

fn main() -> ExitCode {
    batond::main()
}
