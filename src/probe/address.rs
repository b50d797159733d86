//! Address: dials one address of the relay.
//!
//! Owns the PROXY header that may begin a connection (the only importer of ppp here), and
//! the diagnosis of an address that does not answer. Must not know what follows on the
//! connection.

use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use ppp::v2::{Builder, Command, Protocol, Version};

use super::clock;
use super::diagnosis::Diagnosis;
use super::report::Finding;
use super::stream::Timed;

/// How every connection of a probe begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opening {
    /// Bounds the dial, and what follows until another deadline is set.
    pub(super) timeout: Duration,
    /// The command of the PROXY header, if one is sent.
    pub(super) proxied: Option<Proxied>,
}

/// Commands of a PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proxied {
    /// A client's connection, whose source is the probe's own address.
    Client,
    /// The load balancer's own connection; a relay lets it ask for its health only.
    Local,
}

impl Opening {
    /// Connects to one address.
    pub(super) fn dial(self, address: SocketAddr) -> Result<Timed, Unanswered> {
        let unanswered = |error| Unanswered::new(address, &error);
        let mut socket = TcpStream::connect_timeout(&address, self.timeout).map_err(unanswered)?;
        // A small frame must not wait for the acknowledgement of another (Nagle).
        let _ = socket.set_nodelay(true);
        if let Some(proxied) = self.proxied {
            let header = header(proxied, &socket).map_err(unanswered)?;
            // Of a few bytes, which an empty socket buffer always takes.
            socket.write_all(&header).map_err(unanswered)?;
        }
        Ok(Timed::new(socket, clock::now() + self.timeout))
    }
}

/// The header in version 2 (the HAProxy project's `proxy-protocol.txt`, section 2.2).
fn header(proxied: Proxied, socket: &TcpStream) -> io::Result<Vec<u8>> {
    let command = match proxied {
        Proxied::Client => Command::Proxy,
        Proxied::Local => Command::Local,
    };
    let ends = (socket.local_addr()?, socket.peer_addr()?);
    Builder::with_addresses(Version::Two | command, Protocol::Stream, ends).build()
}

/// An address that did not answer.
#[derive(Clone, Debug)]
pub(super) struct Unanswered {
    pub(super) diagnosis: Diagnosis,
    /// Without a route from this machine the failure tells nothing about the relay.
    pub(super) has_route: bool,
}

impl Unanswered {
    fn new(address: SocketAddr, error: &io::Error) -> Self {
        let has_route =
            !matches!(error.kind(), ErrorKind::NetworkUnreachable | ErrorKind::AddrNotAvailable);
        let advice = match error.kind() {
            _ if !has_route && address.is_ipv6() => {
                "this machine has no IPv6 route to the address: probe from a machine that has"
            }
            _ if !has_route => "this machine has no route to the address: check its network",
            ErrorKind::ConnectionRefused => {
                "no program listens there: check that the relay or its proxy runs, and its address \
                 and port (`listening` in its log)"
            }
            ErrorKind::TimedOut | ErrorKind::WouldBlock => {
                "the address does not respond: check it, and firewalls on the path"
            }
            _ => "check the network between this machine and the relay",
        };
        let error = match error.kind() {
            ErrorKind::TimedOut | ErrorKind::WouldBlock => "no response".into(),
            _ => error.to_string(),
        };
        let diagnosis = Diagnosis::new(format!("{address}: {error}")).advise(advice);
        Self { diagnosis, has_route }
    }

    /// The finding about an address while another one of the same name answers.
    pub(super) fn warning(self, address: SocketAddr) -> Finding {
        let Diagnosis { found, advice } = self.diagnosis;
        let found = match found.strip_prefix(&address.to_string()) {
            Some(_) => found,
            None => format!("{address}: {found}"),
        };
        if !self.has_route {
            return Finding::new(format!("{found}; not examined"));
        }
        let record = if address.is_ipv6() { "AAAA" } else { "A" };
        let advice = advice.map(|it| format!("; {it}")).unwrap_or_default();
        Finding::new(found).warn(format!(
            "clients and certificate authorities that choose this address do not reach the relay: \
             have the relay answer there, or remove the {record} record{advice}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::probe::stream::Stream;

    #[test]
    fn a_header_precedes_what_is_said() {
        const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
        for (proxied, command) in [(Proxied::Client, 0x21), (Proxied::Local, 0x20)] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let opening = Opening { timeout: Duration::from_secs(10), proxied: Some(proxied) };
            let mut stream = Stream::Plain(opening.dial(address).unwrap());
            stream.write_all(b"GET").unwrap();
            drop(stream);
            let (mut accepted, peer) = listener.accept().unwrap();
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut accepted, &mut bytes).unwrap();
            let expected = [
                SIGNATURE,
                &[command, 0x11, 0, 12, 127, 0, 0, 1, 127, 0, 0, 1],
                &peer.port().to_be_bytes(),
                &address.port().to_be_bytes(),
                b"GET",
            ];
            assert_eq!(bytes, expected.concat(), "{proxied:?}");
        }
    }

    #[test]
    fn an_address_without_a_route_is_no_fault_of_the_relay() {
        let address: SocketAddr = "[2001:db8::1]:443".parse().unwrap();
        for (kind, has_route, word) in [
            (ErrorKind::NetworkUnreachable, false, "no IPv6 route"),
            (ErrorKind::AddrNotAvailable, false, "no IPv6 route"),
            (ErrorKind::ConnectionRefused, true, "no program listens"),
            (ErrorKind::TimedOut, true, "does not respond"),
            (ErrorKind::HostUnreachable, true, "check the network"),
        ] {
            let fault = Unanswered::new(address, &kind.into());
            assert_eq!(fault.has_route, has_route, "{kind}");
            let advice = fault.diagnosis.advice.unwrap();
            assert!(advice.contains(word), "{kind}: {advice}");
        }
    }
}
