//! More than fits: connections, descriptors, requests, or all of them from one client.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::harness::process::{self, cpu_time};
use crate::harness::{
    Client, Reply, Server, Setup, Worker, begin_sleep, eventually, open_descriptors,
};

/// Checks that a request was turned away in the way that the demo's clients understand.
#[track_caller]
fn assert_turned_away(client: &mut Client) {
    let reply = client.reply();
    assert_is_overload(&reply);
    assert!(client.is_closed());
}

#[track_caller]
fn assert_is_overload(reply: &Reply) {
    assert_eq!(reply.status, 503, "{reply:?}");
    let again = reply.header("retry-after").map(str::parse::<u32>);
    assert!(matches!(again, Some(Ok(_))), "{reply:?}");
    assert!(reply.closes(), "{reply:?}");
}

/// What a client sends of a request so that it is not idle, and need not give way to another one.
const HALF: &str = "GET / HTTP/1.1\r\n";

/// Completes the half of a request, and sends the half of the next one with it.
#[track_caller]
fn go_on(client: &mut Client) {
    client.send(format!("Host: test\r\n\r\n{HALF}"));
    assert_eq!(client.reply().status, 200);
}

fn master_descriptors(server: &Server) -> usize {
    open_descriptors(server.master()).len()
}

// ---- connections ------------------------------------------------------------------------------

#[test]
fn beyond_the_limit_a_connection_waits_in_the_backlog_and_none_is_refused() {
    let setup = Setup::new(&["demo", "-w", "2", "--max-connections", "5"]);
    let server = setup.expect("max-connections: ").start();
    server.workers(2);
    let mut inside = server.connect_all(5);
    for client in &mut inside {
        client.send(HALF);
        go_on(client);
    }
    let mut outside = server.connect_all(10);
    for client in &mut outside {
        client.send_get("/");
    }
    for _ in 0..20 {
        go_on(&mut inside[0]);
    }
    assert!(outside.iter_mut().all(Client::is_silent));
    // One goes, and another one comes. When that one is served it is idle, and gives way.
    drop(inside.pop());
    for client in &mut outside {
        assert_eq!(client.reply().status, 200);
    }
    for client in &mut inside {
        go_on(client);
    }
    server.wait_for_log("max-connections: there are 5");
    assert_eq!(server.log_lines("max-connections: there are 5").len(), 1);
}

#[test]
fn at_the_limit_the_connection_that_was_idle_for_longest_gives_way() {
    let setup = Setup::new(&["demo", "-w", "1", "--max-connections", "4"]);
    let server = setup.expect("max-connections: ").start();
    let workers = server.workers(1);
    let mut idle = server.connect_all(2);
    for client in &mut idle {
        assert_eq!(client.get("/").status, 200);
    }
    let mut half = server.connect();
    half.send(HALF);
    go_on(&mut half);
    let mut busy = server.connect();
    begin_sleep(&mut busy, 2000, &workers);
    // One newcomer after the other: the first two cost the idle ones, then each costs the one
    // before.
    let mut newcomers = Vec::new();
    for (place, old) in idle.iter_mut().enumerate() {
        let mut newcomer = server.connect();
        newcomer.send_get("/");
        assert!(old.read_until_close().is_empty(), "{place} gives way");
        newcomers.push(newcomer);
    }
    assert_eq!(busy.reply().status, 200);
    for client in &mut newcomers {
        assert_eq!(client.reply().status, 200);
    }
    go_on(&mut half);
    assert_eq!(busy.get("/").status, 200);
}

/// One connection for each client, and two in all.
const ONE_EACH: &[&str] = &[
    "demo",
    "-w",
    "2",
    "--per-client",
    "1",
    "--max-connections",
    "2",
];

#[test]
fn what_is_over_for_a_client_counts_no_more() {
    // One that reads to the end of the connection, and one that knows the length of the reply.
    for ending in ["Connection: close\r\n", ""] {
        let server = Setup::new(ONE_EACH).expect("max-connections: ").start();
        server.workers(2);
        for round in 0..200 {
            let mut client = server.connect();
            client.send(format!("GET / HTTP/1.1\r\nHost: test\r\n{ending}\r\n"));
            assert_eq!(client.reply().status, 200, "round {round}, {ending:?}");
            if !ending.is_empty() {
                assert!(client.read_until_close().is_empty());
            }
        }
    }
}

