//! PROXY header: the address that a load balancer sends ahead of a client's bytes, in version
//! 2 of the PROXY protocol (the HAProxy project's `proxy-protocol.txt`, section 2.2).
//!
//! Owns the parser (the only importer of ppp) and what it accepts. Must not know sockets, nor
//! which peer may send a header.
//!
//! 1. The result for a prefix holds for the whole: later bytes complete [`Header::Partial`]
//!    and change nothing else.
//! 2. Bytes that do not begin a header are refused at the first wrong byte.

use std::net::IpAddr;

use ppp::PartialResult;
use ppp::v2::{self, Addresses, Command, PROTOCOL_PREFIX, Protocol, Version};

use crate::config::PROXY_HEADER_MAX;

/// Signature, command, family and length.
const FIXED: usize = 16;

/// The command byte of a connection that the load balancer makes on its own behalf.
const LOCAL: u8 = Version::Two as u8 | Command::Local as u8;

/// Result for the bytes received so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Header {
    /// Valid so far, but incomplete.
    Partial,
    /// The header is complete and well-formed.
    Complete {
        /// The origin of the connection.
        proxied: Proxied,
        /// Length of the header in bytes; the client's bytes follow.
        len: usize,
    },
}

/// The origin of a connection that a load balancer makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Proxied {
    /// The source of the TCP connection that was made to the balancer.
    Client(IpAddr),
    /// The load balancer itself, for a health check (command LOCAL).
    Local,
}

/// Not a PROXY header, or one that names no TCP client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Malformed;

