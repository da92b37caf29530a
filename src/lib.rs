//! Baton: a pre-fork server that lends connections to its workers by SCM_RIGHTS.
//!
//! A master process accepts connections and holds them. When a client has sent something, the
//! master *lends* its connection to a forked worker for one *turn*: it passes the descriptor over a
//! Unix socket, and keeps its own. The worker reads, answers, and reports what is to become of the
//! connection. Between turns the connection is *parked* in the master's epoll set and occupies no
//! worker. So a service is plain blocking code, one client at a time, and yet thousands of idle
//! clients cost nothing but a descriptor each.
//!
//! # A service
//!
//! A [`Service`] has one method, [`turn`](Service::turn). It gets the [`Connection`] for "the
//! client has sent something" and returns a [`Turn`] for "nothing more to do for now". This one
//! sends each line back in upper case:
//!
//! ```no_run
//! use std::io::{self, Write};
//!
//! use batond::{Connection, Fill, Server, Service, Turn};
//!
//! struct Shout;
//!
//! impl Service for Shout {
//!     fn turn(&mut self, connection: &mut Connection) -> io::Result<Turn> {
//!         let fill = connection.fill()?;
//!         while let Some(end) = connection.buffer().iter().position(|byte| *byte == b'\n') {
//!             let line = connection.buffer()[..=end].to_ascii_uppercase();
//!             connection.consume(line.len());
//!             connection.write_all(&line)?;
//!         }
//!         Ok(if fill == Fill::End { Turn::Close } else { Turn::Park })
//!     }
//! }
//!
//! fn main() -> batond::Result<()> {
//!     Server::bind("127.0.0.1:8080")?.workers(4).run(|| Shout)
//! }
//! ```
//!
//! [`Server::run`] forks the workers, and each makes its own service, after the fork. The service
//! may hold what its process needs: a database connection, a cache. It keeps nothing about a
//! client, because the next turn of the same connection may be another worker's. Call `run` from
//! the main thread, before anything starts a thread: a process with threads cannot be forked
//! safely, and `run` then starts no worker.
//!
//! # How a turn ends
//!
//! | return | when | what the master does |
//! | --- | --- | --- |
//! | [`Turn::Park`] | the client is to speak next | waits until it sends something |
//! | [`Turn::ParkForWriting`] | [`write_now`] took only a part | waits until the client has read |
//! | [`Turn::Again`] | the buffer holds more to do | lends it again, after the others that wait |
//! | [`Turn::Pass`] | another pool is to serve the request | lends it there, with what was read |
//! | [`Turn::Home`] | the request that was passed on is served | waits for the next one at home |
//! | [`Turn::Close`] | all is said | closes it |
//! | [`Turn::Linger`] | all is said; the client may still send | ends its side, drains, closes |
//! | an error | the client is gone, or makes no sense | closes it |
//!
//! [`write_now`]: Connection::write_now
//!
//! Prefer [`fill`](Connection::fill), which never sleeps, and [`Turn::Park`] to a read that sleeps:
//! while a turn sleeps, its worker serves nobody else. No sleep in a read or a write on the
//! connection is longer than [`Server::client_timeout`].
//!
//! # What travels with a connection
//!
//! Three things go back to the master with the report and are there when the next turn begins,
//! whichever worker serves it, also after a reload, an upgrade, or the death of a worker in
//! between:
//!
//! - The *carry*: what was read and not consumed, in [`Connection::buffer`]. So half a request
//!   needs no code: leave it where it is, and park. There are at most 64 KiB of it.
//! - The *note*: up to 4 KiB of the service's own state about this client, such as who has logged
//!   in ([`Connection::note`]).
//! - The *luggage*: one descriptor, such as a file that is being filled ([`Connection::luggage`]).
//!
//! docs/examples/mail.rs is a dialogue that lives in the last two.
//!
//! A service can be tested without a server, on one end of a socket pair:
//!
//! ```
//! use std::io::{self, Read, Write};
//! use std::os::unix::net::UnixStream;
//!
//! use batond::{Connection, Peer, Service, Turn};
//! # use batond::Fill;
//! # struct Shout;
//! # impl Service for Shout {
//! #     fn turn(&mut self, connection: &mut Connection) -> io::Result<Turn> {
//! #         let fill = connection.fill()?;
//! #         while let Some(end) = connection.buffer().iter().position(|byte| *byte == b'\n') {
//! #             let line = connection.buffer()[..=end].to_ascii_uppercase();
//! #             connection.consume(line.len());
//! #             connection.write_all(&line)?;
//! #         }
//! #         Ok(if fill == Fill::End { Turn::Close } else { Turn::Park })
//! #     }
//! # }
//!
//! let (ours, mut client) = UnixStream::pair()?;
//! let mut connection = Connection::adopt(ours, Peer::Unix);
//!
//! client.write_all(b"one\ntw")?;
//! assert_eq!(Shout.turn(&mut connection)?, Turn::Park);
//! assert_eq!(connection.buffer(), b"tw");
//!
//! client.write_all(b"o\n")?;
//! assert_eq!(Shout.turn(&mut connection)?, Turn::Park);
//! let mut answer = [0; 8];
//! client.read_exact(&mut answer)?;
//! assert_eq!(&answer, b"ONE\nTWO\n");
//! # io::Result::Ok(())
//! ```
//!
//! # When a worker dies
//!
//! A panic or an abort ends the worker process. It costs the turn in hand, and no other connection:
//! the master still has them all, and starts another worker. What becomes of the turn follows from
//! the kernel's counters of the connection: nothing read and nothing sent, and another worker gets
//! it; something read, and the client gets the service's [`ServiceProfile::crashed`] reply;
//! something sent, and it is closed. [`Service::profile`] holds the replies that the master may
//! send in the service's name.
//!
//! # HTTP
//!
//! [`http::Http`] is a service that speaks HTTP/1.1 and leaves the answers to a
//! [`Handler`](http::Handler). A closure will do:
//!
//! ```no_run
//! use batond::Server;
//! use batond::http::{Http, Request, Response};
//!
//! fn main() -> batond::Result<()> {
//!     Server::bind(":8080")?.run(|| {
//!         let mut served = 0;
//!         Http::new(move |request: &mut Request<'_>| {
//!             served += 1;
//!             Response::text(format!("{}: request {served} here\n", request.path()))
//!         })
//!     })
//! }
//! ```
//!
//! [`http::Files`] serves the files beneath a directory. [`Echo`] is the smallest service.
//!
//! # Several pools, reload, control
//!
//! [`Server::builder`] says what a server is as a process: its pid file, the control socket over
//! which a new master can take over, the master that it takes over from. Its
//! [`pools`](ServerBuilder::pools) come from a closure, which is asked again at each SIGHUP: here
//! is where a program reads its configuration. What the closure fails with refuses the reload, and
//! nothing changes.
//!
//! ```no_run
//! use std::fs;
//!
//! use batond::http::{Http, Request, Response};
//! use batond::{Echo, Error, Pool, Server};
//!
//! fn pools() -> batond::Result<Vec<Pool<'static>>> {
//!     let greeting = fs::read_to_string("/etc/greeter")
//!         .map_err(|error| Error::new("read /etc/greeter", error))?;
//!     let greet = move || {
//!         let greeting = greeting.clone();
//!         Http::new(move |_: &mut Request<'_>| Response::text(greeting.clone()))
//!     };
//!     Ok(vec![
//!         Pool::new("web", greet).listen(":8080").workers(8),
//!         Pool::new("echo", Echo::new).listen("unix:/run/greeter/echo").workers(1),
//!     ])
//! }
//!
//! fn main() -> batond::Result<()> {
//!     Server::builder()
//!         .control("/run/greeter/control")
//!         .pid_file("/run/greeter/pid")
//!         .pools(pools)?
//!         .run()
//! }
//! ```
//!
//! SIGUSR2 starts the program anew, and the new process takes over the listeners and all
//! connections. docs/examples/pools.rs does all of this, and `batond serve` is written in the same
//! way.
//!
//! # Passing descriptors
//!
//! [`fdpass`] is the mechanism alone: send and receive descriptors over any Unix socket, without a
//! server. [`wire`] is the format of the messages between master and worker.
//!
//! # Under systemd
//!
//! [`systemd`] takes the sockets that a service manager passes, tells it how the service is, and
//! has it keep descriptors across a restart.
//!
//! # Logging
//!
//! The server logs through the [`log`] crate: workers that come, go and die, addresses, trouble.
//! Nobody sees it until the program installs a logger, for instance `env_logger::init()`, before it
//! runs the server; workers inherit the logger. It must not have a thread of its own, because the
//! fork would leave it behind. The log file and the filter of `batond serve` are those of its
//! command line; a library user chooses them with the logger.

mod channel;
mod cli;
pub mod config;
mod error;
pub mod fdpass;
mod fdtool;
mod logging;
mod lookup;
mod master;
mod server;
pub mod service;
mod services;
mod sys;
pub mod systemd;
pub mod wire;
mod worker;

pub use error::{Error, Result};
pub use server::{Pool, Pools, Server, ServerBuilder};
pub use service::{Connection, Fill, Peer, Service, ServiceProfile, Turn};
pub use services::{Echo, http};

/// The program `batond`: does what the arguments of this process ask for. No part of the interface.
#[doc(hidden)]
#[must_use]
pub fn main() -> std::process::ExitCode {
    cli::main()
}

/// What `tests/bench` measures: benchmarks see the crate from outside, and all this is private. No
/// part of the interface.
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals {
    pub use crate::channel::scoreboard::{Entry, Publisher, Scoreboard, Sleep, Urgency};
    pub use crate::master::dispatch::table::ConnectionId;
    pub use crate::master::dispatch::{Action, Dispatcher, Limits, Owes, TurnEnd, WorkerId};
    pub use crate::master::time::Time;
}
