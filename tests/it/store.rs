//! `kill -9` of the master of a server whose service manager keeps descriptors: what the next
//! master finds, and what clients see of it.

use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use rustix::fs::fstat;

use crate::harness::client::Served;
use crate::harness::systemd::Manager;
use crate::harness::{
    Client, Server, Setup, Watched, Worker, begin_sleep, eventually, open_descriptors, process,
    wait_until_idle,
};

const CONNECTION: &str = "baton";
const LISTENER: &str = "baton-listen-";
const STATE: &str = "baton-state-";

/// Where the version stands in the ledger, and how an entry begins there
/// (`src/master/store/ledger.rs`).
const VERSION_AT: u64 = 8;
const ENTRY: usize = 128;
const PARKED: u64 = 2;

fn count(manager: &Manager, beginning: &str) -> usize {
    let stored = manager.stored();
    let named = stored.iter().filter(|(name, _)| match beginning {
        CONNECTION => name == CONNECTION,
        _ => name.starts_with(beginning),
    });
    named.count()
}

/// Waits until so many connections are stored, and nothing else but one listener and the state of
/// one master.
#[track_caller]
fn wait_for_connections(manager: &Manager, connections: usize) {
    eventually(&format!("{connections} connections are stored"), || {
        let wanted = [(CONNECTION, connections), (LISTENER, 1), (STATE, 2)];
        wanted
            .iter()
            .all(|(name, wanted)| count(manager, name) == *wanted)
            && manager.stored().len() == connections + 3
    });
}

/// The inodes of the stored listeners.
fn listeners(manager: &Manager) -> Vec<u64> {
    let stored = manager.stored().into_iter();
    let listeners = stored.filter(|(name, _)| name.starts_with(LISTENER));
    let inodes = listeners.map(|(_, socket)| fstat(socket).expect("it is open").st_ino);
    inodes.collect()
}

fn ledgers(manager: &Manager) -> Vec<std::fs::File> {
    let stored = manager.stored().into_iter();
    let states = stored.filter(|(name, _)| name.starts_with(STATE));
    let files = states.map(|(_, descriptor): (_, OwnedFd)| std::fs::File::from(descriptor));
    files
        .filter(|file| file.metadata().expect("it is open").is_file())
        .collect()
}

/// The states of all entries that are used in the one ledger. Text that follows them is no state.
pub fn noted(manager: &Manager) -> Vec<u64> {
    let ledger = ledgers(manager);
    let [ledger] = &ledger[..] else {
        return Vec::new();
    };
    let mut bytes = vec![0; ENTRY * 512];
    let length = ledger.read_at(&mut bytes, 0).expect("it can be read");
    let entries = bytes[..length].chunks_exact(ENTRY).skip(3);
    let states = entries.map(|entry| u64::from_ne_bytes(entry[..8].try_into().unwrap()));
    states.filter(|state| (1..=15).contains(state)).collect()
}

/// Waits until the ledger has so many connections, and all of them parked.
#[track_caller]
pub fn wait_until_parked(manager: &Manager, connections: usize) {
    wait_for_connections(manager, connections);
    eventually(&format!("{connections} connections are noted"), || {
        noted(manager) == vec![PARKED; connections]
    });
}

fn start(manager: &Manager, arguments: &[&str]) -> Server {
    manager.manage(Setup::new(arguments)).start()
}

/// Kills the master, and the workers with it as systemd does.
pub fn kill_all(server: &mut Server, workers: &[Worker]) {
    let watched: Vec<_> = workers.iter().map(|one| Watched::new(one.pid)).collect();
    server.signal(Signal::SIGKILL);
    for worker in workers {
        process::signal(worker.pid, Signal::SIGKILL);
    }
    server.wait_for_master();
    for worker in watched {
        worker.reap_orphan();
    }
}

/// Kills the master alone; what its workers are is returned.
fn kill_master(server: &mut Server, workers: &[Worker]) -> Vec<Watched> {
    let watched = workers.iter().map(|one| Watched::new(one.pid)).collect();
    server.signal(Signal::SIGKILL);
    server.wait_for_master();
    watched
}

#[track_caller]
fn turn(client: &mut Client) -> u64 {
    Served::of(&client.get("/")).turn
}

