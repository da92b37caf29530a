//! The keys of a pool that say who may connect to its Unix sockets. Pure.

use super::confinement::read_account;
use crate::config::table::{Fault, Table};
use crate::config::unix_access::UnixAccess;

/// The keys of `[[pool]]` that are about Unix sockets.
pub(super) const KEYS: &[&str] = &["unix-mode", "unix-owner", "unix-group"];

pub(super) fn read(table: Table<'_>) -> Result<UnixAccess, Fault> {
    let mode = table.get("unix-mode").map(|mode| mode.mode("0660"));
    let account = |key| table.get(key).map(read_account).transpose();
    Ok(UnixAccess {
        mode: mode.transpose()?,
        owner: account("unix-owner")?,
        group: account("unix-group")?,
    })
}
