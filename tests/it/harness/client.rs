//! A small HTTP/1.1 client that does exactly what it is told, wrong things included.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::sockopt::{set_socket_linger, set_socket_recv_buffer_size};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};

use super::process::DEADLINE;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Endpoint {
    /// Reads what the server has logged. `0.0.0.0` and `[::]` are reached over the loopback.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Some(Self::Unix(path.into()));
        }
        let mut address: SocketAddr = text.parse().ok()?;
        match address {
            SocketAddr::V4(v4) if v4.ip().is_unspecified() => {
                address.set_ip(Ipv4Addr::LOCALHOST.into());
            }
            SocketAddr::V6(v6) if v6.ip().is_unspecified() => {
                address.set_ip(Ipv6Addr::LOCALHOST.into());
            }
            _ => {}
        }
        Some(Self::Tcp(address))
    }

    /// The same as seen from elsewhere, if the server that says so runs in `directory`.
    pub fn within(self, directory: &Path) -> Self {
        match self {
            Self::Unix(path) => Self::Unix(directory.join(path)),
            tcp => tcp,
        }
    }

    /// The TCP address.
    #[track_caller]
    pub fn tcp(&self) -> SocketAddr {
        match self {
            Self::Tcp(address) => *address,
            Self::Unix(path) => panic!("{} is a Unix socket", path.display()),
        }
    }

    pub fn try_connect(&self) -> io::Result<Client> {
        let stream = match self {
            Self::Tcp(address) => {
                return Client::over(TcpStream::connect_timeout(address, DEADLINE)?);
            }
            Self::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(DEADLINE))?;
                stream.set_write_timeout(Some(DEADLINE))?;
                Stream::Unix(stream)
            }
        };
        Ok(Client {
            stream,
            pending: Vec::new(),
        })
    }

    #[track_caller]
    pub fn connect(&self) -> Client {
        self.try_connect()
            .unwrap_or_else(|error| panic!("cannot connect to {self:?}: {error}"))
    }

    /// Connects by TCP from this address, which must be one of this machine: the server sees
    /// another client. All of 127.0.0.0/8 will do.
    #[track_caller]
    pub fn connect_from(&self, source: Ipv4Addr) -> Client {
        let address = self.tcp();
        let connected = || -> io::Result<TcpStream> {
            let flags = SocketFlags::CLOEXEC;
            let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
            bind(&socket, &SocketAddr::from((source, 0)))?;
            connect(&socket, &address)?;
            Ok(TcpStream::from(socket))
        };
        connected()
            .and_then(Client::over)
            .unwrap_or_else(|error| panic!("cannot connect to {self:?} from {source}: {error}"))
    }

    /// Connects by TCP with room for no more than some thousand bytes that the client has not read:
    /// what else is sent to it stays with the server's kernel.
    #[track_caller]
    pub fn connect_narrow(&self) -> Client {
        let address = self.tcp();
        let connected = || -> io::Result<TcpStream> {
            let flags = SocketFlags::CLOEXEC;
            let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
            set_socket_recv_buffer_size(&socket, 1024)?;
            connect(&socket, &address)?;
            Ok(TcpStream::from(socket))
        };
        connected()
            .and_then(Client::over)
            .unwrap_or_else(|error| panic!("cannot connect to {self:?}: {error}"))
    }
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(how),
            Self::Unix(stream) => stream.shutdown(how),
        }
    }

    #[track_caller]
    fn limit_reads(&self, limit: Duration) {
        let result = match self {
            Self::Tcp(stream) => stream.set_read_timeout(Some(limit)),
            Self::Unix(stream) => stream.set_read_timeout(Some(limit)),
        };
        result.expect("a read timeout can be set");
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(buffer),
            Self::Unix(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One connection to a server. Every read and write ends at the deadline.
#[derive(Debug)]
pub struct Client {
    stream: Stream,
    /// Received, and not yet part of a reply.
    pending: Vec<u8>,
}

/// One response.
#[derive(Clone, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    /// The value of a header that occurs once at most.
    #[track_caller]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self
            .headers
            .iter()
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str());
        let value = values.next();
        assert_eq!(values.next(), None, "{name} occurs twice in {self:?}");
        value
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Whether the server says that it closes the connection after this response.
    pub fn closes(&self) -> bool {
        self.header("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = &self.body[..self.body.len().min(200)];
        f.debug_struct("Reply")
            .field("status", &self.status)
            .field("headers", &self.headers)
            .field("length", &self.body.len())
            .field("body", &String::from_utf8_lossy(start))
            .finish()
    }
}

impl Client {
    fn over(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        Ok(Self {
            stream: Stream::Tcp(stream),
            pending: Vec::new(),
        })
    }

    /// A second handle on the same connection, to send while the first one reads.
    pub fn try_clone(&self) -> io::Result<Self> {
        let stream = match &self.stream {
            Stream::Tcp(stream) => Stream::Tcp(stream.try_clone()?),
            Stream::Unix(stream) => Stream::Unix(stream.try_clone()?),
        };
        Ok(Self {
            stream,
            pending: Vec::new(),
        })
    }

    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        if let Err(error) = self.try_send(bytes) {
            panic!("cannot send: {error}");
        }
    }

    /// Sends without a body and keeps the connection.
    pub fn try_send_request(&mut self, method: &str, path: &str) -> io::Result<()> {
        self.try_send(format!("{method} {path} HTTP/1.1\r\nHost: test\r\n\r\n"))
    }

    #[track_caller]
    pub fn send_get(&mut self, path: &str) {
        if let Err(error) = self.try_send_request("GET", path) {
            panic!("cannot send GET {path}: {error}");
        }
    }

    pub fn try_get(&mut self, path: &str) -> io::Result<Reply> {
        self.try_send_request("GET", path)?;
        self.try_reply()
    }

    /// A GET on this connection, which stays open.
    #[track_caller]
    pub fn get(&mut self, path: &str) -> Reply {
        match self.try_get(path) {
            Ok(reply) => reply,
            Err(error) => panic!("GET {path}: {error}"),
        }
    }

    /// A GET with one more header line.
    #[track_caller]
    pub fn get_with(&mut self, path: &str, header: &str) -> Reply {
        self.send(format!(
            "GET {path} HTTP/1.1\r\nHost: test\r\n{header}\r\n\r\n"
        ));
        self.reply()
    }

    #[track_caller]
    pub fn head(&mut self, path: &str) -> Reply {
        self.send(format!("HEAD {path} HTTP/1.1\r\nHost: test\r\n\r\n"));
        match self.receive_reply(true) {
            Ok(reply) => reply,
            Err(error) => panic!("HEAD {path}: {error}"),
        }
    }

    #[track_caller]
    pub fn post(&mut self, path: &str, body: &[u8]) -> Reply {
        let length = body.len();
        self.send(format!(
            "POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n"
        ));
        self.send(body);
        self.reply()
    }

    /// The next response to a request other than HEAD; an interim one (1xx) counts.
    pub fn try_reply(&mut self) -> io::Result<Reply> {
        self.receive_reply(false)
    }

    #[track_caller]
    pub fn reply(&mut self) -> Reply {
        match self.try_reply() {
            Ok(reply) => reply,
            Err(error) => panic!("no reply: {error}"),
        }
    }

    /// Sends bytes as they are, and returns the next response.
    #[track_caller]
    pub fn roundtrip(&mut self, bytes: impl AsRef<[u8]>) -> Reply {
        self.send(bytes);
        self.reply()
    }

    /// Ends this side of the connection: the server reads the end of the file.
    #[track_caller]
    pub fn half_close(&mut self) {
        if let Err(error) = self.stream.shutdown(Shutdown::Write) {
            panic!("cannot end the client's side: {error}");
        }
    }

    /// Ends a TCP connection by a reset.
    #[track_caller]
    pub fn reset(self) {
        match self.stream {
            Stream::Tcp(stream) => set_socket_linger(stream, Some(Duration::ZERO)),
            Stream::Unix(_) => panic!("a Unix connection knows no reset"),
        }
        .expect("a socket may linger");
    }

    /// Sends bytes to a server that sends them back, and returns what comes.
    #[track_caller]
    pub fn echo(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.send(bytes);
        self.read_exact(bytes.len())
    }

    /// Exactly `count` bytes.
    #[track_caller]
    pub fn read_exact(&mut self, count: usize) -> Vec<u8> {
        match self.take(count) {
            Ok(bytes) => bytes,
            Err(error) => panic!("cannot read {count} bytes: {error}"),
        }
    }

    /// All that comes until the server closes.
    #[track_caller]
    pub fn read_until_close(&mut self) -> Vec<u8> {
        match self.take_rest() {
            Ok(bytes) => bytes,
            Err(error) => panic!("the connection was not closed in order: {error}"),
        }
    }

    /// The client's own port.
    #[track_caller]
    pub fn port(&self) -> u16 {
        match &self.stream {
            Stream::Tcp(stream) => stream.local_addr().expect("it is bound").port(),
            Stream::Unix(_) => panic!("a Unix socket has no port"),
        }
    }

    /// Whether the server has ended the connection, in order or by a reset, having sent nothing
    /// more. Waits for it.
    #[track_caller]
    pub fn is_closed(&mut self) -> bool {
        match self.take_rest() {
            Ok(bytes) => bytes.is_empty(),
            Err(error) => match error.kind() {
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => true,
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => false,
                _ => panic!("cannot read: {error}"),
            },
        }
    }

    /// Whether the server neither sends anything nor closes within this time. What it sends is kept
    /// for the next reply.
    #[track_caller]
    pub fn is_silent_for(&mut self, limit: Duration) -> bool {
        if !self.pending.is_empty() {
            return false;
        }
        self.stream.limit_reads(limit.max(Duration::from_millis(1)));
        let received = self.receive();
        self.stream.limit_reads(DEADLINE);
        received.is_err_and(|error| {
            matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
            )
        })
    }

    /// Whether the server has so far neither sent anything nor closed.
    #[track_caller]
    pub fn is_silent(&mut self) -> bool {
        self.is_silent_for(Duration::ZERO)
    }

    /// Whether something was received that no reply has taken.
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    fn receive_reply(&mut self, to_head: bool) -> io::Result<Reply> {
        let head = self.take_until(b"\r\n\r\n")?;
        let head = String::from_utf8(head).map_err(io::Error::other)?;
        let mut lines = head.trim_end().split("\r\n");
        let status_line = lines.next().unwrap_or_default();
        let status = status_line
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3)?.parse().ok())
            .ok_or_else(|| io::Error::other(format!("not a status line: {status_line:?}")))?;
        let headers = lines
            .map(|line| {
                let (name, value) = line
                    .split_once(':')
                    .ok_or_else(|| io::Error::other(format!("not a header: {line:?}")))?;
                Ok((name.to_owned(), value.trim().to_owned()))
            })
            .collect::<io::Result<_>>()?;
        let mut reply = Reply {
            status,
            headers,
            body: Vec::new(),
        };
        if to_head || status < 200 || status == 204 || status == 304 {
            return Ok(reply);
        }
        reply.body = if reply.header("transfer-encoding") == Some("chunked") {
            self.take_chunks()?
        } else if let Some(length) = reply.header("content-length") {
            let length = length.parse().map_err(io::Error::other)?;
            self.take(length)?
        } else {
            self.take_rest()?
        };
        Ok(reply)
    }

    fn take_chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = String::from_utf8(self.take_until(b"\r\n")?).map_err(io::Error::other)?;
            let size = usize::from_str_radix(line.trim_end(), 16).map_err(io::Error::other)?;
            body.extend(self.take(size)?);
            if self.take(2)? != b"\r\n" {
                return Err(io::Error::other("a chunk does not end with CRLF"));
            }
            if size == 0 {
                return Ok(body);
            }
        }
    }

    /// Bytes up to and with `end`.
    fn take_until(&mut self, end: &[u8]) -> io::Result<Vec<u8>> {
        let mut searched = 0;
        loop {
            let from = searched.min(self.pending.len());
            let found = self.pending[from..]
                .windows(end.len())
                .position(|window| window == end);
            if let Some(at) = found {
                return Ok(self.pending.drain(..from + at + end.len()).collect());
            }
            searched = self.pending.len().saturating_sub(end.len() - 1);
            self.receive()?;
        }
    }

    fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.pending.len() < count {
            self.receive()?;
        }
        Ok(self.pending.drain(..count).collect())
    }

    fn take_rest(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = std::mem::take(&mut self.pending);
        self.stream.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// At least one byte more; the end of the stream is an error that shows what came before it.
    fn receive(&mut self) -> io::Result<()> {
        let mut buffer = [0; 64 * 1024];
        match self.stream.read(&mut buffer)? {
            0 => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!(
                    "the server closed after {} bytes, {:?}",
                    self.pending.len(),
                    String::from_utf8_lossy(&self.pending[..self.pending.len().min(1000)])
                ),
            )),
            count => {
                self.pending.extend_from_slice(&buffer[..count]);
                Ok(())
            }
        }
    }
}

