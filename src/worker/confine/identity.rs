//! The user that a worker runs as: names to numbers, the change, and the proof that there is no way
//! back.

use std::ffi::CString;
use std::fmt::Display;

use nix::errno::Errno;
use nix::unistd::{
    Gid, Uid, User, getgrouplist, getgroups, setgid, setgroups, setresgid, setresuid, setuid,
};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use super::means::{Means, ordered};
use crate::config::Confinement;
use crate::error::{Error, Result};
use crate::lookup;
use crate::sys::accounts;

const ROOT: Uid = Uid::from_raw(0);
const ROOT_GROUP: Gid = Gid::from_raw(0);

const NO_CAPABILITIES: CapabilitySets = CapabilitySets {
    effective: CapabilitySet::empty(),
    permitted: CapabilitySet::empty(),
    inheritable: CapabilitySet::empty(),
};

/// The user and the groups of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uid: Uid,
    pub(super) gid: Gid,
    /// The supplementary groups, in order.
    pub(super) groups: Vec<Gid>,
}

/// A user, perhaps one that only the kernel knows.
struct Account {
    uid: Uid,
    entry: Option<User>,
}

impl Identity {
    /// The user that the workers are to run as; `None` is the master's.
    ///
    /// # Errors
    /// When there is no such user or group, and when the master can't make its workers theirs.
    pub(super) fn resolve(wanted: &Confinement, means: &Means) -> Result<Option<Self>> {
        let Confinement {
            user,
            group,
            groups,
            ..
        } = wanted;
        if user.is_none() && group.is_none() && groups.is_none() {
            return Ok(None);
        }
        let key = format!("user {user:?}, group {group:?}, groups {groups:?}");
        let found = lookup::value(&key, || {
            Self::look_up(wanted, means).map(|one| one.encode())
        })?;
        let identity = Self::decode(&found).ok_or_else(|| Error::because(key, "malformed"))?;
        identity.check(means)?;
        Ok(Some(identity))
    }

    fn look_up(wanted: &Confinement, means: &Means) -> Result<Self> {
        let Confinement {
            user,
            group,
            groups,
            ..
        } = wanted;
        let account = match user {
            Some(name) => Account::named(name)?,
            None => Account::of(means.uids[1])?,
        };
        let gid = match (group, user) {
            (Some(name), _) => group_named(name, || format!("run workers as group {name:?}"))?,
            (None, None) => means.gids[1],
            (None, Some(name)) => account.group(name, means)?,
        };
        let stays = is_only(&means.uids, account.uid) && is_only(&means.gids, gid);
        let groups = match groups {
            Some(names) => names
                .iter()
                .map(|name| group_named(name, || format!("give workers the group {name:?}")))
                .collect::<Result<_>>()?,
            // A master that stays the same user, and could not set other groups, has the right
            // ones.
            None if stays && !means.may(CapabilitySet::SETGID) => means.groups.clone(),
            None => account.groups(gid)?,
        };
        Ok(Self {
            uid: account.uid,
            gid,
            groups: ordered(groups),
        })
    }

    /// The numbers, as one process says them to another.
    fn encode(&self) -> Vec<u8> {
        let mut text = format!("{} {}", self.uid, self.gid);
        for group in &self.groups {
            text += &format!(" {group}");
        }
        text.into_bytes()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut numbers = text.split(' ').map(str::parse);
        let uid = Uid::from_raw(numbers.next()?.ok()?);
        let gid = Gid::from_raw(numbers.next()?.ok()?);
        let groups: Result<Vec<_>, _> = numbers.map(|number| number.map(Gid::from_raw)).collect();
        let groups = groups.ok()?;
        Some(Self { uid, gid, groups })
    }

    /// Refuses what the master lacks the privileges for.
    fn check(&self, means: &Means) -> Result<()> {
        if !is_only(&means.uids, self.uid) {
            let refused =
                |reason| Error::because(format!("run workers as user {}", self.uid), reason);
            if !means.may(CapabilitySet::SETUID) {
                return Err(refused("it takes root, or CAP_SETUID"));
            }
            if !means.may(CapabilitySet::KILL) {
                return Err(refused("without CAP_KILL the master could not end them"));
            }
        }
        let same = is_only(&means.gids, self.gid) && self.groups == means.groups;
        if !same && !means.may(CapabilitySet::SETGID) {
            return Err(Error::because(
                format!("give workers the groups {self}"),
                "it takes root, or CAP_SETGID",
            ));
        }
        self.check_namespace(same, means)
    }

    /// Refuses what the user namespace of this process does not have, or does not let happen.
    fn check_namespace(&self, same_groups: bool, means: &Means) -> Result<()> {
        if !accounts::has_user(self.uid) {
            return Err(Error::because(
                format!("run workers as user {}", self.uid),
                "this user namespace has no such user",
            ));
        }
        if same_groups {
            return Ok(());
        }
        let refused = |reason: String| {
            let attempt = format!("give workers the groups {self}");
            Err(Error::because(attempt, reason))
        };
        let mut all = self.groups.iter().chain([&self.gid]);
        if let Some(group) = all.find(|group| !accounts::has_group(**group)) {
            return refused(format!("this user namespace has no group {group}"));
        }
        if self.groups != means.groups && accounts::refuses_setgroups() {
            return refused("this user namespace does not let groups be set".to_owned());
        }
        Ok(())
    }

