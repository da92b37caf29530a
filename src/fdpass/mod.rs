//! Send and receive file descriptors over Unix sockets (SCM_RIGHTS). The only ancillary-data code
//! of the project: `message` sends and receives, `error` says what can go wrong.
//!
//! A message is some data, at least one byte, and up to [`MAX_DESCRIPTORS`] open file descriptors.
//! What arrives is a new descriptor for the *same open file description*: the file offset and the
//! status flags, O_NONBLOCK among them, stay shared between both processes (unix(7); TLPI 61.13.3).
//! Only the close-on-exec flag belongs to the descriptor, and it is set here from the first moment
//! on (MSG_CMSG_CLOEXEC), so that no exec in another thread can leak one.
//!
//! Descriptors are owned at every point: they go out borrowed and come in as [`OwnedFd`]. Whatever
//! the kernel installed for a message that is then refused is closed before the error is returned.
//!
//! ```
//! use batond::fdpass::{Wait, receive, send};
//! use std::io::{IoSlice, Read, Seek};
//! use std::os::{fd::AsFd, unix::net::UnixStream};
//!
//! let (here, there) = UnixStream::pair()?;
//! let file = std::fs::File::open("Cargo.toml")?;
//! send(&here, &[IoSlice::new(b"*")], &[file.as_fd()], Wait::Block)?;
//!
//! let mut data = [0; 16];
//! let mut message = receive(&there, &mut data, 1, Wait::Block)?;
//! assert_eq!(&data[..message.length], b"*");
//! let mut same_file = std::fs::File::from(message.descriptors.remove(0));
//! same_file.read_exact(&mut [0; 9])?;
//! assert_eq!((&file).stream_position()?, 9);
//! # std::io::Result::Ok(())
//! ```
//!
//! [`OwnedFd`]: std::os::fd::OwnedFd
//!
//! Not supported, because nothing here sets them: SO_PASSPIDFD, SO_PASSSEC and SO_TIMESTAMP on the
//! receiving socket. SO_PASSCRED does no harm; the credentials are skipped.

mod error;
mod message;
#[cfg(test)]
mod tests;

pub use error::{Error, MAX_DESCRIPTORS};
pub(crate) use message::receive_into;
pub use message::{Message, Wait, receive, send};
