//! Connections and listeners that come from another master, or go to one.
//!
//! A new master takes over from one that runs ([`old_side`] and [`new_side`] of the same talk), and
//! nothing is closed. The new one starts its workers first. When they are ready, both masters hold
//! still: the old one sends all that is parked or ready, the new one confirms, and from then on it
//! is in charge. What was lent at that moment follows as the turns end. Until the new one says that
//! it serves, the old one has everything, and if the new one dies or says nothing, it goes on as if
//! nothing had happened.
//!
//! A master also comes after one that was killed, if a service manager has kept what that one had
//! ([`recover`]).

pub mod callers;
pub mod inherited;
pub mod launch;
pub mod messages;
pub mod new_side;
pub mod old_side;
pub mod recover;
pub mod session;
