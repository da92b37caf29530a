//! Baton: a pre-fork server that lends connections to its workers by SCM_RIGHTS.

#[doc(hidden)]
pub mod cli;
pub mod config;
mod demo;
mod error;
pub mod fdpass;
mod inbox;
mod logging;
mod master;
mod server;
pub mod service;
mod services;
mod sys;
pub mod wire;
mod worker;

pub use error::{Error, Result};
pub use server::Server;
pub use service::{Conduct, Connection, Fill, Peer, Service, Turn};
pub use services::{Echo, http};
