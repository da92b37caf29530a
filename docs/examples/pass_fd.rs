//! pass_fd send SOCKET FILE: passes the open FILE. pass_fd recv SOCKET: takes one, and reads it.
use std::fs::File;
use std::io::{self, Error, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::net::*;

/// Sends a descriptor with one byte of data, which a message needs.
fn send_fd(socket: &UnixStream, file: &impl AsFd) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = [file.as_fd()];
    assert!(
        control.push(SendAncillaryMessage::ScmRights(&files)),
        "there is room for one"
    );
    sendmsg(
        socket,
        &[IoSlice::new(b"*")],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Receives exactly one descriptor. Whatever else comes is closed, because it is owned.
fn recv_fd(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let data = &mut [IoSliceMut::new(&mut byte)];
    let message = recvmsg(socket, data, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut files: Vec<OwnedFd> = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            files.extend(rights);
        }
    }
    match files.pop() {
        Some(file) if files.is_empty() && !message.flags.contains(ReturnFlags::CTRUNC) => Ok(file),
        _ => Err(Error::other("not exactly one descriptor came")),
    }
}

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["send", socket, file] => send_fd(&UnixStream::connect(socket)?, &File::open(file)?),
        ["recv", socket] => {
            let (sender, _) = UnixListener::bind(socket)?.accept()?;
            let mut text = Vec::new();
            File::from(recv_fd(&sender)?)
                .take(1000)
                .read_to_end(&mut text)?;
            io::stdout().write_all(&text)
        }
        _ => Err(Error::other(
            "usage: pass_fd send SOCKET FILE | pass_fd recv SOCKET",
        )),
    }
}
