//! Baton: a pre-fork server that lends connections to its workers by SCM_RIGHTS.

#[doc(hidden)]
pub mod cli;
mod demo;
mod error;
pub mod fdpass;
mod logging;
pub mod service;
#[allow(dead_code)]
mod sys;
pub mod wire;

pub use error::{Error, Result};
pub use service::{Conduct, Connection, Fill, Peer, Service, Turn};
