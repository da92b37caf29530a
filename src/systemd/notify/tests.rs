//! The tests play the manager: a datagram socket receives what the notifier sends. No test sets a
//! variable, because the threads of other tests read the environment.

use super::*;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::fdpass::{Message, receive};

/// The pid that the notifiers in these tests take for their own.
const PID: u32 = 4711;

struct Manager {
    socket: UnixDatagram,
    directory: TempDir,
}

impl Manager {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        Self { socket, directory }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("notify")
    }

    fn notifier(&self) -> Notifier {
        Notifier::at(self.path())
    }

    /// The next message that was sent; `None` when there is none.
    fn receive(&self) -> Option<(String, Message)> {
        let mut buffer = [0; 4096];
        match receive(&self.socket, &mut buffer, MAX_DESCRIPTORS, Wait::Dont) {
            Ok(message) => {
                let text = std::str::from_utf8(&buffer[..message.length]).unwrap();
                Some((text.to_owned(), message))
            }
            Err(error) if error.would_block() => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// The texts of all messages that were sent and not yet received.
    fn texts(&self) -> Vec<String> {
        std::iter::from_fn(|| self.receive())
            .map(|(text, _)| text)
            .collect()
    }
}

fn identity(file: &File) -> (u64, u64) {
    let metadata = file.metadata().unwrap();
    (metadata.dev(), metadata.ino())
}

#[test]
fn each_state_is_a_message_of_its_own() {
    let manager = Manager::new();
    let mut notifier = manager.notifier();
    notifier.ready();
    notifier.stopping();
    notifier.main_pid(17);
    notifier.status("4 workers");
    notifier.watchdog();
    assert_eq!(
        manager.texts(),
        [
            "READY=1",
            "STOPPING=1",
            "MAINPID=17",
            "STATUS=4 workers",
            "WATCHDOG=1"
        ]
    );
}

#[test]
fn a_reload_says_when_it_began() {
    let monotonic = || Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap()).as_micros();
    let manager = Manager::new();
    let before = monotonic();
    manager.notifier().reloading();
    let (text, _) = manager.receive().unwrap();
    let time = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
    let time: u128 = time.parse().unwrap();
    assert!((before..=monotonic()).contains(&time), "{time}");
}

#[test]
fn a_status_is_one_line_that_the_manager_takes() {
    let manager = Manager::new();
    let mut notifier = manager.notifier();
    notifier.status("one\nREADY=1\ttwo");
    // One byte precedes, so that a cut at 1024 bytes would go through a character.
    notifier.status(&format!("x{}", "é".repeat(3000)));
    let texts = manager.texts();
    assert_eq!(texts[0], "STATUS=one READY=1 two");
    assert_eq!(texts[1].len(), "STATUS=".len() + 1023);
}

#[test]
fn the_manager_may_be_at_a_path_or_have_an_abstract_name() {
    let manager = Manager::new();
    // The path serves as the name, because it is unique.
    let name = manager.path();
    let address = SocketAddr::from_abstract_name(name.as_os_str().as_bytes()).unwrap();
    let elsewhere = UnixDatagram::bind_addr(&address).unwrap();
    let mut place = OsString::from("@");
    place.push(&name);
    Notifier::at(place).ready();
    let mut buffer = [0; 16];
    let length = elsewhere.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"READY=1");
    assert_eq!(manager.texts(), [""; 0]);
}

#[test]
fn without_the_variable_there_is_nobody_to_tell() {
    let variables = Variables {
        watchdog_usec: Some("1000".into()),
        ..Variables::default()
    };
    assert!(Notifier::new(variables, PID).unwrap().is_none());
}

#[test]
fn an_address_that_makes_no_sense_is_an_error() {
    let long = format!("/{}", "p".repeat(200));
    for place in ["", "@", "notify", "vsock:2:1234", &long] {
        let variables = Variables {
            socket: Some(place.into()),
            ..Variables::default()
        };
        let error = Notifier::new(variables, PID).unwrap_err().to_string();
        let start = format!("cannot notify the service manager at {place}: ");
        assert!(error.starts_with(&start), "{error}");
    }
}

