//! Peer: a WebSocket client that writes its frames by hand.
//!
//! It checks every frame of the relay: final, unmasked, no reserved bit, and nothing after a
//! close.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::SockRef;

use super::request::{binary as binary_head, phone as phone_head};
use super::wire::{self, first_frame};
use super::{PATIENCE, connect};

/// Opcodes of RFC 6455 §5.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    Continuation = 0,
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

/// An event that a peer receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    Text(String),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    /// Code and reason; `None` for an empty close.
    Close(Option<(u16, String)>),
    /// FIN.
    End,
}

/// The header of a masked frame with a mask of zeros, which leaves the payload unchanged:
/// first byte as given, length in its shortest form.
pub fn header(first: u8, len: u64) -> Vec<u8> {
    let mut bytes = vec![first];
    wire::push_length(&mut bytes, len);
    bytes.extend_from_slice(&[0; 4]);
    bytes
}

/// A whole masked frame, with a mask that changes the payload.
pub fn frame(opcode: Opcode, is_final: bool, payload: &[u8]) -> Vec<u8> {
    wire::raw_frame(u8::from(is_final) << 7 | opcode as u8, payload)
}

/// An upgraded connection.
#[derive(Debug)]
pub struct Peer<S = TcpStream> {
    pub stream: S,
    /// The `x-request-id` of the 101: a phone's conn_id.
    pub id: String,
    /// Received and not yet consumed.
    inbox: Vec<u8>,
    has_received_close: bool,
}

impl Peer {
    /// A binary that sends a claim of `server_id`, with any outcome.
    pub fn binary(relay: SocketAddr, server_id: &str) -> Self {
        Self::upgrade(connect(relay), &binary_head(server_id))
    }

    /// A phone that dials in for `server_id`, with any outcome.
    pub fn phone(relay: SocketAddr, server_id: &str) -> Self {
        Self::upgrade(connect(relay), &phone_head(server_id))
    }

