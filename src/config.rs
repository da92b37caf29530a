//! The configuration of a server, valid by construction: a value that exists has been checked.
//! Pure: nothing here touches a file or a socket.

mod address;
mod confinement;
mod draft;
mod file;
pub(crate) mod flags;
pub(crate) mod keys;
mod server;
mod settings;
mod table;
pub(crate) mod unix_access;

pub use address::{Address, BadAddress, is_descriptor_name};
pub use confinement::{Confinement, Resource};
pub(crate) use file::{parse, without_file};
pub(crate) use server::name_fault;
pub use server::{Config, Log, PoolConfig, ServiceConfig};
pub use settings::{MAX_THREADS, Settings};
pub use unix_access::UnixAccess;
