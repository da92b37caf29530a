//! Paths beneath one directory, and none that leads out of it.
//!
//! The kernel resolves them (openat2(2), RESOLVE_BENEATH): no `..`, no symbolic link and no rename
//! in between leads elsewhere, and nothing here has to know why. A sandbox may refuse that call,
//! because it cannot look into its arguments. Then a path is walked here, a component at a time, by
//! the same rules: `..` goes back to the directory that the walk came from, a relative symbolic
//! link is followed, an absolute one leads out.
//!
//! To open a FIFO releases the writer that waits for a reader, and to open a device may do
//! anything. So what a path leads to is looked at first, only a regular file is opened, and it must
//! be the one that was looked at. Whoever can rename in the tree might still have a FIFO opened, in
//! the moment between the two. Only a detour through /proc would exclude that; it doubles the cost
//! of an opening, and a chroot has no /proc.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::fs::{fstat, open, openat, openat2, readlinkat, statat};
use rustix::io::{Errno, Result};

/// How often an opening is tried again when a rename elsewhere in the tree made the kernel give up,
/// or when the path led to another file in between.
const MAX_TRIES: usize = 8;

/// How many symbolic links a walk follows, as many as the kernel (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// The length from which on the kernel refuses a path, in bytes (PATH_MAX, with its NUL).
const MAX_PATH: usize = 4096;

const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);

/// Leads to a file without opening it.
const LOOK: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// Nothing but a regular file is to be opened so; the two flags in the middle make it harmless if
/// another file has taken its place.
const READ: OFlags = OFlags::RDONLY
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

/// One directory, open.
#[derive(Debug)]
pub(super) struct Beneath {
    root: OwnedFd,
    resolver: Resolver,
}

/// Who resolves paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resolver {
    Kernel,
    Walk,
}

/// What a path leads to.
#[derive(Debug)]
pub(super) enum Found {
    /// A regular file, open for reading.
    File(OwnedFd, Stat),
    Directory,
    /// A FIFO, a socket, a device: left alone.
    Special,
}

/// What a walk has led to, not yet opened.
struct Located {
    stat: Stat,
    /// The directory that has it (none: the root) and its name there, if it is not a directory.
    entry: Option<(Option<OwnedFd>, Vec<u8>)>,
}

impl Beneath {
    /// Opens the directory. It stays the same when its name later leads elsewhere.
    ///
    /// # Errors
    /// When it is none, or may not be searched.
    pub(super) fn open(directory: &Path) -> Result<Self> {
        Self::at(
            open(directory, LOOK | OFlags::DIRECTORY, Mode::empty())?,
            directory,
        )
    }

    /// The same for a directory that is open already; what it is called is for the log.
    ///
    /// # Errors
    /// When it may not be searched.
    pub(super) fn at(root: OwnedFd, directory: &Path) -> Result<Self> {
        // Opening a path asks for no permission on the directory itself, resolving in it does.
        let resolver = match openat2(&root, c".", LOOK, Mode::empty(), BENEATH) {
            Ok(_) => Resolver::Kernel,
            Err(error) if is_of_sandbox(error) => {
                openat(&root, c".", LOOK, Mode::empty())?;
                log::info!(
                    "openat2(2) is refused here ({error}): paths beneath {} are resolved a \
                     component at a time",
                    directory.display()
                );
                Resolver::Walk
            }
            Err(error) => return Err(error),
        };
        Ok(Self { root, resolver })
    }

    /// Resolves paths this way, whatever the kernel said.
    #[cfg(test)]
    pub(super) fn by(self, resolver: Resolver) -> Self {
        Self { resolver, ..self }
    }

    /// The directory.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// What `path` leads to if nothing confines it: good for a comparison with what was found
    /// beneath the directory, or will be, and for nothing else.
    pub(super) fn stat_unconfined(&self, path: &[u8]) -> Option<Stat> {
        statat(&self.root, path, AtFlags::NO_AUTOMOUNT).ok()
    }

