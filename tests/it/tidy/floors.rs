//! The directions of imports between the rooms of the master, and between any two files.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::source::{self, Source, Tree};
use super::{check, settle};

/// From the bottom to the top, below src/master: a room may use those of the lines before its own,
/// and itself. A room is a folder with all that is in it, or a file.
const FLOORS: &[&[&str]] = &[
    &["time.rs"],
    &["dispatch/"],
    &["child.rs"],
    &["removal.rs"],
    &["events/"],
    &["master_only.rs"],
    &["snapshot.rs", "plan.rs"],
    &["listen/"],
    &["office/"],
    &["store/"],
    &["connection/"],
    &["workers/"],
    &["pool/"],
    &["pools.rs"],
    &["planner.rs"],
    &["reload.rs", "succession/"],
    &["transition.rs"],
    &["mod.rs"],
];

const MASTER: &str = "src/master/";

#[test]
fn imports_inside_the_master_point_downwards_only() {
    let tree = Tree::read();
    check("the floors of the master", tree, |source| {
        upward(source, tree, FLOORS)
    });
}

#[test]
fn each_room_of_the_list_exists() {
    let mut report = String::new();
    for room in FLOORS.iter().copied().flatten() {
        let path = format!("{MASTER}{room}");
        if !source::root().join(&path).exists() {
            let _ = writeln!(report, "{path} does not exist: amend the list FLOORS");
        }
    }
    settle("the rooms of the master", &report);
}

#[test]
fn no_two_files_import_each_other() {
    let tree = Tree::read();
    let imports = Imports::of(tree);
    let (master, elsewhere): (Vec<_>, Vec<_>) = imports
        .circles()
        .into_iter()
        .partition(|circle| circle.iter().any(|path| path.starts_with(MASTER)));
    settle("no circles", &imports.report(&elsewhere));
    settle("no circles in the master", &imports.report(&master));
}

/// The floor and the room of a file, by the longest name that fits.
fn room<'a>(path: &str, floors: &'a [&'a [&'a str]]) -> Option<(usize, &'a str)> {
    let rest = path.strip_prefix(MASTER)?;
    let rooms = floors.iter().enumerate();
    let rooms = rooms.flat_map(|(floor, rooms)| rooms.iter().map(move |room| (floor, *room)));
    let fits = |room: &str| match room.ends_with('/') {
        true => rest.starts_with(room),
        false => rest == room,
    };
    rooms
        .filter(|(_, room)| fits(room))
        .max_by_key(|(_, room)| room.len())
}

fn upward(source: &Source, tree: &Tree, floors: &[&[&str]]) -> Vec<(usize, String)> {
    if !source.path.starts_with(MASTER) || source.is_test {
        return Vec::new();
    }
    let Some((own_floor, own)) = room(&source.path, floors) else {
        return vec![(1, "the file is in no room of the list FLOORS".to_owned())];
    };
    let mut broken = Vec::new();
    for reference in &source.references {
        let Some(target) = tree.target(reference) else {
            continue;
        };
        // That it is in no room is said there.
        let Some((floor, room)) = room(&target.path, floors) else {
            continue;
        };
        if room != own && floor >= own_floor {
            let text = format!("`{own}` must not use `{room}`: {}", reference.shown());
            broken.push((reference.line, text));
        }
    }
    broken
}

/// Which file imports which, and in which line first.
struct Imports<'a> {
    edges: BTreeMap<&'a str, BTreeMap<&'a str, usize>>,
}

type Circle<'a> = BTreeSet<&'a str>;

impl<'a> Imports<'a> {
    fn of(tree: &'a Tree) -> Self {
        let mut edges: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for source in &tree.sources {
            let own = source.path.as_str();
            let imported = edges.entry(own).or_default();
            for reference in &source.references {
                if let Some(target) = tree.target(reference)
                    && target.path != own
                {
                    imported
                        .entry(target.path.as_str())
                        .or_insert(reference.line);
                }
            }
        }
        Self { edges }
    }

    /// All that a file leads to, by one import or more.
    fn reachable(&self, from: &'a str) -> Circle<'a> {
        let mut reached = BTreeSet::new();
        let mut waiting = vec![from];
        while let Some(file) = waiting.pop() {
            let imported = self.edges.get(file).into_iter().flat_map(BTreeMap::keys);
            for next in imported {
                if reached.insert(*next) {
                    waiting.push(next);
                }
            }
        }
        reached
    }

    /// The knots: files each of which leads to each other one of them.
    fn circles(&self) -> Vec<Circle<'a>> {
        let reachable: BTreeMap<&str, Circle<'a>> = self
            .edges
            .keys()
            .map(|file| (*file, self.reachable(file)))
            .collect();
        let leads_back = |from: &str, to: &str| reachable[to].contains(from);
        let mut circles = BTreeSet::new();
        for (file, reached) in &reachable {
            let circle: Circle<'a> = reached
                .iter()
                .copied()
                .filter(|other| leads_back(file, other))
                .collect();
            if !circle.is_empty() {
                circles.insert(circle);
            }
        }
        circles.into_iter().collect()
    }

