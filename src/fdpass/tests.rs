//! Descriptors that travel, are refused, or are lost, within one process.

use std::fs::{self, File};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};

use super::*;

const KINDS: [SocketType; 3] = [SocketType::STREAM, SocketType::DGRAM, SocketType::SEQPACKET];

fn pair(kind: SocketType) -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).expect("socketpair")
}

fn file() -> File {
    tempfile::tempfile().expect("a temporary file")
}

fn identity(file: impl AsFd) -> (u64, u64) {
    let stat = rustix::fs::fstat(file).expect("fstat");
    (stat.st_dev, stat.st_ino)
}

/// How many descriptors of this process are open on `file`. Other tests run beside this one, so
/// a plain count of open descriptors would say nothing.
fn open_on(file: &File) -> usize {
    let wanted = identity(file);
    fs::read_dir("/proc/self/fd")
        .expect("list of descriptors")
        .flatten()
        .filter_map(|entry| fs::metadata(entry.path()).ok())
        .filter(|meta| (meta.dev(), meta.ino()) == wanted)
        .count()
}

fn send_plain(socket: &OwnedFd, data: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let sent = send(socket, &[IoSlice::new(data)], descriptors, Wait::Block);
    assert_eq!(sent.expect("send"), data.len());
}

fn is_close_on_exec(descriptor: &OwnedFd) -> bool {
    rustix::io::fcntl_getfd(descriptor)
        .expect("fcntl")
        .contains(rustix::io::FdFlags::CLOEXEC)
}

fn counts() -> impl Strategy<Value = usize> {
    prop_oneof![0..=4_usize, 0..=MAX_DESCRIPTORS, Just(MAX_DESCRIPTORS)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_is_sent_is_what_is_received(
        kind in proptest::sample::select(&KINDS[..]),
        order in counts().prop_flat_map(|n| proptest::collection::vec(0..3_usize, n)),
        spare in 0..4_usize,
        data in proptest::collection::vec(any::<Vec<u8>>(), 1..4),
    ) {
        prop_assume!(data.iter().any(|part| !part.is_empty()));
        let files = [file(), file(), file()];
        let (here, there) = pair(kind);
        let slices: Vec<_> = data.iter().map(|part| IoSlice::new(part)).collect();
        let descriptors: Vec<_> = order.iter().map(|i| files[*i].as_fd()).collect();
        let whole = data.concat();
        let sent = send(&here, &slices, &descriptors, Wait::Dont).unwrap();
        prop_assert_eq!(sent, whole.len());

        let mut buffer = vec![0; whole.len() + 1];
        let wanted = (order.len() + spare).min(MAX_DESCRIPTORS);
        let message = receive(&there, &mut buffer, wanted, Wait::Dont).unwrap();
        prop_assert_eq!(&buffer[..message.length], &whole[..]);
        let came: Vec<_> = message.descriptors.iter().map(identity).collect();
        let went: Vec<_> = order.iter().map(|i| identity(&files[*i])).collect();
        prop_assert_eq!(came, went);
        prop_assert!(message.descriptors.iter().all(is_close_on_exec));
        drop(message);
        prop_assert!(files.iter().all(|file| open_on(file) == 1));
    }

    #[test]
    fn more_than_wanted_is_refused_and_nothing_stays_open(
        kind in proptest::sample::select(&KINDS[..]),
        wanted in 0..MAX_DESCRIPTORS,
        more in 1..=MAX_DESCRIPTORS,
        credentials: bool,
    ) {
        let count = (wanted + more).min(MAX_DESCRIPTORS);
        let file = file();
        let (here, there) = pair(kind);
        sockopt::set_socket_passcred(&there, credentials).unwrap();
        send_plain(&here, b"*", &vec![file.as_fd(); count]);
        let error = receive(&there, &mut [0; 8], wanted, Wait::Dont).unwrap_err();
        match error {
            Error::Unwanted { wanted: w, got } => {
                prop_assert_eq!(w, wanted);
                prop_assert!(got > wanted && got <= count);
            }
            other => prop_assert!(false, "{}", other),
        }
        prop_assert_eq!(open_on(&file), 1);
    }

    /// Whatever the buffer's size: no byte and no descriptor is lost, doubled or out of order
    /// on a stream.
    #[test]
    fn a_stream_in_pieces_loses_nothing(
        messages in proptest::collection::vec(
            (proptest::collection::vec(any::<u8>(), 1..40), 0..4_usize), 1..12),
        room in 1..64_usize,
    ) {
        let (here, there) = pair(SocketType::STREAM);
        let mut files = Vec::new();
        for (data, count) in &messages {
            let fresh: Vec<_> = (0..*count).map(|_| file()).collect();
            let descriptors: Vec<_> = fresh.iter().map(AsFd::as_fd).collect();
            send_plain(&here, data, &descriptors);
            files.extend(fresh);
        }
        drop(here);

        let mut bytes = Vec::new();
        let mut came = Vec::new();
        let mut buffer = vec![0; room];
        loop {
            let message = receive(&there, &mut buffer, 3, Wait::Block).unwrap();
            bytes.extend_from_slice(&buffer[..message.length]);
            came.extend(message.descriptors);
            if message.length == 0 {
                break;
            }
        }
        let sent: Vec<_> = messages.into_iter().flat_map(|(data, _)| data).collect();
        prop_assert_eq!(bytes, sent);
        prop_assert_eq!(
            came.iter().map(identity).collect::<Vec<_>>(),
            files.iter().map(identity).collect::<Vec<_>>()
        );
    }
}

#[test]
fn a_message_longer_than_the_buffer_is_an_error_and_its_descriptors_are_closed() {
    for kind in [SocketType::DGRAM, SocketType::SEQPACKET] {
        let file = file();
        let (here, there) = pair(kind);
        send_plain(&here, b"123456789", &[file.as_fd()]);
        send_plain(&here, b"next", &[]);
        let mut buffer = [0; 8];
        let error = receive(&there, &mut buffer, 1, Wait::Dont).unwrap_err();
        assert!(matches!(error, Error::TooLong { room: 8 }), "{error}");
        assert_eq!(open_on(&file), 1);
        let message = receive(&there, &mut buffer, 1, Wait::Dont).unwrap();
        assert_eq!(&buffer[..message.length], b"next");
    }
}

#[test]
fn arguments_that_make_no_sense_are_errors_and_send_nothing() {
    for kind in KINDS {
        let file = file();
        let (here, there) = pair(kind);
        for data in [&[][..], &[IoSlice::new(b""), IoSlice::new(b"")]] {
            for descriptors in [&[][..], &[file.as_fd()]] {
                let error = send(&here, data, descriptors, Wait::Dont).unwrap_err();
                assert!(matches!(error, Error::Empty), "{error}");
            }
        }
        let many = [file.as_fd(); MAX_DESCRIPTORS + 1];
        let error = send(&here, &[IoSlice::new(b"*")], &many, Wait::Dont).unwrap_err();
        assert_eq!(
            error.to_string(),
            "254 descriptors are too many, one message carries at most 253"
        );
        let error = receive(&there, &mut [0; 1], many.len(), Wait::Dont).unwrap_err();
        assert!(matches!(error, Error::TooMany { count: 254 }), "{error}");
        let error = receive(&there, &mut [], 1, Wait::Dont).unwrap_err();
        assert!(matches!(error, Error::Empty), "{error}");
        let error = receive(&there, &mut [0; 1], 1, Wait::Dont).unwrap_err();
        assert!(error.would_block(), "something was sent: {error}");
    }
}

#[test]
fn credentials_beside_the_descriptors_do_no_harm() {
    for kind in KINDS {
        for wanted in [1, 2, MAX_DESCRIPTORS] {
            let file = file();
            let (here, there) = pair(kind);
            sockopt::set_socket_passcred(&there, true).unwrap();
            send_plain(&here, b"*", &vec![file.as_fd(); wanted]);
            send_plain(&here, b"+", &[]);
            let message = receive(&there, &mut [0; 1], wanted, Wait::Dont).unwrap();
            assert_eq!(message.descriptors.len(), wanted);
            let message = receive(&there, &mut [0; 1], 0, Wait::Dont).unwrap();
            assert_eq!((message.length, message.descriptors.len()), (1, 0));
        }
    }
}

#[test]
fn a_full_socket_is_back_pressure() {
    for kind in KINDS {
        let file = file();
        let (here, there) = pair(kind);
        let error = loop {
            match send(&here, &[IoSlice::new(b"*")], &[file.as_fd()], Wait::Dont) {
                Ok(sent) => assert_eq!(sent, 1),
                Err(error) => break error,
            }
        };
        assert!(error.would_block() && error.is_back_pressure(), "{error}");
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::WouldBlock);
        receive(&there, &mut [0; 1], 1, Wait::Dont).unwrap();
    }
}