    /// Whether `path`, which is relative, leads to nothing at all, here or outside.
    pub(super) fn is_nowhere(&self, path: &[u8]) -> bool {
        let found = statat(&self.root, path, AtFlags::NO_AUTOMOUNT);
        found.is_err_and(|error| error == Errno::NOENT)
    }

    /// What `path`, which is relative, leads to.
    ///
    /// # Errors
    /// XDEV when it leads out, and whatever else resolving and opening fail with.
    pub(super) fn find(&self, path: &[u8]) -> Result<Found> {
        let mut tries = 1;
        loop {
            match self.find_once(path) {
                Err(Errno::AGAIN) if tries < MAX_TRIES => tries += 1,
                Err(Errno::INTR) => {}
                result => return result,
            }
        }
    }

    fn find_once(&self, path: &[u8]) -> Result<Found> {
        if self.resolver == Resolver::Kernel {
            match self.find_by_kernel(path) {
                // A filter that was installed since the start.
                Err(error) if is_of_sandbox(error) => {}
                result => return result,
            }
        }
        self.find_by_walk(path)
    }

    fn find_by_kernel(&self, path: &[u8]) -> Result<Found> {
        match self.stat_unconfined(path) {
            Some(seen) if is_regular(&seen) => {
                let file = openat2(&self.root, path, READ, Mode::empty(), BENEATH)?;
                same_file(file, &seen)
            }
            // The error, or the kind, is that of a path that does not lead out.
            _ => {
                let file = openat2(&self.root, path, LOOK, Mode::empty(), BENEATH)?;
                not_a_file(&fstat(&file)?)
            }
        }
    }

    fn find_by_walk(&self, path: &[u8]) -> Result<Found> {
        let Located { stat, entry } = self.walk(path)?;
        match entry {
            Some((directory, name)) if is_regular(&stat) => {
                let directory = directory.as_ref().unwrap_or(&self.root);
                let flags = READ | OFlags::NOFOLLOW;
                same_file(openat(directory, name, flags, Mode::empty())?, &stat)
            }
            _ => not_a_file(&stat),
        }
    }

    /// Resolves `path` a component at a time, as openat2(2) would.
    fn walk(&self, path: &[u8]) -> Result<Located> {
        if path.len() >= MAX_PATH {
            return Err(Errno::NAMETOOLONG);
        }
        // The components that are left, the next one last.
        let mut pending: Vec<Vec<u8>> = components(path).collect();
        // The directories on the way, so that `..` leads back even if one of them is moved away
        // meanwhile.
        let mut parents: Vec<OwnedFd> = Vec::new();
        let mut links = 0;
        while let Some(name) = pending.pop() {
            match &name[..] {
                b"" | b"." => continue,
                b".." => {
                    parents.pop().ok_or(Errno::XDEV)?;
                    continue;
                }
                _ => {}
            }
            let here = parents.last().unwrap_or(&self.root);
            let file = openat(here, &name[..], LOOK | OFlags::NOFOLLOW, Mode::empty())?;
            let stat = fstat(&file)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => parents.push(file),
                FileType::Symlink => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP);
                    }
                    let target = readlinkat(&file, c"", Vec::new())?;
                    // Magic links of /proc look absolute, or like a name that does not exist.
                    if target.to_bytes().starts_with(b"/") {
                        return Err(Errno::XDEV);
                    }
                    pending.extend(components(target.to_bytes()));
                }
                // Even `.` or nothing behind a slash asks for a directory.
                _ if !pending.is_empty() => return Err(Errno::NOTDIR),
                _ => {
                    let entry = Some((parents.pop(), name));
                    return Ok(Located { stat, entry });
                }
            }
        }
        let stat = fstat(parents.last().unwrap_or(&self.root))?;
        let entry = None;
        Ok(Located { stat, entry })
    }
}

