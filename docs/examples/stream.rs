//! A service that makes a long answer while it sends it: numbered lines of 16 bytes. Run `cargo run
//! --example stream`, then `curl localhost:8080/bytes/160` for ten of them. How other requests fare
//! beside clients that take theirs slowly, this measures: `scripts/bench.sh slow --program
//! 'target/release/examples/stream -l 127.0.0.1:0'`.

use std::io::{self, Write};

use batond::config::Address;
use batond::{Connection, Fill, Server, Service, Turn};
use clap::Parser;

#[derive(Parser)]
struct Arguments {
    #[arg(short, long, default_value = "127.0.0.1:8080")]
    listen: Address,
    #[arg(short, long, default_value_t = 2)]
    workers: usize,
}

const LINE: u64 = 16;

/// The longest head that is read.
const MAX_HEAD: usize = 8192;

struct Stream {
    piece: Vec<u8>,
}

impl Stream {
    fn answer(&mut self, connection: &mut Connection, length: u64) -> io::Result<()> {
        write!(
            connection,
            "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"
        )?;
        let mut left = length;
        for line in 0..length.div_ceil(LINE) {
            let size = left.min(LINE);
            writeln!(self.piece, "{line:015}")?;
            left -= size;
            if left == 0 || self.piece.len() >= 64 * 1024 {
                let beyond = (LINE - size) as usize;
                connection.write_all(&self.piece[..self.piece.len() - beyond])?;
                self.piece.clear();
            }
        }
        Ok(())
    }
}

impl Service for Stream {
    fn turn(&mut self, connection: &mut Connection) -> io::Result<Turn> {
        let fill = connection.fill()?;
        while let Some(end) = end_of_head(connection.buffer()) {
            let length = length_asked_for(&connection.buffer()[..end]);
            connection.consume(end);
            let Some(length) = length else {
                let refusal = "HTTP/1.1 405 Method Not Allowed\r\nAllow: GET\r\n\
                               Connection: close\r\nContent-Length: 0\r\n\r\n";
                connection.write_all(refusal.as_bytes())?;
                return Ok(Turn::Close);
            };
            self.answer(connection, length)?;
        }
        match fill {
            Fill::Bytes(_) | Fill::Empty if connection.buffer().len() < MAX_HEAD => Ok(Turn::Park),
            _ => Ok(Turn::Close),
        }
    }
}

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    Some(end + 4)
}

/// The number at the end of the path, or else one line. Nothing if the method is not GET.
fn length_asked_for(head: &[u8]) -> Option<u64> {
    let head = String::from_utf8_lossy(head);
    let path = head.strip_prefix("GET ")?.split(' ').next()?;
    let number = path.rsplit('/').next()?.parse();
    Some(number.unwrap_or(LINE))
}

fn main() -> batond::Result<()> {
    let level = env_logger::Env::default().default_filter_or("info");
    env_logger::Builder::from_env(level).init();
    let arguments = Arguments::parse();
    Server::bind(arguments.listen)?
        .workers(arguments.workers)
        .run(|| Stream { piece: Vec::new() })
}
