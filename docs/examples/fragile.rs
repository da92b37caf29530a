//! Workers that break when they are told to, to see what becomes of their clients. Run
//!
//! ```sh
//! cargo run --example fragile -- --mood /tmp/mood --max-turns 100 --max-rss 100000000
//! ```
//!
//! Then `curl localhost:8080` a few times, `curl localhost:8080/grow/100` to make a worker bigger
//! by 100 MiB, `curl localhost:8080/exit` to have one exit in the middle of a turn, `curl
//! localhost:8080/half` to have one exit between two turns of one response, and `curl
//! localhost:8080/flood` to have one keep so many descriptors in flight that its user may pass no
//! more (without CAP_SYS_RESOURCE and CAP_SYS_ADMIN). `curl localhost:8080/endless` gets a stream
//! without end, `curl localhost:8080/late` a long answer after half a second. `echo exit >
//! /tmp/mood` makes each worker exit with status 3 when it is started, and `quit` with status 0;
//! `hang` makes it hang at its start, and `cling` at its end. Anything else is well.

use std::fs::{self, File};
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::Duration;

use batond::Server;
use batond::config::Address;
use batond::fdpass::{self, Wait};
use batond::http::{Handler, Http, Request, Response, StatusCode};
use batond::service::{Connection, Service, ServiceProfile, Turn};
use clap::Parser;

#[derive(Parser)]
struct Arguments {
    #[arg(short, long, default_value = "127.0.0.1:8080")]
    listen: Address,
    #[arg(short, long, default_value_t = 2)]
    workers: usize,
    /// A file that says how workers are when they are started.
    #[arg(long)]
    mood: PathBuf,
    #[arg(long)]
    max_turns: Option<u64>,
    /// In bytes.
    #[arg(long)]
    max_rss: Option<u64>,
    /// In seconds.
    #[arg(long)]
    max_lifetime: Option<u64>,
    /// In seconds.
    #[arg(long, default_value_t = 30)]
    grace: u64,
    /// In milliseconds.
    #[arg(long, default_value_t = 60_000)]
    start_timeout: u64,
    /// How many requests may wait for a worker.
    #[arg(long, default_value_t = 10_000)]
    queue: usize,
    /// For how long they may, in milliseconds.
    #[arg(long, default_value_t = 30_000)]
    queue_wait: u64,
    /// How much of a response is kept for a slow client, in bytes.
    #[arg(long, default_value_t = 1 << 30)]
    max_spool: u64,
    /// For how many seconds the kernel may keep a silent client to itself.
    #[arg(long, default_value_t = 5)]
    defer_accept: u64,
}

/// What each worker serves.
struct Fragile {
    /// What it never gives back.
    hoard: Vec<Vec<u8>>,
    /// Sockets with descriptors in flight.
    unreceived: Vec<(UnixStream, UnixStream)>,
    /// It never comes to its end.
    clings: bool,
}

impl Fragile {
    fn new(mood: &Path) -> Self {
        match fs::read_to_string(mood).unwrap_or_default().trim() {
            "exit" => process::exit(3),
            "quit" => process::exit(0),
            "hang" => hang(),
            mood => Self {
                hoard: Vec::new(),
                unreceived: Vec::new(),
                clings: mood == "cling",
            },
        }
    }
}

impl Drop for Fragile {
    fn drop(&mut self) {
        if self.clings {
            hang();
        }
    }
}

fn hang() -> ! {
    loop {
        thread::sleep(Duration::from_secs(60));
    }
}

impl Fragile {
    /// Sends descriptors that nobody receives, until the kernel lets its user send no more.
    fn flood(&mut self) {
        let one = File::open("/dev/null").expect("it is there");
        let many = [one.as_fd(); 60];
        loop {
            let (from, to) = UnixStream::pair().expect("few are open");
            while let Ok(1) = fdpass::send(&from, &[IoSlice::new(b"*")], &many, Wait::Dont) {}
            self.unreceived.push((from, to));
            let last = fdpass::send(
                &self.unreceived[0].0,
                &[IoSlice::new(b"*")],
                &many,
                Wait::Dont,
            );
            if self.unreceived.len() == 50 || !matches!(last, Err(error) if error.would_block()) {
                return;
            }
        }
    }
}

impl Handler for Fragile {
    fn handle(&mut self, request: &mut Request<'_>) -> Response {
        let grow = request.path().strip_prefix("/grow/");
        match (
            request.path(),
            grow.and_then(|count| count.parse::<usize>().ok()),
        ) {
            ("/", _) => {}
            ("/exit", _) => process::exit(0),
            ("/endless", _) => return Response::new(StatusCode::OK).stream(io::repeat(b'x')),
            ("/late", _) => {
                thread::sleep(Duration::from_millis(500));
                return Response::new(StatusCode::OK).repeated(b"late", 24 << 20);
            }
            ("/flood", _) => self.flood(),
            (_, Some(mebibytes)) => self.hoard.push(vec![1; mebibytes << 20]),
            (_, None) => return Response::error(StatusCode::NOT_FOUND),
        }
        let held: usize = self.hoard.iter().map(Vec::len).sum();
        Response::text(format!("pid {} holds {held} bytes\n", process::id()))
    }
}

/// Serves HTTP, and has one response that takes two turns, of which the second one never comes.
struct Halved(Http<Fragile>);

const HALF: &[u8] = b"GET /half ";

impl Service for Halved {
    fn profile() -> ServiceProfile {
        Http::<Fragile>::profile()
    }

    fn turn(&mut self, connection: &mut Connection) -> io::Result<Turn> {
        if connection.buffer().is_empty() {
            connection.fill()?;
        } else if connection.buffer().starts_with(HALF) {
            process::exit(3);
        }
        if !connection.buffer().starts_with(HALF) {
            return self.0.turn(connection);
        }
        // The request stays in the buffer, and so the next turn knows of this one.
        connection.write_now(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n")?;
        while connection.write_now(&[b'x'; 65536])? > 0 {}
        Ok(Turn::ParkForWriting)
    }
}

fn main() -> batond::Result<()> {
    let level = env_logger::Env::default().default_filter_or("info");
    env_logger::Builder::from_env(level).init();
    let arguments = Arguments::parse();
    let mood = arguments.mood;
    Server::bind(arguments.listen)?
        .workers(arguments.workers)
        .settings(|settings| {
            settings.max_turns = arguments.max_turns;
            settings.max_rss = arguments.max_rss;
            settings.max_lifetime = arguments.max_lifetime.map(Duration::from_secs);
            settings.grace = Duration::from_secs(arguments.grace);
            settings.start_timeout = Duration::from_millis(arguments.start_timeout);
            settings.defer_accept = Duration::from_secs(arguments.defer_accept);
            settings.queue = arguments.queue;
            settings.max_spool = arguments.max_spool;
            settings.queue_wait = Some(Duration::from_millis(arguments.queue_wait));
        })
        .run(move || Halved(Http::new(Fragile::new(&mood))))
}
