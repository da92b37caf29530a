//! Clients that send a body, or take a response, byte by byte: how slowly they may, and what they
//! get. Whatever they do, it costs no worker.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Client, Server, Setup};

/// Between two pieces of a client that drips.
const DRIP: Duration = Duration::from_millis(50);

/// Much longer than any time that these tests set, much shorter than those that hold if none is
/// set.
const SOON: Duration = Duration::from_secs(8);

const SLOW_BODY: &str = "min-rate: turning clients away that send less than 1000 bytes of a body";
const SILENT_BODY: &str = "idle-timeout: turning clients away that stop within a body for 1 s";
const SLOW_READER: &str = "min-rate: cutting clients off that take less than";

/// One worker; a thousand bytes a second, after a grace of one.
fn setup(arguments: &[&str]) -> Setup {
    let rate = ["-w", "1", "--min-rate", "1000", "--min-rate-grace", "1"];
    Setup::new(&[arguments, &rate].concat())
}

fn begin_body(client: &mut Client, length: usize) {
    client.send(format!(
        "POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n"
    ));
}

#[track_caller]
fn assert_told_to_hurry(client: &mut Client) {
    let reply = client.reply();
    assert_eq!(reply.status, 408, "{reply:?}");
    assert!(reply.closes(), "{reply:?}");
    assert!(client.is_closed());
}

/// A client that has sent so much of an echo as there is room for, and goes on with it, and a
/// second handle on it, to read.
fn flood(
    server: &Server,
    client: Client,
    bytes: usize,
) -> (Client, thread::JoinHandle<io::Result<()>>) {
    let mut sender = client.try_clone().expect("a copy");
    let sending = thread::spawn(move || sender.try_send(vec![b'x'; bytes]));
    let mut other = server.connect();
    assert_eq!(other.echo(b"others are served"), b"others are served");
    (client, sending)
}

#[test]
fn a_body_below_the_rate_is_answered_408() {
    // One that is waited for in the carry, and one that is gathered.
    for length in [40_000, 400_000] {
        body_below_the_rate(length);
    }
}

fn body_below_the_rate(length: usize) {
    let server = setup(&["demo"]).expect("min-rate: ").start();
    let mut client = server.connect();
    let start = Instant::now();
    begin_body(&mut client, length);
    let mut drips = 0;
    while client.is_silent_for(DRIP) {
        // Half of the rate, or less.
        client.send([b'x'; 25]);
        drips += 1;
        assert!(start.elapsed() < SOON, "{drips} drips");
        assert_eq!(server.get("/").status, 200);
    }
    assert_told_to_hurry(&mut client);
    // The grace, and a second for each thousand bytes.
    let least = Duration::from_millis(900 + drips * 25);
    assert!(
        start.elapsed() > least,
        "{drips} drips: {:?}",
        start.elapsed()
    );
    server.wait_for_log(SLOW_BODY);
}

#[test]
fn a_body_above_the_rate_is_served() {
    const PIECES: usize = 60;
    let server = setup(&["demo"]).start();
    // One that is waited for in the carry, and one that is gathered.
    let mut clients = [500, 5000].map(|piece| (server.connect(), piece));
    for (client, piece) in &mut clients {
        begin_body(client, PIECES * *piece);
    }
    for number in 1..=PIECES {
        for (client, piece) in &mut clients {
            client.send(vec![b'x'; *piece]);
            let last = number == PIECES;
            assert!(last || client.is_silent_for(DRIP), "after {number} pieces");
        }
    }
    for (client, piece) in &mut clients {
        assert_eq!(client.reply().body.len(), PIECES * *piece);
    }
}

#[test]
fn a_client_that_stops_within_a_body_has_the_time_of_an_idle_one() {
    let arguments = ["demo", "-w", "1", "--idle-timeout", "1"];
    let server = Setup::new(&arguments).expect("idle-timeout: ").start();
    let mut client = server.connect();
    begin_body(&mut client, 40_000);
    client.send([b'x'; 30_000]);
    let start = Instant::now();
    assert_told_to_hurry(&mut client);
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    server.wait_for_log(SILENT_BODY);
}

#[test]
fn who_takes_a_response_below_the_rate_is_cut_off() {
    for listener in ["127.0.0.1:0", "unix:socket"] {
        let arguments = [
            "echo",
            "-w",
            "1",
            "--min-rate",
            "10M",
            "--min-rate-grace",
            "1",
        ];
        let setup = Setup::new(&arguments).listen(listener);
        let server = setup.expect("min-rate: ").start();
        let client = match listener.starts_with("unix") {
            true => server.connect(),
            false => server.endpoint().connect_narrow(),
        };
        let (mut client, sending) = flood(&server, client, 64 << 20);
        let start = Instant::now();
        let mut pacemaker = server.connect();
        while !server.log_contains(SLOW_READER) {
            assert!(start.elapsed() < SOON, "{listener}: it is left alone");
            client.read_exact(1000);
            assert!(pacemaker.is_silent_for(DRIP));
        }
        let sent = sending.join().expect("it ends");
        // The client can't take what it has for the whole. Whoever of the two asks first is told.
        let end = client.try_reply().expect_err("no reply");
        let ends = [sent.expect_err("it is cut off").kind(), end.kind()];
        let is_tcp = !listener.starts_with("unix");
        assert!(
            !is_tcp || ends.contains(&ErrorKind::ConnectionReset),
            "{ends:?}"
        );
    }
}

#[test]
fn who_takes_a_download_below_the_rate_is_cut_off() {
    let arguments = [
        "http",
        ".",
        "-w",
        "1",
        "--min-rate",
        "10M",
        "--min-rate-grace",
        "1",
    ];
    let setup = Setup::new(&arguments).expect("min-rate: ");
    let file = File::create(setup.directory().join("large")).expect("a file");
    file.set_len(64 << 20).expect("it may be large");
    let server = setup.start();
    let mut client = server.endpoint().connect_narrow();
    client.send_get("/large");
    let start = Instant::now();
    while !server.log_contains(SLOW_READER) {
        assert!(start.elapsed() < SOON, "it is left alone");
        client.read_exact(1000);
        assert!(server.connect().is_silent_for(DRIP));
        assert_eq!(server.get("/none").status, 404);
    }
    let end = client.try_reply().expect_err("it is no reply").kind();
    assert_eq!(end, ErrorKind::ConnectionReset);
}

#[test]
fn who_takes_a_response_above_the_rate_gets_all_of_it() {
    const LENGTH: usize = 32 << 20;
    let server = setup(&["echo"]).start();
    let (mut client, sending) = flood(&server, server.connect(), LENGTH);
    let mut pacemaker = server.connect();
    for _ in 0..32 {
        assert_eq!(client.read_exact(1 << 20), vec![b'x'; 1 << 20]);
        assert!(pacemaker.is_silent_for(2 * DRIP));
    }
    sending.join().expect("it ends").expect("all was sent");
}

#[test]
fn who_takes_nothing_of_a_response_is_cut_off_as_an_idle_one() {
    for rate in ["0", "1"] {
        let arguments = ["echo", "-w", "1", "--min-rate", rate, "--idle-timeout", "1"];
        let server = Server::start(&arguments);
        let start = Instant::now();
        let (client, sending) = flood(&server, server.connect(), 64 << 20);
        // It can send nothing more either, until that fails.
        sending.join().expect("it ends").expect_err("it is cut off");
        assert!(start.elapsed() < SOON, "rate {rate}: {:?}", start.elapsed());
        drop(client);
    }
}
