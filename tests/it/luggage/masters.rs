//! What is kept for a client goes over to the next master: by an upgrade, and by the service
//! manager when the master was killed. To a master that knows nothing of it, nothing goes.

use std::os::fd::OwnedFd;

use rustix::fs::fstat;

use super::{ask, assert_kept, keeper, say};
use crate::harness::session::Session;
use crate::harness::systemd::Manager;
use crate::harness::{Client, Server, Setup, eventually};
use crate::store::kill_all;

/// Clients with something of each kind, and what they have.
#[track_caller]
fn clients(server: &Server) -> Vec<(Client, &'static str, Option<usize>)> {
    let kinds = [
        ("", None),
        ("memory 3000", Some(3000)),
        ("file 300000", Some(300_000)),
    ];
    let mut clients = Vec::new();
    for (line, size) in kinds {
        let mut client = server.connect();
        say(&mut client, "note something");
        if size.is_some() {
            say(&mut client, line);
        }
        clients.push((client, "something", size));
    }
    // And one that has a file and no note.
    let mut client = server.connect();
    say(&mut client, "memory 10");
    clients.push((client, "", Some(10)));
    clients
}

#[track_caller]
fn assert_all_kept(clients: &mut [(Client, &'static str, Option<usize>)]) {
    for (client, note, size) in clients {
        assert_kept(client, note, *size);
    }
}

#[test]
fn upgrades_take_along_what_is_kept() {
    let mut server = keeper(2).start();
    let mut clients = clients(&server);
    for _ in 0..2 {
        server.upgrade();
        assert_all_kept(&mut clients);
    }
    server.wait_for_former();
    say(&mut clients[1].0, "drop");
    say(&mut clients[1].0, "note");
    assert_kept(&mut clients[1].0, "", None);
}

/// What a master that takes over is told in this version, up to its count.
#[track_caller]
fn take_over(server: &Server, version: u32) -> (Session, Vec<(String, Vec<OwnedFd>)>) {
    let session = Session::connect(&server.directory().join("control"));
    session.say(&format!("TAKEOVER {version}\n"));
    session.hear_until("OFFER");
    session.say("KEEP 127.0.0.1:0\n");
    session.say("READY main\n");
    let mut told = session.hear_until("ALL");
    told.pop();
    (session, told)
}

#[test]
fn a_new_master_is_given_note_and_luggage_with_the_connection() {
    let setup = keeper(1).also(&["--control", "control"]);
    let server = setup.expect("takeover failed").start();
    let mut clients = clients(&server);
    // The last answer is there, and the report of the turn with it or soon.
    let told = |count| {
        let mut told = Vec::new();
        eventually("all connections are passed", || {
            let (session, heard) = take_over(&server, 3);
            drop(session);
            told = heard;
            told.len() == count
        });
        told
    };
    let mut told = told(4);
    told.sort_by_key(|(text, _)| text.len());
    for (text, descriptors) in &told {
        let (line, rest) = text.split_once('\n').unwrap_or((text, ""));
        // The library's own record is in front of the note: it has none.
        let noted = line.contains(" note!=10");
        assert_eq!(rest, if noted { "\0something" } else { "" }, "{text}");
        let packed = line.ends_with(" luggage!=held");
        assert_eq!(descriptors.len(), 1 + usize::from(packed), "{text}");
    }
    let packed = told
        .iter()
        .filter(|(_, descriptors)| descriptors.len() == 2);
    let mut sizes: Vec<_> = packed
        .map(|(_, descriptors)| fstat(&descriptors[1]).expect("it is open").st_size)
        .collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [10, 3000, 300_000]);
    assert_all_kept(&mut clients);
}

#[test]
fn a_new_master_of_the_version_before_gets_the_others_and_these_end() {
    let setup = keeper(1).also(&["--control", "control"]);
    let setup = setup.expect("takeover failed").expect("takes charge again");
    let setup = setup.expect("is of an older version").expect("is gone");
    let server = setup.start();
    let mut plain = server.connect();
    assert_kept(&mut plain, "", None);
    let mut clients = clients(&server);
    let mut concluded = None;
    // A turn that is not reported yet would come later.
    eventually("all connections are there", || {
        let (session, told) = take_over(&server, 3);
        drop(session);
        told.len() == 5
    });
    eventually("the new master is heard", || {
        let (session, told) = take_over(&server, 2);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(!told[0].0.contains("note"), "{told:?}");
        session.say("CONFIRM 1\n");
        assert_eq!(session.hear().expect("it goes on").0, "GO");
        session.say("DONE\n");
        concluded = Some((session, told));
        true
    });
    let line = server.wait_for_log("is of an older version");
    assert!(
        line.contains("closing 4 connections of pool main"),
        "{line}"
    );
    for (client, ..) in &mut clients {
        assert!(client.is_closed());
    }
    drop(concluded);
    server.wait_for_log("takes charge again");
    let mut later = server.connect();
    assert_kept(&mut later, "", None);
}

// ---- kill -9 ------------------------------------------------------------------------------------

const BAG: &str = "baton-bag-";

/// The luggage that is stored.
fn bags(manager: &Manager) -> Vec<String> {
    let stored = manager.stored().into_iter();
    let names = stored.map(|(name, _)| name);
    names.filter(|name| name.starts_with(BAG)).collect()
}

#[track_caller]
fn wait_for_bags(manager: &Manager, count: usize) {
    eventually(&format!("{count} pieces of luggage are stored"), || {
        bags(manager).len() == count
    });
}

#[test]
fn what_is_kept_survives_the_master() {
    let manager = Manager::new(100);
    let mut first = manager.manage(keeper(2)).start();
    let workers = first.workers(2);
    let mut clients = clients(&first);
    wait_for_bags(&manager, 3);
    kill_all(&mut first, &workers);
    let second = manager.manage(keeper(2)).start();
    second.wait_for_log("took over from a master that was killed: 4 connections");
    assert_all_kept(&mut clients);
    wait_for_bags(&manager, 3);
    // What is replaced, or dropped, is stored no longer.
    say(&mut clients[1].0, "drop");
    wait_for_bags(&manager, 2);
    say(&mut clients[2].0, "memory 7");
    wait_for_bags(&manager, 1);
    wait_for_bags(&manager, 2);
    clients.pop();
    wait_for_bags(&manager, 1);
    let mut second = second;
    assert!(second.stop().success());
    assert_eq!(manager.stored().len(), 0);
}

#[test]
fn downloads_of_the_same_file_survive_the_master() {
    // What the demo repeats is one file for all clients of a worker.
    let demo = || Setup::new(&["demo", "-w", "1"]);
    let manager = Manager::new(100);
    let mut first = manager.manage(demo()).start();
    let workers = first.workers(1);
    let mut clients: Vec<_> = (0..3).map(|_| first.endpoint().connect_narrow()).collect();
    for client in &mut clients {
        client.send_get("/bytes/8000000");
    }
    wait_for_bags(&manager, 3);
    kill_all(&mut first, &workers);
    let second = manager.manage(demo()).start();
    second.wait_for_log("took over from a master that was killed: 3 connections");
    for client in &mut clients {
        assert_eq!(client.reply().body.len(), 8_000_000);
    }
    wait_for_bags(&manager, 0);
}

#[test]
fn luggage_that_was_not_stored_yet_ends_its_connection_and_no_other() {
    let manager = Manager::new(100);
    let mut first = manager.manage(keeper(2)).start();
    let workers = first.workers(2);
    let mut noted = first.connect();
    say(&mut noted, "note something");
    let mut replaced = first.connect();
    say(&mut replaced, "memory 3000");
    wait_for_bags(&manager, 1);
    say(&mut replaced, "memory 40");
    // The manager has been told that the first one is gone, and not given the second one.
    wait_for_bags(&manager, 0);
    kill_all(&mut first, &workers);
    let setup = manager.manage(keeper(2));
    let second = setup.expect("whose luggage was not stored").start();
    second.wait_for_log("closed 1 stored connections whose luggage was not stored");
    assert!(replaced.is_closed());
    assert_kept(&mut noted, "something", None);
}

#[test]
fn stored_luggage_of_which_nothing_is_known_is_removed() {
    let manager = Manager::new(100);
    let memory = rustix::fs::memfd_create("kept", rustix::fs::MemfdFlags::CLOEXEC);
    let memory = memory.expect("a memory file");
    let lines = "FDSTORE=1\nFDNAME=baton-bag-77\nFDPOLL=0";
    crate::harness::systemd::tell(manager.path(), lines, &[std::os::fd::AsFd::as_fd(&memory)]);
    wait_for_bags(&manager, 1);
    let server = manager.manage(keeper(1)).start();
    wait_for_bags(&manager, 0);
    let mut client = server.connect();
    assert_kept(&mut client, "", None);
}

#[test]
fn an_upgrade_leaves_what_is_stored_with_the_new_master() {
    let manager = Manager::new(100);
    let mut server = manager.manage(keeper(2)).start();
    let mut clients = clients(&server);
    wait_for_bags(&manager, 3);
    server.upgrade();
    server.wait_for_former();
    assert_all_kept(&mut clients);
    say(&mut clients[1].0, "drop");
    wait_for_bags(&manager, 2);
    let workers = server.workers(2);
    kill_all(&mut server, &workers);
    let third = manager.manage(keeper(2)).start();
    clients.remove(1);
    assert_all_kept(&mut clients);
    assert_eq!(ask(&mut clients[0].0, "what"), "what is \"what\"?");
    drop(third);
}
