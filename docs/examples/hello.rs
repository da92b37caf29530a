//! A service of one's own: it sends each line back in upper case, and says who did it. Run
//! `cargo run --example hello`, then, in another terminal, `nc 127.0.0.1 8080`.

use std::io::{self, Write};

use batond::{Connection, Fill, Server, Service, Turn};

/// One per worker process. It keeps nothing about a client: that stays with the connection.
struct Shout;

impl Service for Shout {
    fn turn(&mut self, connection: &mut Connection) -> io::Result<Turn> {
        let fill = connection.fill()?;
        let (slot, turn) = (connection.slot(), connection.turn());
        let mut reply = Vec::new();
        while let Some(end) = connection.buffer().iter().position(|byte| *byte == b'\n') {
            write!(reply, "worker {slot}, turn {turn}: ")?;
            reply.extend(connection.buffer()[..=end].to_ascii_uppercase());
            connection.consume(end + 1);
        }
        connection.write_all(&reply)?;
        // A line without its end stays in the buffer, and comes along with the next turn.
        match fill {
            Fill::End => Ok(Turn::Close),
            Fill::Bytes(_) | Fill::Empty => Ok(Turn::Park),
        }
    }
}

fn main() -> batond::Result<()> {
    let server = Server::bind("127.0.0.1:8080")?.workers(4);
    println!("listening on {:?}", server.local_addresses());
    server.run(|| Shout)
}
