//! Client address: the address that a client is known by behind proxies.
//!
//! Owns the evaluation of X-Forwarded-For and the default set of trusted hops. Must not know
//! requests or sockets, only addresses and header entries.
//!
//! 1. A hop is believed only if every hop between it and the relay is trusted, so an entry
//!    that a client forges never becomes its address.
//! 2. An IPv4 address has one spelling: `::ffff:a.b.c.d` becomes `a.b.c.d`, or one client
//!    would have two rate buckets.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::config::Forwarded;

/// The address of the client behind `peer`, which is the direct peer or the source in its
/// PROXY header. `hops` are the entries of X-Forwarded-For from right to left; each was added
/// by the hop before it in this order. The first untrusted one is the client; if all are
/// trusted, the leftmost is. An entry that is not an address ends the evaluation at the hop
/// that added it.
pub fn client_address<'a>(
    policy: &Forwarded,
    peer: IpAddr,
    hops: impl IntoIterator<Item = &'a str>,
) -> IpAddr {
    let mut client = peer.to_canonical();
    if !policy.trust_x_forwarded_for {
        return client;
    }
    for hop in hops {
        if !is_trusted(policy, client) {
            break;
        }
        let Some(address) = parse_hop(hop) else { break };
        client = address;
    }
    client
}

/// Whether this peer may send a PROXY header. Without a list of proxies every peer may: a
/// listener with the PROXY protocol is meant for a load balancer.
#[must_use]
pub fn may_send_proxy_header(policy: &Forwarded, peer: IpAddr) -> bool {
    let peer = peer.to_canonical();
    let proxies = policy.trusted_proxies.as_ref();
    proxies.is_none_or(|proxies| proxies.iter().any(|net| net.contains(&peer)))
}

/// Whether an address is a proxy's, as far as the policy tells, so that it stands for many
/// clients: one of the trusted proxies, or where none are listed, a loopback, private or
/// link-local address.
#[must_use]
pub fn is_proxy(policy: &Forwarded, address: IpAddr) -> bool {
    is_trusted(policy, address.to_canonical())
}

/// Whether this hop may name the one before it.
fn is_trusted(policy: &Forwarded, hop: IpAddr) -> bool {
    match (&policy.trusted_proxies, hop) {
        (Some(proxies), _) => proxies.iter().any(|net| net.contains(&hop)),
        // RFC 1122 and 4291 (loopback), 1918 and 4193 (private), 3927 and 4291 (link-local).
        (None, IpAddr::V4(hop)) => hop.is_loopback() || hop.is_private() || hop.is_link_local(),
        (None, IpAddr::V6(hop)) => {
            hop.is_loopback() || hop.is_unique_local() || hop.is_unicast_link_local()
        }
    }
}

