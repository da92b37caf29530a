//! What one file, or one folder, alone may do.

use super::check;
use super::source::{Broken, Source, Tree};

/// Calls that have one owner.
struct Call {
    rule: &'static str,
    /// Where the rule holds.
    within: &'static str,
    owner: &'static str,
    paths: &'static [&'static str],
}

const CALLS: &[Call] = &[
    Call {
        rule: "epoll has one owner",
        within: "src",
        owner: "src/master/events/epoll.rs",
        paths: &[
            "rustix::event::epoll::add",
            "rustix::event::epoll::create",
            "rustix::event::epoll::delete",
            "rustix::event::epoll::modify",
            "rustix::event::epoll::wait",
            "nix::sys::epoll",
            "libc::epoll_create1",
            "libc::epoll_ctl",
            "libc::epoll_pwait2",
            "libc::epoll_wait",
        ],
    },
    Call {
        rule: "kill has one owner",
        within: "src/master",
        owner: "src/master/child.rs",
        paths: &[
            "nix::sys::signal::kill",
            "nix::sys::signal::killpg",
            "rustix::process::kill_process",
            "rustix::process::kill_process_group",
            "rustix::process::pidfd_send_signal",
            "libc::kill",
        ],
    },
    Call {
        rule: "waiting for processes has one owner",
        within: "src/master",
        owner: "src/master/child.rs",
        paths: &[
            "nix::sys::wait::wait",
            "nix::sys::wait::waitid",
            "nix::sys::wait::waitpid",
            "rustix::process::wait",
            "rustix::process::waitid",
            "rustix::process::waitpid",
            "libc::waitid",
            "libc::waitpid",
        ],
    },
    Call {
        rule: "the number of processors has one owner",
        within: "src",
        owner: "src/sys/processors.rs",
        paths: &["std::thread::available_parallelism"],
    },
];

/// Types of the master whose methods stand in one place.
struct Methods {
    rule: &'static str,
    of: &'static str,
    /// A folder ends with a slash.
    place: &'static str,
}

const METHODS: &[Methods] = &[
    Methods {
        rule: "Pool is written in its folder",
        of: "Pool",
        place: "src/master/pool/",
    },
    Methods {
        rule: "Master is written in its file",
        of: "Master",
        place: "src/master/mod.rs",
    },
];

/// Only fdpass speaks of ancillary data.
const ANCILLARY: &[&str] = &[
    "SendAncillary",
    "RecvAncillary",
    "ControlMessage",
    "ScmRights",
    "SCM_RIGHTS",
    "cmsg",
    "CMSG",
    "msg_control",
];

const THREADS: &[&str] = &[
    "std::thread::spawn",
    "std::thread::Builder",
    "std::thread::scope",
];

#[test]
fn each_call_with_an_owner_stands_there_only() {
    let tree = Tree::read();
    for call in CALLS {
        check(call.rule, tree, |source| strange_calls(source, call));
    }
}

#[test]
fn the_methods_of_a_type_stand_in_one_place() {
    let tree = Tree::read();
    for methods in METHODS {
        check(methods.rule, tree, |source| {
            strange_methods(source, methods)
        });
    }
}

#[test]
fn unsafe_code_is_in_sys_only() {
    check("unsafe in sys", Tree::read(), |source| {
        if source.is_in("src/sys") {
            return Vec::new();
        }
        source.words_like("unsafe", "unsafe code belongs in src/sys")
    });
}

#[test]
fn ancillary_data_is_in_fdpass_only() {
    check("ancillary data in fdpass", Tree::read(), |source| {
        if source.is_in("src/fdpass") {
            return Vec::new();
        }
        source.words_with(ANCILLARY, "ancillary data belongs in src/fdpass")
    });
}

#[test]
fn the_master_starts_no_thread() {
    check(
        "no thread in the master",
        Tree::read(),
        |source| match source.is_in("src/master") {
            true => references_to(source, THREADS, "fork from a threaded process is not safe"),
            false => Vec::new(),
        },
    );
}

