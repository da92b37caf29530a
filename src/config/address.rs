//! Addresses to listen on, and the names of descriptors that another process passes. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A TCP address and port; port 0 lets the kernel choose one.
    Inet(SocketAddr),
    /// A TCP port on every address of this machine, IPv6 and IPv4.
    Any(u16),
    /// A TCP port on the addresses to which a host name resolves.
    Name(String, u16),
    /// A Unix socket at this path.
    Unix(PathBuf),
    /// The listening sockets that were passed to this process under this name.
    Inherited(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(f),
            Self::Any(port) => write!(f, ":{port}"),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Inherited(name) => write!(f, "fd:{name}"),
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

/// The reason why a text is not an address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadAddress(&'static str);

impl fmt::Display for BadAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(reason) = self;
        write!(
            f,
            "{reason}; an address looks like 127.0.0.1:8080, [::1]:8080, :8080, unix:/path or fd:NAME"
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
                path if path.contains('\0') => Err(BadAddress("the path contains a NUL character")),
                path => Ok(Self::Unix(path.into())),
            };
        }
        if let Some(name) = text.strip_prefix("fd:") {
            return match name {
                "" => Err(BadAddress("the name is missing")),
                name if !is_descriptor_name(name) => Err(BadAddress(
                    "the name is not 1 to 255 characters of printable ASCII without a colon",
                )),
                name => Ok(Self::Inherited(name.to_owned())),
            };
        }
        if text.contains("://") {
            return Err(BadAddress("a scheme (http://) does not belong there"));
        }
        if text.parse::<u16>().is_ok() {
            return Err(BadAddress(
                "the host is missing (:PORT stands for every address of this machine)",
            ));
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
    /// The TCP port, unless the address is of another kind. Port 0 stands for any free one.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Inet(address) => Some(address.port()),
            Self::Any(port) | Self::Name(_, port) => Some(*port),
            Self::Unix(_) | Self::Inherited(_) => None,
        }
    }

    /// The socket address that stands for every address of this machine, IPv6 and IPv4.
    #[must_use]
    pub fn any(port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)
    }
}

/// Whether a descriptor may be passed to another process under this name. A name is 1 to 255 bytes
/// of printable ASCII without a colon, because colons separate names (sd_listen_fds(3),
/// sd_notify(3)).
#[must_use]
pub fn is_descriptor_name(name: &str) -> bool {
    const LONGEST: usize = 255;
    let printable = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
    let fits = |byte| printable(byte) && byte != b':';
    (1..=LONGEST).contains(&name.len()) && name.bytes().all(fits)
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
            "fd:web",
            "fd:batond.socket",
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
        assert_eq!(":80".parse(), Ok(Address::Any(80)));
        assert_eq!("unix:rel".parse(), Ok(Address::Unix("rel".into())));
        // This is not port 80 of a machine that is called fd, which is written as fd.:80.
        assert_eq!("fd:80".parse(), Ok(Address::Inherited("80".into())));
        assert_eq!("fd.:80".parse(), Ok(Address::Name("fd.".into(), 80)));
    }

    #[test]
    fn an_address_that_is_none_says_why() {
        for (text, reason) in [
            (
                "8080",
                "the host is missing (:PORT stands for every address of this machine)",
            ),
            ("localhost", "the port is missing"),
            ("", "the port is missing"),
            (
                "http://localhost:80",
                "a scheme (http://) does not belong there",
            ),
            ("https://[::1]", "a scheme (http://) does not belong there"),
            ("127.0.0.1:http", "the port is not a number"),
            ("127.0.0.1:", "the port is not a number"),
            (":65536", "the port is not a number from 0 to 65535"),
            (":+80", "the port is not a number"),
            ("::1:80", "the IPv6 address is not valid"),
            ("[::1:80", "the IPv6 address is not valid"),
            ("1.2.3:80", "the IPv4 address is not valid"),
            ("unix:", "the path is missing"),
            ("fd:", "the name is missing"),
            (
                "fd:web:80",
                "the name is not 1 to 255 characters of printable ASCII",
            ),
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.starts_with(reason), "{text}: {error}");
        }
    }

    #[test]
    fn the_names_that_a_descriptor_may_have() {
        let longest = "n".repeat(255);
        for name in ["web", "batond.socket", "a b", "~", &longest] {
            assert!(is_descriptor_name(name), "{name}");
        }
        let too_long = "n".repeat(256);
        for name in ["", "a:b", "a\nb", "\u{7f}", "\u{e4}", &too_long] {
            assert!(!is_descriptor_name(name), "{name}");
        }
    }
}
