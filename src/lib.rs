//! Baton: a pre-fork server that lends connections to its workers by SCM_RIGHTS.

mod error;
pub mod fdpass;
pub mod service;
mod services;
#[allow(dead_code)]
mod sys;
pub mod wire;

pub use error::{Error, Result};
pub use service::{Conduct, Connection, Fill, Peer, Service, Turn};
pub use services::{Echo, http};
