//! A server that systemd starts: the sockets that are passed to it. And the systemd that the tests
//! play.

use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use rustix::net::{RecvFlags, SendFlags, recv};

use crate::harness::systemd::{Manager, tell};
use crate::harness::{BATOND, Setup, open_descriptors, run};

/// What /proc calls a descriptor of this process: `socket:[12345]`.
fn identity(descriptor: impl AsFd) -> String {
    let number = descriptor.as_fd().as_raw_fd();
    let link = std::fs::read_link(format!("/proc/self/fd/{number}"));
    link.expect("it is open").display().to_string()
}

fn tcp_listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("a port")
}

#[test]
fn passed_sockets_are_served_by_their_names() {
    let setup = Setup::new(&["demo", "-w", "2"]);
    let path = setup.directory().join("passed.sock");
    let (web, second, local) = (
        tcp_listener(),
        tcp_listener(),
        UnixListener::bind(&path).expect("a socket"),
    );
    let wanted = [
        web.local_addr().expect("an address").to_string(),
        second.local_addr().expect("an address").to_string(),
        format!("unix:{}", path.display()),
    ];
    let identities = [identity(&web), identity(&second), identity(&local)];
    let mut server = setup
        .inherit("local", local)
        .inherit("web", web)
        .inherit("web", second)
        .listen("fd:web")
        .listen("fd:local")
        .start();
    // Two addresses were named, and three sockets came.
    let lines = server.wait_for_lines("listening on ", 3);
    for (line, address) in lines.iter().zip(&wanted) {
        assert!(line.contains(address), "{line}");
    }
    for endpoint in server.endpoints() {
        assert_eq!(endpoint.connect().get("/").status, 200);
    }
    // Listeners are the master's alone.
    for worker in server.workers(2) {
        let open = open_descriptors(worker.pid);
        for identity in &identities {
            assert!(!open.values().any(|one| one == identity), "{open:?}");
        }
    }
    assert!(server.stop().success());
    assert!(path.exists(), "the file of a passed socket is not removed");
}

#[test]
fn a_reload_keeps_the_passed_sockets() {
    let server = Setup::new(&["demo", "-w", "1"])
        .inherit("web", tcp_listener())
        .listen("fd:web")
        .start();
    let old = server.workers(1)[0];
    server.signal(Signal::SIGHUP);
    server.wait_for_log("reloaded");
    assert_ne!(server.replacement(old), old);
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn the_manager_hears_of_a_reload_that_is_refused() {
    let manager = Manager::new(0);
    let setup = Setup::new(&["demo", "-w", "1", "--control", "control"]);
    // Whether the server hears first that the other end is closed or that it is to stop, is open.
    let setup = setup.expect("reload refused").expect("takeover failed");
    let setup = setup.expect("takeover given up");
    let server = manager.manage(setup).start();
    manager.wait_for_messages("READY=1", 1);
    // Somebody is about to take over, and never says so.
    let flags = SockFlag::SOCK_CLOEXEC;
    let asks = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).expect("a socket");
    let path = server.directory().join("control");
    let address = UnixAddr::new(&path).expect("an address");
    connect(asks.as_raw_fd(), &address).expect("the master listens there");
    rustix::net::send(&asks, b"TAKEOVER 3\n", SendFlags::empty()).expect("it is heard");
    let offer = &mut [0; 1];
    recv(&asks, offer, RecvFlags::empty()).expect("an answer");
    server.signal(Signal::SIGHUP);
    server.wait_for_log("reload refused: a takeover is under way");
    manager.wait_for_messages("RELOADING=1", 1);
    manager.wait_for_messages("READY=1", 2);
}

#[test]
fn what_is_passed_and_not_used_is_closed() {
    for address in ["fd:web", "127.0.0.1:0"] {
        let (web, spare) = (tcp_listener(), tcp_listener());
        let unused = identity(&spare);
        let server = Setup::new(&["demo", "-w", "1"])
            .inherit("spare", spare)
            .inherit("web", web)
            .listen(address)
            .expect("nothing uses it")
            .start();
        assert!(server.log_contains("ignoring inherited descriptor \"spare\": nothing uses it"));
        let worker = server.workers(1)[0];
        for pid in [server.master(), worker.pid] {
            let open = open_descriptors(pid);
            assert!(!open.values().any(|one| *one == unused), "{open:?}");
        }
        assert_eq!(server.get("/").status, 200);
    }
}

