//! How a connection stands goes along: what it waits for, for how long, and whose it is.

use std::fs;
use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::client::Served;
use crate::harness::{Client, Endpoint, Server, Setup, begin_sleep, eventually, process};

/// Upgrades, and waits until the old master is gone: a worker of it may still have stayed with a
/// client.
#[track_caller]
fn upgrade(server: &mut Server) {
    server.upgrade();
    server.wait_for_former();
}

#[test]
fn what_is_lent_comes_after_its_turn() {
    let mut server = Server::start(&["demo", "-w", "2"]);
    let workers = server.workers(2);
    let mut sleeper = server.connect();
    let old = begin_sleep(&mut sleeper, 1500, &workers);
    let before = server.master();
    server.upgrade();
    assert!(process::sleeps(old.pid));
    // Meanwhile the new one serves.
    assert_eq!(
        Served::of(&server.get("/")).master,
        server.master().as_raw()
    );
    assert_eq!(sleeper.reply().text(), "slept 1500 ms\n");
    server.wait_for_former();
    let served = Served::of(&sleeper.get("/"));
    assert_eq!((served.turn, served.master), (2, server.master().as_raw()));
    assert_ne!(before, server.master());
}

#[test]
fn who_must_read_first_waits_for_that_with_the_new_master_too() {
    // More than all the buffers on the way take.
    const SIZE: usize = 64 << 20;
    let mut server = Server::start(&["echo", "-w", "1"]);
    let mut reader = server.connect();
    let mut writer = reader.try_clone().expect("a second handle");
    let sent: Vec<u8> = (0..SIZE).map(|at| (at % 251) as u8).collect();
    let content = sent.clone();
    let writing = thread::spawn(move || writer.send(&content));
    // The server keeps what it can't send, and reads no more.
    let worker = server.workers(1)[0];
    process::wait_until_idle(worker.pid);
    for _ in 0..2 {
        upgrade(&mut server);
        assert!(!writing.is_finished());
        assert_eq!(server.connect().echo(b"hello"), b"hello");
    }
    let received = reader.read_exact(SIZE);
    writing.join().expect("all of it is sent");
    assert!(received == sent);
}

#[test]
fn an_unread_reply_is_completed() {
    const SIZE: usize = 16 << 20;
    let mut server = Server::start(&["demo", "-w", "2"]);
    let mut client = server.connect();
    client.send_get(&format!("/bytes/{SIZE}"));
    server.upgrade();
    assert_eq!(server.get("/").status, 200);
    assert_eq!(client.reply().body.len(), SIZE);
    server.wait_for_former();
    // The turns in which the rest was sent count, too.
    assert!(Served::of(&client.get("/")).turn > 2);
}

/// Waits for the end of a connection; when it came, counted from `begin`.
#[track_caller]
fn closed_after(client: &mut Client, begin: Instant) -> Duration {
    assert!(client.is_closed());
    begin.elapsed()
}

#[test]
fn deadlines_go_on() {
    let arguments = [
        "demo",
        "-w",
        "2",
        "--idle-timeout",
        "2",
        "--head-timeout",
        "3",
    ];
    let arguments = [&arguments[..], &["--defer-accept", "0"]].concat();
    let mut server = Setup::new(&arguments).expect("head-timeout: ").start();
    let begin = Instant::now();
    let mut idle = server.connect();
    assert_eq!(idle.get("/").status, 200);
    let mut silent = server.connect();
    let mut owing = server.connect();
    owing.send("GET / HTTP/1.1\r\nHo");
    // Half of the time is over at the takeover.
    assert!(idle.is_silent_for(Duration::from_secs(1)));
    upgrade(&mut server);
    for client in [&mut idle, &mut silent] {
        let after = closed_after(client, begin);
        assert!(after >= Duration::from_millis(1900), "{after:?}");
        assert!(after < Duration::from_millis(2900), "{after:?}");
    }
    assert_eq!(owing.reply().status, 408);
    let after = begin.elapsed();
    assert!(after >= Duration::from_millis(2900), "{after:?}");
    assert!(after < Duration::from_millis(3900), "{after:?}");
}

#[test]
fn connections_count_for_their_clients() {
    let setup = Setup::new(&["demo", "-w", "2", "--per-client", "2"]);
    let mut server = setup.expect("per-client: ").start();
    let from = Ipv4Addr::new(127, 0, 0, 9);
    let connect = |server: &Server| server.endpoint().connect_from(from);
    let mut both = [connect(&server), connect(&server)];
    both.iter_mut()
        .for_each(|client| assert_eq!(client.get("/").status, 200));
    for _ in 0..2 {
        upgrade(&mut server);
        assert_eq!(connect(&server).get("/").status, 503);
        both.iter_mut()
            .for_each(|client| assert_eq!(client.get("/").status, 200));
    }
    let [first, _second] = both;
    drop(first);
    eventually("there is room for another one", || {
        connect(&server).get("/").status == 200
    });
}

// ---- another configuration
// ----------------------------------------------------------------------------------------------

