//! How many connections each client has. Pure.
//!
//! A client is an IPv4 address, or an IPv6 network of 64 bits: that much is given to a single customer, who could
//! otherwise come from a new address each time (RFC 6177). An IPv4 address inside IPv6 counts as IPv4.

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

/// The connections of each client, up to a limit. Clients of Unix sockets have no address and no limit.
#[derive(Debug, Default)]
pub struct Clients {
    limit: Option<u32>,
    counts: HashMap<Client, u32>,
}

impl Clients {
    /// Counts, if there is a limit.
    #[must_use]
    pub fn new(limit: Option<u32>) -> Self {
        Self {
            limit,
            counts: HashMap::new(),
        }
    }

    /// Goes by another limit from now on. Connections that were not counted, for there was no limit, are counted now: if
    /// they were not, each that ends would make room for one too many.
    pub fn set_limit(&mut self, limit: Option<u32>, there: impl Iterator<Item = Peer>) {
        let counted = self.limit.is_some();
        self.limit = limit;
        if limit.is_none() {
            self.counts.clear();
        } else if !counted {
            for peer in there {
                let _ = self.enter(peer);
            }
        }
    }

    /// Counts a new connection; false when it is one too many. It is counted all the same, until it ends.
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
        assert_eq!(clients.counts.len(), 2, "who has gone takes no memory");
    }

    #[test]
    fn an_ipv6_client_is_its_network() {
        let mut clients = Clients::new(Some(1));
        assert!(clients.enter(peer("[2001:db8::1]:1")));
        assert!(!clients.enter(peer("[2001:db8::ffff:2]:1")));
        assert!(clients.enter(peer("[2001:db8:0:1::1]:1")));
    }

    #[test]
    fn who_was_there_before_the_limit_counts_too() {
        let mut clients = Clients::new(None);
        let there = [1, 2, 3].map(|port| peer(&format!("10.0.0.1:{port}")));
        for peer in there {
            assert!(clients.enter(peer));
        }
        clients.set_limit(Some(2), there.into_iter());
        assert!(!clients.enter(peer("10.0.0.1:4")));
        // They are counted once, whatever the next limit.
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
