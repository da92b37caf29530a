//! The keys of a pool that say who may connect to its Unix sockets. Pure.

use super::confinement::read_account;
use crate::config::table::{Entry, Fault, Table};
use crate::config::unix_access::{UnixAccess, parse_mode};

/// The keys of `[[pool]]` that are about Unix sockets.
pub(super) const KEYS: &[&str] = &["unix-mode", "unix-owner", "unix-group"];

pub(super) fn read(table: Table<'_>) -> Result<UnixAccess, Fault> {
    let account = |key| table.get(key).map(read_account).transpose();
    Ok(UnixAccess {
        mode: table.get("unix-mode").map(read_mode).transpose()?,
        owner: account("unix-owner")?,
        group: account("unix-group")?,
    })
}

/// Reads a mode: octal digits in quotes, or a number that begins with 0o. A bare 660 is refused,
/// because TOML means the decimal number.
fn read_mode(entry: Entry<'_>) -> Result<u32, Fault> {
    let mode = match (entry.number(), entry.text()) {
        (Some((mode, 8)), _) => u32::try_from(mode).ok(),
        (_, Ok(text)) => parse_mode(text).ok(),
        _ => None,
    };
    mode.filter(|mode| *mode <= 0o777)
        .ok_or_else(|| entry.fault("expected octal digits in quotes, such as \"0660\""))
}
