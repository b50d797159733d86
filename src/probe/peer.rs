//! Peer: the probe's binary or phone.
//!
//! Owns the WebSocket (tungstenite's client) and the headers that the relay requires of
//! its peers. Does not know what a step expects.

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

/// Maximum size of a received message: four times the relay's limit.
const MESSAGE_MAX: usize = 1024 * 1024;

/// The role of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Binary,
    Phone,
}

/// The next event on a peer's connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Text(String),
    Ping,
    Pong,
    /// A close frame: its code, if it has one, and its reason, escaped.
    Close(Option<u16>, String),
    /// The connection ended without a close frame.
    End(End),
    /// The deadline passed without an event.
    Nothing,
}

impl Heard {
    /// The diagnosis for this event where another one was expected.
    pub(super) fn trouble(&self, timeout: Duration) -> Diagnosis {
        match self {
            Self::Text(_) | Self::Ping | Self::Pong => {
                Diagnosis::new("an unexpected message arrived")
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
                Diagnosis::new(format!("nothing arrived within {} s", timeout.as_secs_f64()))
            }
        }
    }
}

/// An upgraded connection.
pub(super) struct Peer {
    socket: WebSocket<Stream>,
    /// The `x-request-id` of the 101 response, escaped.
    pub(super) request_id: Option<String>,
    timeout: Duration,
}

impl Peer {
    /// Performs the upgrade within the stream's deadline.
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
        // Only host and path are sent, so the scheme does not matter.
        let uri: Uri = format!("ws://{}{path}", target.authority())
            .parse()
            .map_err(|_| Diagnosis::new("the address cannot be written as a URL"))?;
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

    /// The next event before `deadline`; answers a ping.
    pub(super) fn hear(&mut self, deadline: Instant) -> Result<Heard, Diagnosis> {
        loop {
            self.socket.get_mut().set_deadline(deadline);
            let error = match self.socket.read() {
                Ok(Message::Text(text)) => return Ok(Heard::Text(text.as_str().into())),
                Ok(Message::Ping(_)) => {
                    // If this fails, the next call sends the pong.
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
                None => {
                    Err(Diagnosis::new(format!("received an invalid WebSocket frame: {error}")))
                }
            };
        }
    }

    /// The next text message, within the timeout.
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

    /// Code and reason of the next close frame, within the timeout.
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

    /// Closes the connection and returns the code of the relay's close frame.
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
        ) => Diagnosis::new(format!("the 101 response is invalid: {error}")).advise(
            "a proxy on the path rewrites the handshake, or answers it without the relay: \
                     configure it to pass WebSockets on",
        ),
        error => Diagnosis::new(format!("the response to the upgrade is invalid: {error}")).advise(
            "no relay answers like this: check what listens at that address, and any proxy on the \
                 path",
        ),
    }
}
