//! Peer: one remote end and the TCP connection between it and the relay.
//!
//! Owns the two directions of the connection, what the peer has received and what it answers
//! by itself. Knows neither the relay nor time; [`crate::world`] moves the bytes.
//!
//! A peer that does not read exerts backpressure on the relay once the link is full.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};

use pyrycode_relay::relay::ConnId;
use pyrycode_relay::server::turn::Readiness;
use pyrycode_relay::time::Instant;

use crate::link::{End, Pipe};
use crate::requests;
use crate::tls::Tls;
use crate::wire::{self, Decoder, Part};

/// The id of a connection that is not accepted yet.
pub(crate) const NOT_ACCEPTED: ConnId = ConnId::from_bits(u64::MAX);
/// The capacity of the link of a peer that does not read: both kernels' buffers.
pub(crate) const LINK: usize = 64 * 1024;

/// An event that a peer received. Pings are not recorded: they are answered.
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

/// The automatic behaviour of a peer. By default it follows the contract.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Habits {
    /// Reads bytes from the link.
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
    /// Half-open: nothing arrives from it any more, and the relay is not told.
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
    /// Nothing arrives any more.
    Reset,
}

/// One remote end and its connection.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) address: IpAddr,
    /// The load balancer between it and the relay, which sends a PROXY header.
    pub(crate) balancer: Option<IpAddr>,
    /// The relay has not read that header.
    pub(crate) owes_header: bool,
    /// [`NOT_ACCEPTED`] until it is accepted.
    pub(crate) id: ConnId,
    pub(crate) habits: Habits,
    pub(crate) seen: Vec<Seen>,
    /// The last HTTP answer, whole.
    pub(crate) answer: String,
    /// Received pings and texts, whether kept in `seen` or not.
    pub(crate) pings: usize,
    pub(crate) texts: usize,
    pub(crate) last_ping: Vec<u8>,
    /// The payload of the first ping that it answered.
    pub(crate) first_pong: Vec<u8>,
    /// Close frames in each direction: never more than one.
    pub(crate) closes_seen: usize,
    pub(crate) sent_close: bool,
    /// Sent and not yet on the link.
    pub(crate) outgoing: VecDeque<u8>,
    /// Bytes sent so far and handed to the relay so far.
    sent: u64,
    handed_in: u64,
    /// Where in what it sent the answer to which ping ends.
    pongs: VecDeque<(u64, Vec<u8>)>,
    /// Within a frame: answers that wait for its end.
    midway: Option<Vec<Vec<u8>>>,
    pub(crate) sending: Sending,
    /// The end of sending is on the link.
    pub(crate) end_sent: bool,
    /// It has done something for which the relay may close it.
    pub(crate) was_bad: bool,
    /// Half a message of it may wait for the other half: it or its link stopped.
    pub(crate) was_late: bool,
    /// To the relay.
    pub(crate) up: Pipe,
    /// The connection broke by a fault, or was too slow to its end.
    pub(crate) is_broken: bool,
    /// The relay has read the FIN.
    pub(crate) end_read: bool,
    /// To the peer.
    pub(crate) down: Pipe,
    /// How much the link takes before a peer that does not read does.
    pub(crate) link: usize,
    /// The relay has sent FIN.
    half_closed: bool,
    saw_end: bool,
    saw_cut: bool,
    /// The relay has dropped its socket.
    pub(crate) is_gone: bool,
    decoder: Decoder,
    pub(crate) readiness: Readiness,
    pub(crate) tls: Tls,
    /// Its socket took less than there was, and then, it is not written to before
    /// it has room.
    pub(crate) is_short: bool,
    pub(crate) is_blocked: bool,
    /// Its socket takes nothing before.
    pub(crate) refuses_until: Instant,
}

impl Peer {
    pub(crate) fn new(address: IpAddr) -> Self {
        Self {
            address,
            balancer: None,
            owes_header: false,
            id: NOT_ACCEPTED,
            habits: Habits::HONEST,
            seen: Vec::new(),
            answer: String::new(),
            pings: 0,
            texts: 0,
            last_ping: Vec::new(),
            first_pong: Vec::new(),
            closes_seen: 0,
            sent_close: false,
            outgoing: VecDeque::new(),
            sent: 0,
            handed_in: 0,
            pongs: VecDeque::new(),
            midway: None,
            sending: Sending::Open,
            end_sent: false,
            was_bad: false,
            was_late: false,
            up: Pipe::new(),
            is_broken: false,
            end_read: false,
            down: Pipe::new(),
            link: LINK,
            half_closed: false,
            saw_end: false,
            saw_cut: false,
            is_gone: false,
            decoder: Decoder::default(),
            readiness: Readiness::default(),
            tls: Tls::default(),
            is_short: false,
            is_blocked: false,
            refuses_until: Instant::START,
        }
    }

