//! What is looked up and checked before there is a worker. tests/it/confine.rs has what comes of
//! it.

use nix::unistd::{Gid, Uid};

use super::*;

fn ids<I: Copy>(id: I) -> [I; 3] {
    [id; 3]
}

/// A master of this user, who is in no group but `uid`, with all capabilities or none.
fn master(uid: u32, capabilities: CapabilitySet) -> Means {
    Means {
        uids: ids(Uid::from_raw(uid)),
        gids: ids(Gid::from_raw(uid)),
        groups: vec![Gid::from_raw(uid)],
        capabilities,
    }
}

fn root() -> Means {
    master(0, CapabilitySet::all())
}

/// Without a user of this number, for its groups are not to matter.
fn stranger() -> Means {
    master(54321, CapabilitySet::empty())
}

fn user(name: &str) -> Confinement {
    Confinement {
        user: Some(name.to_owned()),
        ..Confinement::default()
    }
}

fn identity(wanted: &Confinement, means: &Means) -> Result<Identity, String> {
    let resolved = Identity::resolve(wanted, means).map_err(|error| error.to_string())?;
    Ok(resolved.expect("one is wanted"))
}

#[track_caller]
fn refused(wanted: &Confinement, means: &Means, message: &str) {
    let error = Plan::with(wanted, 1, means).expect_err(message);
    assert_eq!(error.to_string(), message);
}

fn raw(groups: &[Gid]) -> Vec<u32> {
    groups.iter().map(|group| group.as_raw()).collect()
}

#[test]
fn nothing_told_is_nothing_done() {
    let plan = Plan::with(&Confinement::default(), 1, &stranger()).unwrap();
    assert!(plan.identity.is_none() && plan.root.is_none() && plan.processors.is_none());
    assert!(plan.limits.is_empty() && plan.umask.is_none() && !plan.no_new_privs);
    plan.apply()
        .expect("and so it can be done to this process, too");
}

#[test]
fn users_and_groups_are_names_or_numbers() {
    let by_name = identity(&user("root"), &root()).unwrap();
    assert_eq!(by_name.uid.as_raw(), 0);
    assert!(by_name.groups.contains(&by_name.gid));
    assert_eq!(identity(&user("0"), &root()).unwrap(), by_name);
    let wanted = Confinement {
        group: Some("54322".to_owned()),
        groups: Some(["7", "54322", "3", "7"].map(str::to_owned).into()),
        ..user("54321")
    };
    let by_number = identity(&wanted, &root()).unwrap();
    assert_eq!(
        (by_number.uid.as_raw(), by_number.gid.as_raw()),
        (54321, 54322)
    );
    assert_eq!(raw(&by_number.groups), [3, 7, 54322]);
    // A user without an entry is in no group but its own.
    let wanted = Confinement {
        groups: None,
        ..wanted
    };
    assert_eq!(raw(&identity(&wanted, &root()).unwrap().groups), [54322]);
}

#[test]
fn who_is_not_there_is_named() {
    for name in [
        "no-such-user",
        "",
        "+1",
        "-1",
        "4294967295",
        "4294967296",
        "a\0b",
    ] {
        let message = format!("cannot run workers as user {name:?}: there is no such user");
        refused(&user(name), &root(), &message);
    }
    let message = "cannot run workers as user \"54321\": \
         the user database does not know it, so the group must be given too";
    refused(&user("54321"), &root(), message);
    let wanted = Confinement {
        group: Some("no-such-group".to_owned()),
        ..user("root")
    };
    let message = "cannot run workers as group \"no-such-group\": there is no such group";
    refused(&wanted, &root(), message);
    let wanted = Confinement {
        groups: Some(vec!["0".to_owned(), "4294967295".to_owned()]),
        ..user("root")
    };
    let message = "cannot give workers the group \"4294967295\": there is no such group";
    refused(&wanted, &root(), message);
}

#[test]
fn another_user_takes_root() {
    let message = "cannot run workers as user 0: it takes root, or CAP_SETUID";
    refused(&user("root"), &stranger(), message);
    let means = master(54321, CapabilitySet::SETUID);
    let message = "cannot run workers as user 0: without CAP_KILL the master could not end them";
    refused(&user("root"), &means, message);
    let wanted = Confinement {
        group: Some("0".to_owned()),
        groups: Some(Vec::new()),
        ..Confinement::default()
    };
    let message = "cannot give workers the groups 0: it takes root, or CAP_SETGID";
    refused(&wanted, &stranger(), message);
}

#[test]
fn the_same_user_takes_nothing() {
    let own = user("54321");
    let same = identity(&own, &stranger()).unwrap();
    assert_eq!(same.gid.as_raw(), 54321);
    assert_eq!(raw(&same.groups), [54321]);
    let told = Confinement {
        groups: Some(vec!["54321".to_owned()]),
        ..own.clone()
    };
    assert_eq!(identity(&told, &stranger()).unwrap(), same);
    // Not if only the effective user is the same: the other two are ways back.
    let mut disguised = stranger();
    disguised.uids[0] = Uid::from_raw(0);
    assert!(identity(&own, &disguised).is_err());
}

