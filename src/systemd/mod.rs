//! The connection between the server and a service manager: systemd, or another one that speaks its
//! protocols.
//!
//! All of it is optional. A process that no manager has started finds none of the variables, and
//! then there are no sockets and no [`Notifier`]. The protocols consist of datagrams with text and
//! of a few environment variables: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3). They
//! need none of systemd's libraries.
//!
//! Of the crates for these protocols, `sd-notify` comes closest, and does not fit: it sleeps while
//! the manager's queue is full, which the master must not do; it opens a socket for each message;
//! it sends descriptors through a crate of its own, while this project has one place for that; and
//! it returns descriptors as bare numbers.
//!
//! Variables are taken out of the environment when they are read, so that no worker, and nothing
//! that a worker starts, believes that they are meant for it. Changing the environment takes a
//! process with one thread, so do it at the start of main.

mod listen;
mod notify;

pub use listen::{Inherited, Kind, Local, kind, listen_fds};
pub use notify::{Hold, Notifier};
