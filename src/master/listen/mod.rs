//! Where clients come in.

pub mod clients;
pub mod listener;
