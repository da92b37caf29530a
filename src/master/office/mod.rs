//! Where the master is found by those who run it.

pub mod control_socket;
pub mod pid_file;
pub mod service_manager;