fn is_regular(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// What was opened, if it is what was looked at.
fn same_file(file: OwnedFd, seen: &Stat) -> Result<Found> {
    let stat = fstat(&file)?;
    match (stat.st_dev, stat.st_ino) == (seen.st_dev, seen.st_ino) {
        true => Ok(Found::File(file, stat)),
        false => Err(Errno::AGAIN),
    }
}

/// What was looked at and is not to be opened.
fn not_a_file(stat: &Stat) -> Result<Found> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Ok(Found::Directory),
        // Something else was there a moment ago.
        FileType::RegularFile => Err(Errno::AGAIN),
        _ => Ok(Found::Special),
    }
}

/// The components of a path, the last one first.
fn components(path: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    path.rsplit(|byte| *byte == b'/').map(<[u8]>::to_vec)
}

/// Whether openat2(2), which was to open nothing but a path, failed because of a seccomp filter.
/// The file systems have no reason to answer so.
fn is_of_sandbox(error: Errno) -> bool {
    matches!(error, Errno::NOSYS | Errno::PERM)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use proptest::prelude::*;

    /// A tree in which nearly every path that is made of its names leads somewhere.
    fn tree() -> (tempfile::TempDir, [Beneath; 2]) {
        let outer = tempfile::tempdir().expect("make a directory");
        let root = outer.path().join("root");
        fs::create_dir_all(root.join("a/b/c")).unwrap();
        fs::create_dir_all(outer.path().join("a")).unwrap();
        for file in ["f", "a/f", "a/b/f"] {
            fs::write(root.join(file), file).unwrap();
            fs::write(outer.path().join("f"), "secret").unwrap();
        }
        for (target, link) in [
            ("..", "up"),
            ("../..", "a/b/up"),
            ("a/b", "in"),
            ("a/f", "l"),
            ("../../f", "a/b/l"),
            ("a/b/", "slash"),
            ("f/", "wrong"),
            ("loop", "loop"),
            ("/", "abs"),
            ("nowhere", "dangling"),
            (".", "dot"),
            ("up/root/f", "around"),
        ] {
            symlink(target, root.join(link)).unwrap();
        }
        symlink(root.join("f"), root.join("absolute")).unwrap();
        nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let resolvers = [Resolver::Kernel, Resolver::Walk];
        let beneath = resolvers.map(|resolver| Beneath::open(&root).unwrap().by(resolver));
        (outer, beneath)
    }

    /// What a path leads to, as something that can be compared.
    fn seen(beneath: &Beneath, path: &str) -> std::result::Result<String, Errno> {
        beneath.find(path.as_bytes()).map(|found| match found {
            Found::File(file, stat) => {
                let file = fs::File::from(file);
                assert_eq!(file.metadata().unwrap().ino(), stat.st_ino);
                std::io::read_to_string(file).unwrap()
            }
            Found::Directory => "a directory".to_owned(),
            Found::Special => "special".to_owned(),
        })
    }

    #[test]
    fn the_walk_leads_where_the_kernel_leads() {
        let (_outer, [kernel, walk]) = tree();
        for (path, wanted) in [
            ("f", Ok("f")),
            ("a/b/../f", Ok("a/f")),
            ("a//b/./f", Ok("a/b/f")),
            ("in/f", Ok("a/b/f")),
            ("in/../f", Ok("a/f")),
            ("l", Ok("a/f")),
            ("a/b/l", Ok("f")),
            ("slash/f", Ok("a/b/f")),
            ("dot/dot/f", Ok("f")),
            ("a/b/up/f", Ok("f")),
            ("a/..", Ok("a directory")),
            (".", Ok("a directory")),
            ("dot", Ok("a directory")),
            ("a/b/c/", Ok("a directory")),
            ("fifo", Ok("special")),
            ("..", Err(Errno::XDEV)),
            ("../f", Err(Errno::XDEV)),
            ("a/../../f", Err(Errno::XDEV)),
            ("up", Err(Errno::XDEV)),
            ("up/f", Err(Errno::XDEV)),
            ("around", Err(Errno::XDEV)),
            ("a/b/up/../f", Err(Errno::XDEV)),
            ("abs", Err(Errno::XDEV)),
            ("abs/etc/passwd", Err(Errno::XDEV)),
            ("absolute", Err(Errno::XDEV)),
            ("loop", Err(Errno::LOOP)),
            ("dangling", Err(Errno::NOENT)),
            ("nothing/../f", Err(Errno::NOENT)),
            ("f/", Err(Errno::NOTDIR)),
            ("f/.", Err(Errno::NOTDIR)),
            ("f/..", Err(Errno::NOTDIR)),
            ("f/x", Err(Errno::NOTDIR)),
            ("l/", Err(Errno::NOTDIR)),
            ("wrong", Err(Errno::NOTDIR)),
            (&"a/../".repeat(900), Err(Errno::NAMETOOLONG)),
            (&"x".repeat(256), Err(Errno::NAMETOOLONG)),
        ] {
            let wanted = wanted.map(str::to_owned);
            assert_eq!(seen(&kernel, path), wanted, "{path}, by the kernel");
            assert_eq!(seen(&walk, path), wanted, "{path}, by a walk");
        }
    }

    #[test]
    fn a_walk_follows_as_many_links_as_the_kernel() {
        let (outer, both) = tree();
        let root = outer.path().join("root");
        for number in 1..=MAX_LINKS + 1 {
            let target = match number {
                1 => "f".to_owned(),
                _ => (number - 1).to_string(),
            };
            symlink(target, root.join(number.to_string())).unwrap();
        }
        for beneath in both {
            let most = MAX_LINKS.to_string();
            assert_eq!(seen(&beneath, &most), Ok("f".to_owned()), "{beneath:?}");
            let more = (MAX_LINKS + 1).to_string();
            assert_eq!(seen(&beneath, &more), Err(Errno::LOOP), "{beneath:?}");
        }
    }

    #[test]
    fn what_is_opened_is_what_was_looked_at() {
        let (_outer, both) = tree();
        for beneath in both {
            let seen = beneath.stat_unconfined(b"f").unwrap();
            let open = |path: &str| openat(&beneath.root, path, READ, Mode::empty()).unwrap();
            assert!(matches!(same_file(open("f"), &seen), Ok(Found::File(..))));
            assert!(matches!(same_file(open("a/f"), &seen), Err(Errno::AGAIN)));
            assert!(matches!(not_a_file(&seen), Err(Errno::AGAIN)));
        }
    }

    /// A tree in which a file, a FIFO and a link that leads out take turns at one name.
    #[test]
    fn a_name_that_changes_meanwhile_leads_to_nothing_else() {
        let (outer, both) = tree();
        let root = outer.path().join("root");
        std::thread::scope(|scope| {
            let renaming = scope.spawn(|| {
                for number in 0..3000 {
                    let next = root.join("next");
                    symlink(["f", "fifo", "up/f"][number % 3], &next).unwrap();
                    fs::rename(&next, root.join("now")).unwrap();
                }
            });
            while !renaming.is_finished() {
                for beneath in &both {
                    let found = seen(beneath, "now");
                    let texts = [Ok("f".to_owned()), Ok("special".to_owned())];
                    let errors = [Errno::XDEV, Errno::AGAIN, Errno::NOENT].map(Err);
                    assert!(
                        texts.contains(&found) || errors.contains(&found),
                        "{found:?}"
                    );
                }
            }
        });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn any_path_leads_both_ways_to_the_same(
            names in proptest::collection::vec(proptest::sample::select(vec![
                "a", "b", "c", "f", "l", "up", "in", "..", ".", "", "slash", "wrong", "dot", "loop",
                "dangling", "around", "abs", "fifo",
            ]), 1..8),
        ) {
            thread_local!(static TREE: (tempfile::TempDir, [Beneath; 2]) = tree());
            let path = names.join("/");
            // The directory itself is asked for as `.`, and a path is relative.
            prop_assume!(!path.starts_with('/') && !path.is_empty());
            TREE.with(|(_outer, [kernel, walk])| {
                prop_assert_eq!(seen(kernel, &path), seen(walk, &path), "{}", path);
                prop_assert_ne!(seen(walk, &path), Ok("secret".to_owned()), "{}", path);
                Ok(())
            })?;
        }
    }
}
