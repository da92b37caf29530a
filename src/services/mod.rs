//! The services that come with Baton. They see [`crate::service`] and nothing of the server around
//! it, as a service of somebody else does.

mod echo;
pub mod http;

pub use echo::Echo;
