//! Whether a server could start, as far as that shows without starting it.

use std::path::PathBuf;

use super::pool::Pool;
use super::pools::plan_all;
use super::start;
use crate::error::Result;

/// Looks for what would keep a server with these pools from starting: contradictions, workers that
/// cannot be confined, addresses of other machines, ports that this user may not bind, too few
/// descriptors, paths where something else is. Binds no address of the configuration, so that one
/// which is taken is not noticed.
///
/// # Errors
/// The first thing that is wrong.
pub(crate) fn check(
    pools: Vec<Pool<'_>>,
    control: Option<PathBuf>,
    pid_file: Option<PathBuf>,
) -> Result<()> {
    let plans = plan_all(pools, control.as_deref())?;
    start::check(&plans, control, pid_file)
}
