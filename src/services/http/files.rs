//! Static files from one directory, and from nowhere else.
//!
//! The kernel resolves every path, beneath the directory and never out of it (openat2(2),
//! RESOLVE_BENEATH): no `..`, no symbolic link and no rename in between leads elsewhere, and
//! nothing here has to know why. Small files are kept in memory (the `cache` module), and sent from
//! there while a path still leads to the same file, unchanged.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use ::http::{Method, StatusCode};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::fs::{fstat, open, openat2, statat};
use rustix::io::Errno;

use super::cache::{About, Cache, Identity, Kept, MAX_FILE, time};
use super::output::read_exactly;
use super::request::{Handler, Request};
use super::response::{Content, Response};
use crate::{Error, Result};

/// What a path that ends in a slash stands for.
const INDEX: &[u8] = b"index.html";

/// How often a resolution is tried again when a rename elsewhere in the tree made the kernel give
/// up.
const MAX_TRIES: usize = 8;

/// Serves the regular files beneath one directory to GET and HEAD.
///
/// A clone shares the open directory: check it once with [`Files::open`], then give each worker a
/// clone. Each keeps small files in up to 4 MiB of memory; a change of a file shows at the next
/// request.
#[derive(Debug, Clone)]
pub struct Files {
    root: Arc<OwnedFd>,
    /// The decoded path of the request in hand, from the directory on.
    path: Vec<u8>,
    pub(super) cache: Cache,
    /// Tells the time; a test may tell another.
    pub(super) clock: fn() -> SystemTime,
}

/// A file to send.
enum Found {
    Kept(Arc<Kept>),
    Open(OwnedFd, Stat),
}

/// Why there is no file to send.
enum Miss {
    /// Answer this.
    Status(StatusCode),
    /// It is a directory, and the path has no slash at its end.
    Directory,
}

impl Files {
    /// Serves what is beneath `directory`. The directory stays the same when its name later leads
    /// elsewhere.
    ///
    /// # Errors
    /// When `directory` is not a directory, or may not be searched.
    pub fn open(directory: &Path) -> Result<Self> {
        let failed = |error: Errno| Error::new(format!("serve {}", directory.display()), error);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open(directory, flags, Mode::empty()).map_err(failed)?;
        // Opening a path asks for no permission on the directory itself, resolving in it does.
        openat2(
            &root,
            c".",
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            BENEATH,
        )
        .map_err(failed)?;
        Ok(Self::beneath(root))
    }

    /// The files beneath a directory that [`open`](Self::open) has opened, here or in another
    /// process.
    pub(crate) fn beneath(root: OwnedFd) -> Self {
        Self {
            root: Arc::new(root),
            path: Vec::new(),
            cache: Cache::default(),
            clock: SystemTime::now,
        }
    }

