//! One remote end and the TCP connection between it and the relay.
//!
//! Owns the bytes in flight in both directions, what the peer has seen and what
//! it answers by itself. Knows neither the relay nor time; [`crate::world`]
//! moves the bytes.
//!
//! 1. What a peer has sent reaches the relay in order, then its FIN.
//! 2. A peer that does not read holds back the relay once the link is full.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};

use pyrycode_relay::relay::ConnId;

use crate::wire::{self, Decoder, Part};

/// What the link holds of a peer that does not read: both kernels' buffers.
pub(crate) const LINK: usize = 64 * 1024;

/// What a peer saw, in order. Pings are not in it: they are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// The status of an HTTP answer.
    Answer(u16),
    Text(String),
    Pong(Vec<u8>),
    /// Code (0: empty) and reason of a close frame.
    Close(u16, String),
    /// FIN.
    End,
    /// The connection broke without a FIN.
    Cut,
}

/// What a peer does by itself. The default is an honest one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Habits {
    /// Takes bytes off the link.
    pub(crate) reads: bool,
    pub(crate) answers_pings: bool,
    /// Answers a close frame with one.
    pub(crate) answers_close: bool,
    /// Sends FIN when it has seen one.
    pub(crate) hangs_up: bool,
    /// Forgets texts that it has counted.
    pub(crate) forgets_texts: bool,
}

impl Habits {
    pub(crate) const HONEST: Self = Self {
        reads: true,
        answers_pings: true,
        answers_close: true,
        hangs_up: true,
        forgets_texts: false,
    };
    /// Half open: nothing comes from it any more, and nobody tells the relay.
    pub(crate) const VANISHED: Self = Self {
        reads: false,
        answers_pings: false,
        answers_close: false,
        hangs_up: false,
        forgets_texts: false,
    };
}

/// Whether the peer's side of the connection is still open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sending {
    Open,
    /// FIN is behind the last byte.
    Ended,
    /// The relay has read the FIN.
    EndRead,
    /// Everything is lost.
    Reset,
}

/// One remote end and its connection.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) id: ConnId,
    pub(crate) habits: Habits,
    pub(crate) seen: Vec<Seen>,
    /// The last HTTP answer, whole.
    pub(crate) answer: String,
    /// Pings and texts that came, whether kept in `seen` or not.
    pub(crate) pings: usize,
    pub(crate) texts: usize,
    pub(crate) last_ping: Vec<u8>,
    /// Close frames in each direction: never more than one.
    pub(crate) closes_seen: usize,
    pub(crate) sent_close: bool,
    /// Sent and not yet read by the relay.
    pub(crate) outgoing: VecDeque<u8>,
    /// Within a frame: answers that wait for its end.
    midway: Option<Vec<u8>>,
    pub(crate) sending: Sending,
    /// Written by the relay and not yet read by the peer.
    incoming: VecDeque<u8>,
    /// How much the link takes before the peer reads.
    pub(crate) link: usize,
    /// The relay has sent FIN.
    half_closed: bool,
    saw_end: bool,
    /// The relay has dropped its socket.
    pub(crate) is_gone: bool,
    decoder: Decoder,
    /// Bookkeeping of the world.
    pub(crate) is_queued: bool,
    pub(crate) is_blocked: bool,
}

impl Peer {
    pub(crate) fn new(id: ConnId) -> Self {
        Self {
            id,
            habits: Habits::HONEST,
            seen: Vec::new(),
            answer: String::new(),
            pings: 0,
            texts: 0,
            last_ping: Vec::new(),
            closes_seen: 0,
            sent_close: false,
            outgoing: VecDeque::new(),
            midway: None,
            sending: Sending::Open,
            incoming: VecDeque::new(),
            link: LINK,
            half_closed: false,
            saw_end: false,
            is_gone: false,
            decoder: Decoder::default(),
            is_queued: false,
            is_blocked: false,
        }
    }

