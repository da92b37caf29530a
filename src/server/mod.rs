//! The builders that library users, and the command line, start from. They put master and worker
//! together.

mod body_dir;
mod builder;
mod check;
mod pool;
mod pools;
mod single;
mod socket_owner;
mod start;

pub use builder::ServerBuilder;
pub(crate) use check::check;
pub use pool::Pool;
pub use pools::Pools;
pub use single::Server;
