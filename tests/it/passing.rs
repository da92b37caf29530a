//! A pool that passes requests to another one: files, and an application behind the same port.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::client::Served;
use crate::harness::process::{self, Births};
use crate::harness::systemd::Manager;
use crate::harness::{
    Client, DEADLINE, Server, Setup, Worker, begin_sleep, eventually, load, open_descriptors,
};
use crate::store::{kill_all, noted, wait_until_parked};

/// The pool of the files, which has further settings.
fn site(more: &str) -> String {
    format!(
        "[[pool]]\nname = \"site\"\nservice = \"http\"\nroot = \"www\"\nworkers = 2\n\
         listen = \"127.0.0.1:0\"\n{more}\n"
    )
}

/// The pool of the application, which listens nowhere.
fn app(more: &str) -> String {
    app_of(2, more)
}

/// The same with so many workers.
fn app_of(workers: usize, more: &str) -> String {
    format!("[[pool]]\nname = \"app\"\nservice = \"demo\"\nworkers = {workers}\n{more}\n")
}

const FALLBACK: &str = "fallback = \"app\"\n";

const CONTENT: &str = "the content of a file\n";

/// Puts files where the pool of the files finds them.
fn prepared(text: &str) -> Setup {
    let setup = Setup::new(&[]);
    let www = setup.directory().join("www");
    fs::create_dir(&www).expect("a directory");
    fs::write(www.join("file"), CONTENT).expect("a file");
    fs::create_dir(www.join("directory")).expect("a directory");
    let addresses = text.matches("listen = ").count();
    setup.file(text, addresses).expect("reload refused")
}

/// Both pools; each has further settings.
fn start(of_site: &str, of_app: &str) -> Server {
    prepared(&(site(&format!("{FALLBACK}{of_site}")) + &app(of_app))).start()
}

/// The workers of a pool, out of four.
fn workers_of(server: &Server, pool: &str) -> Vec<Worker> {
    let all = server.workers(4);
    let of_pool = |worker: &&Worker| {
        let pattern = format!("worker ready slot={} pid={} ", worker.slot, worker.pid);
        let line = server.wait_for_log(&pattern);
        line.contains(&format!("pool={pool}"))
    };
    all.iter().filter(of_pool).copied().collect()
}

#[track_caller]
fn assert_file(client: &mut Client) {
    let reply = client.get("/file");
    assert_eq!((reply.status, reply.text().as_str()), (200, CONTENT));
}

/// Which turn of the connection answered from the application.
#[track_caller]
fn app_turn(client: &mut Client) -> u64 {
    let reply = client.get("/");
    assert_eq!(reply.status, 200, "{reply:?}");
    Served::of(&reply).turn
}

#[track_caller]
fn change(server: &Server, text: &str) {
    let before = server.log_lines("reloaded").len();
    fs::write(server.directory().join("batond.toml"), text).expect("a file");
    server.signal(Signal::SIGHUP);
    server.wait_for_lines("reloaded", before + 1);
}

/// The same, and waits until the two workers that served the files before are gone: one may stay
/// with its connection for a moment, and answer one request more.
#[track_caller]
fn change_over(server: &Server, text: &str) {
    let gone = || {
        let retired = server.log_lines("worker retired");
        let of_site = |line: &&String| line.contains("pool=site");
        retired.iter().filter(of_site).count()
    };
    let before = gone();
    change(server, text);
    eventually("the old workers are gone", || gone() == before + 2);
}

// ---- who answers ------------------------------------------------------------------------------

#[test]
fn files_and_an_application_answer_on_one_connection() {
    let server = start("", "");
    let of_app: Vec<_> = workers_of(&server, "app").iter().map(|w| w.pid).collect();
    let mut client = server.connect();
    assert_file(&mut client);
    let mut turn = 1;
    for _ in 0..10 {
        let reply = client.get("/");
        let served = Served::of(&reply);
        assert!(
            of_app.iter().any(|pid| pid.as_raw() == served.worker),
            "{reply:?}"
        );
        assert!(served.turn > turn, "{served:?} after turn {turn}");
        turn = served.turn;
        assert_file(&mut client);
        assert_eq!(client.post("/echo", b"some body").body, b"some body");
        assert_eq!(client.head("/").status, 200);
        assert_eq!(client.head("/file").header("content-length"), Some("22"));
    }
}

