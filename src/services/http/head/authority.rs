//! Host and port, as the field Host and the target of a request name them. Pure: no system call, no
//! clock.
//!
//! The grammar is that of RFC 3986 §3.2.2 and §3.2.3, to the letter: a port is any number of
//! digits, none among them, because the grammar sets no bound and nobody here connects to it. User
//! information is refused (RFC 9110 §4.2.4), and so is the zone of an IPv6 address, which has no
//! meaning outside the client (RFC 9844).

use std::net::Ipv6Addr;

/// Whether this is `host [ ":" port ]`. The host may be empty: a client that has no name for the
/// server sends an empty Host (RFC 9112 §3.2).
pub(super) fn is_authority(text: &[u8]) -> bool {
    split(text).is_some_and(|(_, port)| port.is_none_or(is_port))
}

/// Whether this is an authority with a name in it: the URI of a resource has to have one (RFC 9110
/// §4.2.1).
pub(super) fn names_a_host(text: &[u8]) -> bool {
    is_authority(text) && !text.is_empty() && text[0] != b':'
}

/// Whether this is the target of CONNECT, `host ":" port`, both there (RFC 9110 §9.3.6).
pub(super) fn is_tunnel_target(text: &[u8]) -> bool {
    let port = split(text).and_then(|(_, port)| port);
    names_a_host(text) && port.is_some_and(|port| !port.is_empty())
}

/// A host that is well-formed, and what stands behind the colon after it.
fn split(text: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let host_end = match text.first() {
        Some(b'[') => text.iter().position(|byte| *byte == b']')? + 1,
        _ => text
            .iter()
            .position(|byte| *byte == b':')
            .unwrap_or(text.len()),
    };
    let (host, rest) = text.split_at(host_end);
    let well_formed = match host {
        [b'[', literal @ .., b']'] => is_ipv6(literal) || is_ip_of_the_future(literal),
        name => is_name(name),
    };
    match rest {
        _ if !well_formed => None,
        [] => Some((host, None)),
        [b':', port @ ..] => Some((host, Some(port))),
        _ => None,
    }
}

fn is_port(port: &[u8]) -> bool {
    port.iter().all(u8::is_ascii_digit)
}

fn is_ipv6(literal: &[u8]) -> bool {
    let text = std::str::from_utf8(literal);
    text.is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok())
}

/// IPvFuture: `"v" 1*HEXDIG "." 1*( unreserved / sub-delims / ":" )`.
fn is_ip_of_the_future(literal: &[u8]) -> bool {
    let [b'v' | b'V', rest @ ..] = literal else {
        return false;
    };
    let Some(dot) = rest.iter().position(|byte| *byte == b'.') else {
        return false;
    };
    let (version, address) = (&rest[..dot], &rest[dot + 1..]);
    let is_address = |byte: &u8| is_name_byte(*byte) || *byte == b':';
    let parts_are_there = !version.is_empty() && !address.is_empty();
    parts_are_there && version.iter().all(u8::is_ascii_hexdigit) && address.iter().all(is_address)
}

/// reg-name, which an IPv4 address is as well: unreserved, sub-delims and whole percent-encodings.
fn is_name(name: &[u8]) -> bool {
    let mut rest = name;
    loop {
        rest = match rest {
            [] => return true,
            [b'%', high, low, rest @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                rest
            }
            [byte, rest @ ..] if is_name_byte(*byte) => rest,
            _ => return false,
        }
    }
}