    /// Sends bytes that end on a frame boundary, unless it has hung up.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.send_part(bytes);
        for answer in self.midway.take().unwrap_or_default() {
            self.push(&answer);
        }
    }

    /// Sends a PROXY header, ahead of everything else.
    pub(crate) fn send_header(&mut self, header: &[u8]) {
        self.owes_header = true;
        self.outgoing.extend(header);
        self.sent += header.len() as u64;
    }

    /// The relay has read the PROXY header.
    pub(crate) fn take_header(&mut self, len: usize) {
        self.owes_header = false;
        self.up.arrived.drain(..len);
        self.handed_in += len as u64;
    }

    /// Sends bytes that end within a frame.
    pub(crate) fn send_part(&mut self, bytes: &[u8]) {
        self.midway.get_or_insert_default();
        self.push(bytes);
    }

    fn push(&mut self, bytes: &[u8]) {
        if self.sending == Sending::Open && !self.is_gone {
            self.tls.say(bytes, &mut self.outgoing);
            self.sent += bytes.len() as u64;
            if let Some(payload) = wire::pong(bytes) {
                self.pongs.push_back((self.sent, payload));
            }
        }
    }

    /// Sends a frame now or, midway in another, behind that one.
    fn answer(&mut self, frame: Vec<u8>) {
        match &mut self.midway {
            Some(answers) => answers.push(frame),
            None => self.push(&frame),
        }
    }

    /// Sends a close frame, unless it has sent one.
    pub(crate) fn close(&mut self, payload: &[u8]) {
        if !std::mem::replace(&mut self.sent_close, true) {
            self.answer(wire::frame(wire::CLOSE, payload));
        }
    }

    /// The relay has got `count` more bytes; returns the pongs that this completed.
    pub(crate) fn hand_in(&mut self, count: usize) -> Vec<Vec<u8>> {
        self.handed_in += count as u64;
        let complete = self.pongs.iter().take_while(|(end, _)| *end <= self.handed_in).count();
        self.pongs.drain(..complete).map(|(_, payload)| payload).collect()
    }

    /// How many bytes the link takes now.
    pub(crate) fn room(&self) -> usize {
        match self.habits.reads {
            true if self.down.is_short() => usize::MAX,
            true => LINK.saturating_sub(self.down.len()),
            false => self.link.saturating_sub(self.down.len()),
        }
    }

    pub(crate) fn on_half_close(&mut self) {
        assert!(!self.half_closed, "(4) two FINs");
        self.half_closed = true;
    }

    pub(crate) fn on_disconnect(&mut self) {
        assert!(!self.is_gone, "(6) two disconnects");
        self.is_gone = true;
        // What its socket did not take is lost, be it a close frame.
        self.is_broken |= self.is_short;
    }

    /// Reads up to `limit` bytes off the link and reacts.
    pub(crate) fn read(&mut self, limit: usize) {
        let count = self.down.arrived.len().min(limit);
        if count > 0 {
            let bytes = self.down.arrived.drain(..count).collect();
            let plain = self.tls.hear(bytes, &mut self.outgoing);
            self.decoder.feed(&plain);
            while let Some(part) = self.decoder.next() {
                self.on_part(part);
            }
        }
        if !self.down.arrived.is_empty() {
            return;
        }
        match self.down.end {
            Some(End::Fin) if !std::mem::replace(&mut self.saw_end, true) => {
                if !self.tls.is_damaged() {
                    assert!(!self.decoder.is_midway(), "(4) FIN within a frame");
                    assert!(self.tls.is_complete(), "(4) FIN without close_notify");
                }
                self.seen.push(Seen::End);
                if self.habits.hangs_up && self.sending == Sending::Open {
                    self.sending = Sending::Ended;
                }
            }
            Some(End::Reset) if !std::mem::replace(&mut self.saw_cut, true) => {
                self.seen.push(Seen::Cut);
            }
            _ => {}
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
                    self.answer(wire::frame(wire::PONG, &payload));
                    if self.first_pong.is_empty() {
                        self.first_pong.clone_from(&payload);
                    }
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

    /// It has its 101.
    pub(crate) fn is_upgraded(&self) -> bool {
        self.answer.starts_with("HTTP/1.1 101 ")
    }

    /// It has begun a frame and not ended it.
    pub(crate) fn is_midway(&self) -> bool {
        self.midway.is_some()
    }

    /// The relay has sent its last byte.
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
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    requests::upgrade(path, &format!("User-Agent: simulation\r\n{lines}"))
}

/// The head with which a binary claims `server_id`.
pub(crate) use requests::binary as claim;

/// The head with which a phone dials in for `server_id`.
pub(crate) use requests::phone as join;
