//! The descriptors that the service manager passes: listening sockets, and what was stored with the
//! manager before.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::iter;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::process;

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketType, getpeername, getsockname, ipproto, sockopt,
};

use crate::error::{Error, Result};
use crate::sys::environment;

const PID: &str = "LISTEN_PID";
const COUNT: &str = "LISTEN_FDS";
const NAMES: &str = "LISTEN_FDNAMES";
/// Identifies the process more precisely than LISTEN_PID, in recent versions. It is only taken out
/// of the environment, because LISTEN_PID is enough here.
const PIDFD_ID: &str = "LISTEN_PIDFDID";

/// The name of a descriptor if no names were passed (sd_listen_fds(3)).
const NAMELESS: &str = "unknown";

/// The operation that an error here names.
const ATTEMPT: &str = "take the descriptors from the service manager";

/// A descriptor that was passed to this process. It may refer to anything; see [`kind`].
#[derive(Debug)]
pub struct Inherited {
    /// FileDescriptorName= of the socket unit, or the name under which the descriptor was stored.
    /// Several descriptors may have the same name.
    pub name: String,
    /// The descriptor, which is closed on exec.
    pub fd: OwnedFd,
}

/// Takes the descriptors that were passed to this process, in the order in which they were passed.
/// There are none if the variables are missing or are meant for another process. Call it at the
/// start of main, while the process has one thread. A second call finds nothing.
///
/// # Errors
/// A variable whose value is malformed, or a descriptor that is not open.
pub fn listen_fds() -> Result<Vec<Inherited>> {
    let failed = |error| Error::new(ATTEMPT, error);
    let [pid, count, names, _] =
        environment::take([PID, COUNT, NAMES, PIDFD_ID]).map_err(failed)?;
    let announced = announced(pid, count, names, process::id())?;
    if announced.count == 0 {
        return Ok(Vec::new());
    }
    let descriptors = environment::passed_descriptors(announced.count).map_err(failed)?;
    let names = announced.names.into_iter();
    let names = names.chain(iter::repeat_with(|| NAMELESS.to_owned()));
    Ok(names
        .zip(descriptors)
        .map(|(name, fd)| Inherited { name, fd })
        .collect())
}

/// The descriptors that the variables announce.
#[derive(Debug, Default, PartialEq, Eq)]
struct Announced {
    count: usize,
    /// One name for each descriptor, or no names at all.
    names: Vec<String>,
}

fn announced(
    pid: Option<OsString>,
    count: Option<OsString>,
    names: Option<OsString>,
    own_pid: u32,
) -> Result<Announced> {
    let wrong = |name: &str, value: &OsStr, reason: &str| {
        Error::because(format!("{ATTEMPT}: {name}={value:?}"), reason)
    };
    let (Some(pid), Some(count)) = (pid, count) else {
        return Ok(Announced::default());
    };
    match pid.to_str().and_then(|pid| pid.parse::<u32>().ok()) {
        None => return Err(wrong(PID, &pid, "it is not a pid")),
        Some(pid) if pid != own_pid => return Ok(Announced::default()),
        Some(_) => {}
    }
    let number = count.to_str().and_then(|count| count.parse().ok());
    let number = number.ok_or_else(|| wrong(COUNT, &count, "it is not a number"))?;
    let Some(names) = names else {
        return Ok(Announced {
            count: number,
            names: Vec::new(),
        });
    };
    let list = names
        .to_str()
        .ok_or_else(|| wrong(NAMES, &names, "it is not text"))?;
    let list: Vec<_> = match number {
        0 => Vec::new(),
        _ => list.split(':').map(str::to_owned).collect(),
    };
    if list.len() != number {
        let reason = format!(
            "the number of names is {}, but {COUNT} is {number}",
            list.len()
        );
        return Err(wrong(NAMES, &names, &reason));
    }
    Ok(Announced {
        count: number,
        names: list,
    })
}

/// What a descriptor can be used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A TCP or Unix stream socket that listens at this address.
    Listening(Local),
    /// A TCP or Unix stream socket that is connected. The address is that of this end.
    Connected(Local),
    /// Anything else. The text describes it: `a socket, but not a stream`.
    Other(&'static str),
}

/// The address of this end of a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Local {
    /// The address of a TCP socket.
    Inet(SocketAddr),
    /// The path of a Unix socket.
    Path(PathBuf),
    /// The abstract name of a Unix socket, which is not in the file system (unix(7)).
    Abstract(Vec<u8>),
    /// A Unix socket without a name.
    Unnamed,
}

impl fmt::Display for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(f),
            Self::Path(path) => write!(f, "unix:{}", path.display()),
            Self::Abstract(name) => write!(f, "unix:@{}", name.escape_ascii()),
            Self::Unnamed => f.write_str("unix:(unnamed)"),
        }
    }
}

/// Asks the kernel what a descriptor can be used for.
pub fn kind(descriptor: impl AsFd) -> Kind {
    let socket = descriptor.as_fd();
    match sockopt::socket_type(socket) {
        Ok(SocketType::STREAM) => {}
        Ok(_) => return Kind::Other("a socket, but not a stream"),
        Err(_) => return Kind::Other("not a socket"),
    }
    let Some(local) = local(socket) else {
        return Kind::Other("a stream socket, but neither TCP nor Unix");
    };
    if sockopt::socket_acceptconn(socket) == Ok(true) {
        Kind::Listening(local)
    } else if getpeername(socket).is_ok() {
        Kind::Connected(local)
    } else {
        Kind::Other("a stream socket that neither listens nor is connected")
    }
}

