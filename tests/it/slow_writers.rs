//! Clients that send a body slowly, or stop in the middle: they occupy no worker, and what they
//! send arrives whatever becomes of the workers meanwhile.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::process::{self, eventually, status_number};
use crate::harness::skip::{lacks, lacks_root};
use crate::harness::{Client, Reply, Server, Setup, Worker, open_descriptors};
use crate::storm::{Numbers, living};

const CHUNKED: &str = "POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n";

fn head(length: usize, field: &str) -> Vec<u8> {
    format!("POST /echo HTTP/1.1\r\nHost: test\r\n{field}Content-Length: {length}\r\n\r\n").into()
}

/// Bytes of which none is like its neighbours, nor the same for two seeds.
fn noise(length: usize, seed: usize) -> Vec<u8> {
    let mut numbers = Numbers(seed as u64 * 2 + 1);
    (0..length).map(|_| numbers.below(256) as u8).collect()
}

/// `body` in chunks of so many bytes, with extensions and a trailer.
fn in_chunks(body: &[u8], length: usize) -> Vec<u8> {
    let mut coded = Vec::new();
    for chunk in body.chunks(length) {
        coded.extend_from_slice(format!("{:X};part=\"of \\\"it\\\"\"\r\n", chunk.len()).as_bytes());
        coded.extend_from_slice(chunk);
        coded.extend_from_slice(b"\r\n");
    }
    coded.extend_from_slice(b"0\r\nDigest: none\r\n\r\n");
    coded
}

/// How many bytes lie in the kernel between the two ends of a connection, by /proc/net/tcp.
fn under_way(server: &Server, client: &Client) -> u64 {
    let ports = [server.endpoint().tcp().port(), client.port()];
    let text = fs::read_to_string("/proc/net/tcp").expect("the kernel has TCP");
    let lines = text.lines().skip(1).filter_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let port = |word: &str| u16::from_str_radix(word.rsplit_once(':')?.1, 16).ok();
        let ends = [port(words[1])?, port(words[2])?];
        let (unsent, unread) = words[4].split_once(':')?;
        let number = |digits| u64::from_str_radix(digits, 16).ok();
        // The other way there may be an answer that the client has not read.
        match ends {
            _ if ends == ports => number(unread),
            [client, server] if [server, client] == ports => number(unsent),
            _ => None,
        }
    });
    lines.sum()
}

/// Waits until the server has taken all that this client has sent, and the turn is over.
#[track_caller]
pub fn wait_until_taken(server: &Server, client: &Client) {
    eventually("the server has taken what was sent", || {
        under_way(server, client) == 0
    });
    eventually("no worker is in a turn", || {
        let (workers, _) = process::children(server.master());
        workers.iter().all(|worker| process::is_idle(*worker))
    });
}

/// Kills all workers, and waits until there are others.
#[track_caller]
fn replace(server: &Server, workers: Vec<Worker>) -> Vec<Worker> {
    for worker in &workers {
        server.kill(*worker);
    }
    server.workers(workers.len())
}

#[track_caller]
fn assert_echo(reply: &Reply, body: &[u8]) {
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(reply.body == body, "the bodies differ");
}

/// A request of each kind whose body is not waited for in memory, or is; with its body.
fn requests(length: usize, seed: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let body = noise(length, seed);
    let small = noise(1000, seed);
    vec![
        ([head(length, ""), body.clone()].concat(), body.clone()),
        (
            [CHUNKED.into(), in_chunks(&body, length / 3)].concat(),
            body.clone(),
        ),
        ([head(1000, ""), small.clone()].concat(), small.clone()),
        (
            [CHUNKED.into(), in_chunks(&small, 10)].concat(),
            small.clone(),
        ),
    ]
}

#[test]
fn more_unfinished_bodies_than_workers_hold_up_nobody() {
    let mut server = Server::start(&["demo", "-w", "2"]);
    let workers = server.workers(2);
    let mut slow = Vec::new();
    for seed in 0..3 {
        for (request, body) in requests(200_000, seed) {
            let mut client = server.connect();
            let half = request.len() / 2;
            client.send(&request[..half]);
            wait_until_taken(&server, &client);
            slow.push((client, request[half..].to_vec(), body));
        }
        let mut client = server.connect();
        client.send(head(10, "Expect: 100-continue\r\n"));
        assert_eq!(client.reply().status, 100);
        slow.push((client, b"0123456789".to_vec(), b"0123456789".to_vec()));
    }
    assert_eq!(server.get("/").status, 200);
    for worker in &workers {
        process::wait_until_idle(worker.pid);
    }
    for (mut client, rest, body) in slow {
        client.send(rest);
        assert_echo(&client.reply(), &body);
        assert_eq!(client.get("/").status, 200);
    }
    assert_eq!(server.workers(2), workers);
    assert!(server.stop().success());
}

