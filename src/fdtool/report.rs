//! What a receiver process tells recv-fd, over a SEQPACKET socketpair: one packet, one report.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// The longest text of one report; a longer one is sent in pieces. Well below what such a socket
/// takes at once.
const LONGEST: usize = 16 * 1024;

/// One step of a receiver.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Report {
    /// A message has come, or its descriptors are about to be closed: what follows may not return.
    Busy,
    /// The next piece of what is to be printed for the message.
    Text(Vec<u8>),
    /// The text is complete.
    Show,
    /// Nothing is open but the sender's connection; waits for the next message.
    Idle,
    /// The sender, or the datagram, is at fault: what cannot be done because of it, and why.
    Fault { attempt: String, reason: String },
}

/// What [`receive`] found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    Report(Report),
    Nothing,
    /// The receiver has ended.
    End,
}

/// The two ends: recv-fd's, and the receiver's.
pub(super) fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let flags = SocketFlags::CLOEXEC;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

/// Sends one report; sleeps while recv-fd is behind. An error means that recv-fd is gone.
pub(super) fn send(to: impl AsFd, report: &Report) -> Result<(), Errno> {
    let fault;
    let (tag, mut rest): (u8, &[u8]) = match report {
        Report::Busy => (b'B', &[]),
        Report::Text(text) => (b'T', text),
        Report::Show => (b'S', &[]),
        Report::Idle => (b'I', &[]),
        Report::Fault { attempt, reason } => {
            fault = format!("{attempt}\n{reason}");
            (b'F', fault.as_bytes())
        }
    };
    loop {
        let (piece, further) = rest.split_at(rest.len().min(LONGEST));
        let packet = [
            IoSlice::new(std::slice::from_ref(&tag)),
            IoSlice::new(piece),
        ];
        let flags = SendFlags::NOSIGNAL;
        retry_on_intr(|| sendmsg(to.as_fd(), &packet, &mut Default::default(), flags))?;
        rest = further;
        if rest.is_empty() {
            return Ok(());
        }
    }
}

/// The next report, without waiting for one.
pub(super) fn receive(from: impl AsFd) -> Received {
    let mut buffer = vec![0; 1 + LONGEST];
    let flags = RecvFlags::DONTWAIT;
    let received = retry_on_intr(|| {
        let slices = &mut [IoSliceMut::new(&mut buffer)];
        recvmsg(from.as_fd(), slices, &mut Default::default(), flags)
    });
    let length = match received {
        Ok(message) => message.bytes,
        Err(Errno::AGAIN) => return Received::Nothing,
        Err(_) => 0,
    };
    buffer.truncate(length);
    let Some(tag) = buffer.first().copied() else {
        return Received::End;
    };
    buffer.remove(0);
    Received::Report(match tag {
        b'B' => Report::Busy,
        b'T' => Report::Text(buffer),
        b'S' => Report::Show,
        b'I' => Report::Idle,
        b'F' => {
            let text = String::from_utf8_lossy(&buffer);
            let (attempt, reason) = text.split_once('\n').unwrap_or((&text, ""));
            Report::Fault {
                attempt: attempt.into(),
                reason: reason.into(),
            }
        }
        _ => return Received::End,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_comes_as_it_was_sent_and_a_long_text_in_pieces() {
        let (ours, theirs) = pair().unwrap();
        assert_eq!(receive(&ours), Received::Nothing);
        let fault = Report::Fault {
            attempt: "receive a message".into(),
            reason: "it is too long".into(),
        };
        for report in [&Report::Busy, &Report::Show, &Report::Idle, &fault] {
            send(&theirs, report).unwrap();
            match receive(&ours) {
                Received::Report(came) => assert_eq!(&came, report),
                other => panic!("{other:?}"),
            }
        }
        let text: Vec<u8> = (0..=u8::MAX).cycle().take(2 * LONGEST + 5).collect();
        send(&theirs, &Report::Text(text.clone())).unwrap();
        let mut came = Vec::new();
        for _ in 0..3 {
            match receive(&ours) {
                Received::Report(Report::Text(piece)) => came.extend(piece),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(came, text);
        drop(theirs);
        assert_eq!(receive(&ours), Received::End);
        assert!(send(&ours, &Report::Busy).is_err());
    }
}
