//! Bodies that come slowly: a master that lends the connection again and again, and workers that
//! die before they report.

use std::os::fd::{AsRawFd, OwnedFd};

use proptest::prelude::*;
use proptest::sample::Index;

use super::super::arrival::MAX_WAIT;
use super::*;
use crate::service::Keeping;
use crate::sys::unlinked::Directory;
use crate::wire::{Lend, LuggageChange, Traffic};

const CHUNKED: &str = "POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
const EXPECT: &str = "Expect: 100-continue\r\n";
const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";

fn post(length: usize) -> String {
    format!("POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n")
}

fn noise(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 251) as u8).collect()
}

/// `body` in chunks of so many bytes, with extensions and a trailer.
fn in_chunks(body: &[u8], length: usize) -> Vec<u8> {
    let mut coded = Vec::new();
    for chunk in body.chunks(length) {
        coded.extend_from_slice(format!("{:x};a=\"b\\\"\"\r\n", chunk.len()).as_bytes());
        coded.extend_from_slice(chunk);
        coded.extend_from_slice(b"\r\n");
    }
    coded.extend_from_slice(b"000\r\nTrailer: dropped\r\n\r\n");
    coded
}

/// What a master holds of a connection, and the worker that it is lent to.
struct Master<H> {
    http: Http<H>,
    keeping: &'static Keeping,
    socket: OwnedFd,
    client: UnixStream,
    turns: u64,
    carry: Vec<u8>,
    note: Vec<u8>,
    luggage: Option<OwnedFd>,
    resumable: bool,
    body: bool,
    moved: Traffic,
}

impl<H: Handler> Master<H> {
    fn new(handler: H, max_body: u64) -> Self {
        Self::keeping(handler, max_body, None)
    }

    fn keeping(handler: H, max_body: u64, directory: Option<Directory>) -> Self {
        let (ours, client) = UnixStream::pair().expect("make a socket pair");
        client.set_read_timeout(DEADLINE).expect("set a timeout");
        client.set_write_timeout(DEADLINE).expect("set a timeout");
        Self {
            http: Http::new(handler),
            keeping: Box::leak(Box::new(Keeping {
                directory,
                max_body,
                max_spool: 0,
            })),
            socket: ours.into(),
            client,
            turns: 0,
            carry: Vec::new(),
            note: Vec::new(),
            luggage: None,
            resumable: false,
            body: false,
            moved: Traffic::default(),
        }
    }

    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.client.write_all(bytes.as_ref()).expect("send");
    }

    fn lend(&mut self) -> Connection {
        self.turns += 1;
        let lend = Lend {
            turn: self.turns,
            luggage: self.luggage.is_some(),
            moved: self.moved,
            note: &self.note,
            carry: &self.carry,
            ..Lend::first(1, Peer::Unix)
        };
        let socket = self.socket.try_clone().expect("a descriptor");
        let luggage = self.luggage.as_ref().map(|file| file.try_clone().unwrap());
        let buffer = crate::service::Buffer::default();
        Connection::lent((socket, luggage), &lend, 0, self.keeping, buffer)
    }

    /// A turn, and what is reported of it. `None` for an error.
    fn turn(&mut self) -> Turn {
        let mut connection = self.lend();
        let turn = self.http.turn(&mut connection).expect("serve a turn");
        self.moved = Traffic::default();
        let extras = connection.baggage().extras();
        (self.resumable, self.body) = (extras.resumable, extras.body);
        if let Some(note) = extras.note {
            self.note = note.to_vec();
        }
        match extras.luggage {
            LuggageChange::None => {}
            LuggageChange::New | LuggageChange::Gone => {
                self.luggage = connection
                    .luggage()
                    .map(|file| file.try_clone_to_owned().unwrap());
            }
        }
        self.carry = connection.buffer().to_vec();
        turn
    }

    /// A turn whose worker dies before it reports.
    fn deadly_turn(&mut self) {
        assert!(self.resumable, "nobody goes on");
        let mut connection = self.lend();
        let _ = self.http.turn(&mut connection);
        let Traffic { read, written } = connection.traffic();
        self.moved.read += read;
        self.moved.written += written;
    }

    /// Turns until there is nothing more to do for now.
    fn turns(&mut self) -> Turn {
        loop {
            match self.turn() {
                Turn::Again => {}
                turn => return turn,
            }
        }
    }

    fn answer(&mut self) -> Answer {
        read_answer(&mut self.client, true)
    }

    fn is_clean(&self) -> bool {
        self.note.is_empty() && self.luggage.is_none() && !self.resumable && !self.body
    }
}