#[test]
fn a_body_survives_workers_that_die_between_turns_and_a_reload() {
    let server = Setup::new(&["demo", "-w", "2", "--max-body", "3M"])
        .expect(" died ")
        .expect("die at their start")
        .start();
    let mut workers = server.workers(2);
    for (number, (request, body)) in requests(2_500_000, 9).into_iter().enumerate() {
        let mut client = server.connect();
        let steps = 4;
        for (step, piece) in request.chunks(request.len() / steps + 1).enumerate() {
            client.send(piece);
            if step + 1 == steps {
                break;
            }
            wait_until_taken(&server, &client);
            if step == 1 {
                server.signal(Signal::SIGHUP);
                server.wait_for_lines("reloaded", number + 1);
                workers = server.workers(2);
            } else {
                workers = replace(&server, workers);
            }
        }
        assert_echo(&client.reply(), &body);
    }
}

#[test]
fn a_body_goes_on_with_the_next_master() {
    let mut server = Server::start(&["demo", "-w", "2", "--max-body", "3M"]);
    let mut clients: Vec<_> = requests(2_500_000, 11)
        .into_iter()
        .map(|(request, body)| (server.connect(), request, body))
        .collect();
    let mut expecting = server.connect();
    expecting.send(head(5, "Expect: 100-continue\r\n"));
    assert_eq!(expecting.reply().status, 100);
    for third in 0..2 {
        for (client, request, _) in &mut clients {
            let at = |third: usize| request.len() * third / 3;
            client.send(&request[at(third)..at(third + 1)]);
            wait_until_taken(&server, client);
        }
        wait_until_taken(&server, &expecting);
        server.upgrade();
    }
    for (client, request, body) in &mut clients {
        client.send(&request[request.len() * 2 / 3..]);
        assert_echo(&client.reply(), body);
    }
    expecting.send("hello");
    assert_echo(&expecting.reply(), b"hello");
}

/// What a client does not take is kept, and so is what it goes on to send: one after the other.
#[test]
fn a_body_behind_an_answer_that_nobody_reads() {
    let server = Server::start(&["demo", "-w", "1", "--max-body", "3M"]);
    let worker = server.workers(1)[0];
    for (number, (request, body)) in requests(2_000_000, 4).into_iter().enumerate() {
        let mut client = server.endpoint().connect_narrow();
        let mut writer = client.try_clone().expect("a second handle");
        let length = [3_000_000, 20_000_000][number % 2];
        client.send(format!(
            "GET /bytes/{length} HTTP/1.1\r\nHost: test\r\n\r\n"
        ));
        process::wait_until_idle(worker.pid);
        thread::scope(|scope| {
            // It may not all fit into the kernel before the answer is read.
            scope.spawn(move || {
                for _ in 0..2 {
                    writer.send(&request);
                }
            });
            assert_eq!(server.get("/").status, 200);
            assert_eq!(client.reply().body.len(), length);
            for _ in 0..2 {
                assert_echo(&client.reply(), &body);
            }
        });
    }
}