#[test]
fn the_example_serves_its_own_files_and_the_demo() {
    let example = include_str!("../../docs/examples/fallback.toml");
    let text = example.replace("127.0.0.1:8080", "127.0.0.1:0");
    assert_ne!(text, example);
    let server = Setup::new(&[]).file(&text, 1).start();
    let mut client = server.connect();
    assert_eq!(client.get("/batond.toml").text(), text);
    app_turn(&mut client);
    assert_eq!(client.get("/batond.toml").text(), text);
}

#[test]
fn whatever_is_no_file_goes_to_the_application() {
    let server = start("", "");
    let mut client = server.connect();
    let mut ask = |method: &str, path: &str| {
        client.roundtrip(format!(
            "{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n"
        ))
    };
    let allow = |reply: &crate::harness::Reply| reply.header("allow").map(str::to_owned);
    // What the files answer.
    assert_eq!(ask("GET", "/file").status, 200);
    assert_eq!(
        ask("GET", "/directory").header("location"),
        Some("/directory/")
    );
    let files = Some("GET, HEAD, OPTIONS".to_owned());
    assert_eq!(allow(&ask("OPTIONS", "/file")), files);
    // What the application answers: it knows POST /echo, and has no such pages.
    let echo = Some("POST, OPTIONS".to_owned());
    assert_eq!(allow(&ask("OPTIONS", "/echo")), echo);
    assert_eq!(ask("POST", "/echo").status, 200);
    for (method, path, status) in [
        ("GET", "/none", 404),
        ("GET", "/directory/", 404),
        ("GET", "/../file", 404),
        ("GET", "/bytes%2F7", 404),
        ("POST", "/file", 404),
        ("DELETE", "/", 405),
        ("GET", "/bytes/7", 200),
    ] {
        let reply = ask(method, path);
        assert_eq!(reply.status, status, "{method} {path}: {reply:?}");
    }
    let log = server.log();
    assert!(!log.iter().any(|line| line.contains("WARN")), "{log:#?}");
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let server = start("", "");
    let mut text = String::new();
    let mut sizes = Vec::new();
    for round in 0..40_usize {
        let (path, size) = match round % 3 {
            0 => ("/file".to_owned(), CONTENT.len()),
            _ => (format!("/bytes/{round}"), round),
        };
        text += &format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n");
        sizes.push(size);
    }
    let mut at_once = server.connect();
    at_once.send(&text);
    let mut in_pieces = server.connect();
    for piece in text.as_bytes().chunks(7) {
        in_pieces.send(piece);
    }
    for client in [&mut at_once, &mut in_pieces] {
        for size in &sizes {
            let reply = client.reply();
            assert_eq!((reply.status, reply.body.len()), (200, *size));
        }
        assert!(client.is_silent());
    }
}

#[test]
fn a_body_goes_through_whole_however_it_comes() {
    let server = start("", "");
    let body: Vec<u8> = (0..700_000_u32)
        .map(|number| (number % 251) as u8)
        .collect();
    for (size, piece) in [(0, 1), (1, 1), (300, 7), (40_000, 9_000), (60_000, 7_001)] {
        let mut client = server.connect();
        let body = &body[..size];
        client.send(format!(
            "POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: {size}\r\n\r\n"
        ));
        for part in body.chunks(piece) {
            client.send(part);
        }
        // The next request comes right behind it.
        client.send_get("/file");
        let reply = client.reply();
        assert_eq!((reply.status, reply.body == body), (200, true), "{size}");
        assert_eq!(client.reply().text(), CONTENT);
    }
    let mut client = server.connect();
    assert!(client.post("/echo", &body).body == body);
    assert_file(&mut client);
    // A client that waits for a 100 gets it from the application.
    client.send(
        "POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n",
    );
    assert_eq!(client.reply().status, 100);
    assert_eq!(client.roundtrip("body").text(), "body");
    let chunked = "POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n\
                   3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    assert_eq!(client.roundtrip(chunked).text(), "abcde");
    assert_file(&mut client);
}

#[test]
fn a_slow_head_waits_at_home_and_is_timed_there() {
    let server = {
        let text = site(&format!("{FALLBACK}head-timeout = 1")) + &app("head-timeout = 600");
        let setup = prepared(&text);
        setup.expect("head-timeout").start()
    };
    let mut client = server.connect();
    for byte in b"GET / HTTP/1.1\r\nHost: test\r\n\r\n".chunks(1) {
        client.send(byte);
    }
    assert_eq!(client.reply().status, 200);
    client.send("GET / HTTP/1.1\r\nHo");
    assert_eq!(client.reply().status, 408);
}

