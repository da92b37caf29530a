//! Static files from one directory, and from nowhere else.
//!
//! The `beneath` module resolves every path. Small files are kept in memory (the `cache` module),
//! and sent from there while a path still leads to the same file, unchanged.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use ::http::{Method, StatusCode};
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, percent_encode, utf8_percent_encode};
use rustix::fs::Stat;
use rustix::io::Errno;

use super::beneath::{Beneath, Found as Leads};
use super::cache::{Cache, CachedFile, Identity, MAX_FILE, Metadata, time};
use super::complaints;
use super::output::read_exactly;
use super::preconditions::{Verdict, evaluate};
use super::request::{Handler, OnHead, Request};
use super::response::{Content, Response};
use crate::{Error, Result};

/// The methods that a file is served to.
const ALLOWED: &str = "GET, HEAD, OPTIONS";

/// What a path that ends in a slash stands for.
const INDEX: &[u8] = b"index.html";

/// What a path keeps as it is when it is written as a URI: a segment's characters (RFC 3986 §3.3),
/// and the slash between segments.
const PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'!')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b'+')
    .remove(b',')
    .remove(b';')
    .remove(b'=')
    .remove(b':')
    .remove(b'@')
    .remove(b'/');

/// What a query that a client has sent must not have as it is (RFC 3986 §3.4).
const NOT_IN_QUERY: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'<')
    .add(b'>')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// Serves the regular files beneath one directory to GET and HEAD. A path that leads out of it gets
/// 404; a symbolic link in it is followed if it is relative and stays inside.
///
/// A clone shares the open directory: check it once with [`Files::open`], then give each worker a
/// clone. Each keeps small files in up to 4 MiB of memory; a change of a file shows at the next
/// request.
#[derive(Debug, Clone)]
pub struct Files {
    root: Arc<Beneath>,
    /// The pool that answers what is no file.
    fallback: Option<&'static str>,
    /// The decoded path of the request in hand, relative to the directory.
    path: Vec<u8>,
    pub(super) cache: Cache,
    /// The clock; a test may have another.
    pub(super) clock: fn() -> SystemTime,
}

/// A file to send.
enum Found {
    Cached(Arc<CachedFile>),
    Open(OwnedFd, Stat),
}

/// Why there is no file to send.
enum Miss {
    /// The answer is this status.
    Status(StatusCode),
    /// There is a directory, and the path has no slash at its end.
    Directory,
}

impl Files {
    /// Serves what is beneath `directory`. The directory stays the same when its name later leads
    /// elsewhere.
    ///
    /// # Errors
    /// When `directory` is not a directory, or may not be searched.
    pub fn open(directory: &Path) -> Result<Self> {
        let root = Beneath::open(directory)
            .map_err(|error| Error::new(format!("serve {}", directory.display()), error))?;
        Ok(Self::beneath(root))
    }

    /// Has the pool of this name answer what is no file: a path that leads to none, and a method
    /// that no file is served to. Without that, the answers are 404 and 405. The server's pools
    /// should know of it ([`Pool::fallback`](crate::Pool::fallback)).
    #[must_use]
    pub fn fallback(mut self, pool: impl Into<String>) -> Self {
        self.fallback = Some(lasting(pool.into()));
        self
    }

    /// The files beneath a directory that [`open`](Self::open) has opened, here or in another
    /// process.
    ///
    /// # Errors
    /// When it may not be searched.
    pub(crate) fn of_directory(root: OwnedFd) -> Result<Self> {
        let root = Beneath::at(root, Path::new("the directory"))
            .map_err(|error| Error::new("serve a directory", error))?;
        Ok(Self::beneath(root))
    }

    pub(super) fn beneath(root: Beneath) -> Self {
        Self {
            root: Arc::new(root),
            fallback: None,
            path: Vec::new(),
            cache: Cache::default(),
            clock: SystemTime::now,
        }
    }