    /// Sends bytes that end on a frame boundary, unless it has hung up.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.send_part(bytes);
        if let Some(answers) = self.midway.take() {
            self.send_part(&answers);
            self.midway = None;
        }
    }

    /// Sends bytes that end within a frame.
    pub(crate) fn send_part(&mut self, bytes: &[u8]) {
        self.midway.get_or_insert_default();
        if self.sending == Sending::Open && !self.is_gone {
            self.outgoing.extend(bytes);
        }
    }

    /// Sends a frame now or, midway in another, behind that one.
    fn answer(&mut self, frame: &[u8]) {
        match &mut self.midway {
            Some(answers) => answers.extend_from_slice(frame),
            None => self.send(frame),
        }
    }

    /// Sends a close frame, unless it has sent one.
    pub(crate) fn close(&mut self, payload: &[u8]) {
        if !std::mem::replace(&mut self.sent_close, true) {
            self.answer(&wire::frame(wire::CLOSE, payload));
        }
    }

    /// How many bytes the link takes now.
    pub(crate) fn room(&self) -> usize {
        if self.habits.reads { usize::MAX } else { self.link.saturating_sub(self.incoming.len()) }
    }

    /// Bytes that come from the relay.
    pub(crate) fn arrive(&mut self, bytes: &[u8]) {
        assert!(!self.half_closed, "bytes after FIN");
        self.incoming.extend(bytes);
    }

    pub(crate) fn on_half_close(&mut self) {
        assert!(!self.half_closed, "two FINs");
        self.half_closed = true;
    }

    pub(crate) fn on_disconnect(&mut self) {
        assert!(!self.is_gone, "two disconnects");
        self.is_gone = true;
        if self.habits.reads {
            self.read(usize::MAX);
        }
        if !self.half_closed && self.habits.reads {
            self.seen.push(Seen::Cut);
        }
    }

    /// Reads up to `limit` bytes off the link and reacts.
    pub(crate) fn read(&mut self, limit: usize) {
        let count = self.incoming.len().min(limit);
        if count > 0 {
            let (front, back) = self.incoming.as_slices();
            let cut = count.min(front.len());
            self.decoder.feed(&front[..cut]);
            self.decoder.feed(&back[..count - cut]);
            self.incoming.drain(..count);
            while let Some(part) = self.decoder.next() {
                self.on_part(part);
            }
        }
        if self.half_closed && self.incoming.is_empty() && !self.saw_end {
            assert!(!self.decoder.is_midway(), "FIN within a frame");
            self.saw_end = true;
            self.seen.push(Seen::End);
            if self.habits.hangs_up && self.sending == Sending::Open {
                self.sending = Sending::Ended;
            }
        }
    }

    fn on_part(&mut self, part: Part) {
        match part {
            Part::Answer { status, text } => {
                self.seen.push(Seen::Answer(status));
                self.answer = text;
            }
            Part::Text(text) => {
                self.texts += 1;
                if !self.habits.forgets_texts {
                    self.seen.push(Seen::Text(text));
                }
            }
            Part::Ping(payload) => {
                self.pings += 1;
                if self.habits.answers_pings {
                    self.answer(&wire::frame(wire::PONG, &payload));
                }
                self.last_ping = payload;
            }
            Part::Pong(payload) => self.seen.push(Seen::Pong(payload)),
            Part::Close(code, reason) => {
                self.closes_seen += 1;
                if self.habits.answers_close {
                    self.close(&wire::close_payload(code, &reason));
                }
                self.seen.push(Seen::Close(code, reason));
            }
        }
    }

    /// The relay has said its last word.
    pub(crate) fn has_ended(&self) -> bool {
        self.half_closed || self.is_gone
    }

    /// The conn_id, from the 101.
    pub(crate) fn conn_id(&self) -> &str {
        wire::field(&self.answer, "x-request-id").expect("a 101 carries x-request-id")
    }
}

/// The address that peers dial from unless told otherwise.
pub(crate) const HOME: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));

/// The head of an upgrade request with these extra header lines.
pub(crate) fn request(path: &str, lines: &[&str]) -> String {
    let mut head = format!("GET {path} HTTP/1.1\r\n");
    for line in [
        "Host: relay.example",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "User-Agent: simulation",
    ]
    .iter()
    .chain(lines)
    {
        head.push_str(line);
        head.push_str("\r\n");
    }
    head.push_str("\r\n");
    head
}

/// The head with which a binary claims `server_id`.
pub(crate) fn claim(server_id: &str) -> String {
    request("/v1/server", &[&format!("x-pyrycode-server: {server_id}"), "x-pyrycode-version: 1"])
}

/// The head with which a phone dials in for `server_id`.
pub(crate) fn join(server_id: &str) -> String {
    request("/v1/client", &[&format!("x-pyrycode-server: {server_id}"), "x-pyrycode-token: t"])
}