/// Parses a header from all bytes received so far. TLVs are skipped unread.
///
/// # Errors
/// Any version but 2, a length beyond [`PROXY_HEADER_MAX`], and a client that did not connect
/// over TCP and IP: datagrams, Unix sockets, UNSPEC.
pub fn parse(bytes: &[u8]) -> Result<Header, Malformed> {
    if let Some(fixed) = bytes.first_chunk::<FIXED>()
        && fixed.starts_with(PROTOCOL_PREFIX)
    {
        let len = FIXED + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
        if len > PROXY_HEADER_MAX {
            return Err(Malformed);
        }
        // "The receiver must discard the protocol block including the family which is
        // ignored"; ppp would validate it.
        if fixed[12] == LOCAL {
            let is_complete = bytes.len() >= len;
            let complete = Header::Complete { proxied: Proxied::Local, len };
            return Ok(if is_complete { complete } else { Header::Partial });
        }
    }
    let header = match v2::Header::try_from(bytes) {
        Ok(header) => header,
        Err(error) if error.is_incomplete() => return Ok(Header::Partial),
        Err(_) => return Err(Malformed),
    };
    let source = match (header.protocol, &header.addresses) {
        (Protocol::Stream, Addresses::IPv4(v4)) => IpAddr::from(v4.source_address),
        (Protocol::Stream, Addresses::IPv6(v6)) => IpAddr::from(v6.source_address),
        _ => return Err(Malformed),
    };
    Ok(Header::Complete { proxied: Proxied::Client(source), len: header.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header with these bytes behind the signature.
    fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let len = (rest.len() as u16).to_be_bytes();
        [PROTOCOL_PREFIX, &[command, family], &len, rest].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 7, 198, 51, 100, 1, 0x12, 0x34, 0x1f, 0x90];

    fn v6() -> Vec<u8> {
        let address = |last: u8| [&[0x20, 1, 0xd, 0xb8], &[0; 11][..], &[last]].concat();
        [&address(7)[..], &address(1), &[0x12, 0x34, 0x1f, 0x90]].concat()
    }

    fn complete(bytes: &[u8]) -> (Proxied, usize) {
        match parse(bytes) {
            Ok(Header::Complete { proxied, len }) => (proxied, len),
            other => panic!("{bytes:?}: {other:?}"),
        }
    }

    #[test]
    fn a_tcp_client_is_known_by_its_source() {
        let client = Proxied::Client("192.0.2.7".parse().unwrap());
        assert_eq!(complete(&header(0x21, 0x11, &V4)), (client, 28));
        let client = Proxied::Client("2001:db8::7".parse().unwrap());
        assert_eq!(complete(&header(0x21, 0x21, &v6())), (client, 52));
    }

    #[test]
    fn bytes_after_the_header_are_not_consumed() {
        let bytes = [header(0x21, 0x11, &V4), b"GET / HTTP/1.1\r\n".to_vec()].concat();
        assert_eq!(complete(&bytes).1, 28);
        let twice = [header(0x21, 0x11, &V4), header(0x20, 0, &[])].concat();
        assert_eq!(complete(&twice).1, 28);
    }

    #[test]
    fn tlvs_are_skipped_even_if_they_make_no_sense() {
        for tlvs in [&b"\x01\x00\x02h2"[..], b"\x20", b"\x20\xff\xff", &[0xee; 500]] {
            let bytes = header(0x21, 0x11, &[&V4, tlvs].concat());
            assert_eq!(complete(&bytes).1, bytes.len());
        }
    }

    #[test]
    fn the_local_command_ignores_family_and_addresses() {
        for family in 0..=255 {
            for rest in [&[][..], &V4, &[0xff; 300]] {
                let bytes = header(0x20, family, rest);
                assert_eq!(complete(&bytes), (Proxied::Local, bytes.len()), "{family}");
            }
        }
    }

    #[test]
    fn every_prefix_is_partial() {
        for bytes in [
            header(0x21, 0x11, &[&V4[..], &[0; 40]].concat()),
            header(0x21, 0x21, &v6()),
            header(0x20, 0x00, &[0; 9]),
        ] {
            for len in 0..bytes.len() {
                assert_eq!(parse(&bytes[..len]), Ok(Header::Partial), "{len}");
            }
        }
    }

    #[test]
    fn garbage_is_refused_at_its_first_wrong_byte() {
        for at in 0..PROTOCOL_PREFIX.len() {
            let mut bytes = PROTOCOL_PREFIX[..=at].to_vec();
            bytes[at] ^= 0x20;
            assert_eq!(parse(&bytes), Err(Malformed), "{at}");
        }
        for bytes in
            [&b"G"[..], b"P", b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\n", b"\x16\x03\x01"]
        {
            assert_eq!(parse(bytes), Err(Malformed), "{bytes:?}");
        }
    }

    #[test]
    fn other_versions_commands_and_families_are_refused() {
        for command in (0..=255).filter(|command| ![0x20, 0x21].contains(command)) {
            assert_eq!(parse(&header(command, 0x11, &V4)), Err(Malformed), "{command:#x}");
        }
        // Long enough for the addresses of any family.
        let rest = [1; 216];
        for family in (0..=255).filter(|family| ![0x11, 0x21].contains(family)) {
            assert_eq!(parse(&header(0x21, family, &rest)), Err(Malformed), "{family:#x}");
        }
    }

    #[test]
    fn addresses_must_be_there_in_full() {
        for len in 0..V4.len() {
            assert_eq!(parse(&header(0x21, 0x11, &V4[..len])), Err(Malformed), "{len}");
        }
        assert_eq!(parse(&header(0x21, 0x21, &v6()[..35])), Err(Malformed));
    }

    #[test]
    fn a_header_that_is_too_long_is_refused_before_it_has_come() {
        let most = PROXY_HEADER_MAX - FIXED;
        for command in [0x20, 0x21] {
            let bytes = header(command, 0x11, &vec![0; most]);
            assert_eq!(complete(&bytes).1, PROXY_HEADER_MAX);
            for len in [most + 1, 0xffff] {
                let bytes = header(command, 0x11, &vec![0; len]);
                assert_eq!(parse(&bytes[..FIXED]), Err(Malformed), "{len}");
            }
        }
    }
}
