//! A service that keeps something for each client: a note of what it said, and a file. Run
//!
//! ```sh
//! cargo run --example keeper -- --control /tmp/keeper
//! ```
//!
//! and say to it, with `nc localhost 8080`: `note` and a text, which it notes; `memory` or `file`
//! and a size, to have it keep a memory file or an unlinked file of so many bytes; `open` and a
//! path for a file of yours; `tell`, and it says what it has; `drop`, and it forgets the file;
//! `exit`, and this worker ends without an answer. What is kept for a client does not depend on a
//! worker: kill them, reload, upgrade with SIGUSR2, and `tell` answers the same.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process;

use batond::config::Address;
use batond::{Connection, Fill, Server, Service, Turn};
use clap::Parser;
use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, memfd_create, openat};

#[derive(Parser)]
struct Arguments {
    #[arg(short, long, default_value = "127.0.0.1:8080")]
    listen: Address,
    #[arg(short, long, default_value_t = 2)]
    workers: usize,
    #[arg(long)]
    control: Option<PathBuf>,
    #[arg(long)]
    takeover: Option<PathBuf>,
}

struct Keeper;

impl Service for Keeper {
    fn turn(&mut self, connection: &mut Connection) -> io::Result<Turn> {
        let fill = connection.fill()?;
        while let Some(end) = connection.buffer().iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(&connection.buffer()[..end]).into_owned();
            connection.consume(end + 1);
            let answer = obey(connection, &line).unwrap_or_else(|error| error.to_string());
            connection.write_all(format!("{answer}\n").as_bytes())?;
        }
        Ok(match fill {
            Fill::End => Turn::Close,
            Fill::Bytes(_) | Fill::Empty => Turn::Park,
        })
    }
}

fn obey(connection: &mut Connection, line: &str) -> io::Result<String> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    match word {
        "note" => connection.set_note(rest.as_bytes())?,
        "memory" => {
            let memory = memfd_create("kept", MemfdFlags::CLOEXEC)?;
            connection.set_luggage(filled(memory, rest)?)?;
        }
        "file" => {
            let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
            let file = openat(CWD, ".", flags, Mode::RUSR | Mode::WUSR)?;
            connection.set_luggage(filled(file, rest)?)?;
        }
        "open" => connection.set_luggage(File::open(rest)?)?,
        "drop" => drop(connection.take_luggage()),
        "tell" => return tell(connection),
        "exit" => process::exit(3),
        _ => return Ok(format!("what is {word:?}?")),
    }
    Ok("done".to_owned())
}

/// A file of so many bytes.
fn filled(file: OwnedFd, size: &str) -> io::Result<File> {
    let size: usize = size.parse().map_err(io::Error::other)?;
    let mut file = File::from(file);
    file.write_all(&vec![b'x'; size])?;
    Ok(file)
}

fn tell(connection: &Connection) -> io::Result<String> {
    let turn = connection.turn();
    let note = String::from_utf8_lossy(connection.note());
    let Some(luggage) = connection.luggage() else {
        return Ok(format!("turn {turn}, note {note:?}, no file"));
    };
    // Not by its offset, which all who have the file share.
    let file = File::from(luggage.try_clone_to_owned()?);
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).unwrap_or(0)];
    file.read_exact_at(&mut bytes, 0)?;
    let sum: u64 = bytes.iter().map(|byte| u64::from(*byte)).sum();
    let size = bytes.len();
    Ok(format!(
        "turn {turn}, note {note:?}, {size} bytes of sum {sum}"
    ))
}

fn main() -> batond::Result<()> {
    let level = env_logger::Env::default().default_filter_or("info");
    env_logger::Builder::from_env(level).init();
    let arguments = Arguments::parse();
    let mut server = Server::builder();
    if let Some(path) = arguments.control {
        server = server.control(path);
    }
    if let Some(path) = arguments.takeover {
        server = server.takeover(path);
    }
    server
        .bind(arguments.listen)?
        .workers(arguments.workers)
        .run(|| Keeper)
}
