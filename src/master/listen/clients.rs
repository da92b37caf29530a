//! How many connections each client has. Pure.
//!
//! A client is an IPv4 address, or an IPv6 network of 64 bits, because a single customer is given
//! that much and could otherwise use a new address each time (RFC 6177). An IPv4 address inside
//! IPv6 counts as IPv4.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::service::Peer;

/// What counts as one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Client {
    V4(u32),
    V6(u64),
}

impl Client {
    fn of(peer: Peer) -> Option<Self> {
        let Peer::Inet(address) = peer else {
            return None;
        };
        Some(match address.ip().to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip.to_bits()),
            IpAddr::V6(ip) => Self::V6((ip.to_bits() >> 64) as u64),
        })
    }
}

/// Whether two connections come from the same client, as far as clients have addresses.
#[must_use]
pub fn is_same_client(one: Peer, other: Peer) -> bool {
    Client::of(one) == Client::of(other)
}

/// The numbers of connections, by client. Nothing is counted while there is no limit. Clients of
/// Unix sockets have no address, and so no limit.
#[derive(Debug, Default)]
pub struct Clients {
    limit: Option<u32>,
    counts: HashMap<Client, u32>,
}

impl Clients {
    /// No connections yet, and this limit for each client.
    #[must_use]
    pub fn new(limit: Option<u32>) -> Self {
        Self {
            limit,
            counts: HashMap::new(),
        }
    }

    /// Changes the limit. If there was none, the connections that exist (`peers`) are counted now,
    /// because each of them would otherwise make room for one too many when it ends.
    pub fn set_limit(&mut self, limit: Option<u32>, peers: impl Iterator<Item = Peer>) {
        let counted = self.limit.is_some();
        self.limit = limit;
        if limit.is_none() {
            self.counts.clear();
        } else if !counted {
            for peer in peers {
                let _ = self.enter(peer);
            }
        }
    }

    /// Counts a new connection. False if it exceeds the limit; it is counted all the same, until it
    /// ends.
    pub fn enter(&mut self, peer: Peer) -> bool {
        let Some(limit) = self.limit else { return true };
        let Some(client) = Client::of(peer) else {
            return true;
        };
        let count = self.counts.entry(client).or_default();
        *count += 1;
        *count <= limit
    }

    /// Counts a connection that has ended.
    pub fn leave(&mut self, peer: Peer) {
        if self.limit.is_none() {
            return;
        }
        let Some(client) = Client::of(peer) else {
            return;
        };
        if let Some(count) = self.counts.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(address: &str) -> Peer {
        Peer::Inet(address.parse().unwrap())
    }

    #[test]
    fn a_client_may_have_so_many_connections_and_no_more() {
        let mut clients = Clients::new(Some(2));
        assert!(clients.enter(peer("10.0.0.1:1")));
        assert!(clients.enter(peer("[::ffff:10.0.0.1]:2")));
        assert!(!clients.enter(peer("10.0.0.1:3")));
        assert!(clients.enter(peer("10.0.0.2:1")));
        for _ in 0..3 {
            clients.leave(peer("10.0.0.1:1"));
        }
        assert!(clients.enter(peer("10.0.0.1:4")));
        assert_eq!(
            clients.counts.len(),
            2,
            "a client without connections takes no memory"
        );
    }

    #[test]
    fn an_ipv6_client_is_its_network() {
        let mut clients = Clients::new(Some(1));
        assert!(clients.enter(peer("[2001:db8::1]:1")));
        assert!(!clients.enter(peer("[2001:db8::ffff:2]:1")));
        assert!(clients.enter(peer("[2001:db8:0:1::1]:1")));
    }

    #[test]
    fn connections_from_before_the_limit_count_too() {
        let mut clients = Clients::new(None);
        let there = [1, 2, 3].map(|port| peer(&format!("10.0.0.1:{port}")));
        for peer in there {
            assert!(clients.enter(peer));
        }
        clients.set_limit(Some(2), there.into_iter());
        assert!(!clients.enter(peer("10.0.0.1:4")));
        // They are not counted again when the limit changes once more.
        clients.set_limit(Some(3), there.into_iter());
        for peer in &there[..2] {
            clients.leave(*peer);
        }
        assert!(clients.enter(peer("10.0.0.1:5")));
        assert!(!clients.enter(peer("10.0.0.1:6")));
        clients.set_limit(None, there.into_iter());
        assert!(clients.enter(peer("10.0.0.1:7")));
        assert_eq!(clients.counts.len(), 0);
    }

    #[test]
    fn unix_clients_are_not_counted() {
        let mut clients = Clients::new(Some(1));
        assert!(clients.enter(Peer::Unix) && clients.enter(Peer::Unix));
    }
}