#[test]
fn a_manager_that_is_gone_costs_the_messages_and_comes_back() {
    let manager = Manager::new();
    let mut notifier = manager.notifier();
    notifier.ready();
    assert_eq!(manager.texts(), ["READY=1"]);
    let Manager { socket, directory } = manager;
    drop(socket);
    let file = tempfile::tempfile().unwrap();
    // In the first round the socket is dead, in the second its file is gone as well.
    for _ in 0..2 {
        notifier.status("lost");
        notifier.watchdog();
        assert!(notifier.failing && !notifier.is_waiting());
        let stored = notifier.store("web", &[file.as_fd()], Hold::UntilHangup);
        let error = stored.unwrap_err().to_string();
        let start = "cannot store descriptors as \"web\": ";
        assert!(error.starts_with(start), "{error}");
        let _ = std::fs::remove_file(directory.path().join("notify"));
    }
    let socket = UnixDatagram::bind(directory.path().join("notify")).unwrap();
    let manager = Manager { socket, directory };
    notifier.stopping();
    assert_eq!(manager.texts(), ["STOPPING=1"]);
    assert!(!notifier.failing);
}

#[test]
fn messages_wait_for_a_full_manager_in_order_and_nothing_blocks() {
    let manager = Manager::new();
    let mut notifier = manager.notifier();
    notifier.ready();
    while !notifier.is_waiting() {
        notifier.status("filling");
    }
    assert!(!notifier.failing, "to wait is no trouble");
    let file = tempfile::tempfile().unwrap();
    let store = |notifier: &mut Notifier| {
        let stored = notifier.store("web", &[file.as_fd()], Hold::UntilHangup);
        stored.unwrap()
    };
    notifier.reloading();
    notifier.status("old");
    notifier.ready();
    notifier.remove("a").unwrap();
    notifier.remove("b").unwrap();
    notifier.remove("a").unwrap();
    notifier.status("new");
    notifier.watchdog();
    assert_eq!(store(&mut notifier), 0);
    assert!(!notifier.retry());

    let filling = manager.texts();
    assert!(
        filling[1..].iter().all(|text| text == "STATUS=filling"),
        "{filling:?}"
    );
    assert!(notifier.retry() && !notifier.is_waiting() && !notifier.failing);
    let texts = manager.texts();
    assert!(texts[0].starts_with("RELOADING=1\n"), "{texts:?}");
    assert_eq!(
        texts[1..],
        [
            "READY=1",
            "FDSTOREREMOVE=1\nFDNAME=b",
            "FDSTOREREMOVE=1\nFDNAME=a",
            "STATUS=new"
        ]
    );
    assert_eq!(store(&mut notifier), 1);
}

#[test]
fn what_is_stored_goes_with_its_name() {
    let manager = Manager::new();
    let mut notifier = manager.notifier();
    let files = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
    let descriptors = files.each_ref().map(AsFd::as_fd);
    for (hold, wanted) in [
        (Hold::UntilHangup, "FDSTORE=1\nFDNAME=two files"),
        (Hold::UntilRemoved, "FDSTORE=1\nFDNAME=two files\nFDPOLL=0"),
    ] {
        assert_eq!(
            notifier.store("two files", &descriptors, hold).unwrap(),
            2,
            "{hold:?}"
        );
        let (text, message) = manager.receive().unwrap();
        assert_eq!(text, wanted);
        let came = message.descriptors.into_iter().map(File::from);
        let came: Vec<_> = came.map(|file| identity(&file)).collect();
        assert_eq!(came, files.each_ref().map(identity));
    }
    notifier.remove("two files").unwrap();
    let (text, message) = manager.receive().unwrap();
    assert_eq!(text, "FDSTOREREMOVE=1\nFDNAME=two files");
    assert!(message.descriptors.is_empty());
    assert_eq!(manager.texts(), [""; 0]);
}