    /// Sends only a FIN.
    pub fn finish(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Resets the connection.
    pub fn reset(self) {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Fails if anything arrives within this time.
    pub fn expect_silence(&mut self, time: Duration) {
        self.stream.set_read_timeout(Some(time)).unwrap();
        let received = self.try_receive();
        let is_silent = received.as_ref().is_err_and(|error| {
            matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
        });
        assert!(is_silent, "{}: {received:?}", self.id);
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    }
}

impl<S: Read + Write> Peer<S> {
    /// Sends `request`, which must be answered by a 101.
    pub fn upgrade(mut stream: S, request: &str) -> Self {
        stream.write_all(request.as_bytes()).unwrap();
        Self::upgraded(stream)
    }

    /// Reads the 101 for a request that was already sent.
    pub fn upgraded(stream: S) -> Self {
        let mut peer =
            Self { stream, id: String::new(), inbox: Vec::new(), has_received_close: false };
        let end = loop {
            if let Some(at) = peer.inbox.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            assert_ne!(peer.pull().unwrap(), 0, "{}", String::from_utf8_lossy(&peer.inbox));
        };
        let head = String::from_utf8(peer.inbox.drain(..end).collect()).unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let id = head.lines().find_map(|line| line.strip_prefix("x-request-id: "));
        peer.id = id.unwrap_or_else(|| panic!("no x-request-id in {head}")).into();
        peer
    }

    // Sending

    /// Sends bytes unchanged.
    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends one whole frame.
    pub fn send(&mut self, opcode: Opcode, payload: &[u8]) {
        self.send_raw(&frame(opcode, true, payload));
    }

    /// Sends one text message.
    pub fn send_text(&mut self, text: &str) {
        self.send(Opcode::Text, text.as_bytes());
    }

    /// Sends one JSON value from a binary to a phone.
    pub fn send_to(&mut self, conn_id: &str, json: &str) {
        self.send_text(&envelope(conn_id, json));
    }

    /// Sends a close frame with this code and no reason.
    pub fn send_close(&mut self, code: u16) {
        self.send(Opcode::Close, &code.to_be_bytes());
    }

    // Receiving

    /// The next frame, or the end. Anything else, including a reset, fails the test.
    pub fn receive(&mut self) -> Received {
        self.try_receive().unwrap_or_else(|error| panic!("{}: {error}", self.id))
    }

    /// The next frame, or the end.
    pub fn try_receive(&mut self) -> io::Result<Received> {
        loop {
            if let Some((opcode, payload)) = self.take_frame() {
                assert!(!self.has_received_close, "after a close: opcode {opcode} {payload:?}");
                return Ok(self.decode(opcode, payload));
            }
            if self.pull()? == 0 {
                assert!(self.inbox.is_empty(), "{}: cut in the middle of a frame", self.id);
                return Ok(Received::End);
            }
        }
    }

    /// The next event other than a ping; answers pings.
    pub fn receive_answering(&mut self) -> Received {
        loop {
            match self.receive() {
                Received::Ping(payload) => self.send(Opcode::Pong, &payload),
                received => return received,
            }
        }
    }

    /// The text of the next message; answers pings before it.
    pub fn receive_text(&mut self) -> String {
        match self.receive_answering() {
            Received::Text(text) => text,
            received => panic!("{}: no text but {received:?}", self.id),
        }
    }

    /// Expects a close with this code and reason, then only FIN; pings before it are
    /// ignored.
    pub fn expect_close(&mut self, code: u16, reason: &str) {
        let received = loop {
            match self.receive() {
                Received::Ping(_) => {}
                Received::Text(text) if is_close_notice(&text) => {}
                received => break received,
            }
        };
        assert_eq!(received, Received::Close(Some((code, reason.into()))), "{}", self.id);
        assert_eq!(self.receive(), Received::End, "{}", self.id);
    }

    /// Checks that the relay has read everything sent so far and that the connection is
    /// open. Skips close notices.
    pub fn expect_alive(&mut self) {
        self.send(Opcode::Ping, b"alive?");
        let received = loop {
            match self.receive_answering() {
                Received::Text(text) if is_close_notice(&text) => {}
                received => break received,
            }
        };
        assert_eq!(received, Received::Pong(b"alive?".into()), "{}", self.id);
    }

    fn decode(&mut self, opcode: u8, payload: Vec<u8>) -> Received {
        match opcode {
            1 => Received::Text(String::from_utf8(payload).unwrap()),
            8 => {
                self.has_received_close = true;
                Received::Close(payload.split_first_chunk().map(|(code, reason)| {
                    (u16::from_be_bytes(*code), String::from_utf8(reason.into()).unwrap())
                }))
            }
            9 => Received::Ping(payload),
            10 => Received::Pong(payload),
            _ => panic!("the relay sends no opcode {opcode}"),
        }
    }

    fn take_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let (opcode, payload) = first_frame(&self.inbox)?;
        let (end, payload) = (payload.end, self.inbox[payload].to_vec());
        self.inbox.drain(..end);
        Some((opcode, payload))
    }

    fn pull(&mut self) -> io::Result<usize> {
        let mut buffer = [0; 64 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                // Reads with a timeout are not restarted after a signal (signal(7)). It
                // is a SIGCHLD, which the kernel ignores unless it comes while another
                // test starts a process, with its signals blocked.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => {
                    let count = result?;
                    self.inbox.extend_from_slice(&buffer[..count]);
                    return Ok(count);
                }
            }
        }
    }
}

/// Whether a message to a binary says that one of its phones has gone.
pub fn is_close_notice(text: &str) -> bool {
    text.contains(r#"","close_code":"#)
}

/// The envelope for one JSON value between a phone and its binary, in both directions.
pub fn envelope(conn_id: &str, json: &str) -> String {
    format!(r#"{{"conn_id":"{conn_id}","frame":{json}}}"#)
}
