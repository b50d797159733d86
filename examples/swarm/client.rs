//! Load client: one non-blocking stream under tungstenite, and its next action.
//!
//! Does not know other clients, and does not dial.

use std::io::{self, ErrorKind, Read};
use std::time::Instant;

use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tungstenite::{Bytes, Error, Message, WebSocket};

use crate::stream::Stream;

/// The outcome of a client's turn.
#[derive(Debug)]
pub enum Event {
    /// It is connected; whether with a TLS session that was resumed.
    Open(bool),
    /// A ping was answered.
    Ping,
    /// Its own ping was answered.
    Pong,
    /// A frame that a phone sent came back.
    Returned(String),
    /// Its connection has ended, with the relay's close code if there was one.
    Ended(Option<u16>),
    /// It was refused: status line or error.
    Refused(String),
}

/// Its progress.
#[derive(Debug)]
enum State {
    /// Nothing sent yet.
    Dialling(Stream),
    /// The request is sent; what has come of the answer.
    Asking(Stream, Vec<u8>),
    Open(Box<WebSocket<Stream>>),
    Out,
}

#[derive(Debug)]
pub struct Client {
    pub is_phone: bool,
    /// The number of its server-id.
    pub binary: usize,
    /// Reads nothing from here on.
    pub silent_since: Option<Instant>,
    state: State,
}

impl Client {
    pub fn new(binary: usize, is_phone: bool) -> Self {
        Self { is_phone, binary, silent_since: None, state: State::Out }
    }

    pub fn dialled(&mut self, stream: Stream) {
        self.state = State::Dialling(stream);
    }

    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }

    pub fn leave(&mut self) {
        self.state = State::Out;
    }

    /// Reads and writes as far as the socket is ready; returns the outcome.
    pub fn on_ready(&mut self, head: impl Fn() -> String, mut event: impl FnMut(Event)) {
        self.state = match std::mem::replace(&mut self.state, State::Out) {
            State::Dialling(mut stream) => match stream.socket().peer_addr() {
                Err(error) if error.kind() == ErrorKind::NotConnected => {
                    match stream.socket().take_error() {
                        Ok(None) => State::Dialling(stream),
                        Ok(Some(error)) | Err(error) => refused(&error, &mut event),
                    }
                }
                Err(error) => refused(&error, &mut event),
                Ok(_) => match stream.begin(head().as_bytes()) {
                    Ok(()) => State::Asking(stream, Vec::new()),
                    Err(error) => refused(&error, &mut event),
                },
            },
            State::Asking(stream, answer) => self.on_answer(stream, answer, &mut event),
            state => state,
        };
        // A frame may have come right behind the answer.
        self.state = match std::mem::replace(&mut self.state, State::Out) {
            State::Open(socket) => self.read(socket, event),
            state => state,
        };
    }

    fn read(&self, mut socket: Box<WebSocket<Stream>>, mut event: impl FnMut(Event)) -> State {
        // What the kernel did not take of a long frame: there may be room now.
        let _ = socket.flush();
        while socket.can_read() {
            match socket.read() {
                Ok(message) => self.on_message(&mut socket, message, &mut event),
                Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => {
                    return State::Open(socket);
                }
                Err(_) => {
                    event(Event::Ended(None));
                    break;
                }
            }
        }
        State::Out
    }

    fn on_answer(
        &mut self,
        mut stream: Stream,
        mut answer: Vec<u8>,
        event: &mut impl FnMut(Event),
    ) -> State {
        let mut buffer = [0; 1024];
        loop {
            match stream.read(&mut buffer) {
                // Behind a refusal.
                Ok(0) if !answer.is_empty() => break,
                Ok(0) => return refused(&ErrorKind::UnexpectedEof.into(), event),
                Ok(count) => answer.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return refused(&error, event),
            }
        }
        let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else {
            return State::Asking(stream, answer);
        };
        if !answer.starts_with(b"HTTP/1.1 101 ") {
            let line = answer.split(|byte| *byte == b'\r').next().unwrap_or_default();
            event(Event::Refused(String::from_utf8_lossy(line).into_owned()));
            return State::Out;
        }
        let rest = answer.split_off(end + 4);
        let is_resumed = stream.is_resumed();
        // Thousands of these are idle: small buffers.
        let config = WebSocketConfig::default().read_buffer_size(2048).write_buffer_size(0);
        let socket = WebSocket::from_partially_read(stream, rest, Role::Client, Some(config));
        event(Event::Open(is_resumed));
        State::Open(Box::new(socket))
    }

    fn on_message(
        &self,
        socket: &mut WebSocket<Stream>,
        message: Message,
        event: &mut impl FnMut(Event),
    ) {
        match message {
            Message::Ping(_) => {
                // The pong waits in the context.
                let _ = socket.flush();
                event(Event::Ping);
            }
            Message::Pong(_) => event(Event::Pong),
            Message::Text(text) if self.is_phone => event(Event::Returned(text.to_string())),
            // A phone has gone.
            Message::Text(text) if text.contains(r#"","close_code":"#) => {}
            // An envelope from a phone is one to the phone as well.
            Message::Text(text) => {
                let _ = socket.send(Message::Text(text));
            }
            Message::Close(frame) => {
                event(Event::Ended(frame.map(|CloseFrame { code, .. }| code.into())));
                let _ = socket.flush();
            }
            _ => {}
        }
    }

    /// Sends a ping.
    pub fn ping(&mut self) {
        if let State::Open(socket) = &mut self.state {
            let _ = socket.send(Message::Ping(Bytes::new()));
        }
    }

    /// Sends a frame; bytes that the kernel does not take are sent with later ones.
    pub fn send(&mut self, text: String) {
        if let State::Open(socket) = &mut self.state {
            let _ = socket.send(Message::text(text));
        }
    }
}

fn refused(error: &io::Error, mut event: impl FnMut(Event)) -> State {
    event(Event::Refused(error.to_string()));
    State::Out
}