#[test]
fn both_pools_may_be_reached_at_addresses_of_their_own() {
    let text = site(FALLBACK) + &app("listen = \"unix:app\"");
    let setup = prepared(&text);
    let server = setup.start();
    let mut direct = server.endpoints()[1].connect();
    assert_eq!(direct.get("/file").status, 404);
    let mut client = server.connect();
    assert_file(&mut client);
    assert_eq!(client.get("/").status, 200);
    // A connection of the application's own stays when others are away there.
    assert_eq!(Served::of(&direct.get("/")).turn, 2);
}

// ---- what goes wrong in the other pool --------------------------------------------------------

#[test]
fn a_worker_of_the_application_that_dies_costs_its_request_only() {
    let server = prepared(&(site(FALLBACK) + &app("")))
        .expect(" died ")
        .start();
    let mut beside = server.connect();
    assert_file(&mut beside);
    for _ in 0..3 {
        let mut client = server.connect();
        assert_file(&mut client);
        let reply = client.get("/crash");
        assert_eq!(reply.status, 502, "{reply:?}");
        assert!(client.is_closed());
        assert_file(&mut beside);
        let turn = app_turn(&mut beside);
        assert!(app_turn(&mut beside) > turn);
    }
    assert_eq!(server.wait_for_lines("worker died", 3).len(), 3);
}

#[test]
fn a_worker_that_dies_before_it_reads_costs_nothing() {
    let text = site(FALLBACK) + &app_of(1, "");
    let server = prepared(&text).expect(" died ").start();
    let workers = server.workers(3);
    let mut busy = server.connect();
    let worker = begin_sleep(&mut busy, 30_000, &workers);
    // It waits in the inbox of the one that is killed, or in the queue.
    let mut client = server.connect();
    client.send_get("/");
    server.kill(worker);
    assert_eq!(busy.reply().status, 502);
    assert_eq!(client.reply().status, 200);
    assert_file(&mut client);
}

#[test]
fn the_queue_of_the_application_is_its_own() {
    let text = site(FALLBACK) + &app_of(1, "queue = 1");
    let setup = prepared(&text).expect("queue pool=app");
    let server = setup.start();
    let workers = server.workers(3);
    let mut busy = server.connect();
    begin_sleep(&mut busy, 1500, &workers);
    let mut waiting = server.connect();
    waiting.send_get("/");
    let mut turned_away = server.connect();
    let reply = turned_away.get("/");
    // Which of the two came first is not known.
    let (mut other, reply) = match reply.status {
        503 => (waiting, reply),
        status => {
            assert_eq!(status, 200);
            (turned_away, waiting.reply())
        }
    };
    assert_eq!(reply.status, 503);
    assert_eq!(reply.header("retry-after"), Some("1"));
    let mut files = server.connect();
    assert_file(&mut files);
    assert_eq!(busy.reply().status, 200);
    assert_file(&mut busy);
    let _ = other.try_get("/file");
}

#[test]
fn a_turn_of_the_application_has_its_time() {
    let text = site(FALLBACK) + &app("turn-timeout = 1");
    let setup = prepared(&text).expect(" hangs ");
    let server = setup.expect(" died ").start();
    let mut client = server.connect();
    assert_file(&mut client);
    assert_eq!(client.get("/sleep/60000").status, 504);
    assert!(client.is_closed());
    assert_file(&mut server.connect());
}

// ---- what counts ------------------------------------------------------------------------------

#[test]
fn a_connection_that_is_away_counts_for_its_client() {
    let text = site(&format!("{FALLBACK}per-client = 2")) + &app("per-client = 1");
    let setup = prepared(&text).expect("per-client pool=site");
    let server = setup.start();
    // What has come home, is closed in the other pool, or ends there, leaves nothing behind.
    load(server.endpoint(), 2, 500, true, "/").assert_all_ok(1000);
    load(server.endpoint(), 1, 300, false, "/").assert_all_ok(300);
    let mut away = [(); 2].map(|()| server.connect());
    for client in &mut away {
        client.send_get("/sleep/2000");
    }
    eventually("both are away", || {
        let workers = workers_of(&server, "app");
        workers.iter().all(|worker| process::sleeps(worker.pid))
    });
    let mut third = server.connect();
    assert_eq!(third.reply().status, 503);
    let mut other = server.endpoint().connect_from(Ipv4Addr::new(127, 0, 0, 2));
    assert_file(&mut other);
    for client in &mut away {
        assert_eq!(client.reply().status, 200);
        assert_file(client);
    }
    drop(away);
    assert_file(&mut server.connect());
}