    /// The file that `path` names.
    fn find(&mut self, path: &str, now: SystemTime) -> std::result::Result<Found, Miss> {
        decode(path, &mut self.path).map_err(Miss::Status)?;
        let is_index = self.path.is_empty() || self.path.ends_with(b"/");
        if is_index {
            self.path.extend_from_slice(INDEX);
        }
        // The only system call that a cached file takes.
        let look = || {
            let stat = self.root.stat_unconfined(&self.path);
            stat.map(|stat| Identity::of(&stat))
        };
        if let Some(kept) = self.cache.get(&self.path, now, look) {
            return Ok(Found::Cached(kept));
        }
        // Most of what is asked of a pool that has another one behind it is no file.
        if self.fallback.is_some() && self.root.is_nowhere(&self.path) {
            return Err(Miss::Status(StatusCode::NOT_FOUND));
        }
        match self.root.find(&self.path) {
            Ok(Leads::File(file, stat)) => Ok(self.keep(file, stat, now)),
            // A further slash would ask for the index of the index, and so on.
            Ok(Leads::Directory) if is_index => Err(Miss::Status(StatusCode::NOT_FOUND)),
            Ok(Leads::Directory) => Err(Miss::Directory),
            Ok(Leads::Special) => Err(Miss::Status(StatusCode::NOT_FOUND)),
            Err(error) => {
                let status = status(error);
                // What the client may not have is often what the workers' user may not read.
                if status.is_server_error() || status == StatusCode::FORBIDDEN {
                    let attempt = format_args!("open {}", self.path.escape_ascii());
                    let consequence = format_args!("answering {}", status.as_u16());
                    complaints::warn(attempt, &error.into(), consequence);
                }
                Err(Miss::Status(status))
            }
        }
    }

    /// Reads a small file into memory, if the cache admits it.
    fn keep(&mut self, file: OwnedFd, stat: Stat, now: SystemTime) -> Found {
        let identity = Identity::of(&stat);
        let length = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
        if length > MAX_FILE || !self.cache.admits(&identity, now) {
            return Found::Open(file, stat);
        }
        let mut body = Vec::new();
        // An error will show again when the file is sent.
        let Ok(()) = read_exactly(&mut body, &file, 0, length as usize) else {
            return Found::Open(file, stat);
        };
        let kept = Arc::new(CachedFile {
            identity,
            read_at: now,
            metadata: metadata(&self.path, &stat, now),
            body: body.into(),
        });
        self.cache.keep(&self.path, Arc::clone(&kept));
        Found::Cached(kept)
    }

    /// The answer to a request with a method that no file is served to.
    fn wrong_method(&self, method: &Method) -> Response {
        self.fallback
            .map_or_else(|| Response::wrong_method(method, ALLOWED), Response::pass)
    }

    /// The answer to a request for which there is no file to send, and this is why. A path that can
    /// be no file's may be another service's.
    fn missing(&self, status: StatusCode) -> Response {
        match (self.fallback, status) {
            (Some(pool), StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST) => Response::pass(pool),
            _ => Response::error(status),
        }
    }

    fn respond(&self, request: &Request<'_>, found: Found, now: SystemTime) -> Response {
        match found {
            Found::Cached(kept) => conditional(request, &kept.metadata)
                .unwrap_or_else(|| Response::prepared(Vec::new(), Content::Cached(kept))),
            Found::Open(file, stat) => {
                let metadata = metadata(&self.path, &stat, now);
                let length = u64::try_from(stat.st_size).unwrap_or(0);
                conditional(request, &metadata).unwrap_or_else(|| {
                    let content = Content::File {
                        file,
                        offset: 0,
                        length,
                    };
                    Response::prepared(metadata.fields, content)
                })
            }
        }
    }
}

/// The descriptor of the directory, which a worker process must keep
/// ([`Pool::keep`](crate::Pool::keep)).
impl AsFd for Files {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.descriptor()
    }
}

