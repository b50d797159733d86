//! A binary or a phone, as far as a probe plays one.
//!
//! Owns the WebSocket (tungstenite's client). Knows what the relay asks of its
//! peers, and not what a step is to find.

use std::io;
use std::time::{Duration, Instant};

use tungstenite::client::client_with_config;
use tungstenite::error::ProtocolError;
use tungstenite::handshake::HandshakeError;
use tungstenite::http::Uri;
use tungstenite::protocol::WebSocketConfig;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{ClientRequestBuilder, Error, Message, WebSocket};

use super::clock;
use super::diagnosis::{self, Diagnosis};
use super::stream::{End, Stream};
use super::target::Target;

/// What is believed to come in one message: the relay's largest, four times over.
const MESSAGE_MAX: usize = 1024 * 1024;

/// What a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Binary,
    Phone,
}

/// What a peer hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Text(String),
    Ping,
    Pong,
    /// A close frame: its code, if it has one, and its reason, escaped.
    Close(Option<u16>, String),
    /// The end, without a close frame.
    End(End),
    /// Nothing until the deadline.
    Nothing,
}

impl Heard {
    /// Why it is not what should have come.
    pub(super) fn trouble(&self, timeout: Duration) -> Diagnosis {
        match self {
            Self::Text(_) | Self::Ping | Self::Pong => {
                Diagnosis::new("a message that was not expected")
            }
            Self::Close(code, reason) => {
                let code_words = code.map_or("no code".into(), |code| code.to_string());
                let trouble = Diagnosis::new(format!("closed with {code_words} {reason}"));
                match code.and_then(diagnosis::close_code) {
                    Some(words) => trouble.advise(words),
                    None => trouble,
                }
            }
            Self::End(end) => Diagnosis::new(end.words()),
            Self::Nothing => {
                Diagnosis::new(format!("nothing came within {} s", timeout.as_secs_f64()))
            }
        }
    }
}

/// An upgraded connection.
pub(super) struct Peer {
    socket: WebSocket<Stream>,
    /// The `x-request-id` of the 101, escaped.
    pub(super) request_id: Option<String>,
    timeout: Duration,
}

