//! Users and groups: what the user database says, and what a user namespace leaves of them.

use std::fs;

use nix::errno::Errno;
use nix::unistd::{Gid, Group, Uid, User};

/// The user of this name, if the database knows it.
///
/// # Errors
/// What getpwnam(3) fails with, unless that means that there is none.
pub fn user_named(name: &str) -> nix::Result<Option<User>> {
    or_none(User::from_name(name))
}

/// The user of this number, if the database knows it.
///
/// # Errors
/// What getpwuid(3) fails with, unless that means that there is none.
pub fn user_of(uid: Uid) -> nix::Result<Option<User>> {
    or_none(User::from_uid(uid))
}

/// The group of this name, if the database knows it.
///
/// # Errors
/// What getgrnam(3) fails with, unless that means that there is none.
pub fn group_named(name: &str) -> nix::Result<Option<Group>> {
    or_none(Group::from_name(name))
}

/// These errors, too, say that nobody was found (getpwnam(3), ERRORS): there may be no database.
fn or_none<T>(found: nix::Result<Option<T>>) -> nix::Result<Option<T>> {
    match found {
        Err(Errno::ENOENT | Errno::ESRCH | Errno::EBADF | Errno::EPERM) => Ok(None),
        found => found,
    }
}

/// Whether this process's user namespace has a user of this number. Without /proc it is taken to.
#[must_use]
pub fn has_user(uid: Uid) -> bool {
    fs::read_to_string("/proc/self/uid_map").map_or(true, |map| maps(&map, uid.as_raw()))
}

/// The same for a group.
#[must_use]
pub fn has_group(gid: Gid) -> bool {
    fs::read_to_string("/proc/self/gid_map").map_or(true, |map| maps(&map, gid.as_raw()))
}

/// Whether this process's user namespace lets nobody set groups (user_namespaces(7)).
#[must_use]
pub fn refuses_setgroups() -> bool {
    fs::read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim_end() == "deny")
}

/// Each line of such a map is the first number inside, the first one outside, and how many.
fn maps(map: &str, id: u32) -> bool {
    let holds = |line: &str| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u32>);
        let (first, _, count) = (
            numbers.next()?.ok()?,
            numbers.next()?,
            numbers.next()?.ok()?,
        );
        Some(id.checked_sub(first)? < count)
    };
    map.lines().any(|line| holds(line) == Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_has_what_is_in_one_of_its_lines() {
        let map = "         0       1000          1\n         1     100000      65536\n";
        for (id, expected) in [(0, true), (1, true), (65536, true), (65537, false)] {
            assert_eq!(maps(map, id), expected, "{id}");
        }
        assert!(maps("0 0 4294967295", 4_294_967_294));
        assert!(!maps("", 0) && !maps("5 0 1\n", 4) && !maps("x y z", 0));
    }
}
