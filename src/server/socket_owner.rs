//! Who is to own the files of a pool's Unix sockets: by number, and whether the master can make it
//! so.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::{Gid, Uid, getegid, geteuid, getgroups};
use rustix::thread::{CapabilitySet, capabilities};

use crate::config::{Address, UnixAccess};
use crate::error::{Error, Result as Looked};
use crate::lookup;
use crate::sys::{accounts, directory};

/// The same with numbers in place of names. The master, which applies it while it serves, is not to
/// wait for a user database.
///
/// # Errors
/// When there is no such user or group, and when no file of these addresses could be theirs.
pub(super) fn numbered(access: &UnixAccess, listen: &[Address]) -> Result<UnixAccess, String> {
    let user = |name: &str| Ok(accounts::user_named(name)?.map(|user| user.uid.as_raw()));
    let group = |name: &str| Ok(accounts::group_named(name)?.map(|group| group.gid.as_raw()));
    let owner = access.owner.as_ref();
    let owner = owner.map(|name| number_of("unix-owner", name, &user));
    let owner = owner.transpose()?;
    let group = access
        .group
        .as_ref()
        .map(|name| number_of("unix-group", name, &group));
    let group = group.transpose()?;
    // At a reload, the planner has looked.
    if !lookup::is_replay() {
        check(owner, group, listen)?;
    }
    Ok(UnixAccess {
        mode: access.mode,
        owner: owner.map(|owner| owner.to_string()),
        group: group.map(|group| group.to_string()),
    })
}

/// The number of a user or a group, who may be named by number. At a reload it is the one that the
/// planner has found.
fn number_of(
    key: &str,
    name: &str,
    find: &dyn Fn(&str) -> nix::Result<Option<u32>>,
) -> Result<u32, String> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let attempt = || format!("find {key} {name:?}");
    let look_up = || -> Looked<u32> {
        let found = lookup::value(&format!("{key} {name}"), || match find(name) {
            Ok(Some(number)) => Ok(number.to_ne_bytes().into()),
            Ok(None) => Err(Error::because(attempt(), "there is none")),
            Err(errno) => Err(Error::new(attempt(), errno)),
        })?;
        let number = found.try_into().map(u32::from_ne_bytes);
        number.map_err(|_| Error::because(attempt(), "malformed number"))
    };
    look_up().map_err(|error| error.to_string())
}

/// Refuses what chown(2) would.
fn check(owner: Option<u32>, group: Option<u32>, listen: &[Address]) -> Result<(), String> {
    let mut paths = listen.iter().filter_map(|address| match address {
        Address::Unix(path) => Some(path),
        _ => None,
    });
    if paths.clone().next().is_none() {
        return Ok(());
    }
    let own = capabilities(None).map_err(|errno| format!("ask for capabilities: {errno}"))?;
    let may_give = own.effective.contains(CapabilitySet::CHOWN);
    if let Some(owner) = owner.filter(|owner| *owner != geteuid().as_raw()) {
        if !may_give {
            return Err("unix-owner: to give a file away takes root, or CAP_CHOWN".to_owned());
        }
        if !accounts::has_user(Uid::from_raw(owner)) {
            return Err(format!(
                "unix-owner: this user namespace has no user {owner}"
            ));
        }
    }
    let Some(group) = group.filter(|group| *group != getegid().as_raw()) else {
        return Ok(());
    };
    let groups = getgroups().unwrap_or_default();
    let is_member = groups.contains(&Gid::from_raw(group));
    if !may_give && !is_member && !paths.all(|path| passes_on(path, group)) {
        return Err(format!(
            "unix-group: it takes root, CAP_CHOWN, or a master that is a member of group {group}"
        ));
    }
    if !accounts::has_group(Gid::from_raw(group)) {
        return Err(format!(
            "unix-group: this user namespace has no group {group}"
        ));
    }
    Ok(())
}

/// Whether files that are made at this path have this group from their directory (inode(7)).
fn passes_on(path: &Path, group: u32) -> bool {
    let is_so = |it: fs::Metadata| it.mode() & libc::S_ISGID != 0 && it.gid() == group;
    fs::metadata(directory::of(path)).is_ok_and(is_so)
}
