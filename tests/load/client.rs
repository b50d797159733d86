//! Crowd client: one non-blocking socket and the interpretation of its input.
//!
//! Does not know other clients, and does not dial. A violation of the contract ends the
//! process, and with it the scenario.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use mio::net::TcpStream;
use socket2::SockRef;

use crate::support::{Opcode, binary_head, envelope, first_frame, frame, phone_head};

/// Why a client is disconnected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Out {
    /// Its open connection is gone.
    Lost,
    /// It was not connected, or not answered.
    Refused,
    /// 503: no room.
    Full,
    /// 4404: no binary, or it has just come back.
    Absent,
}

/// A binary or a phone; its message is the number of its pair.
#[derive(Debug)]
pub struct Client {
    number: usize,
    is_phone: bool,
    pub stream: Option<TcpStream>,
    has_asked: bool,
    /// The 101 has come.
    pub is_in: bool,
    /// A phone that was answered by its binary.
    pub is_done: bool,
    inbox: Vec<u8>,
}

impl Client {
    pub fn new(number: usize, is_phone: bool) -> Self {
        Self {
            number,
            is_phone,
            stream: None,
            has_asked: false,
            is_in: false,
            is_done: false,
            inbox: Vec::new(),
        }
    }

    /// Drops the connection and its state.
    pub fn leave(&mut self) {
        *self = Self::new(self.number, self.is_phone);
    }

    /// Resets the connection.
    pub fn reset(&mut self) {
        if let Some(stream) = &self.stream {
            SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
        self.leave();
    }

    /// Reads and writes as far as the socket is ready.
    pub fn on_ready(&mut self) -> Result<(), Out> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        if !self.has_asked {
            if stream.take_error().unwrap().is_some() {
                return Err(Out::Refused);
            }
            if stream.peer_addr().is_err() {
                return Ok(());
            }
            let server_id = format!("pair-{}", self.number);
            let head = if self.is_phone { phone_head } else { binary_head }(&server_id);
            stream.write_all(head.as_bytes()).map_err(|_| Out::Refused)?;
            self.has_asked = true;
        }
        let has_ended = self.fill();
        if !self.is_in {
            self.on_head()?;
        }
        while self.is_in
            && let Some((opcode, payload)) = first_frame(&self.inbox)
        {
            let bytes: Vec<u8> = self.inbox.drain(..payload.end).collect();
            self.on_frame(opcode, &bytes[payload])?;
        }
        match has_ended {
            false => Ok(()),
            true => Err(if self.is_in { Out::Lost } else { Out::Refused }),
        }
    }

    /// Reads all available input; returns whether the connection has ended.
    fn fill(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let stream = self.stream.as_mut().unwrap();
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return true,
                Ok(count) => self.inbox.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return error.kind() != ErrorKind::WouldBlock,
            }
        }
    }

    fn on_head(&mut self) -> Result<(), Out> {
        let end = self.inbox.windows(4).position(|window| window == b"\r\n\r\n");
        let Some(end) = end else { return Ok(()) };
        let head: Vec<u8> = self.inbox.drain(..end + 4).collect();
        let head = String::from_utf8(head).unwrap();
        if head.starts_with("HTTP/1.1 503 ") {
            return Err(Out::Full);
        }
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        self.is_in = true;
        if self.is_phone { self.send(Opcode::Text, &self.number.to_string()) } else { Ok(()) }
    }

    fn on_frame(&mut self, opcode: u8, payload: &[u8]) -> Result<(), Out> {
        const PING: u8 = Opcode::Ping as u8;
        const TEXT: u8 = Opcode::Text as u8;
        const CLOSE: u8 = Opcode::Close as u8;
        let text = || str::from_utf8(payload).unwrap();
        match opcode {
            PING => self.send_bytes(Opcode::Pong, payload),
            TEXT if self.is_phone => {
                assert_eq!(text(), self.number.to_string());
                assert!(!self.is_done, "{}: answered twice", self.number);
                self.is_done = true;
                Ok(())
            }
            // A phone has gone.
            TEXT if text().contains(r#"","close_code":"#) => Ok(()),
            TEXT => {
                // The phone's frame, in the envelope that names the phone.
                let conn_id = text().split('"').nth(3).unwrap();
                assert_eq!(text(), envelope(conn_id, &self.number.to_string()));
                self.send(Opcode::Text, text())
            }
            CLOSE if self.is_phone && payload.starts_with(&4404_u16.to_be_bytes()) => {
                self.send_bytes(Opcode::Close, payload)?;
                Err(Out::Absent)
            }
            _ => panic!("{self:?} hears {opcode} {}", String::from_utf8_lossy(payload)),
        }
    }

    fn send(&mut self, opcode: Opcode, text: &str) -> Result<(), Out> {
        self.send_bytes(opcode, text.as_bytes())
    }

    /// Sends a message small enough for the kernel to take it at once.
    fn send_bytes(&mut self, opcode: Opcode, payload: &[u8]) -> Result<(), Out> {
        let stream = self.stream.as_mut().unwrap();
        stream.write_all(&frame(opcode, true, payload)).map_err(|_| Out::Lost)
    }
}
