//! A connection on its way to another pool, or there: where it is to go, and what waits at home.

use std::fmt;
use std::rc::Rc;

use super::baggage::Baggage;
use crate::master::snapshot::{Home, PoolKey};

/// A pool of this master. There is never another one with the same serial number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolId {
    /// Its number among all pools that this master has had.
    pub serial: u64,
    /// Its name, as another master or a ledger says it.
    pub key: PoolKey,
}

/// See the module.
#[derive(Debug)]
pub struct Visit {
    /// The pool to which it is passed, as the worker wrote it.
    pub target: String,
    /// Where it is at home.
    pub home: PoolId,
    /// That pool's name.
    pub name: Rc<str>,
    /// What the service at home has put beside it, which stays there.
    pub baggage: Option<Box<Baggage>>,
}

impl Visit {
    /// What another master must know of it.
    #[must_use]
    pub fn snapshot(&self) -> Home {
        let baggage = self.baggage.as_ref();
        Home {
            note: baggage.map_or_else(Default::default, |baggage| baggage.note.clone()),
            ..Home::named(Rc::clone(&self.name))
        }
    }

    /// To a pool, by the name that the worker wrote.
    #[must_use]
    pub fn to(
        target: &str,
        (home, name): (PoolId, &Rc<str>),
        baggage: Option<Box<Baggage>>,
    ) -> Self {
        Self {
            target: target.to_owned(),
            home,
            name: Rc::clone(name),
            baggage,
        }
    }

    /// As another master has left it: there, in a pool of this master.
    #[must_use]
    pub fn adopted(home: &Home, id: PoolId, name: Rc<str>) -> Self {
        let note = home.note.clone();
        let baggage = Baggage {
            note,
            ..Baggage::default()
        };
        Self {
            target: String::new(),
            home: id,
            name,
            baggage: (!baggage.is_empty()).then(|| Box::new(baggage)),
        }
    }
}

/// Why a connection is not passed to another pool, as a phrase for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PassFault {
    /// No pool has that name.
    Unknown,
    /// It is the name of the connection's own pool.
    Itself,
    /// Another pool has passed the connection on: it can only go home.
    Away,
    /// Something was sent to the client in this turn, or a response is unfinished.
    Answered,
    /// The connection has luggage, which belongs to the service at home.
    Luggage,
}

impl fmt::Display for PassFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "no pool of that name serves",
            Self::Itself => "that is its own pool",
            Self::Away => "another pool has passed it on already",
            Self::Answered => "an answer has begun",
            Self::Luggage => "it has luggage",
        })
    }
}
