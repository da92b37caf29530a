//! The commands `send-fd`, which opens files and passes their descriptors, and `recv-fd`, which
//! shows what arrived. [`socket`] is what both meet on.
//!
//! ```text
//! receive    recv-fd itself: signals, senders, the output; it never holds a received descriptor
//! sender     what it knows of each sender
//! receiver   a process for each sender, which takes its messages
//! report     what a receiver tells recv-fd
//! show       the text for one message
//! content    what can be read from a descriptor
//! describe   what a descriptor is
//! send       send-fd
//! connect    how it finds recv-fd, and why it may not
//! ```
//!
//! They speak with any program that sends at least one byte and one descriptor, among them the
//! scm_rights_send and scm_rights_recv of TLPI 61.13.3.

mod connect;
mod content;
mod describe;
mod receive;
mod receiver;
mod report;
mod send;
mod sender;
mod show;
mod socket;

pub(crate) use receive::{Receive, receive};
pub(crate) use send::{Send, Source, TLPI_NUMBER, send};
pub(crate) use socket::{Kind, Socket};