/// Sends a request that is larger than what may lie in the socket, with turns in between.
fn send_in_turns<H: Handler>(master: &mut Master<H>, request: &[u8]) -> Turn {
    let mut turn = Turn::Park;
    for piece in request.chunks(50_000) {
        master.send(piece);
        turn = master.turns();
        if turn != Turn::Park {
            break;
        }
    }
    turn
}

#[test]
fn bodies_around_each_boundary() {
    const MAX_BODY: usize = 2_500_000;
    let heads = [post(MAX_WAIT).len(), CHUNKED.len()];
    let waits = [
        MAX_WAIT - heads[0] - 1,
        MAX_WAIT - heads[0],
        MAX_WAIT - heads[0] + 1,
        MAX_WAIT - heads[1] - 100,
        MAX_WAIT,
        64 * 1024,
    ];
    let others = [
        0,
        1,
        (1 << 20) - 1,
        1 << 20,
        (1 << 20) + 1,
        MAX_BODY - 1,
        MAX_BODY,
        MAX_BODY + 1,
    ];
    let place = tempfile::tempdir().unwrap();
    for length in waits.into_iter().chain(others) {
        let body = noise(length);
        let counted = [post(length).into_bytes(), body.clone()].concat();
        let coded = [CHUNKED.into(), in_chunks(&body, 60_000)].concat();
        for request in [counted, coded] {
            let directory = Directory::open(place.path()).unwrap();
            let mut master = Master::keeping(echo, MAX_BODY as u64, Some(directory));
            let mut client = master.client.try_clone().unwrap();
            let answer = std::thread::scope(|scope| {
                let client = scope.spawn(move || read_answer(&mut client, true));
                let turn = send_in_turns(&mut master, &request);
                assert_eq!(turn == Turn::Park, length <= MAX_BODY, "{length}");
                client.join().unwrap()
            });
            if length > MAX_BODY {
                assert_eq!(answer.status, 413);
                assert_eq!(answer.field("Connection"), Some("close"));
            } else {
                assert_eq!(answer.status, 200, "{length}");
                assert!(answer.body == body, "the bodies differ: {length}");
                assert!(master.is_clean());
                master.send(get("/next"));
                assert_eq!(master.turns(), Turn::Park);
                assert_eq!(master.answer().status, 200);
            }
        }
    }
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
}

/// More than what is waited for in memory may be there, and then all of it.
#[test]
fn what_is_behind_a_body_that_is_here_is_not_lost() {
    for length in [48_900, 49_100, 49_200, 60_000] {
        let body = noise(length);
        let counted = [post(length).into_bytes(), body.clone()].concat();
        let coded = [CHUNKED.into(), in_chunks(&body, 5_000)].concat();
        for mut request in [counted, coded] {
            request.extend_from_slice(get("/behind").as_bytes());
            for first in (0..10_000).step_by(997) {
                let mut master = Master::new(echo, u64::MAX);
                master.send(&request[..first]);
                assert_eq!(master.turns(), Turn::Park);
                master.send(&request[first..]);
                assert_eq!(master.turns(), Turn::Park);
                assert_eq!(master.turns(), Turn::Park);
                assert!(master.answer().body == body, "the bodies differ");
                assert_eq!(master.answer().status, 200);
            }
        }
    }
}