/// Clients that send all but the last bytes of a body in small pieces, a part in each round, and a
/// worker that is killed in the middle of it.
#[test]
fn bodies_survive_workers_that_die_within_turns() {
    const ROUNDS: usize = 12;
    const BEGIN: usize = 60_000;
    const END: usize = 20;
    let server = Setup::new(&["demo", "-w", "3", "--max-body", "6M"])
        .expect(" died ")
        .expect("die at their start")
        .start();
    server.workers(3);
    let large = |seed| requests(5_000_000, seed).into_iter().take(2);
    let mut clients: Vec<_> = (0..4)
        .flat_map(large)
        .map(|(request, body)| {
            let mut client = server.connect();
            client.send(&request[..BEGIN]);
            wait_until_taken(&server, &client);
            (client, request, body)
        })
        .collect();
    let mut numbers = Numbers(7);
    for round in 0..ROUNDS {
        let sent = AtomicUsize::new(0);
        let enough = 1 + numbers.below(clients.len() * 5_000_000 / ROUNDS / 2);
        thread::scope(|scope| {
            for (number, (client, request, _)) in clients.iter_mut().enumerate() {
                let rest = &request[BEGIN..request.len() - END];
                let at = |round: usize| rest.len() * round / ROUNDS;
                let (part, sent) = (&rest[at(round)..at(round + 1)], &sent);
                scope.spawn(move || {
                    let mut numbers = Numbers((round * 100 + number + 1) as u64);
                    let mut part = part;
                    while !part.is_empty() {
                        let count = part.len().min(1 + numbers.below(20_000));
                        client.send(&part[..count]);
                        sent.fetch_add(count, Ordering::Relaxed);
                        part = &part[count..];
                    }
                });
            }
            eventually("a part is sent", || sent.load(Ordering::Relaxed) >= enough);
            let workers = living(&server);
            let worker = workers[numbers.below(workers.len())];
            server.kill(worker);
            server.replacement(worker);
        });
    }
    for (client, _, _) in &clients {
        wait_until_taken(&server, client);
    }
    let gone_on = server.log_lines("another worker goes on with it").len();
    println!("{gone_on} of {ROUNDS} workers died in a turn that gathered");
    for (client, request, body) in &mut clients {
        client.send(&request[request.len() - END..]);
        assert_echo(&client.reply(), body);
    }
}

#[test]
fn the_last_of_a_body_comes_byte_by_byte_with_a_request_behind_it() {
    let server = Server::start(&["demo", "-w", "2"]);
    for (mut request, body) in requests(60_000, 3) {
        request.extend_from_slice(b"GET /bytes/3 HTTP/1.1\r\nHost: test\r\n\r\n");
        let mut client = server.connect();
        let (first, last) = request.split_at(request.len() - 150);
        client.send(first);
        wait_until_taken(&server, &client);
        for byte in last {
            client.send([*byte]);
        }
        assert_echo(&client.reply(), &body);
        assert_eq!(client.reply().body, b"bat");
    }
}

#[test]
fn a_body_that_is_too_long_is_refused_before_it_is_asked_for() {
    let server = Server::start(&["demo", "-w", "1", "--max-body", "100k"]);
    let limit = 102_400;
    for (length, expect) in [(limit + 1, ""), (limit + 1, "Expect: 100-continue\r\n")] {
        let mut client = server.connect();
        client.send(head(length, expect));
        let reply = client.reply();
        assert_eq!((reply.status, reply.closes()), (413, true));
        assert!(client.is_closed());
    }
    for (length, status) in [(limit, 200), (limit + 1, 413)] {
        let mut client = server.connect();
        client.send([CHUNKED.into(), in_chunks(&noise(length, 1), 30_000)].concat());
        assert_eq!(client.reply().status, status);
    }
    let mut client = server.connect();
    client.send(head(limit, "Expect: 100-continue\r\n"));
    assert_eq!(client.reply().status, 100);
    let body = noise(limit, 2);
    client.send(&body);
    assert_echo(&client.reply(), &body);
}

/// The directory for what is too much for memory, and a server that keeps it there.
fn with_spool(setup: Setup) -> (Server, std::path::PathBuf) {
    let spool = setup.directory().join("spool");
    fs::create_dir(&spool).expect("a directory");
    let server = setup.also(&["--body-dir", "spool"]).start();
    (server, spool.canonicalize().expect("it is there"))
}