/// A demo with so many workers, and a client that has had its first turn and is stored.
#[track_caller]
fn with_one_parked(workers: usize) -> (Manager, Server, Vec<Worker>, Client) {
    let manager = Manager::new(100);
    let server = start(&manager, &["demo", "-w", &workers.to_string()]);
    let workers = server.workers(workers);
    let mut client = server.connect();
    assert_eq!(turn(&mut client), 1);
    wait_until_parked(&manager, 1);
    (manager, server, workers, client)
}

#[test]
fn idle_clients_do_not_notice_that_the_master_was_killed() {
    for with_workers in [true, false] {
        let manager = Manager::new(300);
        let mut first = start(&manager, &["demo", "-w", "2"]);
        let workers = first.workers(2);
        let mut clients = first.connect_all(200);
        for client in &mut clients {
            assert_eq!(turn(client), 1);
        }
        wait_until_parked(&manager, 200);
        if with_workers {
            kill_all(&mut first, &workers);
        } else {
            for orphan in kill_master(&mut first, &workers) {
                assert_eq!(orphan.reap_orphan(), WaitStatus::Exited(orphan.pid(), 0));
            }
        }
        // It sends while nobody is there.
        clients[0].send_get("/");
        let mut waiting = first.endpoint().connect();
        waiting.send_get("/");
        let mut second = start(&manager, &["demo", "-w", "2"]);
        assert_eq!(second.endpoint(), first.endpoint());
        assert_eq!(Served::of(&clients[0].reply()).turn, 2);
        assert_eq!(Served::of(&waiting.reply()).turn, 1);
        for client in &mut clients[1..] {
            assert_eq!(turn(client), 2);
        }
        // And once more.
        drop(waiting);
        wait_until_parked(&manager, 200);
        let workers = second.workers(2);
        kill_all(&mut second, &workers);
        let third = start(&manager, &["demo", "-w", "2"]);
        for client in &mut clients {
            assert_eq!(turn(client), 3);
        }
        drop(third);
        assert_eq!(
            manager.stored().len(),
            0,
            "a stopped server leaves nothing behind"
        );
        for client in &mut clients {
            assert!(client.is_closed());
        }
    }
}

#[test]
fn half_a_request_is_completed_after_the_kill() {
    let manager = Manager::new(100);
    let mut first = start(&manager, &["demo", "-w", "1"]);
    let workers = first.workers(1);
    let mut client = first.connect();
    assert_eq!(turn(&mut client), 1);
    client.send("GET / HTTP/1.1\r\nHo");
    eventually("the half is noted", || {
        let ledger = ledgers(&manager);
        let mut word = [0; 8];
        ledger.len() == 1
            && ledger[0]
                .read_exact_at(&mut word, (3 * ENTRY + 72) as u64)
                .is_ok()
            && u64::from_ne_bytes(word) == 18
    });
    wait_until_idle(workers[0].pid);
    kill_all(&mut first, &workers);
    let _second = start(&manager, &["demo", "-w", "1"]);
    client.send("st: test\r\n\r\n");
    assert_eq!(Served::of(&client.reply()).turn, 3);
    assert_eq!(turn(&mut client), 4);
}

#[test]
fn a_turn_that_was_killed_is_answered_once_or_not_at_all() {
    // With its worker killed too, nobody has sent anything.
    let (manager, mut first, workers, mut client) = with_one_parked(2);
    begin_sleep(&mut client, 60_000, &workers);
    kill_all(&mut first, &workers);
    let second = start(&manager, &["demo", "-w", "2"]);
    assert_eq!(client.reply().status, 502);
    assert!(client.read_until_close().is_empty());
    wait_for_connections(&manager, 0);
    second.wait_for_log("the master was killed in turn 2");
}

#[test]
fn a_worker_that_has_lost_its_master_may_finish_its_turn() {
    let manager = Manager::new(100);
    let mut first = start(&manager, &["demo", "-w", "2"]);
    let workers = first.workers(2);
    let (mut client, mut idle) = (first.connect(), first.connect());
    assert_eq!(turn(&mut client), 1);
    assert_eq!(turn(&mut idle), 1);
    wait_until_parked(&manager, 2);
    begin_sleep(&mut client, 1500, &workers);
    let orphans = kill_master(&mut first, &workers);
    let second = start(&manager, &["demo", "-w", "2"]);
    assert_eq!(turn(&mut idle), 2);
    assert!(!second.log_contains("the master was killed in turn"));
    let reply = client.reply();
    assert_eq!(reply.status, 200);
    assert!(client.is_closed());
    for orphan in orphans {
        assert_eq!(orphan.reap_orphan(), WaitStatus::Exited(orphan.pid(), 0));
    }
    second.wait_for_log("the master was killed in turn 2");
    wait_for_connections(&manager, 1);
    assert_eq!(turn(&mut idle), 3);
}