impl Handler for Files {
    fn handle(&mut self, request: &mut Request<'_>) -> Response {
        let method = request.method();
        if !is_served(method) {
            return self.wrong_method(method);
        }
        let now = (self.clock)();
        match self.find(request.path(), now) {
            Err(Miss::Status(status)) => self.missing(status),
            _ if *method == Method::OPTIONS => Response::options(ALLOWED),
            Err(Miss::Directory) => redirect(&self.path, request.query()),
            Ok(found) => self.respond(request, found, now),
        }
    }

    fn on_head(&mut self, request: &Request<'_>) -> OnHead {
        match is_served(request.method()) {
            false => OnHead::Answer(self.wrong_method(request.method())),
            true if self.fallback.is_some() => match self.find(request.path(), (self.clock)()) {
                // The body goes along with the head.
                Err(Miss::Status(status)) => OnHead::Answer(self.missing(status)),
                _ => OnHead::Leave,
            },
            true => OnHead::Leave,
        }
    }

    fn methods(&self) -> &str {
        ALLOWED
    }
}

fn is_served(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// A name that lasts as long as the process. One that a reload asks for again is the same.
fn lasting(name: String) -> &'static str {
    static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    names.get(&*name).copied().unwrap_or_else(|| {
        let name: &'static str = name.leak();
        names.insert(name);
        name
    })
}

/// Undoes the percent-encoding of `path` into `into`, without its leading slashes, and resolves it
/// by [`without_dots`]. A slash or a NUL that was encoded has no meaning in a file's name, and `%`
/// alone none in a path.
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
    let has_dots = into.split(|byte| *byte == b'/').any(is_dots);
    if has_dots {
        *into = without_dots(into).ok_or(StatusCode::NOT_FOUND)?;
    }
    Ok(())
}

/// Whether a segment of a path stands for a place relative to the one before.
fn is_dots(segment: &[u8]) -> bool {
    matches!(segment, b"." | b"..")
}

/// The relative path that `path` is equivalent to, whatever there is in the file system (RFC 3986
/// §6.2.2.3), and without empty segments; `None` if it leads out. At the end a dot stays: it asks
/// for a directory, and has no slash behind it.
fn without_dots(path: &[u8]) -> Option<Vec<u8>> {
    let mut segments: Vec<&[u8]> = Vec::new();
    let mut last: &[u8] = b"";
    for segment in path.split(|byte| *byte == b'/') {
        match segment {
            b"" | b"." => {}
            b".." => _ = segments.pop()?,
            name => segments.push(name),
        }
        last = segment;
    }
    match last {
        b"" if !segments.is_empty() => segments.push(b""),
        last if is_dots(last) => segments.push(b"."),
        _ => {}
    }
    Some(segments.join(&b'/'))
}

/// The status that tells the client why a file cannot be opened.
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

/// To the same directory with a slash at the end of its path, so that relative links in the index
/// work. `path` is decoded. Its empty segments are left out, because two slashes in front would
/// name another host.
fn redirect(path: &[u8], query: Option<&str>) -> Response {
    let mut location = String::from("/");
    let segments = path.split(|byte| *byte == b'/');
    for segment in segments.filter(|segment| !matches!(*segment, b"" | b".")) {
        location.extend(percent_encode(segment, PATH));
        location.push('/');
    }
    if let Some(query) = query {
        location.push('?');
        location.extend(utf8_percent_encode(&whole_encodings(query), NOT_IN_QUERY));
    }
    Response::error(StatusCode::MOVED_PERMANENTLY).header("Location", location)
}

/// `text` with each percent sign encoded that begins no encoding.
fn whole_encodings(text: &str) -> String {
    let mut parts = text.split('%');
    let mut whole = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part.as_bytes().get(..2);
        let is_whole = digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        whole.push_str(if is_whole { "%" } else { "%25" });
        whole.push_str(part);
    }
    whole
}

/// What a response says of the file at `path`.
fn metadata(path: &[u8], stat: &Stat, now: SystemTime) -> Metadata {
    // In whole seconds, as dates in HTTP are, and not later than the response itself (RFC 9110
    // §8.8.2.1).
    let modified = time(stat.st_mtime, 0).min(now);
    let date = httpdate::fmt_http_date(modified);
    let fields = typed(Response::new(StatusCode::OK), path)
        .header("Last-Modified", &date)
        .fields;
    Metadata {
        modified,
        date,
        fields,
    }
}