    /// Whether it is root, which may do anything.
    pub(super) fn is_root(&self) -> bool {
        self.uid.is_root()
    }

    /// Makes this process one of this user, for good.
    ///
    /// # Errors
    /// What the calls fail with, and when there would be a way back.
    pub(super) fn assume(&self) -> Result<()> {
        // The groups first: once the user has changed, nobody may change them. And all three of
        // each kind: the saved one would be the way back.
        let changed = ordered(getgroups().map_err(|errno| self.failed(errno))?) != self.groups;
        if changed {
            setgroups(&self.groups).map_err(|errno| self.failed(errno))?;
        }
        setresgid(self.gid, self.gid, self.gid).map_err(|errno| self.failed(errno))?;
        setresuid(self.uid, self.uid, self.uid).map_err(|errno| self.failed(errno))?;
        if !self.is_root() {
            // The kernel takes them from a process that was root, unless its securebits say
            // otherwise, and not from one that only had capabilities. The ambient ones go with the
            // others (capabilities(7)).
            set_capabilities(None, NO_CAPABILITIES)
                .map_err(|errno| Error::new("give up capabilities", errno))?;
        }
        self.prove()
    }

    /// Looks at what has come of it, and tries to get back.
    fn prove(&self) -> Result<()> {
        let now = Means::own().map_err(|error| Error::new(self.attempt(), error))?;
        let as_told = is_only(&now.uids, self.uid)
            && is_only(&now.gids, self.gid)
            && now.groups == self.groups;
        if !as_told {
            return Err(self.impossible("the kernel says that it runs as somebody else"));
        }
        if self.is_root() {
            return Ok(());
        }
        if setuid(ROOT).is_ok() || self.gid != ROOT_GROUP && setgid(ROOT_GROUP).is_ok() {
            return Err(self.impossible("it could become root again"));
        }
        let left = capabilities(None).map_err(|errno| Error::new("ask for capabilities", errno))?;
        if left != NO_CAPABILITIES {
            return Err(self.impossible("it still has capabilities"));
        }
        Ok(())
    }

    fn attempt(&self) -> String {
        format!("become user {} with the groups {self}", self.uid)
    }

    fn failed(&self, errno: Errno) -> Error {
        Error::new(self.attempt(), errno)
    }

    fn impossible(&self, reason: &str) -> Error {
        Error::because(self.attempt(), reason)
    }
}

/// The groups: `33`, or `33+4+27` with supplementary ones.
impl Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.gid)?;
        for group in self.groups.iter().filter(|group| **group != self.gid) {
            write!(f, "+{group}")?;
        }
        Ok(())
    }
}

impl Account {
    fn named(name: &str) -> Result<Self> {
        let attempt = || format!("run workers as user {name:?}");
        let found = accounts::user_named(name).map_err(|errno| Error::new(attempt(), errno))?;
        match (found, number(name)) {
            (Some(entry), _) => Ok(Self {
                uid: entry.uid,
                entry: Some(entry),
            }),
            (None, Some(uid)) => Self::of(Uid::from_raw(uid)),
            (None, None) => Err(Error::because(attempt(), "there is no such user")),
        }
    }

    fn of(uid: Uid) -> Result<Self> {
        let entry = accounts::user_of(uid)
            .map_err(|errno| Error::new(format!("look up user {uid}"), errno))?;
        Ok(Self { uid, entry })
    }

    /// The user's own group. A master of a user that no database knows is in one all the same.
    fn group(&self, name: &str, means: &Means) -> Result<Gid> {
        let known = self.entry.as_ref().map(|entry| entry.gid);
        let own = (self.uid == means.uids[1]).then_some(means.gids[1]);
        known.or(own).ok_or_else(|| {
            Error::because(
                format!("run workers as user {name:?}"),
                "the user database does not know it, so the group must be given too",
            )
        })
    }

    /// The groups that the user is in, and `gid`.
    fn groups(&self, gid: Gid) -> Result<Vec<Gid>> {
        let Some(entry) = &self.entry else {
            return Ok(vec![gid]);
        };
        let failed =
            |errno: Errno| Error::new(format!("look up the groups of user {}", self.uid), errno);
        let name = CString::new(entry.name.as_str()).map_err(|_| failed(Errno::EINVAL))?;
        getgrouplist(&name, gid).map_err(failed)
    }
}

fn group_named(name: &str, attempt: impl Fn() -> String) -> Result<Gid> {
    let found = accounts::group_named(name).map_err(|errno| Error::new(attempt(), errno))?;
    found
        .map(|entry| entry.gid)
        .or_else(|| number(name).map(Gid::from_raw))
        .ok_or_else(|| Error::because(attempt(), "there is no such group"))
}

/// A user or group by number. The largest one is none: to setresuid(2) it means "leave it as it
/// is".
fn number(text: &str) -> Option<u32> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|number| plain && *number != u32::MAX)
}

fn is_only<T: PartialEq>(ids: &[T], id: T) -> bool {
    ids.iter().all(|other| *other == id)
}