#[test]
fn what_has_ended_is_not_stored() {
    let manager = Manager::new(1000);
    let server = start(&manager, &["demo", "-w", "2", "--idle-timeout", "1"]);
    let workers = server.workers(2);
    wait_for_connections(&manager, 0);
    for _ in 0..20 {
        assert_eq!(
            server.connect().get_with("/", "Connection: close").status,
            200
        );
    }
    let stored = |message: &&String| message.lines().any(|line| line == "FDNAME=baton");
    assert_eq!(manager.messages().iter().filter(stored).count(), 0);

    // The client goes.
    let mut clients = server.connect_all(50);
    for client in &mut clients {
        assert_eq!(turn(client), 1);
    }
    drop(clients);
    wait_for_connections(&manager, 0);
    // The service ends it, and the client sees it at once.
    let mut client = server.connect();
    assert_eq!(turn(&mut client), 1);
    wait_for_connections(&manager, 1);
    assert_eq!(client.get_with("/", "Connection: close").status, 200);
    assert!(client.is_closed());
    wait_for_connections(&manager, 0);
    // It is idle for too long.
    let mut client = server.connect();
    assert_eq!(turn(&mut client), 1);
    assert!(client.is_closed());
    wait_for_connections(&manager, 0);
    wait_until_idle(workers[0].pid);
}

#[test]
fn a_client_sees_the_end_of_a_stored_connection_after_a_crash() {
    let manager = Manager::new(100);
    let setup = Setup::new(&["demo", "-w", "2"]).expect(" died ");
    let server = manager.manage(setup).start();
    let mut client = server.connect();
    assert_eq!(turn(&mut client), 1);
    wait_for_connections(&manager, 1);
    client.send_get("/crash");
    assert_eq!(client.reply().status, 502);
    assert!(client.is_closed());
    wait_for_connections(&manager, 0);
}

#[test]
fn what_the_store_has_no_room_for_is_not_stored() {
    // A listener, and what two masters note.
    const OTHERS: usize = 1 + 4;
    let manager = Manager::new(OTHERS + 5);
    let mut first = start(&manager, &["demo", "-w", "2"]);
    let workers = first.workers(2);
    let mut clients = first.connect_all(10);
    for (before, client) in clients.iter_mut().enumerate() {
        assert_eq!(turn(client), 1);
        wait_until_parked(&manager, 5.min(before + 1));
    }
    let mut rest = clients.split_off(5);
    let open = || open_descriptors(first.master()).len();
    let before = open();
    drop(clients);
    eventually("those that have gone are closed", || open() + 5 <= before);
    // There is room again for those that come back.
    for client in &mut rest {
        assert_eq!(turn(client), 2);
    }
    wait_until_parked(&manager, 5);
    kill_all(&mut first, &workers);
    let _second = start(&manager, &["demo", "-w", "2"]);
    for client in &mut rest {
        assert_eq!(turn(client), 3);
    }
}

#[test]
fn a_reload_changes_nothing_about_the_store() {
    let manager = Manager::new(100);
    let mut first = start(&manager, &["demo", "-w", "1"]);
    let mut client = first.connect();
    assert_eq!(turn(&mut client), 1);
    wait_until_parked(&manager, 1);
    let old = first.workers(1);
    first.signal(Signal::SIGHUP);
    first.wait_for_log("reloaded");
    let new = first.replacement(old[0]);
    assert_eq!(turn(&mut client), 2);
    wait_until_parked(&manager, 1);
    eventually("the old worker is gone", || !process::is_alive(old[0].pid));
    kill_all(&mut first, &[new]);
    let _second = start(&manager, &["demo", "-w", "1"]);
    assert_eq!(turn(&mut client), 3);
}

#[test]
fn an_address_that_is_given_up_is_not_stored_any_more() {
    let manager = Manager::new(100);
    let text = |listen: &str| {
        format!("[[pool]]\nname = \"main\"\nservice = \"demo\"\nworkers = 1\nlisten = [{listen}]\n")
    };
    let both = text("\"127.0.0.1:0\", \"unix:socket\"");
    let setup = Setup::new(&[]).file(&both, 2);
    let server = manager.manage(setup).start();
    eventually("both are stored", || count(&manager, LISTENER) == 2);
    std::fs::write(
        server.directory().join("batond.toml"),
        text("\"127.0.0.1:0\""),
    )
    .expect("a file");
    server.signal(Signal::SIGHUP);
    server.wait_for_log("reloaded");
    eventually("one is removed", || count(&manager, LISTENER) == 1);
    wait_for_connections(&manager, 0);
}