#[test]
fn more_descriptors_than_a_message_carries_go_in_several() {
    let manager = Manager::new();
    let file = tempfile::tempfile().unwrap();
    let many = vec![file.as_fd(); 2 * MAX_DESCRIPTORS + 1];
    let stored = manager
        .notifier()
        .store("many", &many, Hold::UntilHangup)
        .unwrap();
    assert_eq!(stored, many.len());
    for count in [MAX_DESCRIPTORS, MAX_DESCRIPTORS, 1] {
        let (text, message) = manager.receive().unwrap();
        assert_eq!(text, "FDSTORE=1\nFDNAME=many");
        assert_eq!(message.descriptors.len(), count);
    }
    assert_eq!(manager.texts(), [""; 0]);
    let none = manager.notifier().store("many", &[], Hold::UntilHangup);
    assert_eq!(none.unwrap(), 0);
    assert_eq!(manager.texts(), [""; 0]);
}

#[test]
fn a_name_that_would_be_another_message_is_refused() {
    let manager = Manager::new();
    let mut notifier = manager.notifier();
    let file = tempfile::tempfile().unwrap();
    let long = "n".repeat(256);
    for name in ["", "a:b", "a\nREADY=1", "ä", &long] {
        let stored = notifier.store(name, &[file.as_fd()], Hold::UntilHangup);
        let errors = [
            stored.unwrap_err().to_string(),
            notifier.remove(name).unwrap_err().to_string(),
        ];
        for error in errors {
            assert!(error.ends_with("without a colon"), "{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }
    assert_eq!(manager.texts(), [""; 0]);
}

#[test]
fn the_watchdog_is_for_the_process_that_it_names() {
    let interval = |usec: Option<&str>, pid: Option<&str>| {
        let limit = parse_watchdog(usec.map(Into::into), pid.map(Into::into), PID);
        limit.map_err(|error| error.to_string())
    };
    let own = PID.to_string();
    let limit = Ok(Some(Duration::from_secs(3)));
    assert_eq!(interval(Some("3000000"), Some(&own)), limit);
    assert_eq!(interval(Some("3000000"), None), limit);
    assert_eq!(interval(Some("3000000"), Some("1")), Ok(None));
    assert_eq!(interval(None, Some(&own)), Ok(None));
    for (usec, pid) in [("0", &*own), ("-1", &own), ("3s", &own), ("1", "self")] {
        let error = interval(Some(usec), Some(pid)).unwrap_err();
        assert!(error.ends_with("it is not a positive number"), "{error}");
    }
}

#[test]
fn a_watchdog_that_makes_no_sense_leaves_the_rest() {
    let manager = Manager::new();
    let variables = |usec: &str| Variables {
        socket: Some(manager.path().into()),
        watchdog_usec: Some(usec.into()),
        watchdog_pid: None,
        store: Some("64".into()),
    };
    let notifier = Notifier::new(variables("no"), PID).unwrap().unwrap();
    assert_eq!(notifier.watchdog_interval(), None);
    assert_eq!(notifier.store_limit(), Some(64));
    let notifier = Notifier::new(variables("3000001"), PID).unwrap().unwrap();
    let half = Duration::from_nanos(1_500_000_500);
    assert_eq!(notifier.watchdog_interval(), Some(half));
}

#[test]
fn a_successor_gets_the_variables_but_for_the_pid() {
    let variables = Variables {
        socket: Some("/run/notify".into()),
        watchdog_usec: Some("5000000".into()),
        watchdog_pid: Some(PID.to_string().into()),
        store: Some("64".into()),
    };
    let notifier = Notifier::new(variables, PID).unwrap().unwrap();
    let wanted = [
        ("NOTIFY_SOCKET", "/run/notify"),
        ("WATCHDOG_USEC", "5000000"),
        ("FDSTORE", "64"),
    ];
    let wanted = wanted.map(|(name, value)| (name, OsString::from(value)));
    assert_eq!(notifier.variables(), wanted);
}
