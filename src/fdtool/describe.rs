//! What a received descriptor is, in words.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat, tell};
use rustix::net::{
    AddressFamily, SocketAddrAny, SocketAddrUnix, SocketType, getpeername, getsockname, ipproto,
    sockopt,
};

/// What a descriptor is: its kind and name, how it was opened, and its offset if it has one.
pub(super) fn describe(descriptor: &OwnedFd) -> String {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd()));
    let link = link.unwrap_or_default();
    let name = name(&link);
    let kind = fstat(descriptor).map(|stat| FileType::from_raw_mode(stat.st_mode));
    let kind = kind.unwrap_or(FileType::Unknown);
    let what = match kind {
        _ if name.starts_with("anon_inode:") => format!("an anonymous file, {name}"),
        FileType::RegularFile => format!("a regular file, {name}"),
        FileType::Directory => format!("a directory, {name}"),
        FileType::Fifo if name.starts_with("pipe:") => format!("a pipe, {name}"),
        FileType::Fifo => format!("a FIFO, {name}"),
        FileType::CharacterDevice => format!("a character device, {name}"),
        FileType::BlockDevice => format!("a block device, {name}"),
        FileType::Symlink => format!("a symbolic link, {name}"),
        FileType::Socket => describe_socket(descriptor),
        FileType::Unknown => format!("of an unknown kind, {name}"),
    };
    let mode = match fcntl_getfl(descriptor) {
        Ok(flags) if flags.contains(OFlags::PATH) => ", not open for reading or writing (O_PATH)",
        Ok(flags) if flags & OFlags::RWMODE == OFlags::RDONLY => ", open for reading",
        Ok(flags) if flags & OFlags::RWMODE == OFlags::WRONLY => ", open for writing",
        Ok(_) => ", open for reading and writing",
        Err(_) => "",
    };
    let has_offset = matches!(
        kind,
        FileType::RegularFile | FileType::Directory | FileType::BlockDevice
    );
    match tell(descriptor) {
        Ok(offset) if has_offset => format!("{what}{mode}, at offset {offset}"),
        _ => format!("{what}{mode}"),
    }
}

fn name(path: &Path) -> String {
    escaped(path.as_os_str().as_encoded_bytes(), |_| false)
}

fn describe_socket(socket: &OwnedFd) -> String {
    let kind = socket_kind(socket);
    let own = getsockname(socket)
        .ok()
        .and_then(|own| address(socket, own));
    let Some(own) = own else {
        return kind;
    };
    if sockopt::socket_acceptconn(socket) == Ok(true) {
        return format!("{kind}, listening on {own}");
    }
    match getpeername(socket) {
        Ok(peer) => {
            let peer = peer.and_then(|peer| address(socket, peer));
            let peer = peer.unwrap_or_else(|| "(unnamed)".into());
            format!("{kind}, {own} connected to {peer}")
        }
        Err(_) => format!("{kind}, {own}, not connected"),
    }
}

/// The kind of a socket with its article: `a TCP socket`, `a netlink raw socket`.
fn socket_kind(socket: &OwnedFd) -> String {
    let kind = sockopt::socket_type(socket).ok();
    let family = match sockopt::socket_domain(socket) {
        Ok(AddressFamily::UNIX) => "Unix",
        Ok(AddressFamily::INET | AddressFamily::INET6) => {
            match sockopt::socket_protocol(socket).ok().flatten() {
                _ if kind == Some(SocketType::RAW) => "IP",
                Some(ipproto::TCP) => return "a TCP socket".into(),
                Some(ipproto::MPTCP) => return "an MPTCP socket".into(),
                Some(ipproto::UDP) => return "a UDP socket".into(),
                Some(ipproto::SCTP) => return "an SCTP socket".into(),
                Some(ipproto::ICMP | ipproto::ICMPV6) => return "an ICMP socket".into(),
                _ => "IP",
            }
        }
        Ok(AddressFamily::NETLINK) => "netlink",
        Ok(AddressFamily::PACKET) => "packet",
        Ok(AddressFamily::VSOCK) => "vsock",
        Ok(AddressFamily::XDP) => "XDP",
        Ok(family) => return format!("a socket of address family {}", family.as_raw()),
        Err(_) => return "a socket of an unknown kind".into(),
    };
    let article = if matches!(family, "IP" | "XDP") {
        "an"
    } else {
        "a"
    };
    match kind {
        Some(SocketType::STREAM) => format!("{article} {family} stream socket"),
        Some(SocketType::DGRAM) => format!("{article} {family} datagram socket"),
        Some(SocketType::SEQPACKET) => format!("{article} {family} seqpacket socket"),
        Some(SocketType::RAW) => format!("{article} {family} raw socket"),
        _ => format!("{article} {family} socket"),
    }
}

