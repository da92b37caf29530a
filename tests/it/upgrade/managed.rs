//! What a service manager hears of a server, and of a change of masters.

use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::systemd::Manager;
use crate::harness::upgrade::STARTED;
use crate::harness::{DEADLINE, Server, Setup, eventually};

fn start(manager: &Manager, setup: Setup) -> Server {
    manager.manage(setup).start()
}

/// All messages of a manager that are no signs of life.
fn news(manager: &Manager) -> Vec<String> {
    let messages = manager.messages().into_iter();
    messages.filter(|one| one != "WATCHDOG=1").collect()
}

/// The time in a message that says that the server reloads.
#[track_caller]
fn time_in(message: &str) -> u64 {
    let time = message.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
    let time = time.unwrap_or_else(|| panic!("{message:?}"));
    time.parse().expect("a number")
}

#[test]
fn it_hears_of_the_start_of_each_reload_and_of_the_end() {
    let manager = Manager::new(0);
    let text = "[[pool]]\nname = 'main'\nservice = 'demo'\nlisten = '127.0.0.1:0'\nworkers = 1\n";
    let setup = Setup::new(&[]).file(text, 1).expect("reload refused");
    let file = setup.directory().join("batond.toml");
    let mut server = start(&manager, setup);
    manager.wait_for("READY=1");
    for (count, text) in [(1, text), (2, "nonsense"), (3, text)] {
        std::fs::write(&file, text).expect("a file");
        server.signal(Signal::SIGHUP);
        manager.wait_for_messages("READY=1", count + 1);
    }
    assert!(server.stop().success());
    manager.wait_for("STOPPING=1");
    let news = news(&manager);
    assert_eq!(news.len(), 8, "{news:?}");
    let times: Vec<_> = [1, 3, 5].map(|at| time_in(&news[at])).to_vec();
    assert!(times.is_sorted() && times[0] > 0, "{times:?}");
    for at in [0, 2, 4, 6] {
        assert_eq!(news[at], "READY=1");
    }
    assert_eq!(news[7], "STOPPING=1");
}

#[test]
fn it_hears_signs_of_life_of_whoever_serves() {
    let manager = Manager::new(0);
    let setup = Setup::new(&["demo", "-w", "1"]).environment("WATCHDOG_USEC", "200000");
    let mut server = start(&manager, setup);
    for _ in 0..2 {
        let so_far = manager.messages().len();
        eventually("there are further signs of life", || {
            let messages = manager.messages();
            messages[so_far..]
                .iter()
                .filter(|one| *one == "WATCHDOG=1")
                .count()
                >= 5
        });
        server.upgrade();
        server.wait_for_former();
    }
}

#[test]
fn it_hears_who_the_new_master_is() {
    let manager = Manager::new(0);
    let mut server = start(&manager, Setup::new(&["demo", "-w", "1"]));
    let mut expected = vec!["READY=1".to_owned()];
    for count in 2..4 {
        server.upgrade();
        let main = format!("MAINPID={}", server.master());
        manager.wait_for(&main);
        manager.wait_for_messages("READY=1", count);
        server.wait_for_former();
        expected.extend([main, "READY=1".to_owned()]);
    }
    assert!(server.stop().success());
    manager.wait_for("STOPPING=1");
    expected.push("STOPPING=1".to_owned());
    let mut news = news(&manager);
    // The two masters speak on their own.
    news.sort();
    expected.sort();
    assert_eq!(news, expected);
}

#[test]
fn it_hears_nothing_of_one_that_fails() {
    let manager = Manager::new(0);
    let setup = Setup::new(&["demo", "-w", "1"]).expect("takeover failed");
    let program = setup.directory().join("program");
    crate::harness::upgrade::install(&program);
    let server = start(&manager, setup.program(&program));
    manager.wait_for("READY=1");
    crate::harness::upgrade::install_script(&program, "exit 1");
    server.signal(Signal::SIGUSR2);
    server.wait_for_log("takeover failed");
    assert_eq!(news(&manager), ["READY=1"]);
}

/// The next message to a manager that the test plays.
#[track_caller]
fn next(manager: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let length = manager.recv(&mut buffer).expect("a message");
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

#[test]
fn it_hears_who_the_new_master_is_before_it_hears_that_one() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("notify");
    let manager = UnixDatagram::bind(&path).expect("a socket");
    manager.set_read_timeout(Some(DEADLINE)).expect("an option");
    let setup = Setup::new(&["demo", "-w", "1"])
        .environment("NOTIFY_SOCKET", path.to_str().expect("it is text"))
        .environment("FDSTORE", "100");
    let mut server = setup.managed().start();
    let mut missing = vec!["READY=1", "baton-listen-", "baton-state-"];
    while !missing.is_empty() {
        let said = next(&manager);
        missing.retain(|part| !said.contains(part));
    }
    // Its queue is full.
    let other = UnixDatagram::unbound().expect("a socket");
    other.set_nonblocking(true).expect("a flag");
    while other.send_to(b"STATUS=other", &path).is_ok() {}
    server.upgrade();
    let main = format!("MAINPID={}", server.master());
    server.wait_for_log("handed over");
    // The new one serves meanwhile, and could have been told that the manager knows it.
    for _ in 0..20 {
        assert_eq!(server.get("/").status, 200);
    }
    let mut news = std::iter::repeat_with(|| next(&manager));
    let of_masters = |said: &String| *said == main || said.contains("FDNAME=");
    assert_eq!(news.find(of_masters).as_ref(), Some(&main));
    let stored = news.find(of_masters).unwrap_or_default();
    assert!(stored.contains("FDSTORE=1"), "{stored}");
    server.wait_for_former();
    assert!(server.stop().success());
}

#[test]
fn a_passed_socket_goes_along() {
    let manager = Manager::new(0);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let setup = Setup::new(&["demo", "-w", "1"])
        .inherit("web", listener)
        .listen("fd:web");
    let mut server = start(&manager, setup);
    let mut client = server.connect();
    for _ in 0..2 {
        assert_eq!(client.get("/").status, 200);
        server.upgrade();
        server.wait_for_former();
        assert_eq!(server.get("/").status, 200);
    }
    let started = server.log_lines(STARTED);
    assert_eq!(started.len(), 2);
    assert!(client.is_silent_for(Duration::from_millis(1)));
}