#[test]
fn what_was_not_passed_cannot_be_listened_on() {
    let arguments = ["serve", "demo", "-w", "1", "-l", "fd:web"];
    let directory = tempfile::tempdir().expect("a temporary directory");
    let finished = run(directory.path(), &arguments);
    assert_eq!(finished.status.code(), Some(1));
    assert_eq!(
        finished.stderr,
        "batond: cannot listen on fd:web: no socket with this name was passed to this process"
    );
    for (variables, third, wanted) in [
        // Meant for another process; then for this one, but with nothing behind it.
        (
            "LISTEN_PID=1 LISTEN_FDS=1 LISTEN_FDNAMES=web",
            "/dev/null",
            "cannot listen on fd:web: no socket with this name was passed to this process",
        ),
        (
            "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=web",
            "&-",
            "cannot take the descriptors from the service manager: descriptor 3 is not open",
        ),
        (
            "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=web",
            "/dev/null",
            "cannot listen on fd:web: it is not a socket",
        ),
        (
            "LISTEN_PID=$$ LISTEN_FDS=one",
            "/dev/null",
            "cannot take the descriptors from the service manager: LISTEN_FDS=\"one\": it is not a number",
        ),
    ] {
        let script = format!("export {variables}; exec \"$0\" \"$@\" 3<{third}");
        let mut shell = Command::new("sh");
        shell.args(["-c", &script, BATOND]).args(arguments);
        let output = shell.env_remove("RUST_LOG").output().expect("sh runs");
        assert_eq!(output.status.code(), Some(1), "{variables}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(stderr, format!("batond: {wanted}\n"), "{variables}");
    }
}

#[test]
fn a_server_that_a_manager_starts_gets_what_was_stored_before() {
    let manager = Manager::new(8);
    let listener = tcp_listener();
    let address = listener.local_addr().expect("an address").to_string();
    tell(
        manager.path(),
        "FDSTORE=1\nFDNAME=kept",
        &[listener.as_fd()],
    );
    manager.wait_for_stored("kept", 1);
    drop(listener);
    let setup = Setup::new(&["demo", "-w", "1"]).listen("fd:kept");
    let mut server = manager.manage(setup).start();
    assert!(server.wait_for_log("listening on").contains(&address));
    assert_eq!(server.get("/").status, 200);
    assert!(server.stop().success());
    // The manager has still its own.
    let setup = Setup::new(&["demo", "-w", "1"]).listen("fd:kept");
    let server = manager.manage(setup).start();
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn the_manager_of_the_tests_keeps_store_as_systemd_does() {
    let manager = Manager::new(3);
    let listener = tcp_listener();
    let (mut client, connection) = UnixStream::pair().expect("a pair");
    let (_, orphan) = UnixStream::pair().expect("a pair");
    tell(manager.path(), "READY=1", &[]);
    tell(manager.path(), "RELOADING=1\nMONOTONIC_USEC=5", &[]);
    tell(manager.path(), "READY=1\nSTATUS=again", &[]);
    assert_eq!(manager.wait_for("STATUS=again"), "READY=1\nSTATUS=again");
    assert_eq!(
        manager.wait_for_messages("READY=1", 2),
        ["READY=1", "READY=1\nSTATUS=again"]
    );
    assert_eq!(manager.messages().len(), 3);

    let two = [connection.as_fd(), listener.as_fd()];
    tell(manager.path(), "FDSTORE=1\nFDNAME=a", &two);
    tell(
        manager.path(),
        "FDSTORE=1\nFDNAME=b\nFDPOLL=0",
        &[orphan.as_fd(), listener.as_fd()],
    );
    // The fourth was one too many; the third stays although its other end is gone.
    manager.wait_for_stored("b", 1);
    let kept = manager.wait_for_stored("a", 2);
    assert_eq!(
        kept.iter().map(identity).collect::<Vec<_>>(),
        two.map(identity)
    );
    let mut kept = kept.into_iter();
    let kept: OwnedFd = kept.next().expect("there are two");
    std::io::Write::write_all(&mut UnixStream::from(kept), b"!").expect("it is connected");
    std::io::Read::read_exact(&mut client, &mut [0]).expect("a byte");

    drop((client, connection));
    manager.wait_for_stored("a", 1);
    tell(manager.path(), "FDSTOREREMOVE=1\nFDNAME=a", &[]);
    manager.wait_for_stored("a", 0);
    let names: Vec<_> = manager.stored().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["b"]);
}