/// What `GET /` of the demo says about the turn that answered it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served {
    pub slot: i32,
    pub worker: i32,
    /// How many requests that worker has served, this one included.
    pub request: u64,
    pub turn: u64,
    pub master: i32,
}

impl Served {
    /// Reads the text for curl: `worker slot 3, pid 456`, `turn 2 …`, `master pid 123`.
    #[track_caller]
    pub fn of(reply: &Reply) -> Self {
        assert_eq!(reply.status, 200, "{reply:?}");
        let text = reply.text();
        let words: Vec<&str> = text
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter(|word| !word.is_empty())
            .collect();
        let number = |names: &[&str]| {
            words
                .windows(names.len() + 1)
                .find(|window| {
                    window.starts_with(names) && window[names.len()].parse::<u64>().is_ok()
                })
                .map(|window| window[names.len()])
                .unwrap_or_else(|| panic!("no number after {names:?} in {text:?}"))
        };
        Self {
            slot: number(&["worker", "slot"]).parse().expect("a slot"),
            worker: number(&["pid"]).parse().expect("a pid"),
            request: number(&["served", "request"]).parse().expect("a number"),
            turn: number(&["turn"]).parse().expect("a turn"),
            master: number(&["master", "pid"]).parse().expect("a pid"),
        }
    }
}
