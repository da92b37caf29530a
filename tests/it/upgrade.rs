//! SIGUSR2: a new master takes over from the old one, with all connections.

mod failures;
mod launched;
mod life;
mod managed;
mod new_side;
mod office;
mod old_side;
mod program;
mod silence;
mod standing;

use crate::harness::Server;
use crate::lives::ChangeOver;

/// By SIGUSR2.
struct Upgrade;

impl ChangeOver for Upgrade {
    type Expected = usize;

    fn begin(&self, server: &mut Server) -> usize {
        server.begin_upgrade()
    }

    fn finish(&self, server: &mut Server, expected: usize) {
        server.finish_upgrade(expected);
    }
}
