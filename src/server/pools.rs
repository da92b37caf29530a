//! Several pools, bound and ready to be served, and where a reload gets them anew.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use super::pool::Pool;
use super::start::{MAX_POOLS, Plan, Prepared};
use crate::config::Address;
use crate::error::{Error, Result};

/// How many pools a server may have. The master has room for twice as many, because those that a
/// reload replaces live on for a while.
const MOST_POOLS: usize = MAX_POOLS / 2;

/// A server with several pools that is bound to all of its addresses and not running yet. Made by
/// [`ServerBuilder::pools`](crate::ServerBuilder::pools).
pub struct Pools<'a> {
    prepared: Prepared,
    plans: Vec<Plan<'a>>,
    source: Box<dyn FnMut() -> Result<Vec<Pool<'a>>> + 'a>,
}

impl<'a> Pools<'a> {
    /// Asks the source for the pools, and binds their addresses.
    pub(super) fn bind(
        mut prepared: Prepared,
        mut source: impl FnMut() -> Result<Vec<Pool<'a>>> + 'a,
    ) -> Result<Self> {
        let plans = plan_all(source()?, prepared.control())?;
        prepared.refuse_overlaps(&plans)?;
        for plan in &plans {
            for address in &plan.listen {
                prepared.listen_on(address.clone(), &plan.settings)?;
            }
        }
        Ok(Self {
            prepared,
            plans,
            source: Box::new(source),
        })
    }

    /// The TCP addresses that the pools are bound to, in no particular order, with the real port
    /// where port 0 was asked for.
    #[must_use]
    pub fn local_addresses(&self) -> Vec<SocketAddr> {
        self.prepared.local_addresses()
    }

    /// Serves until it is told to stop by a signal. SIGHUP asks the source for the pools anew. What
    /// [`Server::run`](crate::Server::run) says of threads, signals and descriptors holds here too.
    ///
    /// # Errors
    /// When the master can't be set up. Once it serves, it reports trouble in the log and goes on.
    pub fn run(self) -> Result<()> {
        let control = self.prepared.control().map(Path::to_owned);
        let source = RefCell::new(self.source);
        let plan_again = || {
            // The master's loop alone calls this, so that the source is never borrowed twice.
            let pools = ask_again(&mut *source.borrow_mut())?;
            plan_all(pools, control.as_deref())
        };
        self.prepared.serve(self.plans, &plan_again)
    }
}

impl fmt::Debug for Pools<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.plans.iter().map(|plan| &plan.name);
        f.debug_struct("Pools")
            .field("names", &names.collect::<Vec<_>>())
            .field("local_addresses", &self.local_addresses())
            .finish_non_exhaustive()
    }
}

/// Asks the source for the pools while the server runs. A panic is an error then, because it would
/// end the master, and with it every connection.
fn ask_again<'a>(
    source: &mut (dyn FnMut() -> Result<Vec<Pool<'a>>> + '_),
) -> Result<Vec<Pool<'a>>> {
    let pools = catch_unwind(AssertUnwindSafe(source));
    pools.unwrap_or_else(|panic| {
        let text = panic.downcast_ref().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref().copied());
        let reason = format!("panicked: {}", text.unwrap_or("it has no message"));
        Err(Error::because("find the pools to go over to", reason))
    })
}

/// The pools as the master knows them.
///
/// # Errors
/// What is wrong with one of them, or with all of them together.
pub(super) fn plan_all<'a>(pools: Vec<Pool<'a>>, control: Option<&Path>) -> Result<Vec<Plan<'a>>> {
    refuse_conflicts(&pools, control)?;
    refuse_dead_ends(&pools)?;
    pools.into_iter().map(Pool::plan).collect()
}

