//! Where clients come in: the sockets that they connect to, and how many connections each client
//! may have.

pub mod bind;
pub mod clients;
pub mod listener;
pub mod listeners;
pub mod matching;
pub mod socket_file;