#[test]
fn clients_that_were_turned_away_and_stay_keep_nobody_out() {
    let mut server = Setup::new(ONE_EACH).expect("per-client: ").start();
    server.workers(2);
    let mut kept = server.connect();
    assert_eq!(kept.get("/").status, 200);
    let mut staying = Vec::new();
    for _ in 0..10 {
        let mut client = server.connect();
        client.send_get("/");
        assert_is_overload(&client.reply());
        staying.push(client);
    }
    let mut elsewhere = server.endpoint().connect_from(OTHER_ADDRESS);
    assert_eq!(elsewhere.get("/").status, 200);
    drop(kept);
    eventually("there is room for another one", || {
        server.get("/").status == 200
    });
    // Nor do they hold up a stop.
    let begin = std::time::Instant::now();
    server.stop();
    assert!(begin.elapsed() < Duration::from_secs(4));
}

/// How many of the clients have something to read.
fn answered(clients: &mut [Client]) -> usize {
    let answered = clients.iter_mut().map(|client| !client.is_silent());
    answered.map(usize::from).sum()
}

#[test]
fn many_short_connections_pass_through_a_narrow_limit() {
    let setup = Setup::new(&["demo", "-w", "2", "--max-connections", "3"]);
    let server = setup.expect("max-connections: ").start();
    let tally = crate::harness::load(server.endpoint(), 20, 50, false, "/");
    tally.assert_all_ok(1000);
}

// ---- descriptors ------------------------------------------------------------------------------

const DESCRIPTORS: usize = 64;

/// A server that has run out of descriptors: the clients that it has accepted and served once, and
/// those that wait in the backlog with a request.
fn exhausted(setup: Setup, workers: usize) -> (Server, Vec<Client>, Vec<Client>) {
    let setup = setup.expect("limit of open files");
    let server = setup.descriptor_limit(DESCRIPTORS).start();
    server.workers(workers);
    let mut inside = Vec::new();
    // One after the other, so that it is known whom the master could not accept.
    let first = loop {
        let mut client = server.connect();
        client.send_get("/");
        eventually("it is served, or there is no room for it", || {
            !client.is_silent() || server.log_contains("cannot accept")
        });
        if client.is_silent_for(Duration::from_millis(300)) {
            break client;
        }
        assert_eq!(client.reply().status, 200);
        client.send(HALF);
        inside.push(client);
    };
    assert!(inside.len() < DESCRIPTORS, "{} are served", inside.len());
    let mut outside = server.connect_all(10);
    for client in &mut outside {
        client.send_get("/");
    }
    outside.push(first);
    (server, inside, outside)
}

#[test]
fn without_descriptors_it_pauses_and_does_not_spin() {
    let (server, mut inside, mut outside) = exhausted(Setup::new(&["demo", "-w", "1"]), 1);
    let before = cpu_time(server.master());
    assert!(outside[0].is_silent_for(Duration::from_millis(2500)));
    let spent = cpu_time(server.master()).saturating_sub(before);
    assert!(spent < Duration::from_millis(250), "{spent:?} in 2.5 s");
    // It looks again each second, and says so each second at most.
    let warnings = server.log_lines("cannot accept");
    assert!(warnings.len() <= 6, "{warnings:#?}");
    assert!(warnings[0].contains("open files"), "{warnings:#?}");
    for client in &mut inside {
        go_on(client);
    }
    assert!(outside.iter_mut().all(Client::is_silent));
    drop(inside);
    for client in &mut outside {
        assert_eq!(client.reply().status, 200);
    }
}

#[test]
fn without_descriptors_a_few_connections_that_end_are_no_flood_of_warnings() {
    let (server, mut inside, mut outside) = exhausted(Setup::new(&["demo", "-w", "2"]), 2);
    let before = server.log_lines("cannot accept").len();
    const ENDED: usize = 8;
    for ended in 1..=ENDED {
        drop(inside.pop());
        eventually("another one is served", || answered(&mut outside) >= ended);
    }
    for _ in 0..20 {
        go_on(&mut inside[0]);
    }
    let warnings = server.log_lines("cannot accept").len() - before;
    // The test takes well below a second, or a few on a busy machine.
    assert!(warnings < ENDED, "{warnings} warnings for {ENDED} ends");
}

#[test]
fn without_descriptors_a_dead_worker_is_replaced() {
    let setup = Setup::new(&["demo", "-w", "1"]).expect(" died ");
    let (server, mut inside, _outside) = exhausted(setup, 1);
    let worker = server.workers(1)[0];
    server.kill(worker);
    server.replacement(worker);
    for client in &mut inside {
        go_on(client);
    }
}