/// Fails if a pool that another one passes requests to is not there or passes them on itself, or if
/// nobody can reach a pool.
fn refuse_dead_ends(pools: &[Pool<'_>]) -> Result<()> {
    let mut reached = HashSet::new();
    for pool in pools {
        for name in &pool.passes_to {
            let target = pools.iter().find(|pool| pool.name == *name);
            let reason = match target {
                None => format!("its fallback is pool {name:?}, which there is not"),
                Some(target) if target.name == pool.name => "it is its own fallback".to_owned(),
                Some(target) if !target.passes_to.is_empty() => {
                    format!("its fallback, pool {name:?}, has a fallback itself")
                }
                Some(_) => {
                    reached.insert(name);
                    continue;
                }
            };
            return Err(pool.refused(&reason));
        }
    }
    let nowhere = |pool: &&Pool<'_>| pool.listens_nowhere() && !reached.contains(&pool.name);
    match pools.iter().find(nowhere) {
        Some(pool) => Err(pool.refused("it listens nowhere")),
        None => Ok(()),
    }
}

/// Fails if two pools have a name or an address in common, or one the address of the control
/// socket.
fn refuse_conflicts(pools: &[Pool<'_>], control: Option<&Path>) -> Result<()> {
    if !(1..=MOST_POOLS).contains(&pools.len()) {
        let reason = format!("a server has from 1 to {MOST_POOLS} pools");
        return Err(Error::because(format!("use {} pools", pools.len()), reason));
    }
    let mut names = HashSet::new();
    let control = control.map(|path| Address::Unix(path.to_owned()).to_string());
    let mut addresses = HashSet::new();
    for pool in pools {
        if !names.insert(&pool.name) {
            return Err(pool.refused("another pool has its name"));
        }
        for address in &pool.listen {
            let text = address.to_string();
            if control.as_ref() == Some(&text) {
                return Err(pool.refused(&format!("{address} is the control socket")));
            }
            // Port 0 is another port each time.
            if address.port() != Some(0) && !addresses.insert(text) {
                return Err(pool.refused(&format!("{address} is listed twice")));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::Echo;

    fn pool(name: &str, address: &'static str) -> Pool<'static> {
        Pool::new(name, Echo::new).listen(address)
    }

    #[test]
    fn a_source_that_panics_refuses_the_reload_and_can_be_asked_again() {
        let mut bad = true;
        let mut source = || {
            assert!(!std::mem::take(&mut bad), "the test does it on purpose");
            Ok(vec![pool("a", ":1")])
        };
        let error = ask_again(&mut source).unwrap_err().to_string();
        let expected = "cannot find the pools to go over to: panicked: the test does it on purpose";
        assert_eq!(error, expected);
        assert_eq!(ask_again(&mut source).unwrap().len(), 1);
    }

    #[test]
    fn a_fallback_is_a_pool_that_has_none_itself() {
        let named = |name: &str| Pool::new(name, Echo::new);
        let plans = |pools| plan_all(pools, None).map(|plans| plans.len());
        let site = || pool("site", ":0").fallback("app");
        assert_eq!(plans(vec![site(), named("app")]).unwrap(), 2);
        assert_eq!(plans(vec![site(), pool("app", ":0")]).unwrap(), 2);
        for (pools, expected) in [
            (
                vec![pool("site", ":0"), named("app")],
                "cannot use pool \"app\": it listens nowhere",
            ),
            (
                vec![site()],
                "cannot use pool \"site\": its fallback is pool \"app\", which there is not",
            ),
            (
                vec![pool("site", ":0").fallback("site")],
                "cannot use pool \"site\": it is its own fallback",
            ),
            (
                vec![named("app").fallback("deep"), site(), named("deep")],
                "cannot use pool \"site\": its fallback, pool \"app\", has a fallback itself",
            ),
            (
                vec![named("app").fallback("deep"), named("deep")],
                "cannot use pool \"app\": it listens nowhere",
            ),
        ] {
            assert_eq!(plans(pools).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn pools_that_go_together_may_share_port_0_only() {
        let control = Some(Path::new("/run/control"));
        let plans = |pools| plan_all(pools, control).map(|plans| plans.len());
        let two = vec![pool("a", "127.0.0.1:0"), pool("b", "127.0.0.1:0")];
        assert_eq!(plans(two).unwrap(), 2);
        for (pools, expected) in [
            (
                vec![],
                "cannot use 0 pools: a server has from 1 to 128 pools",
            ),
            (
                vec![pool("a", ":1"), pool("a", ":2")],
                "cannot use pool \"a\": another pool has its name",
            ),
            (
                vec![pool("a", "unix:s"), pool("b", "unix:s")],
                "cannot use pool \"b\": unix:s is listed twice",
            ),
            (
                vec![pool("a", "unix:/run/control")],
                "cannot use pool \"a\": unix:/run/control is the control socket",
            ),
        ] {
            assert_eq!(plans(pools).unwrap_err().to_string(), expected);
        }
    }
}
