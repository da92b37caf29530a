//! Settings that are valid by construction. Pure: what is written here touches no file and no socket.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A TCP address and port; port 0 lets the kernel choose one.
    Inet(SocketAddr),
    /// A TCP port on every address of this machine, IPv6 and IPv4.
    Any(u16),
    /// A TCP port on whatever addresses a name stands for.
    Name(String, u16),
    /// A Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(f),
            Self::Any(port) => write!(f, ":{port}"),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Inet(address)
    }
}

impl TryFrom<&str> for Address {
    type Error = BadAddress;

    fn try_from(text: &str) -> Result<Self, BadAddress> {
        text.parse()
    }
}

/// Why a text is not an address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadAddress(&'static str);

impl fmt::Display for BadAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(reason) = self;
        write!(
            f,
            "{reason}; an address looks like 127.0.0.1:8080, [::1]:8080, :8080 or unix:/path"
        )
    }
}

impl std::error::Error for BadAddress {}

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => Err(BadAddress("the path is missing")),
                path if path.contains('\0') => Err(BadAddress("the path holds a NUL character")),
                path => Ok(Self::Unix(path.into())),
            };
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Inet(address));
        }
        let (host, port) = text
            .rsplit_once(':')
            .ok_or(BadAddress("the port is missing"))?;
        if !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(BadAddress("the port is not a number"));
        }
        let port = port
            .parse()
            .map_err(|_| BadAddress("the port is not a number from 0 to 65535"))?;
        match host {
            "" => Ok(Self::Any(port)),
            host if host.contains([':', '[', ']']) => {
                Err(BadAddress("the IPv6 address is not valid"))
            }
            host if host
                .bytes()
                .all(|byte| byte.is_ascii_digit() || byte == b'.') =>
            {
                Err(BadAddress("the IPv4 address is not valid"))
            }
            host => Ok(Self::Name(host.to_owned(), port)),
        }
    }
}

impl Address {
    /// The address that means every address of this machine.
    #[must_use]
    pub fn any(port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)
    }
}

/// The most threads that a worker may have. All the connections that it can have at a time must fit into the ring of
/// its scoreboard.
pub const MAX_THREADS: usize = 64;

/// How a server runs, apart from where it listens and what it serves. Where a bound is an `Option`, `None` means that
/// there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How many workers there are; at least one.
    pub workers: usize,
    /// How many turns each worker serves at the same time, a thread each; from 1 to [`MAX_THREADS`].
    pub threads: usize,
    /// How long a graceful stop may take.
    pub grace: Duration,
    /// How long a lent connection may wait behind another one before it is lent elsewhere.
    pub patience: Duration,
    /// How long a turn may take before its worker is killed and the client told so.
    pub turn_timeout: Option<Duration>,
    /// How many connections there may be; at that number, accepting pauses.
    pub max_connections: usize,
    /// How many connections one client may have: an IPv4 address, or an IPv6 network of 64 bits.
    pub per_client: Option<u32>,
    /// How many ready connections may wait for a worker; more are turned away.
    pub queue: usize,
    /// How long a ready connection may wait for a worker before it is turned away.
    pub queue_wait: Option<Duration>,
    /// How long a client may be silent between two requests.
    pub idle_timeout: Option<Duration>,
    /// How long a client may take for the head of a request, from its first byte.
    pub head_timeout: Option<Duration>,
    /// How long a finished connection is drained of what its client still sends.
    pub linger: Duration,
    /// How long one read from or write to a client may sleep inside a turn.
    pub client_timeout: Duration,
    /// How long the kernel may keep a silent new connection to itself.
    pub defer_accept: Duration,
    /// How many connections the kernel may queue for each listener (listen(2)); it has a bound of its own, somaxconn.
    pub backlog: i32,
}

impl Settings {
    /// The settings for a machine with this many processors.
    #[must_use]
    pub fn for_processors(processors: usize) -> Self {
        Self {
            workers: (2 * processors).max(4),
            threads: 1,
            grace: Duration::from_secs(30),
            patience: Duration::from_micros(500),
            turn_timeout: None,
            max_connections: usize::MAX,
            per_client: None,
            queue: 10_000,
            queue_wait: Some(Duration::from_secs(30)),
            idle_timeout: Some(Duration::from_secs(75)),
            head_timeout: Some(Duration::from_secs(30)),
            linger: Duration::from_secs(2),
            client_timeout: Duration::from_secs(60),
            defer_accept: Duration::from_secs(5),
            backlog: 4096,
        }
    }

    /// The same, with what is out of bounds brought to the nearest bound. No patience at all would take back each
    /// lend at once, and a client timeout of zero would be none to the kernel (socket(7)).
    #[must_use]
    pub fn within_bounds(self) -> Self {
        Self {
            workers: self.workers.max(1),
            threads: self.threads.clamp(1, MAX_THREADS),
            patience: self.patience.max(Duration::from_micros(1)),
            client_timeout: self.client_timeout.max(Duration::from_millis(1)),
            queue: self.queue.max(1),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ways_to_write_an_address() {
        for text in [
            "127.0.0.1:8080",
            "[::1]:8080",
            ":8080",
            "0.0.0.0:0",
            "localhost:80",
            "unix:/run/b.sock",
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
        assert_eq!(":80".parse(), Ok(Address::Any(80)));
        assert_eq!("unix:rel".parse(), Ok(Address::Unix("rel".into())));
    }

    #[test]
    fn an_address_that_is_none_says_why() {
        for (text, reason) in [
            ("8080", "the port is missing"),
            ("127.0.0.1:http", "the port is not a number"),
            ("127.0.0.1:", "the port is not a number"),
            (":65536", "the port is not a number from 0 to 65535"),
            (":+80", "the port is not a number"),
            ("::1:80", "the IPv6 address is not valid"),
            ("[::1:80", "the IPv6 address is not valid"),
            ("1.2.3:80", "the IPv4 address is not valid"),
            ("unix:", "the path is missing"),
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.starts_with(reason), "{text}: {error}");
        }
    }
}
