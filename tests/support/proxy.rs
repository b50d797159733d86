//! PROXY headers, version 2, as load balancers send them (the HAProxy project's
//! `proxy-protocol.txt`, section 2.2).

use std::net::IpAddr;

/// A header with this command, family and protocol, and these bytes behind the length.
pub(crate) fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let len = (rest.len() as u16).to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n", &[command, family][..], &len, rest].concat()
}

/// The header for a client at `address`, over TCP.
pub(crate) fn client(address: IpAddr) -> Vec<u8> {
    // Where the client connected to, and both ports, do not matter.
    match address {
        IpAddr::V4(source) => header(0x21, 0x11, &[&source.octets()[..], &[0; 8]].concat()),
        IpAddr::V6(source) => header(0x21, 0x21, &[&source.octets()[..], &[0; 20]].concat()),
    }
}

/// The header for a connection that the load balancer makes on its own behalf.
pub(crate) fn local() -> Vec<u8> {
    header(0x20, 0, &[])
}
