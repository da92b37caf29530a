//! Taking over from a running master: a new program gets the listeners and the connections of the old one, and nothing
//! is closed.
//!
//! The new master starts its workers first. When they are ready, both masters hold still: the old one sends all that is
//! parked or ready, the new one confirms, and from then on it is in charge. What was lent at that moment follows as the
//! turns end. Until the new one says that it serves, the old one has everything, and if the new one dies or says
//! nothing, it goes on as if nothing had happened.

pub mod inherited;
mod launch;
mod messages;
mod new_side;
mod old_side;
mod passing;
pub mod recover;
mod session;

pub use launch::{Launch, inherited_session};
pub use new_side::Successor;
pub use old_side::{Condemned, Takeover};
pub use recover::{Legacy, Orphans};
pub use session::Session;
