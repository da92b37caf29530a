//! Taking over from a running master: a new program gets the listeners and the connections of the old one, and nothing
//! is closed.
//!
//! The new master starts its workers first. When they are ready, both masters hold still: the old one sends all that is
//! parked or ready, the new one confirms, and from then on it is in charge. What was lent at that moment follows as the
//! turns end. Until the new one says that it serves, the old one has everything, and if the new one dies or says
//! nothing, it goes on as if nothing had happened.

mod launch;
mod messages;
mod new;
mod old;
mod session;

pub use launch::Launch;
pub use new::Successor;
pub use old::{Control, Takeover};
pub use session::Session;

use std::path::Path;

use super::listener::Listener;
use crate::error::Result;

/// The listeners that this program has from its start, and the master from which it is to take over.
#[derive(Debug, Default)]
pub struct Heritage {
    /// Listeners.
    pub listeners: Vec<Listener>,
    /// Who takes over.
    pub successor: Option<Successor>,
}

impl Heritage {
    /// What the old master offers that has started this program (SIGUSR2), or the one behind a control socket.
    ///
    /// # Errors
    /// When the old master refuses or is gone.
    pub fn claim(control: Option<&Path>) -> Result<Self> {
        let claimed = match (launch::inherited_session(), control) {
            (Some(session), _) => Successor::ask(session, "take over")?,
            (None, Some(path)) => Successor::connect(path)?,
            (None, None) => return Ok(Self::default()),
        };
        let (successor, listeners) = claimed;
        Ok(Self {
            listeners,
            successor: Some(successor),
        })
    }
}