#[test]
fn without_descriptors_what_waits_behind_a_slow_turn_goes_elsewhere() {
    let (_server, mut inside, _outside) = exhausted(Setup::new(&["demo", "-w", "2"]), 2);
    for round in 0..3 {
        // Quick turns, so that several are lent to a worker at a time.
        for client in &mut inside {
            go_on(client);
        }
        let (slow, quick) = inside.split_first_mut().expect("there are many");
        let sleep = "GET /sleep/1000 HTTP/1.1\r\nHost: test\r\n\r\n";
        slow.send(format!("Host: test\r\n\r\n{sleep}{HALF}"));
        for client in &mut *quick {
            client.send(format!("Host: test\r\n\r\n{HALF}"));
        }
        for client in &mut *quick {
            assert_eq!(client.reply().status, 200, "round {round}");
        }
        assert_eq!(slow.reply().status, 200);
        assert!(slow.is_silent(), "round {round}: a quick one waited for it");
        assert_eq!(slow.reply().status, 200);
    }
}

#[test]
fn without_descriptors_what_lies_in_a_stopped_worker_s_inbox_is_served_by_the_other() {
    let setup = Setup::new(&["demo", "-w", "2"]).expect("worker stopped");
    let (server, mut inside, _outside) = exhausted(setup, 2);
    let workers = server.workers(2);
    for client in &mut inside {
        go_on(client);
    }
    for stopped in &workers {
        process::wait_until_idle(stopped.pid);
        process::signal(stopped.pid, nix::sys::signal::Signal::SIGSTOP);
        server.wait_for_log(&format!("worker stopped slot={}", stopped.slot));
        for client in &mut inside {
            client.send(format!("Host: test\r\n\r\n{HALF}"));
        }
        for client in &mut inside {
            assert_eq!(client.reply().status, 200);
        }
        process::signal(stopped.pid, nix::sys::signal::Signal::SIGCONT);
        let Worker { slot, pid } = stopped;
        server.wait_for_log(&format!("worker continued slot={slot} pid={pid}"));
    }
}

// ---- requests ---------------------------------------------------------------------------------

/// A server with one worker, in a turn of this many milliseconds; none came before that one, so the
/// master expects turns to be long and lends one at a time.
fn busy(arguments: &[&str], milliseconds: u32) -> (Server, Client) {
    let arguments = [&["demo", "-w", "1"], arguments].concat();
    let server = Setup::new(&arguments).expect("queue").start();
    let workers = server.workers(1);
    let mut client = server.connect();
    begin_sleep(&mut client, milliseconds, &workers);
    (server, client)
}

/// As many clients, each with a request that the master has seen.
#[track_caller]
fn queue(server: &Server, count: usize) -> Vec<Client> {
    let before = master_descriptors(server);
    let mut clients = server.connect_all(count);
    for client in &mut clients {
        client.send_get("/");
    }
    eventually("the master has accepted all", || {
        master_descriptors(server) == before + count
    });
    clients
}