#[test]
fn what_is_long_goes_to_the_disk() {
    let place = tempfile::tempdir().unwrap();
    let in_memory = |request: &[u8], with_disk: bool| {
        let directory = with_disk.then(|| Directory::open(place.path()).unwrap());
        let mut master = Master::keeping(mirror, u64::MAX, directory);
        assert_eq!(send_in_turns(&mut master, request), Turn::Park);
        assert!(master.resumable && master.body);
        let luggage = master.luggage.as_ref().expect("it is gathered");
        let path = format!("/proc/self/fd/{}", luggage.as_raw_fd());
        let target = std::fs::read_link(path).expect("it is open");
        target.to_string_lossy().starts_with("/memfd:")
    };
    let part = noise(60_000);
    let announced = |length| [post(length).as_bytes(), &part].concat();
    assert!(in_memory(&announced(1 << 20), true));
    assert!(!in_memory(&announced((1 << 20) + 1), true));
    assert!(in_memory(&announced((1 << 20) + 1), false));
    let coded = |length| {
        let coded = [CHUNKED.into(), in_chunks(&noise(length), 1000)].concat();
        coded[..coded.len() - 1].to_vec()
    };
    assert!(in_memory(&coded(900_000), true));
    assert!(!in_memory(&coded(1_200_000), true));
    assert!(in_memory(&coded(1_200_000), false));
}

#[test]
fn a_body_that_is_waited_for_is_said_to_be_owed() {
    for (request, owed) in [
        (post(5) + "hell", true),
        (CHUNKED.to_owned() + "5\r\nhel", true),
        (post(100_000), true),
        (post(5)[..40].to_owned(), false),
        (get("/"), false),
    ] {
        let mut master = Master::new(mirror, u64::MAX);
        master.send(&request);
        assert_eq!(master.turns(), Turn::Park);
        assert_eq!(master.body, owed, "{request:?}");
    }
}

#[test]
fn a_100_is_sent_once_whoever_dies_meanwhile() {
    let head = post(5).replace("\r\n\r\n", &format!("\r\n{EXPECT}\r\n"));
    for sent_by_the_dead in [0, 1, 24, 25] {
        let mut master = Master::new(echo, 100);
        master.send(&head);
        assert_eq!(master.turn(), Turn::Again);
        assert!(master.resumable);
        let (dead, rest) = CONTINUE.split_at(sent_by_the_dead);
        let socket = master.socket.try_clone().unwrap();
        UnixStream::from(socket).write_all(dead.as_bytes()).unwrap();
        master.moved.written = sent_by_the_dead as u64;
        assert_eq!(master.turns(), Turn::Park);
        let mut seen = vec![0; CONTINUE.len()];
        master.client.read_exact(&mut seen).unwrap();
        assert_eq!(seen, CONTINUE.as_bytes(), "{rest}");
        master.send("hel");
        assert_eq!(master.turns(), Turn::Park);
        master.send("lo");
        assert_eq!(master.turns(), Turn::Park);
        assert_eq!(master.answer().text(), "hello");
    }
}

#[test]
fn who_sends_at_once_gets_no_100() {
    let head = post(5).replace("\r\n\r\n", &format!("\r\n{EXPECT}\r\n"));
    for body in ["h", "hello"] {
        let mut master = Master::new(echo, 100);
        master.send(head.clone() + body);
        assert_eq!(master.turns(), Turn::Park);
        master.send(&"hello"[body.len()..]);
        assert_eq!(master.turns(), Turn::Park);
        assert_eq!(master.answer().text(), "hello");
    }
}

#[test]
fn the_handler_is_asked_once_before_anything_is_gathered() {
    fn decide(request: &Request<'_>) -> OnHead {
        assert_eq!(request.header("host"), Some(&b"x"[..]));
        match request.path() {
            "/answer" => OnHead::Answer(Response::error(StatusCode::FORBIDDEN)),
            "/leave" => OnHead::Leave,
            _ => OnHead::Gather,
        }
    }
    for (path, length, status, turn) in [
        ("/answer", 100_000, 403, Turn::Linger),
        ("/leave", 100_000, 200, Turn::Linger),
        ("/gather", 1_000_001, 413, Turn::Linger),
    ] {
        let mut master = Master::new(Deciding(decide, mirror), 1_000_000);
        for expect in ["", EXPECT] {
            let end = format!("\r\n{expect}\r\n");
            master.send(post(length).replace("/x", path).replace("\r\n\r\n", &end));
            assert_eq!(master.turn(), turn, "{path}");
            let answer = master.answer();
            assert_eq!(answer.status, status, "{path}");
            assert_eq!(answer.field("Connection"), Some("close"));
            assert!(master.luggage.is_none());
        }
    }
}