#[test]
fn a_connection_that_is_away_takes_a_place_at_home_and_none_there() {
    let text = site(&format!("{FALLBACK}max-connections = 3"))
        + &app("max-connections = 1\nlisten = \"unix:app\"");
    let setup = prepared(&text);
    let server = setup.expect("max-connections pool=").start();
    load(server.endpoint(), 3, 400, true, "/").assert_all_ok(1200);
    load(server.endpoint(), 3, 100, false, "/").assert_all_ok(300);
    let mut away = [(); 2].map(|()| server.connect());
    for client in &mut away {
        client.send_get("/sleep/1500");
    }
    eventually("both are away", || {
        let workers = workers_of(&server, "app");
        workers.iter().all(|worker| process::sleeps(worker.pid))
    });
    // There is a place for one that is the other pool's own.
    let mut direct = server.endpoints()[1].connect();
    direct.send_get("/");
    let mut third = server.connect();
    third.send("GET /file HTTP/1.1\r\n");
    let mut fourth = server.connect();
    fourth.send_get("/file");
    assert!(fourth.is_silent_for(Duration::from_millis(300)));
    for client in &mut away {
        assert_eq!(client.reply().status, 200);
    }
    assert_eq!(direct.reply().status, 200);
    assert_eq!(fourth.reply().text(), CONTENT);
    assert_eq!(third.roundtrip("Host: test\r\n\r\n").text(), CONTENT);
}

#[test]
fn connections_that_were_away_leave_no_descriptor() {
    let server = start("", "");
    let before = open_descriptors(server.master()).len();
    load(server.endpoint(), 20, 50, true, "/").assert_all_ok(1000);
    load(server.endpoint(), 20, 50, false, "/").assert_all_ok(1000);
    for _ in 0..20 {
        let mut client = server.connect();
        client.send_get("/sleep/1");
        drop(client);
        let mut client = server.connect();
        client.send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\nabc");
        drop(client);
        let mut client = server.connect();
        client.send_get("/bytes/1000000");
        client.read_exact(1000);
        drop(client);
    }
    let settled = || open_descriptors(server.master()).len() == before;
    assert!(process::eventually_within(DEADLINE, settled));
}

#[test]
fn an_idle_connection_gives_way_after_it_has_been_away() {
    let text = site(&format!("{FALLBACK}max-connections = 1\nidle-timeout = 1"))
        + &app("idle-timeout = 600");
    let setup = prepared(&text).expect("max-connections pool=site");
    let server = setup.start();
    let mut first = server.connect();
    app_turn(&mut first);
    let mut second = server.connect();
    app_turn(&mut second);
    assert!(first.is_closed());
    // The idle limit is that of its home.
    assert!(second.is_closed());
}

// ---- changes ----------------------------------------------------------------------------------

/// Puts a client into a turn of the application.
fn away(server: &Server, milliseconds: u32) -> Client {
    let mut client = server.connect();
    begin_sleep(&mut client, milliseconds, &server.workers(4));
    client
}

#[test]
fn a_reload_leaves_what_is_away() {
    let server = start("", "");
    let mut idle = server.connect();
    app_turn(&mut idle);
    let mut client = away(&server, 700);
    change(&server, &(site(FALLBACK) + &app("")));
    assert_eq!(client.reply().status, 200);
    assert_file(&mut client);
    app_turn(&mut client);
    app_turn(&mut idle);
}

#[test]
fn a_removed_application_finishes_what_was_passed_to_it() {
    let server = start("", "");
    let mut slow = server.connect();
    slow.send(format!(
        "POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 60000\r\n\r\n{}",
        "x".repeat(1000)
    ));
    let mut client = away(&server, 700);
    change_over(&server, &site(""));
    assert_eq!(client.reply().status, 200);
    // It is home again, and there is no application any more.
    assert_file(&mut client);
    assert_eq!(client.get("/").status, 404);
    let reply = slow.roundtrip("x".repeat(59_000));
    assert_eq!((reply.status, reply.body.len()), (200, 60_000));
    assert_file(&mut slow);
    change_over(&server, &(site(FALLBACK) + &app("")));
    app_turn(&mut client);
    app_turn(&mut slow);
}

