//! The keys of a pool that say what its workers give up. Pure.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::Path;

use crate::config::confinement::{Confinement, Resource};
use crate::config::keys::size;
use crate::config::table::{Entry, Fault, Table};

/// The keys of `[[pool]]` that belong to the confinement.
pub(super) const KEYS: &[&str] = &[
    "user",
    "group",
    "groups",
    "chroot",
    "no-new-privs",
    "umask",
    "limits",
    "cpu-affinity",
];

/// The keys of `[pool.limits]`.
pub(super) const LIMITS: &[(&str, Resource)] = &[
    ("as", Resource::As),
    ("core", Resource::Core),
    ("cpu", Resource::Cpu),
    ("data", Resource::Data),
    ("fsize", Resource::Fsize),
    ("memlock", Resource::Memlock),
    ("nofile", Resource::Nofile),
    ("nproc", Resource::Nproc),
    ("stack", Resource::Stack),
];

/// How many processors a mask has room for (sched_setaffinity(2), CPU_SETSIZE).
const PROCESSORS: usize = 1024;

pub(super) fn read(
    table: Table<'_>,
    context: &str,
    directory: &Path,
) -> Result<Confinement, Fault> {
    let account = |key| table.get(key).map(read_account).transpose();
    let groups = |entry: Entry<'_>| entry.list().into_iter().map(read_account).collect();
    let chroot = table.get("chroot").map(|entry| entry.path(directory));
    let no_new_privs = table.get("no-new-privs").map(|entry| entry.boolean());
    let limits = table.get("limits").map(|entry| read_limits(entry, context));
    Ok(Confinement {
        user: account("user")?,
        group: account("group")?,
        groups: table.get("groups").map(groups).transpose()?,
        chroot: chroot.transpose()?,
        no_new_privs: no_new_privs.transpose()?.unwrap_or_default(),
        umask: table
            .get("umask")
            .map(|umask| umask.mode("027"))
            .transpose()?,
        limits: limits.transpose()?.unwrap_or_default(),
        processors: table.get("cpu-affinity").map(read_processors).transpose()?,
    })
}

/// Reads a user or a group: a name, or a number with or without quotes.
pub(super) fn read_account(entry: Entry<'_>) -> Result<String, Fault> {
    let number = entry.number().and_then(|(id, _)| u32::try_from(id).ok());
    match number {
        Some(id) => Ok(id.to_string()),
        None => match entry.text() {
            Ok(name) => Ok(name.to_owned()),
            Err(_) => Err(entry.fault("expected a name or a number")),
        },
    }
}

fn read_limits(entry: Entry<'_>, context: &str) -> Result<Vec<(Resource, u64)>, Fault> {
    let expected = || entry.fault("expected a table, such as { nofile = 1024 }");
    let table = entry.table().ok_or_else(expected)?;
    let known: Vec<&str> = LIMITS.iter().map(|(name, _)| *name).collect();
    let context = format!("{context}limits.");
    let table = Table::new(table, &context, &known)?;
    let mut limits = Vec::new();
    for (name, resource) in LIMITS {
        if let Some(entry) = table.get(name) {
            let number = entry.number().map(|(number, _)| number);
            let limit = number.or_else(|| size(entry.text().ok()?));
            let limit =
                limit.ok_or_else(|| entry.fault("expected a number, or a size such as \"64M\""));
            limits.push((*resource, limit?));
        }
    }
    Ok(limits)
}

/// Reads processors: numbers, and ranges in quotes such as "0-3,6".
fn read_processors(entry: Entry<'_>) -> Result<Vec<usize>, Fault> {
    let mut processors = BTreeSet::new();
    for entry in entry.list() {
        let range = match (entry.number(), entry.text()) {
            (Some((number, _)), _) => number.try_into().ok().map(|number| vec![number..=number]),
            (None, Ok(text)) => text.split(',').map(range).collect(),
            (None, Err(_)) => None,
        };
        let known = |range: &RangeInclusive<usize>| {
            range.start() <= range.end() && *range.end() < PROCESSORS
        };
        let ranges = range.filter(|ranges| ranges.iter().all(known));
        let expected = "expected processors from 0 to 1023, such as [0, 1] or \"0-3\"";
        let ranges = ranges.ok_or_else(|| entry.fault(expected))?;
        processors.extend(ranges.into_iter().flatten());
    }
    if processors.is_empty() {
        return Err(entry.fault("expected at least one processor"));
    }
    Ok(processors.into_iter().collect())
}

fn range(text: &str) -> Option<RangeInclusive<usize>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
}
