//! What travels with few connections, beside the carry: a note, luggage, and whether another worker
//! can go on with a turn.

use std::os::fd::BorrowedFd;

use super::luggage::Luggage;
use crate::master::snapshot::{Packed, Packing};
use crate::sys::unforked::Unforked;
use crate::wire::{Extras, LuggageChange, Traffic};

/// See the module. The master keeps all of it, and looks at none of it.
#[derive(Debug, Default)]
pub struct Baggage {
    /// What the service has noted about the client.
    pub note: Unforked,
    /// What the service has put beside the connection.
    pub luggage: Option<Luggage>,
    /// If the worker of this turn dies, the connection is lent again as it stands.
    pub resumable: bool,
    /// What resumable turns have moved since the last report, whose workers died.
    pub moved: Traffic,
}

impl Baggage {
    /// What another master has had.
    #[must_use]
    pub fn unpacked(packed: &Packed, luggage: Option<Luggage>) -> Self {
        Self {
            note: packed.note.clone(),
            luggage,
            resumable: packed.resumable,
            moved: Traffic::default(),
        }
    }

    /// What another master must know.
    #[must_use]
    pub fn packed(&self) -> Packed {
        let number = self.luggage.as_ref().map(Luggage::number);
        Packed {
            note: self.note.clone(),
            luggage: number.map_or(Packing::None, Packing::Held),
            resumable: self.resumable,
        }
    }

    /// The luggage, to be lent.
    #[must_use]
    pub fn luggage(&self) -> Option<BorrowedFd<'_>> {
        self.luggage.as_ref()?.descriptor()
    }

    /// Changes what a report says; all else stays.
    pub fn repack(&mut self, extras: &Extras<'_>, luggage: Option<Luggage>) {
        self.moved = Traffic::default();
        self.resumable = extras.resumable;
        if let Some(note) = extras.note {
            self.note = note.into();
        }
        match extras.luggage {
            LuggageChange::None => {}
            LuggageChange::New | LuggageChange::Gone => self.luggage = luggage,
        }
    }

    /// Whether nothing travels.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.note.is_empty() && self.luggage.is_none() && !self.resumable
    }
}