impl Peer {
    /// Upgrades, with what is left of the stream's deadline.
    pub(super) fn upgrade(
        stream: Stream,
        target: &Target,
        agent: &str,
        role: Role,
        server_id: &str,
        timeout: Duration,
    ) -> Result<Self, Diagnosis> {
        let (path, needed) = match role {
            Role::Binary => ("/v1/server", ("x-pyrycode-version", "probe")),
            Role::Phone => ("/v1/client", ("x-pyrycode-token", "probe")),
        };
        // The scheme stays here: only host and path go out.
        let uri: Uri = format!("ws://{}{path}", target.authority())
            .parse()
            .map_err(|_| Diagnosis::new("no URL can be made of the address"))?;
        let request = ClientRequestBuilder::new(uri)
            .with_header("User-Agent", agent)
            .with_header("x-pyrycode-server", server_id)
            .with_header(needed.0, needed.1);
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_MAX))
            .max_frame_size(Some(MESSAGE_MAX));
        match client_with_config(request, stream, Some(config)) {
            Ok((socket, answer)) => {
                let id = answer
                    .headers()
                    .get("x-request-id")
                    .map(|id| String::from_utf8_lossy(id.as_bytes()).escape_debug().to_string());
                Ok(Self { socket, request_id: id, timeout })
            }
            Err(HandshakeError::Interrupted(_)) => Err(diagnosis::silence(timeout)),
            Err(HandshakeError::Failure(error)) => Err(explained(error)),
        }
    }

    /// Sends one text message.
    pub(super) fn say(&mut self, text: String) -> Result<(), Diagnosis> {
        self.send(Message::text(text))
    }

    fn send(&mut self, message: Message) -> Result<(), Diagnosis> {
        self.socket.get_mut().set_deadline(clock::now() + self.timeout);
        self.socket.send(message).map_err(|error| {
            let end = self.socket.get_mut().end();
            let why = end.map_or_else(|| error.to_string(), |end| end.words().into());
            Diagnosis::new(format!("could not send: {why}"))
        })
    }

    /// Sends a ping.
    pub(super) fn ping(&mut self) -> Result<(), Diagnosis> {
        self.send(Message::Ping("probe".into()))
    }

    /// What comes next, until `deadline`; a ping is answered.
    pub(super) fn hear(&mut self, deadline: Instant) -> Result<Heard, Diagnosis> {
        loop {
            self.socket.get_mut().set_deadline(deadline);
            let error = match self.socket.read() {
                Ok(Message::Text(text)) => return Ok(Heard::Text(text.as_str().into())),
                Ok(Message::Ping(_)) => {
                    // The pong goes out with the next call of any kind.
                    let _ = self.socket.flush();
                    return Ok(Heard::Ping);
                }
                Ok(Message::Close(frame)) => {
                    let _ = self.socket.flush();
                    let code = frame.as_ref().map(|frame| u16::from(frame.code));
                    let reason = frame.map(|frame| frame.reason.escape_debug().to_string());
                    return Ok(Heard::Close(code, reason.unwrap_or_default()));
                }
                Ok(Message::Pong(_)) => return Ok(Heard::Pong),
                Ok(_) => continue,
                Err(error) => error,
            };
            if let Error::Io(error) = &error
                && error.kind() == io::ErrorKind::WouldBlock
            {
                return Ok(Heard::Nothing);
            }
            return match self.socket.get_mut().end() {
                Some(end) => Ok(Heard::End(end)),
                None if matches!(error, Error::ConnectionClosed) => Ok(Heard::End(End::Fin)),
                None => Err(Diagnosis::new(format!("no WebSocket frame: {error}"))),
            };
        }
    }

    /// The next text, within the timeout.
    pub(super) fn hear_text(&mut self) -> Result<String, Diagnosis> {
        let deadline = clock::now() + self.timeout;
        loop {
            match self.hear(deadline)? {
                Heard::Text(text) => return Ok(text),
                Heard::Ping | Heard::Pong => {}
                heard => return Err(heard.trouble(self.timeout)),
            }
        }
    }

    /// The next close frame: its code and its reason. Within the timeout.
    pub(super) fn hear_close(&mut self) -> Result<(Option<u16>, String), Diagnosis> {
        let deadline = clock::now() + self.timeout;
        loop {
            match self.hear(deadline)? {
                Heard::Close(code, reason) => return Ok((code, reason)),
                Heard::Ping | Heard::Pong => {}
                heard => return Err(heard.trouble(self.timeout)),
            }
        }
    }

    /// Says goodbye and waits for the answer, for which there is a close code.
    pub(super) fn leave(&mut self) -> Result<Option<u16>, Diagnosis> {
        self.socket.get_mut().set_deadline(clock::now() + self.timeout);
        let frame =
            tungstenite::protocol::CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let _ = self.socket.close(Some(frame));
        self.hear_close().map(|(code, _)| code)
    }
}

fn explained(error: Error) -> Diagnosis {
    match error {
        Error::Http(answer) => {
            let location = answer.headers().get("location").and_then(|it| it.to_str().ok());
            diagnosis::refused_upgrade(answer.status().as_u16(), location)
        }
        Error::Protocol(ProtocolError::HandshakeIncomplete) => {
            diagnosis::cut_off("the connection was closed")
        }
        Error::Io(error) => diagnosis::cut_off(&error.to_string()),
        Error::Protocol(
            ProtocolError::MissingUpgradeWebSocketHeader
            | ProtocolError::MissingConnectionUpgradeHeader
            | ProtocolError::SecWebSocketAcceptKeyMismatch,
        ) => Diagnosis::new(format!("the 101 is not one: {error}"))
            .advise("a proxy in between rewrites the handshake, or answers it without the relay"),
        error => Diagnosis::new(format!("the upgrade was answered, but not well: {error}"))
            .advise("no relay answers so: see what stands in between, and what listens there"),
    }
}