    fn report(&self, circles: &[Circle<'a>]) -> String {
        let mut report = String::new();
        for circle in circles {
            let _ = writeln!(report, "{} files import each other:", circle.len());
            for from in circle {
                for (to, line) in &self.edges[from] {
                    if circle.contains(to) {
                        let _ = writeln!(report, "    {from}:{line}: {to}");
                    }
                }
            }
        }
        report
    }
}

#[cfg(test)]
mod rules {
    use super::*;

    const EXAMPLE: &[&[&str]] = &[
        &["time.rs"],
        &["events/", "plan.rs"],
        &["pool/"],
        &["mod.rs"],
    ];

    #[test]
    fn a_room_may_use_the_floors_below_its_own() {
        let broken = |path: &str, text: &str| {
            let others = [
                "time.rs",
                "events/mod.rs",
                "events/token.rs",
                "plan.rs",
                "pool/mod.rs",
            ];
            let others = others.map(|other| format!("{MASTER}{other}"));
            let mut files = vec![("src/master/mod.rs", ""), (path, text)];
            files.extend(others.iter().map(|other| (other.as_str(), "")));
            let tree = Tree::of(&files);
            upward(&tree.sources[1], &tree, EXAMPLE).len()
        };
        for (path, text, wanted) in [
            ("src/master/pool/own.rs", "use super::super::time::Time;", 0),
            (
                "src/master/pool/own.rs",
                "use crate::master::events::token;",
                0,
            ),
            ("src/master/pool/own.rs", "use super::Pool;", 0),
            ("src/master/pool/own.rs", "use crate::error::Error;", 0),
            ("src/master/pool/own.rs", "use crate::master::Own;", 1),
            (
                "src/master/events/own.rs",
                "fn f(x: &crate::master::pool::Pool) {}",
                1,
            ),
            (
                "src/master/events/own.rs",
                "use crate::master::plan::Plan;",
                1,
            ),
            (
                "src/master/events/own.rs",
                "#[cfg(test)] mod t { use crate::master::pool; }",
                0,
            ),
            (
                "src/master/mod.rs",
                "use pool::Pool; use self::time::Time;",
                0,
            ),
            ("src/master/nowhere.rs", "", 1),
            ("src/worker/mod.rs", "use crate::master::pool::Pool;", 0),
        ] {
            assert_eq!(broken(path, text), wanted, "{path}: {text}");
        }
    }

    fn knots(files: &[(&str, &str)]) -> Vec<Vec<String>> {
        let tree = Tree::of(files);
        let circles = Imports::of(&tree).circles();
        let owned = |circle: Circle<'_>| circle.into_iter().map(str::to_owned).collect();
        circles.into_iter().map(owned).collect()
    }

    #[test]
    fn a_circle_is_found_at_any_length() {
        let files = [
            ("src/a.rs", "use crate::b::B;"),
            ("src/b.rs", "fn f() { g!(crate::c::C) }"),
            ("src/c.rs", "use super::a;"),
            ("src/d.rs", "use crate::a;"),
        ];
        assert_eq!(knots(&files), [["src/a.rs", "src/b.rs", "src/c.rs"]]);
        assert!(knots(&files[..2]).is_empty());
    }

    #[test]
    fn a_module_and_its_child_are_two_files() {
        let knots = |parent, child| knots(&[("src/a.rs", parent), ("src/a/b.rs", child)]).len();
        assert_eq!(knots("mod b;", "use super::A;"), 0);
        assert_eq!(knots("mod b; use b::B;", ""), 0);
        assert_eq!(knots("mod b; use b::B;", "use super::A;"), 1);
        assert_eq!(knots("mod b; pub use self::b::B;", "use crate::a::A;"), 1);
        assert_eq!(knots("mod b; fn f(b: b::B) {}", "fn f() -> super::A {}"), 1);
        assert_eq!(
            knots(
                "mod b; use b::B;",
                "#[cfg(test)] mod tests { use crate::a; }"
            ),
            0
        );
    }
}