/// Reads `a.b.c.d`, `a.b.c.d:port`, `v6`, `[v6]` or `[v6]:port`.
fn parse_hop(hop: &str) -> Option<IpAddr> {
    let bare = || hop.parse().ok();
    let bracketed = || {
        let v6: Ipv6Addr = hop.strip_prefix('[')?.strip_suffix(']')?.parse().ok()?;
        Some(v6.into())
    };
    let with_port = || hop.parse().ok().map(|hop: SocketAddr| hop.ip());
    bare().or_else(bracketed).or_else(with_port).map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn resolved(policy: &Forwarded, peer: &str, header: &str) -> String {
        let hops = header.rsplit(',').map(str::trim);
        client_address(policy, address(peer), hops).to_string()
    }

    #[test]
    fn trusted_hops_are_skipped_from_the_right() {
        let policy = Forwarded { trust_x_forwarded_for: true, trusted_proxies: None };
        for (peer, header, client) in [
            // The peer itself is not trusted, so its header is ignored.
            ("198.51.100.1", "203.0.113.9", "198.51.100.1"),
            ("127.0.0.1", "203.0.113.9", "203.0.113.9"),
            ("127.0.0.1", "", "127.0.0.1"),
            // A forged entry is on the left; the proxy appends the true one on the right.
            ("10.0.0.1", "1.1.1.1, 203.0.113.9", "203.0.113.9"),
            ("10.0.0.1", "203.0.113.9, 192.168.1.1, 172.16.0.1", "203.0.113.9"),
            // Every hop is trusted: the client is in the same network.
            ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
            // Not an address: the client is the hop that added it.
            ("10.0.0.1", "203.0.113.9, unknown", "10.0.0.1"),
            ("10.0.0.1", "203.0.113.9, unknown, 10.0.0.2", "10.0.0.2"),
            ("10.0.0.1", "203.0.113.9,", "10.0.0.1"),
            ("10.0.0.1", "203.0.113.9, , 10.0.0.2", "10.0.0.2"),
            // v4-mapped v6, as the peer of a dual-stack socket and as an entry.
            ("::ffff:10.0.0.1", "203.0.113.9", "203.0.113.9"),
            ("::ffff:203.0.113.1", "", "203.0.113.1"),
            ("10.0.0.1", "203.0.113.9, ::ffff:10.0.0.2", "203.0.113.9"),
            ("10.0.0.1", "::ffff:203.0.113.9", "203.0.113.9"),
        ] {
            assert_eq!(resolved(&policy, peer, header), client, "{peer} sends {header:?}");
        }
    }

    #[test]
    fn forms_of_an_entry() {
        for (entry, expected) in [
            ("203.0.113.9", Some("203.0.113.9")),
            ("203.0.113.9:4711", Some("203.0.113.9")),
            ("2001:db8::9", Some("2001:db8::9")),
            ("[2001:db8::9]", Some("2001:db8::9")),
            ("[2001:db8::9]:4711", Some("2001:db8::9")),
            ("[::ffff:203.0.113.9]:4711", Some("203.0.113.9")),
            ("", None),
            ("unknown", None),
            ("_hidden", None),
            ("203.0.113", None),
            ("203.0.113.9:", None),
            ("203.0.113.9:65536", None),
            ("[203.0.113.9]", None),
            ("[2001:db8::9", None),
            ("2001:db8::9]", None),
            ("[2001:db8::9]4711", None),
            ("fe80::1%eth0", None),
            ("\"203.0.113.9\"", None),
            ("203.0.113.9 10.0.0.1", None),
        ] {
            assert_eq!(parse_hop(entry), expected.map(address), "{entry:?}");
        }
    }

    #[test]
    fn only_loopback_private_and_link_local_hops_are_trusted_by_default() {
        let policy = Forwarded { trust_x_forwarded_for: true, trusted_proxies: None };
        for (first, last) in [
            ("127.0.0.0", "127.255.255.255"),
            ("10.0.0.0", "10.255.255.255"),
            ("172.16.0.0", "172.31.255.255"),
            ("192.168.0.0", "192.168.255.255"),
            ("169.254.0.0", "169.254.255.255"),
            ("::1", "::1"),
            ("fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ] {
            assert!(is_trusted(&policy, address(first)), "{first}");
            assert!(is_trusted(&policy, address(last)), "{last}");
        }
        for stranger in [
            "0.0.0.0",
            "9.255.255.255",
            "11.0.0.0",
            "100.64.0.1",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.167.255.255",
            "192.169.0.0",
            "::",
            "::2",
            "fbff::",
            "fe00::",
            "fe7f::",
            "fec0::",
            "2001:db8::1",
        ] {
            assert!(!is_trusted(&policy, address(stranger)), "{stranger}");
        }
    }

    #[test]
    fn a_list_of_proxies_replaces_the_default() {
        let proxies = ["198.51.100.0/24", "2001:db8::/32"];
        let proxies = proxies.iter().map(|net| net.parse().unwrap()).collect();
        let policy = Forwarded { trust_x_forwarded_for: true, trusted_proxies: Some(proxies) };
        for (peer, client) in [
            ("198.51.100.7", "203.0.113.9"),
            ("::ffff:198.51.100.7", "203.0.113.9"),
            ("2001:db8::7", "203.0.113.9"),
            ("127.0.0.1", "127.0.0.1"),
            ("10.0.0.1", "10.0.0.1"),
        ] {
            assert_eq!(resolved(&policy, peer, "203.0.113.9"), client, "{peer}");
        }
    }

    #[test]
    fn any_peer_may_send_a_proxy_header_unless_proxies_are_listed() {
        let anyone = Forwarded::default();
        let proxies = ["198.51.100.0/24", "2001:db8::/32"];
        let proxies = proxies.iter().map(|net| net.parse().unwrap()).collect();
        let named = Forwarded { trusted_proxies: Some(proxies), ..Forwarded::default() };
        for (peer, is_named) in [
            ("198.51.100.7", true),
            ("::ffff:198.51.100.7", true),
            ("2001:db8::7", true),
            ("127.0.0.1", false),
            ("203.0.113.9", false),
            ("::1", false),
        ] {
            assert!(may_send_proxy_header(&anyone, address(peer)), "{peer}");
            assert_eq!(may_send_proxy_header(&named, address(peer)), is_named, "{peer}");
        }
    }

    #[test]
    fn without_the_flag_the_header_is_not_read() {
        let policy = Forwarded::default();
        assert_eq!(resolved(&policy, "127.0.0.1", "203.0.113.9"), "127.0.0.1");
        assert_eq!(resolved(&policy, "::ffff:127.0.0.1", "203.0.113.9"), "127.0.0.1");
    }
}