    /// The file that `path` names.
    fn find(&mut self, path: &str, now: SystemTime) -> std::result::Result<Found, Miss> {
        decode(path, &mut self.path).map_err(Miss::Status)?;
        if self.path.is_empty() || self.path.ends_with(b"/") {
            self.path.extend_from_slice(INDEX);
        }
        // The only call to the file system on the way of a file that is kept.
        let look = || {
            let stat = statat(&*self.root, &self.path[..], AtFlags::empty());
            stat.ok().map(|stat| Identity::of(&stat))
        };
        if let Some(kept) = self.cache.get(&self.path, now, look) {
            return Ok(Found::Kept(kept));
        }
        let found = self
            .open_beneath()
            .and_then(|file| fstat(&file).map(|stat| (file, stat)));
        let (file, stat) = found.map_err(|error| {
            let status = status(error);
            if status.is_server_error() {
                log::warn!("cannot open {}: {error}", self.path.escape_ascii());
            }
            Miss::Status(status)
        })?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Ok(self.keep(file, stat, now)),
            FileType::Directory => Err(Miss::Directory),
            _ => Err(Miss::Status(StatusCode::NOT_FOUND)),
        }
    }

    fn open_beneath(&self) -> rustix::io::Result<OwnedFd> {
        // Without O_NONBLOCK, to open a FIFO would be to wait for its other end.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let mut tries = 1;
        loop {
            match openat2(&*self.root, &self.path[..], flags, Mode::empty(), BENEATH) {
                Err(Errno::AGAIN) if tries < MAX_TRIES => tries += 1,
                Err(Errno::INTR) => {}
                result => return result,
            }
        }
    }

    /// Takes a small file into the memory, if the cache wants it.
    fn keep(&mut self, file: OwnedFd, stat: Stat, now: SystemTime) -> Found {
        let identity = Identity::of(&stat);
        let length = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
        if length > MAX_FILE || !self.cache.wants(&identity, now) {
            return Found::Open(file, stat);
        }
        let mut body = Vec::new();
        // Whoever sends the file finds out what is wrong with it.
        let Ok(()) = read_exactly(&mut body, &file, 0, length as usize) else {
            return Found::Open(file, stat);
        };
        let kept = Arc::new(Kept {
            identity,
            read_at: now,
            about: about(&self.path, &stat, now),
            body: body.into(),
        });
        self.cache.keep(&self.path, Arc::clone(&kept));
        Found::Kept(kept)
    }

    fn respond(&self, request: &Request<'_>, found: Found, now: SystemTime) -> Response {
        match found {
            Found::Kept(kept) => unmodified(request, &kept.about)
                .unwrap_or_else(|| Response::prepared(Vec::new(), Content::Kept(kept))),
            Found::Open(file, stat) => {
                let about = about(&self.path, &stat, now);
                let length = u64::try_from(stat.st_size).unwrap_or(0);
                unmodified(request, &about).unwrap_or_else(|| {
                    let content = Content::File {
                        file,
                        offset: 0,
                        length,
                    };
                    Response::prepared(about.fields, content)
                })
            }
        }
    }
}

const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);

/// The descriptor of the directory, which a worker process must keep
/// ([`Pool::keep`](crate::Pool::keep)).
impl AsFd for Files {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

impl Handler for Files {
    fn handle(&mut self, request: &mut Request<'_>) -> Response {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Response::method_not_allowed("GET, HEAD");
        }
        let now = (self.clock)();
        match self.find(request.path(), now) {
            Ok(found) => self.respond(request, found, now),
            Err(Miss::Status(status)) => Response::error(status),
            Err(Miss::Directory) => redirect(request.path(), request.query()),
        }
    }
}

/// Undoes the percent-encoding of `path` into `into`, without its leading slashes. A slash or a NUL
/// that was encoded has no meaning in a file's name, and `%` alone none in a path.
fn decode(path: &str, into: &mut Vec<u8>) -> std::result::Result<(), StatusCode> {
    into.clear();
    let mut bytes = path.trim_start_matches('/').bytes();
    while let Some(byte) = bytes.next() {
        into.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                let (high, low) = (digit(), digit());
                match high.zip(low).map(|(high, low)| (high << 4 | low) as u8) {
                    None | Some(b'/' | 0) => return Err(StatusCode::BAD_REQUEST),
                    Some(byte) => byte,
                }
            }
            byte => byte,
        });
    }
    Ok(())
}