#[test]
fn what_is_long_takes_no_memory_of_a_worker_and_leaves_nothing() {
    const LENGTH: usize = 48 << 20;
    let (server, spool) = with_spool(Setup::new(&["demo", "-w", "1", "--max-body", "64M"]));
    let worker = server.workers(1)[0];
    let mut first = server.connect();
    first.send(head(LENGTH, ""));
    first.send(vec![b'x'; 2 << 20]);
    wait_until_taken(&server, &first);
    let before = [worker.pid, server.master()].map(|pid| status_number(pid, "VmRSS"));
    let descriptors = open_descriptors(server.master()).len();
    let mut second = server.connect();
    second.send(head(LENGTH, ""));
    for client in [&mut first, &mut second] {
        client.send(vec![b'x'; 32 << 20]);
    }
    let mut third = server.connect();
    third.send(CHUNKED);
    third.send(format!("{:x}\r\n", 40 << 20));
    third.send(vec![b'x'; 32 << 20]);
    for client in [&first, &second, &third] {
        wait_until_taken(&server, client);
    }
    let after = [worker.pid, server.master()].map(|pid| status_number(pid, "VmRSS"));
    for (before, after) in before.iter().zip(after) {
        assert!(after < before + 2048, "{before} KiB, and then {after}");
    }
    let names = fs::read_dir(&spool).expect("it is there").count();
    assert_eq!(names, 0, "a file has a name");
    let spool = format!("{}/", spool.display());
    let kept = || {
        let descriptors = open_descriptors(server.master());
        let kept = descriptors
            .values()
            .filter(|target| target.starts_with(&spool));
        kept.count()
    };
    assert_eq!(kept(), 3);
    for client in [second, third] {
        client.reset();
    }
    eventually("two files are gone", || kept() == 1);
    drop(first);
    eventually("all is gone", || {
        open_descriptors(server.master()).len() == descriptors - 2
    });
    assert_eq!(server.get("/").status, 200);
    // Another process closes a file that may take long to delete.
    eventually("nobody deletes a file any more", || {
        process::children(server.master()).0 == [worker.pid]
    });
}

#[test]
fn without_a_directory_long_bodies_are_kept_in_memory() {
    let server = Setup::new(&["demo", "-w", "1", "--max-body", "3M"])
        .environment("TMPDIR", "/nonexistent")
        .expect("keeping in memory what slow clients send")
        .start();
    for (request, body) in requests(3 << 20, 5) {
        let mut client = server.connect();
        let (first, last) = request.split_at(request.len() - 10);
        client.send(first);
        wait_until_taken(&server, &client);
        client.send(last);
        assert_echo(&client.reply(), &body);
    }
}

#[test]
fn a_body_for_which_the_disk_has_no_room_gets_500() {
    if lacks("unshare") || lacks("mount") || lacks_root() {
        return;
    }
    let complaint = "cannot keep the body of a request: No space left on device";
    let mount = "mount -t tmpfs -o size=3m none spool && \"$@\"; exit $?";
    let wrapper = [
        "unshare",
        "-m",
        "--propagation",
        "private",
        "sh",
        "-c",
        mount,
        "sh",
    ];
    let setup = Setup::new(&["demo", "-w", "1", "--max-body", "64M"]);
    let (server, _) = with_spool(setup.expect(complaint).under(&wrapper));
    server.workers(1);
    for begin in [
        head(8 << 20, ""),
        [CHUNKED.into(), format!("{:x}\r\n", 8 << 20).into_bytes()].concat(),
    ] {
        let mut client = server.connect();
        client.send(begin);
        // The server may have ended it before all of it is sent.
        let _ = client.try_send(vec![b'x'; 5 << 20]);
        let reply = client.reply();
        assert_eq!((reply.status, reply.closes()), (500, true));
    }
    let lines = server.log_lines(complaint);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].ends_with("; answering 500"), "{lines:?}");
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn a_client_that_ends_its_side_in_the_middle_gets_400() {
    let server = Server::start(&["demo", "-w", "1"]);
    for (request, _) in requests(100_000, 1) {
        let mut client = server.connect();
        client.send(&request[..request.len() - 1]);
        wait_until_taken(&server, &client);
        client.half_close();
        assert_eq!(client.reply().status, 400);
        assert!(client.is_closed());
    }
}

#[test]
fn a_stop_does_not_wait_for_unfinished_bodies() {
    let mut server = Server::start(&["demo", "-w", "2"]);
    let mut clients = Vec::new();
    for (request, _) in requests(100_000, 1) {
        let mut client = server.connect();
        client.send(&request[..request.len() - 1]);
        wait_until_taken(&server, &client);
        clients.push(client);
    }
    let begin = std::time::Instant::now();
    assert!(server.stop().success());
    assert!(begin.elapsed() < Duration::from_secs(10));
    for mut client in clients {
        // As for any request of which a part has come.
        assert!(client.is_closed());
    }
}
