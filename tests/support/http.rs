//! HTTP over a plain stream: dialling, and reading whole responses.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};

use socket2::{Domain, Socket, Type};

use super::PATIENCE;

/// Dials.
pub fn connect(relay: SocketAddr) -> TcpStream {
    connect_from([127, 0, 0, 1], relay)
}

/// Dials from another address of this machine.
pub fn connect_from(source: impl Into<Ipv4Addr>, relay: SocketAddr) -> TcpStream {
    dial(relay, |socket| {
        socket.bind(&SocketAddr::from((IpAddr::V4(source.into()), 0)).into()).unwrap();
    })
}

/// Dials with a small receive buffer, which soon fills up if this end does not read.
pub fn connect_reading_little(relay: SocketAddr) -> TcpStream {
    dial(relay, |socket| socket.set_recv_buffer_size(16 * 1024).unwrap())
}

/// Dials with a small send buffer, which soon fills up if the relay does not read.
pub fn connect_writing_little(relay: SocketAddr) -> TcpStream {
    dial(relay, |socket| socket.set_send_buffer_size(16 * 1024).unwrap())
}

fn dial(relay: SocketAddr, prepare: impl FnOnce(&Socket)) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    prepare(&socket);
    socket.connect(&relay.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Everything received up to the end of the connection, split at the first blank line.
#[derive(Debug)]
pub struct Answer {
    /// The code of the status line.
    pub status: u16,
    /// Status line and fields, without the blank line.
    pub head: String,
    /// Everything after the blank line.
    pub body: String,
}

impl Answer {
    /// Reads to the end, which must be a FIN and not a reset.
    pub fn read(stream: &mut impl Read) -> Self {
        let mut bytes = Vec::new();
        let end = stream.read_to_end(&mut bytes);
        let text = String::from_utf8(bytes).unwrap();
        assert!(end.is_ok(), "{end:?} after {text:?}");
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
        let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
        let status = status.and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{head}"));
        // RFC 9110, 6.6.1 and 10.2.3.
        let date = head.lines().find_map(|line| line.strip_prefix("Date: "));
        assert!(date.is_some_and(|date| date.len() == 29 && date.ends_with(" GMT")), "{head}");
        assert_eq!(head.contains("\r\nRetry-After: "), [429, 503].contains(&status), "{head}");
        Self { status, head: head.into(), body: body.into() }
    }

    /// Whether the head contains exactly this field line.
    pub fn has(&self, line: &str) -> bool {
        self.head.lines().any(|own| own == line)
    }
}

/// Sends a request and reads the response to its end.
pub fn ask(relay: SocketAddr, request: &str) -> Answer {
    let mut stream = connect(relay);
    stream.write_all(request.as_bytes()).unwrap();
    Answer::read(&mut stream)
}

/// The numbers of connected binaries and phones, from `/healthz`.
pub fn healthz(relay: SocketAddr) -> (u64, u64) {
    let answer = ask(relay, "GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n");
    let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    let count = |key: &str| body[key].as_u64().unwrap();
    (count("connected_binaries"), count("connected_phones"))
}