/// What to answer when a file cannot be opened.
fn status(error: Errno) -> StatusCode {
    match error {
        Errno::ACCESS | Errno::PERM => StatusCode::FORBIDDEN,
        Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        // No such file, no way through a file, a way out (XDEV), a loop, a name too long, a socket.
        Errno::NOENT
        | Errno::NOTDIR
        | Errno::XDEV
        | Errno::LOOP
        | Errno::NAMETOOLONG
        | Errno::INVAL
        | Errno::NXIO
        | Errno::NODEV => StatusCode::NOT_FOUND,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// To the same path with a slash at its end, so that relative links in the index work. One slash in
/// front: two would name another host, and so would a backslash to a browser.
fn redirect(path: &str, query: Option<&str>) -> Response {
    let path = path.trim_start_matches('/').replace('\\', "%5C");
    let (mark, query) = query.map_or(("", ""), |query| ("?", query));
    Response::error(StatusCode::MOVED_PERMANENTLY)
        .header("Location", format!("/{path}/{mark}{query}"))
}

/// What a response says of the file at `path`.
fn about(path: &[u8], stat: &Stat, now: SystemTime) -> About {
    // In whole seconds, as dates in HTTP are, and not later than the response itself (RFC 9110
    // §8.8.2.1).
    let modified = time(stat.st_mtime, 0).min(now);
    let date = httpdate::fmt_http_date(modified);
    let fields = typed(Response::new(StatusCode::OK), path)
        .header("Last-Modified", &date)
        .fields;
    About {
        modified,
        date,
        fields,
    }
}

/// The answer to a conditional request whose condition is false: If-Modified-Since (RFC 9110
/// §13.1.3), which If-None-Match overrules.
fn unmodified(request: &Request<'_>, about: &About) -> Option<Response> {
    let since = request.header("If-Modified-Since")?;
    if request.header("If-None-Match").is_some() {
        return None;
    }
    let is_unmodified = since == about.date.as_bytes()
        || std::str::from_utf8(since)
            .ok()
            .and_then(|since| httpdate::parse_http_date(since).ok())
            .is_some_and(|since| about.modified <= since);
    is_unmodified
        .then(|| Response::new(StatusCode::NOT_MODIFIED).header("Last-Modified", &about.date))
}

/// Adds the Content-Type that the extension stands for. Text is taken to be UTF-8.
fn typed(response: Response, path: &[u8]) -> Response {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let extension = name.rsplit(|byte| *byte == b'.').next().unwrap_or_default();
    let known = std::str::from_utf8(extension)
        .ok()
        .filter(|extension| extension.len() < name.len())
        .and_then(|extension| mime_guess::from_ext(extension).first_raw());
    match known {
        Some(text) if text.starts_with("text/") => {
            response.header("Content-Type", format!("{text}; charset=utf-8"))
        }
        Some(known) => response.header("Content-Type", known),
        None => response.header("Content-Type", "application/octet-stream"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_decoded_once_and_strictly() {
        let decoded = |path: &str| {
            let mut bytes = Vec::new();
            decode(path, &mut bytes).map(|()| bytes)
        };
        assert_eq!(decoded("/"), Ok(vec![]));
        assert_eq!(decoded("//a//b/"), Ok(b"a//b/".to_vec()));
        assert_eq!(decoded("/a%20b%C3%a9"), Ok(b"a b\xc3\xa9".to_vec()));
        assert_eq!(decoded("/%2541"), Ok(b"%41".to_vec()));
        for path in ["/a%2fb", "/%2F", "/%00", "/%", "/%4", "/%zz", "/%+1"] {
            assert_eq!(decoded(path), Err(StatusCode::BAD_REQUEST), "{path}");
        }
    }

    #[test]
    fn a_redirect_names_no_other_host() {
        let fields = |path, query| String::from_utf8(redirect(path, query).fields).unwrap();
        for (path, query, location) in [
            ("/a", None, "/a/"),
            ("/a", Some("b=c"), "/a/?b=c"),
            ("//example.org", None, "/example.org/"),
            ("/\\example.org", None, "/%5Cexample.org/"),
        ] {
            let wanted = format!("Location: {location}\r\n");
            assert!(fields(path, query).contains(&wanted), "{path}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_opened_says_why_by_its_status() {
        for (error, answer) in [
            (Errno::ACCESS, 403),
            (Errno::PERM, 403),
            (Errno::NOENT, 404),
            (Errno::XDEV, 404),
            (Errno::LOOP, 404),
            (Errno::MFILE, 503),
            (Errno::IO, 500),
        ] {
            assert_eq!(status(error), answer, "{error}");
        }
    }

    #[test]
    fn types_follow_the_extension() {
        for (path, content_type) in [
            ("a/index.html", "text/html; charset=utf-8"),
            ("A.TXT", "text/plain; charset=utf-8"),
            ("x.css", "text/css; charset=utf-8"),
            ("x.png", "image/png"),
            ("x.tar.gz", "application/gzip"),
            ("html", "application/octet-stream"),
            ("a.png/file", "application/octet-stream"),
            ("a.", "application/octet-stream"),
            ("x.\u{fffd}", "application/octet-stream"),
        ] {
            let response = typed(Response::new(StatusCode::OK), path.as_bytes());
            let wanted = format!("Content-Type: {content_type}\r\n");
            assert_eq!(
                String::from_utf8(response.fields).unwrap(),
                wanted,
                "{path}"
            );
        }
    }
}