#[test]
fn a_removed_home_lets_the_application_finish() {
    let server = start("", "");
    let mut client = away(&server, 700);
    let other = site("")
        .replace("site", "other")
        .replace("127.0.0.1:0", "unix:other");
    change(&server, &(other + &app("listen = \"unix:app\"")));
    assert_eq!(client.reply().status, 200);
    assert!(client.is_closed());
    server.wait_for_lines("worker retired", 4);
}

#[test]
fn a_stop_lets_the_application_finish() {
    let mut server = start("", "");
    let mut idle = server.connect();
    app_turn(&mut idle);
    let mut client = away(&server, 700);
    // One that has yet to be passed on when the server is told to stop.
    let mut late = server.connect();
    late.send("GET / HTTP/1.1\r\nHost: test\r\n");
    server.signal(Signal::SIGTERM);
    server.wait_for_log("stopping");
    assert!(idle.is_closed());
    assert_eq!(client.reply().status, 200);
    assert!(client.is_closed());
    drop(late);
    assert!(server.wait().success());
}

/// An application with a single worker, which sleeps for one client, so that another one waits for
/// it there. Both have asked for a file before, and are parked.
fn one_waits(server: &Server, milliseconds: u32, parked: impl Fn()) -> [Client; 2] {
    let workers = server.workers(3);
    let mut both = [(); 2].map(|()| server.connect());
    both.iter_mut().for_each(assert_file);
    parked();
    let [busy, waiting] = &mut both;
    begin_sleep(busy, milliseconds, &workers);
    waiting.send_get("/");
    both
}

#[test]
fn what_is_away_goes_along_when_the_master_is_replaced() {
    let text = site(&format!("{FALLBACK}per-client = 2")) + &app_of(1, "");
    let setup = prepared(&text).expect("per-client pool=site");
    let mut server = setup.start();
    let [mut busy, mut waiting] = one_waits(&server, 2500, || {});
    server.upgrade();
    let reply = waiting.reply();
    assert_eq!(Served::of(&reply).master, server.master().as_raw());
    assert_file(&mut waiting);
    waiting.send_get("/sleep/1000");
    // What the old master has lent comes home with it.
    assert_eq!(busy.reply().status, 200);
    server.wait_for_former();
    let mut third = server.connect();
    assert_eq!(third.reply().status, 503);
    assert_file(&mut busy);
    assert_eq!(waiting.reply().status, 200);
    for client in [&mut busy, &mut waiting] {
        assert_file(client);
        app_turn(client);
    }
    drop((busy, waiting));
    load(server.endpoint(), 2, 50, true, "/").assert_all_ok(100);
}

#[test]
fn what_waits_in_another_pool_survives_the_master() {
    let text = site(FALLBACK) + &app_of(1, "");
    let manager = Manager::new(100);
    let mut first = manager.manage(prepared(&text)).start();
    let [mut busy, mut waiting] = one_waits(&first, 60_000, || wait_until_parked(&manager, 2));
    // How they are written down (`src/master/store/ledger.rs`).
    const READY_AWAY: u64 = 13;
    const LENT_AWAY: u64 = 14;
    eventually("both are away", || {
        let mut noted = noted(&manager);
        noted.sort_unstable();
        noted == [READY_AWAY, LENT_AWAY]
    });
    let workers = first.workers(3);
    kill_all(&mut first, &workers);
    let second = manager.manage(prepared(&text)).start();
    assert_eq!(busy.reply().status, 502);
    assert_eq!(waiting.reply().status, 200);
    assert_file(&mut waiting);
    app_turn(&mut waiting);
    second.wait_for_log("the master was killed in turn");
}

#[test]
fn the_workers_of_the_application_are_replaced_like_others() {
    let server = start("", "max-turns = 20");
    let mut births = Births::watch(server.master());
    let mut client = server.connect();
    let turns = (0..100).map(|_| app_turn(&mut client)).last();
    assert!(turns >= Some(200), "{turns:?}");
    assert!(births.next_within(DEADLINE).is_some());
    assert_file(&mut client);
}
