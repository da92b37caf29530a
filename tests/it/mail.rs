//! A dialogue that any worker goes on with: docs/examples/mail.rs, whose sessions are the note and
//! the luggage of their connections.

use std::fs;

use nix::sys::signal::Signal;

use crate::harness::{Client, Server, Setup};

fn start(workers: &str) -> Server {
    let setup = Setup::example("mail", &["-w", workers, "--mails", "mails"]);
    fs::create_dir(setup.directory().join("mails")).expect("a directory");
    setup.expect(" died ").start()
}

/// A client that has been greeted.
fn greeted(server: &Server) -> Client {
    let mut client = server.connect();
    assert_eq!(client.read_exact(18), b"220 mail.example\r\n");
    client
}

#[track_caller]
fn say(client: &mut Client, line: &str, reply: &str) {
    client.send(format!("{line}\r\n"));
    let reply = format!("{reply}\r\n");
    let said = client.read_exact(reply.len());
    assert_eq!(String::from_utf8_lossy(&said), reply, "to {line}");
}

/// All mails that were delivered.
fn mails(server: &Server) -> Vec<String> {
    let directory = fs::read_dir(server.directory().join("mails")).expect("it is there");
    let read = |entry: std::io::Result<fs::DirEntry>| {
        fs::read_to_string(entry.expect("an entry").path()).expect("a mail")
    };
    directory.map(read).collect()
}

/// The only worker has reported the turn that the last reply came from, for it has served another
/// client since.
fn settle(server: &Server) {
    say(&mut greeted(server), "QUIT", "221 bye");
}

#[test]
fn a_dialogue_is_one_whoever_serves_it() {
    let server = start("2");
    let mut client = greeted(&server);
    say(&mut client, "DATA", "503 not now");
    say(&mut client, "HELO me", "250 mail.example");
    say(&mut client, "MAIL FROM:<a@x.example>", "250 go on");
    say(&mut client, "RCPT TO:<b@y.example>", "250 go on");
    say(&mut client, "RCPT TO:<c@z.example>", "250 go on");
    say(&mut client, "DATA", "354 a line with a dot alone ends it");
    client.send("Subject: tea\r\n\r\n..at");
    client.send(" four\r\n.\r\nNOOP\r\nMAIL FROM:<d@x.example>\r\n");
    assert_eq!(
        client.read_exact(34),
        b"250 delivered\r\n250 yes\r\n250 go on\r\n"[..34]
    );
    let mail = "from <a@x.example>\nto <b@y.example>, <c@z.example>\n\nSubject: tea\r\n\r\n\
                .at four\r\n";
    assert_eq!(mails(&server), [mail]);
}

#[test]
fn a_dialogue_survives_reload_upgrade_and_the_death_of_workers() {
    let mut server = start("1");
    let mut client = greeted(&server);
    say(&mut client, "MAIL FROM:<a@x.example>", "250 go on");
    settle(&server);
    let [worker] = server.workers(1)[..] else {
        panic!("one worker")
    };
    server.kill(worker);
    say(&mut client, "RCPT TO:<b@y.example>", "250 go on");
    settle(&server);
    server.signal(Signal::SIGHUP);
    server.wait_for_log("reloaded");
    say(&mut client, "DATA", "354 a line with a dot alone ends it");
    client.send("one\r\n");
    settle(&server);
    server.upgrade();
    client.send("two\r\n");
    settle(&server);
    let [worker] = server.workers(1)[..] else {
        panic!("one worker")
    };
    server.kill(worker);
    say(&mut client, "three\r\n.", "250 delivered");
    let mail = "from <a@x.example>\nto <b@y.example>\n\none\r\ntwo\r\nthree\r\n";
    assert_eq!(mails(&server), [mail]);
}