#[test]
fn a_unix_listener_and_its_clients_survive() {
    let manager = Manager::new(100);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("socket");
    let address = format!("unix:{}", path.display());
    let begin = || {
        let setup = Setup::new(&["demo", "-w", "1"]).listen(&address);
        manager.manage(setup).start()
    };
    let mut first = begin();
    let workers = first.workers(1);
    let mut client = first.connect();
    assert_eq!(turn(&mut client), 1);
    wait_until_parked(&manager, 1);
    kill_all(&mut first, &workers);
    let mut waiting = first.endpoint().connect();
    waiting.send_get("/");
    let second = begin();
    assert_eq!(turn(&mut client), 2);
    assert_eq!(Served::of(&waiting.reply()).turn, 1);
    assert_eq!(second.get("/").status, 200);
    drop(second);
    assert!(!path.exists(), "the server has removed its socket");
    assert_eq!(manager.stored().len(), 0);
}

#[test]
fn a_unix_listener_whose_file_is_gone_is_made_anew() {
    let manager = Manager::new(100);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("socket");
    let address = format!("unix:{}", path.display());
    let setup = || Setup::new(&["demo", "-w", "1"]).listen(&address);
    let mut first = manager.manage(setup()).start();
    let workers = first.workers(1);
    wait_for_connections(&manager, 0);
    kill_all(&mut first, &workers);
    std::fs::remove_file(&path).expect("it is there");
    let of_first = listeners(&manager);
    let mut second = manager
        .manage(setup().expect("dropping the stored listener"))
        .start();
    assert_eq!(second.get("/").status, 200);
    eventually("the new listener is stored instead of the old one", || {
        listeners(&manager) != of_first
    });
    wait_for_connections(&manager, 0);
    let workers = second.workers(1);
    kill_all(&mut second, &workers);
    let third = manager.manage(setup()).start();
    assert_eq!(third.get("/").status, 200);
}

#[test]
fn a_stored_listener_does_not_own_a_socket_that_has_taken_its_place() {
    let manager = Manager::new(100);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("socket");
    let address = format!("unix:{}", path.display());
    let setup = Setup::new(&["demo", "-w", "1"]);
    let mut first = manager.manage(setup.listen(&address)).start();
    let workers = first.workers(1);
    wait_for_connections(&manager, 0);
    kill_all(&mut first, &workers);
    std::fs::remove_file(&path).expect("it is there");
    let other = UnixListener::bind(&path).expect("a socket");
    let setup = Setup::new(&["demo", "-w", "1"]).expect("dropping the stored listener");
    let second = manager.manage(setup).start();
    assert_eq!(second.get("/").status, 200);
    wait_for_connections(&manager, 0);
    drop(second);
    UnixStream::connect(&path).expect("it is still there");
    other.accept().expect("the one that connected");
}

#[test]
fn a_ledger_of_another_version_is_refused() {
    let (manager, mut first, workers, mut client) = with_one_parked(1);
    kill_all(&mut first, &workers);
    let other = 9_u64.to_ne_bytes();
    ledgers(&manager)[0]
        .write_all_at(&other, VERSION_AT)
        .expect("it can be written");
    let setup = Setup::new(&["demo", "-w", "1"])
        .expect("cannot read the ledger")
        .expect("of which nothing is known");
    let second = manager.manage(setup).start();
    second.wait_for_log(
        "cannot read the ledger of a master that was killed: it has version 9, and this is version 2",
    );
    assert!(client.is_closed());
    wait_for_connections(&manager, 0);
    assert_eq!(second.get("/").status, 200);
}

