//! What connects the server with a service manager: systemd, or another one that speaks its
//! protocols.
//!
//! All of it is optional. A process that no manager has started finds none of the variables, and
//! then there are no sockets, and no [`Notifier`]. The protocols are datagrams of text and a few
//! environment variables: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3). No library of
//! systemd's is needed for them.
//!
//! Of the crates for it, `sd-notify` comes closest, and does not fit: it sleeps while the manager's
//! queue is full, where the master must not; it opens a socket for each message; it sends
//! descriptors through a crate of its own, where the project has one place for that; and it gives
//! descriptors as bare numbers.
//!
//! Variables are taken out of the environment when they are read, so that no worker, and nothing
//! that a worker starts, takes them for its own. That takes a process with one thread: do it at the
//! start of main.

mod listen;
mod notify;

pub use listen::{Inherited, Kind, Local, kind, listen_fds};
pub use notify::{Hold, Notifier};