/// unreserved or sub-delims (RFC 3986 §2.2 and §2.3).
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_names_a_host() {
        for text in [
            "x",
            "example.org",
            "example.org.",
            "EXAMPLE.org:8080",
            "localhost:",
            "localhost:0",
            "localhost:00080",
            "localhost:65536",
            "1.2.3.4",
            "1.2.3.4:9000",
            "1.2.3.999",
            "192.168.2:1234",
            "0.0.0.0=5000",
            "home_0.example",
            "a~b!$&'()*+,;=c",
            "%C3%B1",
            "h%4fst:80",
            "[::1]",
            "[::]:443",
            "[::1]:",
            "[1:2:3:4:5:6:7:8]",
            "[1:2:3:4:5:6:7::]",
            "[::2:3:4:5:6:7:8]",
            "[::ffff:1.2.3.4]:80",
            "[1:2:3:4:5:6:1.2.3.4]",
            "[ABCD:ef01::]",
            "[v1.x]",
            "[vF.a:b~!:]:80",
            "[V12.1:2]",
        ] {
            assert!(names_a_host(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn what_names_none() {
        for text in ["", ":", ":80"] {
            assert!(is_authority(text.as_bytes()), "{text}");
            assert!(!names_a_host(text.as_bytes()), "{text}");
        }
        for text in [
            "localhost:port",
            "localhost:8o",
            "localhost: 80",
            "a:-1",
            "a:+1",
            "a:0x50",
            "a::80",
            "a:80:",
            ":80:",
            "1.2.3.4:9000:80",
            "::1",
            "a b",
            "a/b",
            "a?b",
            "a\\b",
            "a\"b",
            "a<b>",
            "a{b}",
            "a|b",
            "a^b",
            "a`b",
            "a@b",
            "user:word@host",
            "user@",
            "@host",
            "%",
            "%4",
            "%zz",
            "%4g",
            "a%",
            "a%2",
            "%%41",
            "a[::1]",
            "a]",
            "[",
            "[]",
            "[abcd::1",
            "abcd::1]",
            "[::1].",
            "[::1]a",
            "[::1]80",
            "[::1]:x",
            "[::1]]",
            "[[::1]]",
            "[ab..cd::1]",
            "[ab.cd::1]",
            "[:::1]",
            "[::1::]",
            "[:1:2:3:4:5:6:7:8]",
            "[1:2:3:4:5:6:7]",
            "[1:2:3:4:5:6:7:8:9]",
            "[1:2:3:4:5:6:7:8::]",
            "[12345::]",
            "[::g]",
            "[::1.2.3]",
            "[::1.2.3.256]",
            "[::1.2.3.04]",
            "[1.2.3.4]",
            "[fe80::1%eth0]",
            "[fe80::1%25eth0]",
            "[ ::1]",
            "[::1 ]",
            "[example.org]",
            "[v]",
            "[v1]",
            "[v1.]",
            "[v.x]",
            "[vg.x]",
            "[v1.x/y]",
            "[v1.%41]",
            "[v1.[x]",
            "ex\u{e9}mple",
            "a\tb",
            "a\0",
        ] {
            assert!(!is_authority(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn what_a_tunnel_may_lead_to() {
        for text in ["x:1", "[::1]:443", "1.2.3.4:80"] {
            assert!(is_tunnel_target(text.as_bytes()), "{text}");
        }
        for text in [
            "x",
            "x:",
            ":1",
            "",
            "/",
            "http://x/",
            "x:port",
            "[::1]",
            "u@x:1",
        ] {
            assert!(!is_tunnel_target(text.as_bytes()), "{text}");
        }
    }

    proptest! {
        /// What std writes is what this reads.
        #[test]
        fn any_address_names_a_host(groups: [u16; 8], v4: u32, port: u16) {
            let v6 = Ipv6Addr::from(groups);
            let v4 = std::net::Ipv4Addr::from(v4);
            let texts = [
                format!("[{v6}]:{port}"),
                format!("[{}]", v4.to_ipv6_mapped()),
                format!("{v4}:{port}"),
            ];
            for text in texts {
                prop_assert!(names_a_host(text.as_bytes()), "{}", text);
            }
        }

        #[test]
        fn no_bytes_panic(text in proptest::collection::vec(
            proptest::sample::select(b"[]:%v.1a@ \xff".to_vec()), 0..12,
        )) {
            let _ = (is_authority(&text), names_a_host(&text), is_tunnel_target(&text));
        }
    }
}
