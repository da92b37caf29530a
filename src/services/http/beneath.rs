//! Paths beneath one directory, and none that leads out of it.
//!
//! The kernel resolves them (openat2(2), RESOLVE_BENEATH): no `..`, no symbolic link and no rename
//! in between leads elsewhere, and nothing here has to know why. A sandbox may refuse that call,
//! because it cannot look into its arguments. Then a path is walked here, a component at a time, by
//! the same rules: `..` goes back to the directory that the walk came from, a relative symbolic
//! link is followed, an absolute one leads out.
//!
//! To open a FIFO releases the writer that waits for a reader, and to open a device may do
//! anything. So a path leads to a descriptor that cannot read (O_PATH) first, and only a regular
//! file is opened.

use std::ffi::CStr;
use std::io::Write as _;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
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

/// What a path leads to, not yet opened.
struct Located {
    file: OwnedFd,
    stat: Stat,
    /// The directory that has it, and its name there, if a walk has led here through them.
    entry: Option<(Option<OwnedFd>, Vec<u8>)>,
}

impl Beneath {
    /// Opens the directory. It stays the same when its name later leads elsewhere.
    ///
    /// # Errors
    /// When it is none, or may not be searched.
    pub(super) fn open(directory: &Path) -> Result<Self> {
        let root = open(directory, LOOK | OFlags::DIRECTORY, Mode::empty())?;
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
    pub(super) fn descriptor(&self) -> RawFd {
        self.root.as_raw_fd()
    }

    /// What `path` leads to if nothing confines it: good for a comparison with what was found
    /// beneath the directory before, and for nothing else.
    pub(super) fn stat_unconfined(&self, path: &[u8]) -> Option<Stat> {
        statat(&self.root, path, AtFlags::empty()).ok()
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
        let located = self.resolve(path)?;
        match FileType::from_raw_mode(located.stat.st_mode) {
            FileType::RegularFile => {}
            FileType::Directory => return Ok(Found::Directory),
            _ => return Ok(Found::Special),
        }
        let file = match reopen(&located.file) {
            // There is no /proc, in a chroot for example. The path may lead elsewhere by now.
            Err(Errno::NOENT | Errno::NOTDIR) => self.open_again(path, &located)?,
            result => result?,
        };
        let stat = fstat(&file)?;
        match (stat.st_dev, stat.st_ino) == (located.stat.st_dev, located.stat.st_ino) {
            true => Ok(Found::File(file, stat)),
            false => Err(Errno::AGAIN),
        }
    }

    fn resolve(&self, path: &[u8]) -> Result<Located> {
        if self.resolver == Resolver::Kernel {
            match openat2(&self.root, path, LOOK, Mode::empty(), BENEATH) {
                // A filter that was installed since the start.
                Err(error) if is_of_sandbox(error) => {}
                result => {
                    let file = result?;
                    let stat = fstat(&file)?;
                    let entry = None;
                    return Ok(Located { file, stat, entry });
                }
            }
        }
        self.walk(path)
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
                    return Ok(Located { file, stat, entry });
                }
            }
        }
        let file = match parents.pop() {
            Some(directory) => directory,
            None => openat(&self.root, c".", LOOK, Mode::empty())?,
        };
        let stat = fstat(&file)?;
        let entry = None;
        Ok(Located { file, stat, entry })
    }

    /// Opens what lies at `located`, where `path` has led, by its name.
    fn open_again(&self, path: &[u8], located: &Located) -> Result<OwnedFd> {
        match &located.entry {
            Some((directory, name)) => {
                let directory = directory.as_ref().unwrap_or(&self.root);
                openat(directory, &name[..], READ | OFlags::NOFOLLOW, Mode::empty())
            }
            None => openat2(&self.root, path, READ, Mode::empty(), BENEATH),
        }
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

/// Opens for reading what `file` stands for, itself and not what has its name now (proc(5)).
fn reopen(file: &OwnedFd) -> Result<OwnedFd> {
    let mut path = [0; 32];
    let mut rest = &mut path[..31];
    let number = file.as_raw_fd();
    let written = write!(rest, "/proc/self/fd/{number}");
    let path = CStr::from_bytes_until_nul(&path);
    match (written, path) {
        (Ok(()), Ok(path)) => open(path, READ, Mode::empty()),
        _ => Err(Errno::NAMETOOLONG),
    }
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
    fn without_proc_a_file_is_opened_by_its_name_and_compared() {
        let (outer, both) = tree();
        let root = outer.path().join("root");
        for beneath in both {
            for path in ["f", "in/f", "a/b/l"] {
                let located = beneath.resolve(path.as_bytes()).unwrap();
                let file = beneath.open_again(path.as_bytes(), &located).unwrap();
                assert_eq!(fstat(&file).unwrap().st_ino, located.stat.st_ino);
            }
            // A link that took the place of the file, and that leads out.
            let located = beneath.resolve(b"a/f").unwrap();
            fs::rename(root.join("a/f"), root.join("a/g")).unwrap();
            symlink("../../f", root.join("a/f")).unwrap();
            assert!(beneath.open_again(b"a/f", &located).is_err());
            fs::rename(root.join("a/g"), root.join("a/f")).unwrap();
        }
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