#[test]
fn what_the_queue_can_t_take_is_turned_away() {
    let (server, mut slow) = busy(&["--queue", "3"], 2000);
    let mut within = queue(&server, 3);
    let mut beyond = server.connect_all(20);
    for client in &mut beyond {
        client.send_get("/");
        assert_turned_away(client);
    }
    // One line says when it began; the next one comes when it is over.
    server.wait_for_log("queue: ");
    assert_eq!(server.log_lines("queue: ").len(), 1);
    assert!(slow.is_silent(), "nobody was turned away for lack of time");
    assert!(within.iter_mut().all(Client::is_silent));
    assert_eq!(slow.reply().status, 200);
    for client in &mut within {
        assert_eq!(client.reply().status, 200);
    }
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn a_kept_connection_is_turned_away_like_a_new_one() {
    let server = Setup::new(&["demo", "-w", "1", "--queue", "1"])
        .expect("queue: ")
        .start();
    let workers = server.workers(1);
    let mut kept = server.connect_all(12);
    // Long turns, lest the master lend several at a time.
    for client in &mut kept {
        assert_eq!(client.get("/sleep/10").status, 200);
    }
    let mut slow = server.connect();
    begin_sleep(&mut slow, 1000, &workers);
    for client in &mut kept {
        client.send_get("/");
    }
    let away: Vec<u16> = kept[2..].iter_mut().map(|c| c.reply().status).collect();
    assert_eq!(away, [503; 10]);
    assert!(slow.is_silent());
    for client in &mut kept[2..] {
        assert!(client.is_closed());
    }
    assert_eq!(slow.reply().status, 200);
    assert_eq!(kept[0].reply().status, 200);
}

#[test]
fn who_has_waited_for_too_long_is_turned_away() {
    let (server, mut slow) = busy(&["--queue-wait", "500"], 3000);
    let mut late = queue(&server, 5);
    for client in &mut late {
        assert_turned_away(client);
    }
    assert!(slow.is_silent(), "they had not to wait for the worker");
    assert_eq!(slow.reply().status, 200);
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn who_has_not_waited_for_too_long_is_served() {
    let (server, mut slow) = busy(&["--queue-wait", "5000"], 700);
    let mut clients = queue(&server, 5);
    for client in &mut clients {
        assert_eq!(client.reply().status, 200);
    }
    assert_eq!(slow.reply().status, 200);
}

#[test]
fn who_is_turned_away_while_sending_still_reads_why() {
    let (server, mut slow) = busy(&["--queue", "1"], 1500);
    let _within = queue(&server, 1);
    let mut client = server.connect();
    client.send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 1000000\r\n\r\n");
    // More than the kernel keeps for a reader that is not there.
    client.send(vec![b'x'; 1_000_000]);
    assert_turned_away(&mut client);
    assert_eq!(slow.reply().status, 200);
}

// ---- one client -------------------------------------------------------------------------------

const OTHER_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

#[test]
fn one_address_has_so_many_connections_and_no_more() {
    let server = Setup::new(&["demo", "-w", "2", "--per-client", "2"])
        .expect("per-client: ")
        .start();
    let mut first = server.connect();
    let mut second = server.connect();
    for client in [&mut first, &mut second] {
        assert_eq!(client.get("/").status, 200);
    }
    for _ in 0..5 {
        let mut third = server.connect();
        third.send_get("/");
        assert_turned_away(&mut third);
    }
    let mut elsewhere = server.endpoint().connect_from(OTHER_ADDRESS);
    assert_eq!(elsewhere.get("/").status, 200);
    // Those that it has are not touched, and one that ends makes room.
    assert_eq!(first.get("/").status, 200);
    drop(second);
    eventually("there is room for another one", || {
        server.get("/").status == 200
    });
    assert_eq!(first.get("/").status, 200);
}

#[test]
fn whoever_is_turned_away_leaves_nothing_behind() {
    let server = Setup::new(&["demo", "-w", "2", "--per-client", "1"])
        .expect("per-client: ")
        .start();
    let before = master_descriptors(&server);
    let mut kept = server.connect();
    assert_eq!(kept.get("/").status, 200);
    for _ in 0..100 {
        assert_is_overload(&server.get("/"));
    }
    eventually("only the one that is served is left", || {
        master_descriptors(&server) == before + 1
    });
    drop(kept);
    eventually("no connection is left", || {
        master_descriptors(&server) == before
    });
    eventually("there is room for one", || server.get("/").status == 200);
}

#[test]
fn an_ipv4_address_is_the_same_client_through_an_ipv6_listener() {
    let setup = Setup::new(&["demo", "-w", "1", "--per-client", "1"]).expect("per-client: ");
    let server = setup.listen("127.0.0.1:0").listen(":0").start();
    let mut first = server.connect();
    assert_eq!(first.get("/").status, 200);
    let other = &server.endpoints()[1];
    let v4 = match other {
        crate::harness::Endpoint::Tcp(address) => {
            crate::harness::Endpoint::Tcp((Ipv4Addr::LOCALHOST, address.port()).into())
        }
        unix => unix.clone(),
    };
    let mut again = v4.connect();
    again.send_get("/");
    assert_turned_away(&mut again);
    // Over the other family it is another client.
    assert_eq!(other.connect().get("/").status, 200);
}

#[test]
fn who_waits_no_more_makes_room_for_who_does() {
    let server = Server::start(&["demo", "-w", "1", "--queue", "2", "--grace", "60"]);
    let workers = server.workers(1);
    let mut busy = server.connect();
    begin_sleep(&mut busy, 1500, &workers);
    let before = open_descriptors(server.master()).len();
    let mut gone = server.connect_all(2);
    for client in &mut gone {
        client.send_get("/sleep/10000");
    }
    eventually("they wait", || {
        open_descriptors(server.master()).len() == before + 2
    });
    gone.into_iter().for_each(Client::reset);
    // The queue has room for two.
    for mut client in server.connect_all(2) {
        assert_eq!(client.get("/").status, 200);
    }
    assert_eq!(busy.reply().status, 200);
}