fn pool(name: &str, service: &str, sockets: &[&str]) -> String {
    let listen: Vec<_> = sockets
        .iter()
        .map(|name| format!("'unix:{name}'"))
        .collect();
    let listen = listen.join(", ");
    format!("[[pool]]\nname = '{name}'\nservice = '{service}'\nlisten = [{listen}]\nworkers = 2\n")
}

fn start(text: &str, addresses: usize) -> Server {
    let setup = Setup::new(&[]).expect("max-connections pool=web: ");
    setup.file(text, addresses).start()
}

fn rewrite(server: &Server, text: &str) {
    fs::write(server.directory().join("batond.toml"), text).expect("a file");
}

fn at(server: &Server, name: &str) -> Endpoint {
    Endpoint::Unix(server.directory().join(name))
}

#[test]
fn several_pools_go_over_at_once() {
    let text = pool("web", "demo", &["web"]) + &pool("echo", "echo", &["echo"]);
    let mut server = start(&text, 2);
    let mut web = at(&server, "web").connect();
    let mut echo = at(&server, "echo").connect();
    for turn in 1..4 {
        assert_eq!(Served::of(&web.get("/")).turn, turn);
        assert_eq!(echo.echo(b"hello"), b"hello");
        upgrade(&mut server);
    }
    assert!(at(&server, "web").connect().get("/").status == 200);
    let directory = server.directory().to_owned();
    assert!(server.stop().success());
    assert!(!directory.join("web").exists() && !directory.join("echo").exists());
}

#[test]
fn a_pool_that_is_gone_finishes_in_the_old_master() {
    let web = pool("web", "demo", &["web"]);
    let mut server = start(&(web.clone() + &pool("api", "demo", &["api"])), 2);
    let mut stays = at(&server, "web").connect();
    assert_eq!(stays.get("/").status, 200);
    let mut idle = at(&server, "api").connect();
    assert_eq!(idle.get("/").status, 200);
    let mut sleeper = at(&server, "api").connect();
    let workers = server.workers(4);
    begin_sleep(&mut sleeper, 700, &workers);
    rewrite(&server, &web);
    server.upgrade();
    assert!(idle.is_closed());
    assert!(at(&server, "api").try_connect().is_err());
    assert!(!server.directory().join("api").exists());
    assert_eq!(sleeper.reply().status, 200);
    assert!(sleeper.is_closed());
    server.wait_for_former();
    assert_eq!(Served::of(&stays.get("/")).turn, 2);
}

#[test]
fn a_listener_more_is_bound_by_the_new_master() {
    let mut server = start(&pool("web", "demo", &["one"]), 1);
    let mut client = at(&server, "one").connect();
    assert_eq!(client.get("/").status, 200);
    rewrite(&server, &pool("web", "demo", &["one", "two", "three"]));
    upgrade(&mut server);
    assert_eq!(Served::of(&client.get("/")).turn, 2);
    for name in ["one", "two", "three"] {
        let served = Served::of(&at(&server, name).connect().get("/"));
        assert_eq!(served.master, server.master().as_raw());
    }
}

#[test]
fn listeners_come_and_go_and_connections_stay() {
    let mut server = start(&pool("web", "demo", &["one", "two"]), 2);
    let mut clients = ["one", "two"].map(|name| at(&server, name).connect());
    rewrite(&server, &pool("web", "demo", &["two", "three"]));
    clients
        .iter_mut()
        .for_each(|client| assert_eq!(client.get("/").status, 200));
    upgrade(&mut server);
    for client in &mut clients {
        assert_eq!(Served::of(&client.get("/")).turn, 2);
    }
    assert!(!server.directory().join("one").exists());
    for name in ["two", "three"] {
        assert_eq!(at(&server, name).connect().get("/").status, 200);
    }
    // And back, with another pool.
    rewrite(
        &server,
        &(pool("web", "demo", &["one"]) + &pool("api", "demo", &["two"])),
    );
    upgrade(&mut server);
    for name in ["one", "two"] {
        assert_eq!(at(&server, name).connect().get("/").status, 200);
    }
    assert!(!server.directory().join("three").exists());
    for client in &mut clients {
        assert_eq!(Served::of(&client.get("/")).turn, 3);
    }
}

#[test]
fn who_waits_in_the_backlog_of_a_listener_that_goes_is_served() {
    let text =
        "[[pool]]\nname = 'web'\nservice = 'demo'\nworkers = 1\nmax-connections = 1\nlisten = ";
    let both = format!("{text}['unix:one', 'unix:two']\n");
    let mut server = start(&both, 2);
    let mut first = at(&server, "one").connect();
    assert_eq!(first.get("/").status, 200);
    // It has begun a request, so it does not give way, and there is no room for more: the next one
    // waits in the backlog.
    first.send("GET / HTTP/1.1\r\n");
    let mut waiting = at(&server, "one").connect();
    waiting.send_get("/");
    assert!(waiting.is_silent());
    rewrite(&server, &format!("{text}['unix:two']\n"));
    server.upgrade();
    drop(first);
    assert_eq!(waiting.reply().status, 200);
    server.wait_for_former();
    drop(waiting);
    assert_eq!(at(&server, "two").connect().get("/").status, 200);
}