fn references_to(source: &Source, paths: &[&str], rule: &str) -> Vec<Broken> {
    let mut broken = Vec::new();
    for reference in &source.references {
        if paths.iter().any(|path| reference.begins_with(path)) {
            broken.push((reference.line, format!("`{}`: {rule}", reference.shown())));
        }
    }
    broken
}

fn strange_calls(source: &Source, call: &Call) -> Vec<Broken> {
    if source.path == call.owner || !source.is_in(call.within) {
        return Vec::new();
    }
    references_to(source, call.paths, &format!("it belongs in {}", call.owner))
}

fn strange_methods(source: &Source, methods: &Methods) -> Vec<Broken> {
    let at_home = match methods.place.ends_with('/') {
        true => source.path.starts_with(methods.place),
        false => source.path == methods.place,
    };
    if at_home || !source.is_in("src/master") {
        return Vec::new();
    }
    let rule = format!("`impl {}` belongs in {}", methods.of, methods.place);
    let impls = source.impls.iter().filter(|(_, of)| of == methods.of);
    impls.map(|(line, _)| (*line, rule.clone())).collect()
}

#[cfg(test)]
mod rules {
    use super::*;

    #[test]
    fn a_call_is_found_however_it_is_imported() {
        let lines = |path: &str, text: &str| {
            let tree = Tree::single(path, text);
            let broken = CALLS
                .iter()
                .flat_map(|call| strange_calls(&tree.sources[0], call));
            broken.map(|(line, _)| line).collect::<Vec<_>>()
        };
        let pool = |text| lines("src/master/pool/mod.rs", text);
        assert_eq!(
            pool("use rustix::event::epoll;\nfn f() { epoll::add(a) }"),
            [2]
        );
        assert_eq!(
            pool("use rustix::event;\nfn f() { event::epoll::wait(a) }"),
            [2]
        );
        assert_eq!(pool("use rustix::event::epoll::{EventData, modify};"), [1]);
        assert_eq!(
            pool("use nix::sys::signal::{self, Signal};\nfn f() { signal::kill(a) }"),
            [2]
        );
        assert_eq!(pool("\nuse nix::sys::wait::waitpid as w;"), [2]);
        assert!(pool("use nix::sys::signal::Signal; use rustix::event::epoll::Event;").is_empty());
        let child = "use nix::sys::signal::kill; use nix::sys::wait::waitpid;";
        assert!(lines("src/master/child.rs", child).is_empty());
        assert!(lines("src/worker/mod.rs", child).is_empty());
        assert_eq!(
            lines("src/master/child.rs", "use rustix::event::epoll::add;").len(),
            1
        );
    }

    #[test]
    fn an_impl_away_from_home_is_found() {
        let found = |path: &str, text: &str| {
            let tree = Tree::single(path, text);
            let broken = METHODS
                .iter()
                .map(|one| strange_methods(&tree.sources[0], one).len());
            broken.sum::<usize>()
        };
        assert_eq!(
            found("src/master/reload.rs", "impl<'a> super::pool::Pool<'a> {}"),
            1
        );
        assert_eq!(found("src/master/pool/mod.rs", "impl Pool<'_> {}"), 0);
        assert_eq!(
            found("src/master/pool/mod.rs", "impl Drop for Master {}"),
            1
        );
        assert_eq!(
            found("src/master/mod.rs", "impl Master { } impl Pools {}"),
            0
        );
        assert_eq!(found("src/worker/threads.rs", "impl Pool {}"), 0);
    }

    #[test]
    fn unsafe_and_threads_and_ancillary_data_are_found() {
        let tree = Tree::single("src/wire.rs", "fn f() { unsafe {} }\nfn unsafe_code() {}");
        assert_eq!(tree.sources[0].words_like("unsafe", "").len(), 1);
        let tree = Tree::single("src/wire.rs", "fn f(x: libc::cmsghdr) {}");
        assert_eq!(tree.sources[0].words_with(ANCILLARY, "").len(), 1);
        let text = "use std::thread;\nfn f() { thread::spawn(g); thread::sleep(h) }";
        let tree = Tree::single("src/master/mod.rs", text);
        assert_eq!(references_to(&tree.sources[0], THREADS, "").len(), 1);
    }
}