/// An address in words; nothing for families that are neither Unix nor IP.
fn address(socket: &OwnedFd, address: SocketAddrAny) -> Option<String> {
    match sockopt::socket_domain(socket) {
        Ok(AddressFamily::UNIX) => Some(unix_name(address)),
        _ => SocketAddr::try_from(address).ok().map(|it| it.to_string()),
    }
}

fn unix_name(address: SocketAddrAny) -> String {
    let Ok(address) = SocketAddrUnix::try_from(address) else {
        return "(unnamed)".into();
    };
    match (address.path_bytes(), address.abstract_name()) {
        (Some(path), _) if !path.is_empty() => escaped(path, |_| false),
        (_, Some(name)) if !name.is_empty() => format!("@{}", escaped(name, |_| false)),
        _ => "(unnamed)".into(),
    }
}

/// Text as it is, but control characters and what is not UTF-8 as escapes, so that a terminal only
/// ever shows it.
pub(super) fn escaped(bytes: &[u8], keep: impl Fn(char) -> bool) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for char in chunk.valid().chars() {
            if char.is_control() && !keep(char) {
                text.extend(char.escape_default());
            } else {
                text.push(char);
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{SocketFlags, socket_with};

    #[test]
    fn a_terminal_gets_no_control_characters() {
        let hostile =
            b"ok\ttab\nbell\x07 clear\x1b[2J c1:\xc2\x9b raw:\x9b \xff gr\xc3\xbc\xc3\x9f";
        let text = escaped(hostile, |char| matches!(char, '\n' | '\t'));
        assert_eq!(
            text,
            "ok\ttab\nbell\\u{7} clear\\u{1b}[2J c1:\\u{9b} raw:\\x9b \\xff grüß"
        );
    }

    #[test]
    fn a_socket_has_its_article_and_its_own_name() {
        for (family, kind, protocol, expected) in [
            (
                AddressFamily::UNIX,
                SocketType::DGRAM,
                None,
                "a Unix datagram socket",
            ),
            (
                AddressFamily::UNIX,
                SocketType::SEQPACKET,
                None,
                "a Unix seqpacket socket",
            ),
            (
                AddressFamily::INET,
                SocketType::STREAM,
                None,
                "a TCP socket",
            ),
            (
                AddressFamily::INET,
                SocketType::STREAM,
                Some(ipproto::MPTCP),
                "an MPTCP socket",
            ),
            (
                AddressFamily::INET6,
                SocketType::DGRAM,
                None,
                "a UDP socket",
            ),
            (
                AddressFamily::INET,
                SocketType::RAW,
                Some(ipproto::TCP),
                "an IP raw socket",
            ),
            (
                AddressFamily::NETLINK,
                SocketType::RAW,
                None,
                "a netlink raw socket",
            ),
            (
                AddressFamily::NETLINK,
                SocketType::DGRAM,
                None,
                "a netlink datagram socket",
            ),
        ] {
            // Some kinds take a privilege, or are not in every kernel.
            let socket = socket_with(family, kind, SocketFlags::CLOEXEC, protocol);
            if let Ok(socket) = socket {
                assert_eq!(socket_kind(&socket), expected);
            }
        }
    }
}