/// What the handler does not want is gathered only if it is short, to find the next request.
#[test]
fn a_body_that_is_not_wanted_is_not_gathered_for_long() {
    let leave = || Master::new(Deciding(|_| OnHead::Leave, mirror), u64::MAX);
    let mut master = leave();
    let request = [post(60_000).as_bytes(), &[b'x'; 59_999]].concat();
    assert_eq!(send_in_turns(&mut master, &request), Turn::Park);
    assert!(master.resumable);
    master.send("x".to_owned() + &get("/next"));
    assert_eq!(master.turns(), Turn::Park);
    assert_eq!(master.answer().text(), "POST /x");
    assert_eq!(master.turns(), Turn::Park);
    assert_eq!(master.answer().text(), "GET /next");

    let mut master = leave();
    let endless = [CHUNKED.into(), in_chunks(&noise(100_000), 1000)].concat();
    assert_eq!(send_in_turns(&mut master, &endless), Turn::Linger);
    let answer = master.answer();
    assert_eq!(answer.text(), "POST /x");
    assert_eq!(answer.field("Connection"), Some("close"));
}

#[test]
fn a_gathered_body_is_read_in_any_steps() {
    let body = noise(200_000);
    let coded = [CHUNKED.into(), in_chunks(&body, 7_777)].concat();
    let counted = [post(body.len()).as_bytes(), &body].concat();
    for (request, is_file) in [(coded, false), (counted, true)] {
        let expected = body.clone();
        let handler = move |request: &mut Request<'_>| {
            let body = request.body();
            assert_eq!(body.remaining(), is_file.then_some(200_000));
            assert_eq!(body.as_file().is_some(), is_file);
            let mut seen = vec![0; 10];
            body.read_exact(&mut seen).unwrap();
            if let Some((file, length)) = body.as_file() {
                assert_eq!(length, 200_000);
                let mut bytes = vec![0; 200_000];
                assert_eq!(rustix::io::pread(file, &mut bytes, 0), Ok(200_000));
                assert!(bytes == expected, "the file differs");
            }
            match request.path() {
                "/x" => {
                    request.body().read_to_end(&mut seen).unwrap();
                    assert!(seen == expected, "the body differs");
                    assert_ne!(request.body().remaining(), Some(1));
                    Response::text("read")
                }
                _ => Response::text("left"),
            }
        };
        let mut master = Master::new(handler, u64::MAX);
        for text in ["read", "left"] {
            let path = format!("/{}", &text[..1]).replace("/r", "/x");
            let request = [b"POST ", path.as_bytes(), &request["POST /x".len()..]].concat();
            assert_eq!(send_in_turns(&mut master, &request), Turn::Park);
            assert_eq!(master.answer().text(), text);
            assert!(master.is_clean());
        }
    }
}

#[test]
fn what_cannot_be_stored_is_a_500() {
    let mut master = Master::new(echo, u64::MAX);
    master.send(post(100_000) + "begin");
    assert_eq!(master.turns(), Turn::Park);
    // A file that may not be written.
    master.luggage = Some(std::fs::File::open("/proc/self/exe").unwrap().into());
    master.send("more");
    assert_eq!(master.turns(), Turn::Linger);
    let answer = master.answer();
    assert_eq!(
        (answer.status, answer.field("Connection")),
        (500, Some("close"))
    );

    let mut master = Master::new(echo, u64::MAX);
    master.send(post(50_000) + "begin");
    assert_eq!(master.turns(), Turn::Park);
    // It is shorter than what was put into it.
    rustix::fs::ftruncate(master.luggage.as_ref().unwrap(), 2).unwrap();
    master.send(vec![b'x'; 49_995]);
    assert_eq!(master.turn(), Turn::Again);
    rustix::fs::ftruncate(master.luggage.as_ref().unwrap(), 2).unwrap();
    assert_eq!(master.turns(), Turn::Linger);
    assert_eq!(master.answer().status, 500);

    let mut master = Master::new(echo, u64::MAX);
    master.send(post(100_000));
    assert_eq!(master.turns(), Turn::Park);
    master.luggage = None;
    master.send("more");
    assert_eq!(master.turns(), Turn::Linger);
    assert_eq!(master.answer().status, 500);
}

