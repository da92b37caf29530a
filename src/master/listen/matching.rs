//! Which listeners belong to which addresses of which pools. Port 0 stands for another port each
//! time, so it can be wanted, and bound, several times.

use std::collections::HashMap;

use super::bind;
use super::listener::Listener;
use crate::config::Address;
use crate::error::Result;
use crate::master::plan::Plan;

/// Whether an address is bound more than `times` times. Only port 0 can be bound more than once.
#[must_use]
pub fn is_bound<'a>(
    listeners: impl IntoIterator<Item = &'a Listener>,
    address: &Address,
    times: usize,
) -> bool {
    let mut same = listeners.into_iter().filter(|one| one.asked() == address);
    let Some(first) = same.next() else {
        return false;
    };
    // A name stands for several addresses, each of which is bound that often.
    address.port() != Some(0) || same.filter(|one| one.host() == first.host()).count() >= times
}

/// Drops the listener of a Unix address whose file is gone, because no client can reach it: another
/// one is to be bound in its place.
pub fn drop_lost(listeners: &mut Vec<Listener>, address: &Address) {
    let lost = |one: &mut Listener| one.asked() == address && one.has_lost_file();
    for listener in listeners.extract_if(.., lost) {
        log::warn!("the file of {listener} is gone: making it anew");
    }
}

/// Binds the addresses of the plans that no listener in `bound` has, and anew those of Unix sockets
/// whose files are gone.
///
/// # Errors
/// When an address can't be bound.
pub fn bind_missing(plans: &[Plan<'_>], bound: &[&Listener]) -> Result<Vec<Listener>> {
    let mut new = Vec::new();
    let is_wanted = |one: &Listener| plans.iter().any(|plan| plan.listen.contains(one.asked()));
    // The directory of one that is to go may hang: nobody is to wait for that.
    let is_lost = |one: &&&Listener| is_wanted(one) && one.has_lost_file();
    let (lost, bound): (Vec<&Listener>, Vec<_>) = bound.iter().partition(is_lost);
    for (plan, address, before) in wanted(plans) {
        if lost.iter().any(|one| one.asked() == address) {
            log::warn!("the file of {address} is gone: making it anew");
        }
        let there = bound.iter().copied().chain(&new);
        if !is_bound(there, address, before) {
            new.extend(bind::bind_all(address, &plan.settings)?);
        }
    }
    Ok(new)
}

/// Each address that a plan wants, and how many times an earlier one was the same.
pub fn wanted<'p, 'a>(
    plans: &'p [Plan<'a>],
) -> impl Iterator<Item = (&'p Plan<'a>, &'p Address, usize)> {
    let mut times = HashMap::new();
    let all = plans
        .iter()
        .flat_map(|plan| plan.listen.iter().map(move |address| (plan, address)));
    all.map(move |(plan, address)| {
        let before: &mut usize = times.entry(address.to_string()).or_default();
        *before += 1;
        (plan, address, *before - 1)
    })
}

/// Takes those of the listeners that belong to one of the addresses and that are missing in `own`.
/// Of port 0 there may be more listeners, which belong to other pools.
pub fn take_wanted(
    listeners: &mut Vec<Listener>,
    addresses: &[Address],
    own: &[Listener],
) -> Vec<Listener> {
    let mut wanted = Vec::new();
    for listener in std::mem::take(listeners) {
        let asked = listener.asked();
        let times = addresses.iter().filter(|one| *one == asked).count();
        let same = |one: &&Listener| one.asked() == asked && one.host() == listener.host();
        let there = own.iter().chain(&wanted).filter(same).count();
        if times > 0 && (asked.port() != Some(0) || there < times) {
            wanted.push(listener);
        } else {
            listeners.push(listener);
        }
    }
    wanted
}