#[test]
fn only_eagain_and_etoomanyrefs_are_back_pressure() {
    let too_many = Error::from(Errno::TOOMANYREFS);
    assert!(too_many.is_back_pressure() && !too_many.would_block());
    assert!(too_many.to_string().contains("ulimit -n"), "{too_many}");
    for other in [Errno::PIPE, Errno::CONNRESET, Errno::MFILE] {
        assert!(!Error::from(other).is_back_pressure());
    }
    assert!(!Error::Empty.is_back_pressure());
}

#[test]
fn a_peer_that_is_gone_is_an_error_to_the_sender_and_the_end_to_the_receiver() {
    for kind in [SocketType::STREAM, SocketType::SEQPACKET] {
        let (here, there) = pair(kind);
        drop(there);
        let error = send(&here, &[IoSlice::new(b"*")], &[], Wait::Block).unwrap_err();
        assert!(error.is(Errno::PIPE), "{error}");
        let message = receive(&here, &mut [0; 1], 1, Wait::Block).unwrap();
        assert_eq!((message.length, message.descriptors.len()), (0, 0));
    }
}

#[test]
fn a_signal_does_not_end_a_wait() {
    let handled = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGUSR1, Arc::clone(&handled)).unwrap();
    let (here, there) = pair(SocketType::SEQPACKET);
    // With a timeout on the socket the kernel does not restart the call by itself (signal(7)).
    let timeout = Some(Duration::from_secs(20));
    sockopt::set_socket_timeout(&there, sockopt::Timeout::Recv, timeout).unwrap();
    let (tell, told) = mpsc::channel();
    let receiver = std::thread::spawn(move || {
        tell.send((nix::unistd::gettid(), nix::sys::pthread::pthread_self()))
            .unwrap();
        receive(&there, &mut [0; 1], 0, Wait::Block).map(|message| message.length)
    });
    let (thread, handle) = told.recv().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let until = |what: &dyn Fn() -> bool| {
        while !what() {
            assert!(
                Instant::now() < deadline,
                "the receiver is not where it should be"
            );
            std::thread::yield_now();
        }
    };
    let call = format!("{} ", nix::libc::SYS_recvmsg);
    let syscall = format!("/proc/self/task/{thread}/syscall");
    until(&|| fs::read_to_string(&syscall).is_ok_and(|line| line.starts_with(&call)));
    nix::sys::pthread::pthread_kill(handle, nix::sys::signal::Signal::SIGUSR1).unwrap();
    until(&|| handled.load(Ordering::SeqCst));
    send_plain(&here, b"*", &[]);
    assert_eq!(receiver.join().unwrap().expect("receive"), 1);
}