#[test]
fn a_client_that_ends_before_its_body_gets_400() {
    for begin in [
        post(100_000),
        CHUNKED.to_owned() + &"1\r\nx\r\n".repeat(10_000),
    ] {
        let mut master = Master::new(echo, u64::MAX);
        assert_eq!(send_in_turns(&mut master, begin.as_bytes()), Turn::Park);
        assert!(master.resumable);
        master.client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(master.turns(), Turn::Linger);
        assert_eq!(master.answer().status, 400);
    }
}

#[test]
fn a_malformed_chunk_is_refused_wherever_it_is() {
    let mut master = Master::new(echo, u64::MAX);
    let begin = CHUNKED.to_owned() + &"1\r\nx\r\n".repeat(10_000);
    assert_eq!(send_in_turns(&mut master, begin.as_bytes()), Turn::Park);
    master.send("1\r\nxy");
    assert_eq!(master.turns(), Turn::Linger);
    assert_eq!(master.answer().status, 400);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Each piece is taken in a turn of its own, some workers die before they report that, and some
    /// of them have put more into the luggage than they have taken.
    #[test]
    fn any_deaths_leave_the_same_answers(
        length in 1_usize..200_000,
        chunk in proptest::option::of(1_usize..40_000),
        cuts in proptest::collection::vec((any::<Index>(), any::<bool>()), 0..12),
        expects in any::<bool>(),
    ) {
        let body = noise(length);
        let mut request = match chunk {
            None => [post(length).as_bytes(), &body].concat(),
            Some(chunk) => [CHUNKED.as_bytes(), &in_chunks(&body, chunk.max(length / 50))].concat(),
        };
        if expects {
            let text = b"Host: x\r\n";
            let at = request.windows(text.len()).position(|at| at == text).unwrap();
            request.splice(at..at, EXPECT.bytes());
        }
        request.extend_from_slice(get("/behind").as_bytes());
        let mut places: Vec<_> =
            cuts.iter().map(|(at, dies)| (at.index(request.len()), *dies)).collect();
        places.extend((0..request.len()).step_by(50_000).map(|at| (at, at % 100_000 == 0)));
        places.push((request.len(), false));
        places.sort_unstable();
        let answers = std::thread::scope(|scope| {
            let mut master = Master::new(echo, u64::MAX);
            let mut client = master.client.try_clone().unwrap();
            let client = scope.spawn(move || {
                [(); 3].map(|()| read_answer(&mut client, true))
                    .into_iter()
                    .filter(|answer| answer.status != 100)
                    .take(2)
                    .collect::<Vec<_>>()
            });
            let mut at = 0;
            for (place, dies) in places {
                master.send(&request[at..place]);
                at = place;
                if dies && master.resumable && master.note[1] == crate::service::GATHERING {
                    master.deadly_turn();
                    let luggage = master.luggage.as_ref().expect("it is gathered");
                    let stored = u64::from_le_bytes(*master.note[4..].first_chunk().unwrap());
                    let end = stored + master.moved.read;
                    rustix::io::pwrite(luggage, b"not taken", end).unwrap();
                } else {
                    assert_eq!(master.turns(), Turn::Park);
                }
            }
            assert_eq!(master.turns(), Turn::Park);
            assert!(master.is_clean());
            master.send(get("/last"));
            assert_eq!(master.turns(), Turn::Park);
            client.join().unwrap()
        });
        prop_assert!(answers[0].body == body, "the bodies differ");
        prop_assert_eq!(answers[1].status, 200);
    }
}