#[test]
fn a_group_alone_leaves_the_user() {
    let wanted = Confinement {
        group: Some("54322".to_owned()),
        ..Confinement::default()
    };
    let means = master(54321, CapabilitySet::all());
    let changed = identity(&wanted, &means).unwrap();
    assert_eq!((changed.uid.as_raw(), changed.gid.as_raw()), (54321, 54322));
    assert_eq!(raw(&changed.groups), [54322]);
}

#[test]
fn a_root_is_a_directory_that_is_there() {
    let place = tempfile::tempdir().unwrap();
    let at = |path: &Path| Confinement {
        chroot: Some(path.to_owned()),
        ..Confinement::default()
    };
    let plan = Plan::with(&at(place.path()), 1, &root()).unwrap();
    assert_eq!(plan.root, Some(place.path().canonicalize().unwrap()));
    let missing = place.path().join("missing");
    let file = place.path().join("file");
    fs::write(&file, "").unwrap();
    for (path, cause) in [
        (missing.as_path(), "No such file or directory"),
        (&file, "Not a directory"),
    ] {
        let message = format!("cannot confine workers to {}: {cause}", path.display());
        refused(&at(path), &root(), &message);
    }
    let message = format!(
        "cannot confine workers to {}: it takes root, or CAP_SYS_CHROOT",
        place.path().display()
    );
    refused(&at(place.path()), &stranger(), &message);
}

#[test]
fn a_directory_that_is_open_outside_is_found() {
    let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let root = inside.path().canonicalize().unwrap();
    let ours = fs::File::open(inside.path()).unwrap();
    let theirs = fs::File::open(outside.path()).unwrap();
    let found: Vec<_> = directories_outside(&root)
        .into_iter()
        .map(|(_, directory)| directory)
        .collect();
    let named = |path: &Path| format!("the directory {}", path.display());
    let outside = outside.path().canonicalize().unwrap();
    assert!(found.contains(&named(&outside)), "{found:?}");
    assert!(!found.contains(&named(&root)), "{found:?}");
    drop((ours, theirs));
}

#[test]
fn a_umask_is_of_permissions() {
    let masked = |mask| Confinement {
        umask: Some(mask),
        ..Confinement::default()
    };
    let plan = Plan::with(&masked(0o777), 1, &stranger()).unwrap();
    assert_eq!(plan.umask.map(|mask| mask.bits()), Some(0o777));
    let message = "cannot give workers the umask 1022: it has more than the bits of 777";
    refused(&masked(0o1022), &stranger(), message);
}

#[test]
fn processors_are_those_that_are_there() {
    let on = |numbers: &[usize]| Confinement {
        processors: Some(numbers.to_vec()),
        ..Confinement::default()
    };
    let own = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let one = (0..CpuSet::count()).find(|number| own.is_set(*number) == Ok(true));
    let one = one.expect("this runs somewhere");
    let plan = Plan::with(&on(&[one, one]), 1, &stranger()).unwrap();
    let chosen = plan.processors.expect("they were named");
    let count = (0..CpuSet::count()).filter(|number| chosen.is_set(*number) == Ok(true));
    assert_eq!(count.collect::<Vec<_>>(), [one]);
    let absent = (0..CpuSet::count()).find(|number| own.is_set(*number) == Ok(false));
    for number in [CpuSet::count(), usize::MAX].into_iter().chain(absent) {
        let message = format!(
            "cannot run workers on processor {number}: \
             it is not among those that the master may run on"
        );
        refused(&on(&[one, number]), &root(), &message);
    }
    let message = "cannot choose the processors of workers: none is named";
    refused(&on(&[]), &root(), message);
}

#[test]
fn limits_can_be_set_and_lived_with() {
    let limit = |limits: &[(Resource, u64)]| Confinement {
        limits: limits.to_vec(),
        ..Confinement::default()
    };
    let (_, hard) = getrlimit(Rlimit::RLIMIT_NOFILE).unwrap();
    let most = [(Resource::Nofile, hard), (Resource::Core, 0)];
    let plan = Plan::with(&limit(&most), 1, &stranger()).unwrap();
    assert_eq!(plan.limits, most);
    let message = format!(
        "cannot limit nofile of workers to {}: the hard limit is {hard}",
        hard + 1
    );
    refused(
        &limit(&[(Resource::Nofile, hard + 1)]),
        &stranger(),
        &message,
    );
    assert!(Plan::with(&limit(&[(Resource::Nofile, hard + 1)]), 1, &root()).is_ok());
    let twice = [
        (Resource::Cpu, 10),
        (Resource::Core, 1),
        (Resource::Cpu, 20),
    ];
    let message = "cannot limit cpu of workers to 20: it has a limit already";
    refused(&limit(&twice), &root(), message);
    let few = limit(&[(Resource::Nofile, 13)]);
    assert!(Plan::with(&few, 1, &root()).is_ok());
    let message = "cannot limit nofile of workers to 13: a worker needs 25 to serve anyone";
    let error = Plan::with(&few, 4, &root()).expect_err(message);
    assert_eq!(error.to_string(), message);
}
