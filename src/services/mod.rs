//! The services that come with Baton. Each sees [`crate::service`] and nothing of the server around
//! it.

mod echo;
pub mod http;

pub use echo::Echo;