/// The address of this end of a TCP or Unix socket.
fn local(socket: impl AsFd) -> Option<Local> {
    let address = getsockname(&socket).ok()?;
    match sockopt::socket_domain(&socket).ok()? {
        // The protocol is checked because SCTP has stream sockets too.
        AddressFamily::INET | AddressFamily::INET6
            if sockopt::socket_protocol(&socket) == Ok(Some(ipproto::TCP)) =>
        {
            SocketAddr::try_from(address).ok().map(Local::Inet)
        }
        AddressFamily::UNIX => {
            let address = SocketAddrUnix::try_from(address).ok()?;
            Some(if let Some(path) = address.path() {
                Local::Path(OsString::from_vec(path.to_bytes().to_vec()).into())
            } else {
                // The address of an unnamed socket has an empty name.
                match address.abstract_name() {
                    None | Some([]) => Local::Unnamed,
                    Some(name) => Local::Abstract(name.to_vec()),
                }
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::net::{self, UnixDatagram, UnixListener, UnixStream};

    use rustix::net::{SocketFlags, socket_with};

    const OWN: u32 = 4711;

    fn parse(
        pid: Option<&str>,
        count: Option<&str>,
        names: Option<&str>,
    ) -> Result<Announced, String> {
        let [pid, count, names] = [pid, count, names].map(|value| value.map(OsString::from));
        announced(pid, count, names, OWN).map_err(|error| error.to_string())
    }

    fn these(count: usize, names: &[&str]) -> Result<Announced, String> {
        let names = names.iter().copied().map(str::to_owned).collect();
        Ok(Announced { count, names })
    }

    #[test]
    fn each_descriptor_has_its_name() {
        let (own, two) = (Some("4711"), Some("2"));
        assert_eq!(parse(own, two, Some("web:api")), these(2, &["web", "api"]));
        assert_eq!(parse(own, two, Some("web:web")), these(2, &["web", "web"]));
        assert_eq!(parse(own, two, Some("web:")), these(2, &["web", ""]));
        assert_eq!(parse(own, two, None), these(2, &[]));
        assert_eq!(parse(own, Some("0"), Some("")), these(0, &[]));
        assert_eq!(parse(own, Some("1"), Some("")), these(1, &[""]));
    }

    #[test]
    fn what_is_meant_for_another_process_is_none() {
        assert_eq!(parse(Some("4712"), Some("1"), Some("web")), these(0, &[]));
        assert_eq!(parse(None, Some("1"), Some("web")), these(0, &[]));
        assert_eq!(parse(Some("4711"), None, Some("web")), these(0, &[]));
        assert_eq!(parse(None, None, None), these(0, &[]));
    }

    #[test]
    fn what_makes_no_sense_is_an_error() {
        let own = Some("4711");
        for (pid, count, names, wanted) in [
            (Some("me"), "1", None, "LISTEN_PID=\"me\": it is not a pid"),
            (own, "-1", None, "LISTEN_FDS=\"-1\": it is not a number"),
            (own, "", None, "LISTEN_FDS=\"\": it is not a number"),
            (
                own,
                "2",
                Some("web"),
                "LISTEN_FDNAMES=\"web\": the number of names is 1, but LISTEN_FDS is 2",
            ),
            (
                own,
                "1",
                Some("a:b"),
                "LISTEN_FDNAMES=\"a:b\": the number of names is 2, but LISTEN_FDS is 1",
            ),
        ] {
            let error = parse(pid, Some(count), names).unwrap_err();
            let wanted = format!("cannot {ATTEMPT}: {wanted}");
            assert_eq!(error, wanted);
        }
        let names = Some(OsStr::from_bytes(b"\xff").to_owned());
        let error = announced(own.map(Into::into), Some("1".into()), names, OWN).unwrap_err();
        assert!(error.to_string().ends_with("it is not text"), "{error}");
    }

    #[test]
    fn a_tcp_socket_listens_or_is_connected() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else {
                assert!(address.starts_with('['), "no IPv4?");
                continue;
            };
            let address = listener.local_addr().unwrap();
            assert_eq!(kind(&listener), Kind::Listening(Local::Inet(address)));
            let client = TcpStream::connect(address).unwrap();
            let (server, _) = listener.accept().unwrap();
            assert_eq!(kind(&server), Kind::Connected(Local::Inet(address)));
            let own = client.local_addr().unwrap();
            assert_eq!(kind(&client), Kind::Connected(Local::Inet(own)));
        }
    }

    #[test]
    fn a_unix_socket_has_a_path_a_name_or_neither() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let here = Local::Path(path.clone());
        assert_eq!(kind(&listener), Kind::Listening(here.clone()));
        assert_eq!(here.to_string(), format!("unix:{}", path.display()));
        let client = UnixStream::connect(&path).unwrap();
        let (server, _) = listener.accept().unwrap();
        assert_eq!(kind(&server), Kind::Connected(here));
        assert_eq!(kind(&client), Kind::Connected(Local::Unnamed));

        let name = format!("{}\n", path.display());
        let address = net::SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let here = Local::Abstract(name.into_bytes());
        assert_eq!(kind(&listener), Kind::Listening(here.clone()));
        let text = format!("unix:@{}\\n", path.display());
        assert_eq!(here.to_string(), text);
    }

    #[test]
    fn all_else_is_something_else() {
        let idle =
            |family| socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        let neither = "a stream socket that neither listens nor is connected";
        assert_eq!(kind(idle(AddressFamily::INET)), Kind::Other(neither));
        assert_eq!(kind(idle(AddressFamily::UNIX)), Kind::Other(neither));
        let other = Kind::Other("a socket, but not a stream");
        assert_eq!(kind(UdpSocket::bind("127.0.0.1:0").unwrap()), other);
        assert_eq!(kind(UnixDatagram::unbound().unwrap()), other);
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let memory = rustix::fs::memfd_create("state", flags).unwrap();
        assert_eq!(kind(memory), Kind::Other("not a socket"));
    }
}
