//! Several pools, which are read from a file, and read again at SIGHUP. Write `pools.txt`, a pool
//! on each line:
//!
//! ```text
//! hello 127.0.0.1:8080 say Hello
//! files 127.0.0.1:8081 files docs
//! echo  unix:echo.sock echo
//! ```
//!
//! Then run `cargo run --example pools -- -c pools.txt --control control --pid-file pid`, change
//! the file, and `kill -HUP $(cat pid)`. Another one with `--takeover control` takes over.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use batond::http::{Files, Http, Request, Response};
use batond::{Echo, Error, Pool, Result, Server};
use clap::Parser;

#[derive(Parser)]
struct Arguments {
    /// The file that describes the pools.
    #[arg(short, long)]
    config: PathBuf,
    #[arg(long)]
    control: Option<PathBuf>,
    #[arg(long)]
    pid_file: Option<PathBuf>,
    #[arg(long)]
    takeover: Option<PathBuf>,
}

/// The pools that the file describes now.
fn read(file: &Path) -> Result<Vec<Pool<'static>>> {
    let text = fs::read_to_string(file)
        .map_err(|error| Error::new(format!("read {}", file.display()), error))?;
    let mut pools = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let Some(pool) = pool(line)? else {
            let attempt = format!("read {}:{number}", file.display());
            return Err(Error::because(attempt, "expected NAME ADDRESS SERVICE"));
        };
        pools.push(pool);
    }
    Ok(pools)
}

/// The pool on one line; nothing if the line has no sense.
fn pool(line: &str) -> Result<Option<Pool<'static>>> {
    let words: Vec<_> = line.split_whitespace().collect();
    let [name, address, service, arguments @ ..] = &words[..] else {
        return Ok(None);
    };
    let pool = match (*service, arguments) {
        ("echo", []) => Pool::new(*name, Echo::new),
        ("say", text) => {
            let text = text.join(" ");
            Pool::new(*name, move || {
                let text = text.clone();
                Http::new(move |_: &mut Request<'_>| Response::text(format!("{text}\n")))
            })
        }
        ("files", [directory]) => {
            // A reload opens it when the server runs already: its workers are to have it, and no
            // others.
            let files = Files::open(directory.as_ref())?;
            let served = files.clone();
            Pool::new(*name, move || Http::new(served.clone())).keep(files)
        }
        _ => return Ok(None),
    };
    Ok(Some(pool.listen(*address).workers(2)))
}

fn serve(arguments: Arguments) -> Result<()> {
    let mut server = Server::builder();
    if let Some(path) = arguments.control {
        server = server.control(path);
    }
    if let Some(path) = arguments.pid_file {
        server = server.pid_file(path);
    }
    if let Some(path) = arguments.takeover {
        server = server.takeover(path);
    }
    let server = server.pools(|| read(&arguments.config))?;
    log::info!("bound to {:?}", server.local_addresses());
    server.run()
}

fn main() -> ExitCode {
    let level = env_logger::Env::default().default_filter_or("info");
    env_logger::Builder::from_env(level).init();
    match serve(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}