/// The answer to a conditional request that is not to be answered with the file.
fn conditional(request: &Request<'_>, metadata: &Metadata) -> Option<Response> {
    match evaluate(request.fields(), metadata.modified, &metadata.date) {
        Verdict::Proceed => None,
        Verdict::NotModified => {
            let response = Response::new(StatusCode::NOT_MODIFIED);
            Some(response.header("Last-Modified", &metadata.date))
        }
        Verdict::Failed => Some(Response::error(StatusCode::PRECONDITION_FAILED)),
    }
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
        for (path, resolved) in [
            ("/.", "."),
            ("/./", ""),
            ("/a/..", "."),
            ("/a/../", ""),
            ("/a/%2e%2E//b", "b"),
            ("/a/b/../c", "a/c"),
            ("/a//../b", "b"),
            ("/a/b/.", "a/b/."),
            ("/a/b/..", "a/."),
            ("/a/./b//", "a/b/"),
            ("/.a/..b/...", ".a/..b/..."),
        ] {
            assert_eq!(decoded(path), Ok(resolved.into()), "{path}");
        }
        for path in ["/..", "//..", "/a/../..", "/a/../../a", "/./../a"] {
            assert_eq!(decoded(path), Err(StatusCode::NOT_FOUND), "{path}");
        }
        for path in ["/a%2fb", "/%2F", "/%00", "/%", "/%4", "/%zz", "/%+1"] {
            assert_eq!(decoded(path), Err(StatusCode::BAD_REQUEST), "{path}");
        }
    }

    #[test]
    fn a_redirect_names_no_other_host() {
        let fields = |path: &str, query| {
            let mut decoded = Vec::new();
            decode(path, &mut decoded).unwrap();
            String::from_utf8(redirect(&decoded, query).fields).unwrap()
        };
        for (path, query, location) in [
            ("/a", None, "/a/"),
            ("/a", Some("b=c"), "/a/?b=c"),
            ("/a", Some(""), "/a/?"),
            ("//example.org", None, "/example.org/"),
            ("/\\example.org", None, "/%5Cexample.org/"),
            ("/%5cexample.org", None, "/%5Cexample.org/"),
            ("/.//example.org", None, "/example.org/"),
            ("/x/..//example.org", None, "/example.org/"),
            ("/x/%2e/%2E%2e//example.org", None, "/example.org/"),
            ("/.", None, "/"),
            ("/a/..", None, "/"),
            ("/a/../b/./c", None, "/b/c/"),
            ("/a//b", None, "/a/b/"),
            ("/...", None, "/.../"),
            ("/a%20b", None, "/a%20b/"),
            ("/a%25zz", None, "/a%25zz/"),
            ("/%3f%23%5b%7c", None, "/%3F%23%5B%7C/"),
            ("/%c3%a9%ff", None, "/%C3%A9%FF/"),
            ("/%0d%0aSet-Cookie:x", None, "/%0D%0ASet-Cookie:x/"),
            ("/\"<>^`{|}", None, "/%22%3C%3E%5E%60%7B%7C%7D/"),
            ("/-._~!$&'()*+,;=:@", None, "/-._~!$&'()*+,;=:@/"),
            ("/a", Some("/../?&=%41"), "/a/?/../?&=%41"),
            (
                "/a",
                Some("\"<>[\\]^`{|}"),
                "/a/?%22%3C%3E%5B%5C%5D%5E%60%7B%7C%7D",
            ),
            ("/a", Some("%&%4&%zz&%%41"), "/a/?%25&%254&%25zz&%25%41"),
        ] {
            let wanted = format!("Location: {location}\r\n");
            let found = fields(path, query);
            assert!(found.ends_with(&wanted), "{path}: {found}");
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