#[test]
fn a_new_master_is_responsible_for_what_the_old_one_stored() {
    let manager = Manager::new(100);
    let mut server = start(&manager, &["demo", "-w", "1"]);
    server.workers(1);
    let mut clients = server.connect_all(10);
    for client in &mut clients {
        assert_eq!(turn(client), 1);
    }
    wait_until_parked(&manager, 10);
    let old = server.master();
    server.signal(Signal::SIGUSR2);
    assert!(server.wait_for_master().success());
    assert_eq!(manager.wait_for_messages("READY=1", 2).len(), 2);
    // The manager may know it before the test has read the log that far.
    let ready = server.wait_for_lines("worker ready", 2);
    let (new, worker) = successor(&ready);
    assert_ne!(new.pid(), old);
    // The state of the old one is gone, and the names of its connections are the new one's.
    wait_until_parked(&manager, 10);
    for client in &mut clients {
        assert_eq!(turn(client), 2);
    }
    clients.truncate(5);
    wait_until_parked(&manager, 5);
    process::signal(new.pid(), Signal::SIGKILL);
    process::signal(worker.pid(), Signal::SIGKILL);
    // Then the worker is ours too.
    new.reap_orphan();
    worker.reap_orphan();
    let _third = start(&manager, &["demo", "-w", "1"]);
    for client in &mut clients {
        assert_eq!(turn(client), 3);
    }
    wait_until_parked(&manager, 5);
}

#[test]
fn after_a_takeover_that_failed_what_was_lent_is_stored_again() {
    let manager = Manager::new(100);
    let setup = Setup::new(&["demo", "-w", "2"]).expect("takes charge again");
    let mut first = manager.manage(setup).start();
    let workers = first.workers(2);
    let mut client = first.connect();
    assert_eq!(turn(&mut client), 1);
    wait_until_parked(&manager, 1);
    begin_sleep(&mut client, 3000, &workers);
    first.signal(Signal::SIGUSR2);
    first.wait_for_log("handed over");
    // It has stored what it notes.
    eventually("the new one speaks to the manager", || {
        count(&manager, STATE) == 4
    });
    let (new, _) = successor(&first.wait_for_lines("worker ready", 4));
    process::signal(new.pid(), Signal::SIGKILL);
    first.wait_for_log("takes charge again");
    assert_eq!(client.reply().status, 200);
    eventually("it is stored", || count(&manager, CONNECTION) == 1);
    kill_all(&mut first, &workers);
    let _third = start(&manager, &["demo", "-w", "2"]);
    assert_eq!(turn(&mut client), 3);
}

/// The master behind the last worker that was ready, and that worker.
fn successor(ready: &[String]) -> (Watched, Watched) {
    let line = ready.last().expect("a worker is ready");
    let (_, pid) = line.split_once("pid=").expect("it is named");
    let worker = pid.split_ascii_whitespace().next().unwrap_or_default();
    let worker = nix::unistd::Pid::from_raw(worker.parse().expect("a pid"));
    let parent = process::stat(worker).expect("it is there").parent;
    (Watched::new(parent), Watched::new(worker))
}

#[test]
fn without_a_store_there_is_no_ledger() {
    let server = Server::start(&["demo", "-w", "1"]);
    let worker = server.workers(1)[0];
    for pid in [server.master(), worker.pid] {
        let open = open_descriptors(pid);
        assert!(
            !open.values().any(|one| one.contains("baton-ledger")),
            "{open:?}"
        );
    }
    let mut client = server.connect();
    assert_eq!(turn(&mut client), 1);
    assert!(client.is_silent_for(Duration::from_millis(1)));
}

#[test]
fn what_no_worker_had_begun_is_served_by_the_next_ones() {
    let manager = Manager::new(100);
    let setup = Setup::new(&["demo", "-w", "1"]).expect("worker stopped");
    let mut first = manager.manage(setup).start();
    let workers = first.workers(1);
    let mut client = first.connect();
    assert_eq!(turn(&mut client), 1);
    wait_until_parked(&manager, 1);
    process::signal(workers[0].pid, Signal::SIGSTOP);
    first.wait_for_log("worker stopped");
    client.send_get("/");
    // There is nobody else: it waits for the worker, in its inbox or before.
    assert!(client.is_silent_for(Duration::from_millis(20)));
    kill_all(&mut first, &workers);
    let _second = start(&manager, &["demo", "-w", "1"]);
    assert_eq!(Served::of(&client.reply()).turn, 2);
}

#[test]
fn a_worker_that_does_not_end_in_time_loses_its_client() {
    let (manager, mut first, workers, mut client) = with_one_parked(2);
    begin_sleep(&mut client, 3000, &workers);
    let orphans = kill_master(&mut first, &workers);
    let setup = Setup::new(&["demo", "-w", "2", "--grace", "1"])
        .expect("workers of a master that was killed do not end");
    let second = manager.manage(setup).start();
    assert!(client.is_closed());
    second.wait_for_log("do not end: closing what they have");
    wait_for_connections(&manager, 0);
    for orphan in orphans {
        orphan.reap_orphan();
    }
}
