//! Connection: transcripts of its input, its expiries and its output.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;
use crate::config::MESSAGE_MAX;
use crate::protocol::websocket::Message;

const TIMEOUTS: Timeouts = Timeouts::STANDARD;

// First bytes of frames.
const TEXT: u8 = 0x81;
const TEXT_BEGUN: u8 = 0x01;
const CONTINUED: u8 = 0x00;
const FINISHED: u8 = 0x80;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;

/// `ms` milliseconds after the start.
fn at(ms: u64) -> Instant {
    Instant::from_micros(1000 * ms)
}

/// A client's frame; the masking key is zero.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let header = match payload.len() {
        len @ 0..=125 => vec![first, 0x80 | len as u8],
        len => [&[first, 0xff][..], &(len as u64).to_be_bytes()].concat(),
    };
    [&header, &[0; 4][..], payload].concat()
}

/// Sent frames as first byte and payload; all must be whole.
#[track_caller]
fn read(mut wire: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut seen = Vec::new();
    while !wire.is_empty() {
        let (header, len) = match wire[1] {
            126 => (4, usize::from(u16::from_be_bytes([wire[2], wire[3]]))),
            127 => (10, u64::from_be_bytes(wire[2..10].try_into().expect("eight")) as usize),
            len => (2, usize::from(len)),
        };
        seen.push((wire[0], wire[header..header + len].to_vec()));
        wire = &wire[header + len..];
    }
    seen
}

fn close_frame(code: u16, reason: &str) -> (u8, Vec<u8>) {
    (CLOSE, [&code.to_be_bytes()[..], reason.as_bytes()].concat())
}

/// A connection, its codec and the wire it writes to; all instants in milliseconds.
struct Line {
    connection: Connection,
    codec: Codec,
    pool: OutboxPool,
    wire: Vec<u8>,
}

impl Line {
    /// Just accepted, at 0.
    fn accepted() -> Self {
        let connection = Connection::new(at(0), &TIMEOUTS);
        Self {
            connection,
            codec: Codec::new(MESSAGE_MAX),
            pool: OutboxPool::default(),
            wire: Vec::new(),
        }
    }

    /// An open WebSocket whose first ping is due at 30,000.
    fn open() -> Self {
        let mut line = Self::accepted();
        line.connection.open(at(30_000), at(0));
        line
    }

    /// An open WebSocket that is not pinged for an hour.
    fn quiet() -> Self {
        let mut line = Self::accepted();
        line.connection.open(at(3_600_000), at(0));
        line
    }

    /// Hands in a piece of the stream.
    fn hear(&mut self, ms: u64, mut piece: &[u8]) -> Result<Vec<Incoming>, CloseCause> {
        let mut heard = Vec::new();
        while let Some(incoming) = self.connection.next_incoming(
            &mut piece,
            &mut self.codec,
            &mut Work::unbounded(),
            at(ms),
            &TIMEOUTS,
        )? {
            heard.push(incoming);
        }
        assert!(piece.is_empty());
        Ok(heard)
    }

    /// Hands in a piece that must hold exactly `count` messages or control frames.
    #[track_caller]
    fn hear_count(&mut self, ms: u64, piece: &[u8], count: usize) {
        assert_eq!(self.hear(ms, piece).expect("legal frames").len(), count);
    }

    fn say(&mut self, ms: u64, message: &str) {
        self.connection.send_message(Opcode::Text, &[message.as_bytes()], &mut self.pool, at(ms));
    }

    /// The socket takes `count` bytes.
    fn write(&mut self, ms: u64, mut count: usize) {
        loop {
            let slices = self.connection.outgoing().concat();
            let taken = count.min(slices.len());
            self.wire.extend(&slices[..taken]);
            let is_more = self.connection.on_written(taken, &mut self.pool, at(ms)).has_more;
            assert!(!is_more || taken == slices.len(), "a writable event follows");
            count -= taken;
            if count == 0 {
                return;
            }
        }
    }

    /// Its memory is that of `bytes` bytes in vectors that grow.
    #[track_caller]
    fn assert_holds(&self, bytes: usize) {
        let held = self.connection.held();
        assert!((bytes..=2 * bytes.max(8)).contains(&held), "{held} held for {bytes}");
    }

    fn write_all(&mut self, ms: u64) {
        self.write(ms, self.connection.backlog());
    }

    fn close(&mut self, ms: u64, cause: CloseCause) {
        self.connection.close(cause, &[], at(ms), &TIMEOUTS);
    }

    fn half_close(&mut self, ms: u64) -> bool {
        self.connection.half_close(at(ms), &TIMEOUTS)
    }

    fn deadline(&self) -> Instant {
        self.connection.deadline(&TIMEOUTS)
    }

    /// The timers fire: something is due exactly if the deadline has come.
    fn timer(&mut self, ms: u64) -> Option<Expiry> {
        let is_due = self.deadline() <= at(ms);
        let expiry = self.connection.handle_timeout(at(ms), &TIMEOUTS);
        assert_eq!(expiry.is_some(), is_due, "at {ms}: {expiry:?} of {:?}", self.connection);
        expiry
    }

    /// Nothing is due before `ms`, and then this.
    #[track_caller]
    fn assert_due(&mut self, ms: u64, expiry: Expiry) {
        assert_eq!(self.deadline(), at(ms));
        assert_eq!(self.timer(ms - 1), None);
        assert_eq!(self.timer(ms), Some(expiry));
    }

    #[track_caller]
    fn assert_at_rest(&self) {
        assert!(self.connection.inbound.is_none(), "{:?}", self.connection.inbound);
        assert!(self.connection.outbox.is_none(), "{:?}", self.connection.outbox);
        assert_eq!(self.connection.held(), 0);
    }
}

// Memory

#[test]
fn an_empty_queue_keeps_its_capacity_for_the_next_message() {
    let mut line = Line::quiet();
    line.say(1_000, "hello");
    line.write_all(1_000);
    line.assert_at_rest();
    assert!(line.pool.get(at(2_000)).capacity() > "hello".len());
}

#[test]
fn it_is_small() {
    println!("Connection: {} bytes", size_of::<Connection>());
    assert!(size_of::<Connection>() <= 64, "{} bytes", size_of::<Connection>());
}

#[test]
fn after_each_message_it_holds_no_memory() {
    let long = vec![b'x'; 100_000];
    let streams: [(&str, Vec<Vec<u8>>); 6] = [
        ("a message", vec![frame(TEXT, b"{}")]),
        ("a long message", vec![frame(TEXT, &long)]),
        ("a ping", vec![frame(PING, b"here?")]),
        ("a pong", vec![frame(PONG, b"")]),
        ("fragments", vec![frame(TEXT_BEGUN, b"1"), frame(CONTINUED, &long), frame(FINISHED, b"")]),
        (
            "fragments around a ping",
            vec![frame(TEXT_BEGUN, b"1"), frame(PING, b""), frame(FINISHED, b"2")],
        ),
    ];
    for (what, frames) in streams {
        let stream = frames.concat();
        for cut in [1, 2, 5, 6, 7, 8, stream.len() - 1, stream.len()] {
            let cut = cut.min(stream.len());
            let mut line = Line::quiet();
            line.hear(1, &stream[..cut]).expect(what);
            if cut < stream.len() {
                assert!(line.connection.held() > 0, "{what} cut at {cut}");
                line.hear(2, &stream[cut..]).expect(what);
            }
            line.assert_at_rest();
        }
    }
}

#[test]
fn after_each_write_it_holds_no_memory() {
    let mut line = Line::quiet();
    line.say(1, "hello");
    line.connection.send_ping(b"beat", &mut line.pool, at(1));
    line.connection.send_pong(b"answer", &mut line.pool, at(1));
    let backlog = line.connection.backlog();
    line.assert_holds(backlog);
    line.write(2, backlog - 1);
    line.assert_holds(1);
    line.write(3, 1);
    line.assert_at_rest();
    let expected =
        [(PING, b"beat".to_vec()), (PONG, b"answer".to_vec()), (TEXT, b"hello".to_vec())];
    assert_eq!(read(&line.wire), expected);
}

#[test]
fn a_pause_leaves_nothing_behind() {
    let mut line = Line::quiet();
    line.connection.pause(at(1));
    assert!(line.connection.resume(at(2), &TIMEOUTS));
    line.assert_at_rest();
    assert!(!line.connection.resume(at(3), &TIMEOUTS), "was not paused");
}

#[test]
fn early_input_is_kept_and_counted_until_it_is_taken() {
    let mut line = Line::accepted();
    line.connection.keep(b"GET / HT".to_vec(), at(1));
    assert!(line.connection.held() >= 8);
    assert_eq!(line.connection.take_kept(), b"GET / HT");
    line.assert_at_rest();
    line.connection.keep(Vec::new(), at(2));
    line.assert_at_rest();
    assert_eq!(line.connection.take_kept(), b"");
}

// Head and claim

#[test]
fn a_head_has_five_seconds_silence_included() {
    let mut line = Line::accepted();
    assert!(line.connection.is_head() && line.connection.is_reading());
    line.assert_due(5_000, Expiry::Head);

    let mut line = Line::accepted();
    for ms in (100..5_000).step_by(100) {
        let mut early = line.connection.take_kept();
        early.push(b'x');
        line.connection.keep(early, at(ms));
    }
    line.assert_due(5_000, Expiry::Head);
}

#[test]
fn a_refusal_is_written_whole_then_the_connection_lingers() {
    let mut line = Line::accepted();
    line.connection.keep(b"GET".to_vec(), at(1));
    line.connection.refuse(b"HTTP/1.1 404 Not Found\r\n\r\n", at(1_000), &TIMEOUTS);
    assert!(line.connection.is_closing() && !line.connection.is_head());
    assert!(!line.half_close(1_000), "not written yet");
    line.hear_count(1_001, b"GET /another HTTP/1.1\r\n\r\n", 0);
    line.write(1_002, 10);
    assert!(!line.half_close(1_002), "not all written yet");
    line.write_all(1_003);
    assert_eq!(line.wire, b"HTTP/1.1 404 Not Found\r\n\r\n");
    assert!(line.half_close(1_003));
    assert!(!line.connection.is_done());
    line.connection.on_end();
    assert!(line.connection.is_done());
}

#[test]
fn a_waiting_claimant_is_neither_read_nor_pinged() {
    let mut line = Line::accepted();
    line.connection.send_answer(b"101", at(1_000));
    line.write_all(1_000);
    line.connection.keep(frame(TEXT_BEGUN, b"early"), at(1_000));
    line.connection.wait(at(11_000));
    assert!(!line.connection.is_reading() && !line.connection.is_head());
    assert_eq!(line.connection.probe(at(2_000)), None);
    assert_eq!(line.connection.on_pong(1, at(2_000)), None);
    line.assert_due(11_000, Expiry::Claim);
}

#[test]
fn a_claimant_that_gets_the_slot_is_read_and_pinged() {
    let mut line = Line::accepted();
    line.connection.keep(frame(TEXT, b"early"), at(1_000));
    line.connection.wait(at(11_000));
    line.connection.open(at(20_000), at(5_000));
    let early = line.connection.take_kept();
    line.hear_count(5_000, &early, 1);
    assert!(line.connection.is_reading());
    line.assert_at_rest();
    line.assert_due(20_000, Expiry::Ping(1));
}

// Heartbeat

#[test]
fn an_open_connection_is_pinged_and_times_out() {
    let mut line = Line::open();
    line.assert_due(30_000, Expiry::Ping(1));
    assert!(line.connection.on_pong(1, at(30_040)).is_some());
    line.assert_due(60_000, Expiry::Ping(2));
    // Neither received nor sent data counts as a pong.
    for ms in (60_000..90_000).step_by(1_000) {
        line.hear_count(ms, &frame(TEXT, b"{}"), 1);
        line.say(ms, "hello");
        line.write_all(ms);
    }
    line.assert_due(90_000, Expiry::Close(CloseCause::HeartbeatTimeout));
}

#[test]
fn a_pause_extends_the_deadlines_of_pong_and_message() {
    let mut line = Line::open();
    line.assert_due(30_000, Expiry::Ping(1));
    line.hear_count(35_000, &frame(TEXT, b"half")[..5], 0);
    line.connection.pause(at(40_000));
    line.assert_due(60_000, Expiry::Ping(2));
    assert!(line.connection.resume(at(85_000), &TIMEOUTS));
    // The pong was due at 60 s and the message at 65 s, each 45 s later now.
    assert_eq!(line.timer(89_999), None);
    line.assert_due(90_000, Expiry::Ping(3));
    line.assert_due(105_000, Expiry::Close(CloseCause::HeartbeatTimeout));
    assert!(line.connection.on_pong(3, at(105_000)).is_some());
    line.assert_due(110_000, Expiry::Close(CloseCause::MessageTimeout));
}

#[test]
fn a_second_pause_does_not_move_the_first() {
    let mut line = Line::open();
    line.assert_due(30_000, Expiry::Ping(1));
    line.connection.pause(at(31_000));
    line.connection.pause(at(35_000));
    assert!(!line.connection.is_reading());
    assert!(line.connection.resume(at(41_000), &TIMEOUTS));
    assert!(line.connection.is_reading());
    line.connection.on_pong(0, at(41_000));
    line.assert_due(60_000, Expiry::Ping(2));
    line.assert_due(70_000, Expiry::Close(CloseCause::HeartbeatTimeout));
}

// Message timeout

const MESSAGE_TIMEOUT: Expiry = Expiry::Close(CloseCause::MessageTimeout);

#[test]
fn there_is_no_timeout_between_messages() {
    let mut line = Line::quiet();
    line.hear_count(1_000, &frame(TEXT, b"{}"), 1);
    assert_eq!(line.deadline(), at(3_600_000));
}

#[test]
fn a_message_has_thirty_seconds_from_its_first_byte() {
    let stream = frame(TEXT, &[b'x'; 100]);
    for first in [1, 2, 6, 50] {
        let mut line = Line::quiet();
        line.hear_count(1_000, &stream[..first], 0);
        // One byte a second does not extend the timeout.
        for (second, byte) in stream[first..].chunks(1).take(29).enumerate() {
            line.hear_count(2_000 + 1_000 * second as u64, byte, 0);
        }
        line.assert_due(31_000, MESSAGE_TIMEOUT);
    }
}

#[test]
fn an_unfinished_control_frame_is_timed_too() {
    let mut line = Line::quiet();
    line.hear_count(1_000, &frame(PING, b"here?")[..4], 0);
    line.assert_due(31_000, MESSAGE_TIMEOUT);
}

#[test]
fn neither_fragments_nor_control_frames_between_them_restart_the_clock() {
    let mut line = Line::quiet();
    line.hear_count(1_000, &frame(TEXT_BEGUN, b"1"), 0);
    line.hear_count(5_000, &frame(CONTINUED, b"2"), 0);
    line.hear_count(10_000, &frame(PING, b""), 1);
    let ping = frame(PING, b"in two pieces");
    line.hear_count(15_000, &ping[..3], 0);
    line.hear_count(20_000, &ping[3..], 1);
    line.hear_count(25_000, &[frame(CONTINUED, b"3"), frame(PONG, b"")].concat(), 1);
    line.hear_count(30_000, &frame(FINISHED, b"4")[..6], 0);
    line.assert_due(31_000, MESSAGE_TIMEOUT);
}

#[test]
fn each_message_has_its_own_clock() {
    let message = frame(TEXT, b"message");
    let mut line = Line::quiet();
    line.hear_count(1_000, &message[..3], 0);
    // The end of one and the beginning of the next come in one piece.
    line.hear_count(30_000, &[&message[3..], &message[..3]].concat(), 1);
    line.hear_count(59_000, &[&message[3..], &message, &message[..1]].concat(), 2);
    line.assert_due(89_000, MESSAGE_TIMEOUT);
    line.hear_count(89_000, &message[1..], 1);
    line.assert_at_rest();
}

#[test]
fn a_control_frame_before_a_message_does_not_start_its_clock() {
    let mut line = Line::quiet();
    let ping = frame(PING, b"");
    line.hear_count(1_000, &ping[..2], 0);
    line.hear_count(20_000, &[&ping[2..], &frame(TEXT, b"message")[..2]].concat(), 1);
    line.assert_due(50_000, MESSAGE_TIMEOUT);
}

#[test]
fn the_clock_of_a_message_stands_while_reading_is_paused() {
    let mut line = Line::quiet();
    line.hear_count(1_000, &frame(TEXT, b"message")[..3], 0);
    line.connection.pause(at(11_000));
    assert_eq!(line.deadline(), at(3_600_000));
    assert_eq!(line.timer(500_000), None);
    line.connection.resume(at(511_000), &TIMEOUTS);
    line.connection.pause(at(512_000));
    line.connection.resume(at(513_000), &TIMEOUTS);
    line.assert_due(532_000, MESSAGE_TIMEOUT);
}

#[test]
fn a_message_that_begins_in_the_piece_that_caused_the_pause_is_timed_from_the_resume() {
    let mut line = Line::quiet();
    line.connection.pause(at(1_000));
    line.hear_count(1_000, &frame(TEXT, b"message")[..3], 0);
    line.connection.resume(at(60_000), &TIMEOUTS);
    line.assert_due(90_000, MESSAGE_TIMEOUT);
}

// Write timeout

const WRITE_TIMEOUT: Expiry = Expiry::Close(CloseCause::WriteTimeout);

#[test]
fn queued_bytes_need_write_progress_within_ten_seconds() {
    let mut line = Line::quiet();
    line.say(1_000, "hello");
    line.say(9_000, "queueing more is no progress");
    line.write(9_500, 0);
    line.assert_due(11_000, WRITE_TIMEOUT);
}

#[test]
fn every_byte_that_drains_restarts_the_write_timeout() {
    let mut line = Line::quiet();
    line.say(1_000, "hello");
    for byte in 1..=6 {
        line.write(1_000 + 9_999 * byte, 1);
        assert_eq!(line.deadline(), at(11_000 + 9_999 * byte));
    }
    line.write(65_000, 1);
    assert_eq!(line.deadline(), at(3_600_000), "nothing waits");
    line.assert_at_rest();
    line.say(2_000_000, "again");
    line.assert_due(2_010_000, WRITE_TIMEOUT);
}

#[test]
fn a_claimant_that_does_not_take_its_101_is_closed() {
    let mut line = Line::accepted();
    line.connection.send_answer(b"101", at(1_000));
    line.connection.wait(at(60_000));
    line.assert_due(11_000, WRITE_TIMEOUT);
}

#[test]
fn a_peer_that_resumes_reading_within_the_linger_gets_a_gapless_prefix_and_the_close() {
    let mut line = Line::quiet();
    line.say(1_000, "one");
    line.say(1_000, "two");
    line.say(1_000, "three");
    line.write(1_000, 7);
    line.assert_due(11_000, WRITE_TIMEOUT);
    line.close(11_000, CloseCause::WriteTimeout);
    assert_eq!(line.timer(11_000), None, "the linger has only begun");
    assert_eq!(line.timer(15_999), None);
    line.write_all(15_999);
    assert!(line.half_close(15_999));
    let expected =
        [(TEXT, b"one".to_vec()), (TEXT, b"two".to_vec()), close_frame(1011, "write timeout")];
    assert_eq!(read(&line.wire), expected);
    line.assert_due(16_000, Expiry::Disconnect);
}

// Closing

const OVERTAKES: CloseCause = CloseCause::HeartbeatTimeout;
const DELIVERS: CloseCause = CloseCause::GraceExpired;

#[test]
fn a_close_is_written_then_half_closed_then_ends_with_the_peer() {
    let mut line = Line::quiet();
    line.close(1_000, OVERTAKES);
    assert!(line.connection.is_closing() && line.connection.is_reading());
    assert!(!line.half_close(1_000), "nothing is written yet");
    let backlog = line.connection.backlog();
    line.write(1_100, backlog - 1);
    assert!(!line.half_close(1_100), "one byte is missing");
    line.write(1_200, 1);
    assert!(line.half_close(1_200));
    assert!(!line.half_close(1_201), "once");
    assert!(!line.connection.is_done(), "the peer still sends");
    line.connection.on_end();
    assert!(line.connection.is_done());
    assert_eq!(read(&line.wire), [close_frame(1011, "heartbeat timeout")]);
    line.assert_at_rest();
}

#[test]
fn the_end_of_the_peer_waits_for_our_close_frame() {
    let mut line = Line::quiet();
    line.say(900, "hello");
    line.close(1_000, DELIVERS);
    line.connection.on_end();
    assert!(!line.connection.is_done(), "it may still read");
    line.write(1_100, 3);
    assert!(!line.half_close(1_100) && !line.connection.is_done());
    line.write_all(1_200);
    assert!(line.half_close(1_200));
    assert!(line.connection.is_done());
    assert_eq!(read(&line.wire), [(TEXT, b"hello".to_vec()), close_frame(1000, "")]);
}

#[test]
fn an_overtaking_close_lingers_five_seconds_in_all() {
    for written in [None, Some(1_000), Some(5_999)] {
        let mut line = Line::quiet();
        // Bytes queued long before the close do not shorten the linger.
        line.say(0, "one that was begun");
        line.write(0, 1);
        line.close(1_000, OVERTAKES);
        if let Some(ms) = written {
            line.write_all(ms);
            assert!(line.half_close(ms));
        }
        line.assert_due(6_000, Expiry::Disconnect);
    }
    // Not even if their write timeout falls into it.
    let mut line = Line::quiet();
    line.say(0, "hello");
    line.close(9_000, OVERTAKES);
    line.assert_due(14_000, Expiry::Disconnect);
}

#[test]
fn a_close_behind_the_backlog_has_thirty_seconds_and_then_the_linger() {
    // Written in time.
    let mut line = Line::quiet();
    line.say(1_000, "hello");
    line.close(1_000, DELIVERS);
    line.write(9_000, 3);
    line.write_all(18_000);
    assert!(line.half_close(18_000));
    line.assert_due(23_000, Expiry::Disconnect);

    // At a trickle.
    let mut line = Line::quiet();
    line.say(1_000, &"x".repeat(100));
    line.close(1_000, DELIVERS);
    for ms in (2_000..31_000).step_by(1_000) {
        line.write(ms, 1);
    }
    line.assert_due(31_000, Expiry::Disconnect);

    // Not at all.
    let mut line = Line::quiet();
    line.say(1_000, "hello");
    line.close(1_000, DELIVERS);
    line.assert_due(11_000, Expiry::Disconnect);
}

#[test]
fn a_delivering_close_without_a_backlog_has_the_usual_linger() {
    let mut line = Line::quiet();
    line.close(1_000, DELIVERS);
    line.assert_due(6_000, Expiry::Disconnect);
}

#[test]
fn the_first_close_wins_and_nothing_follows_it() {
    for (first, expected) in [
        (OVERTAKES, vec![close_frame(1011, "heartbeat timeout")]),
        (DELIVERS, vec![(TEXT, b"hello".to_vec()), close_frame(1000, "")]),
    ] {
        let mut line = Line::quiet();
        line.say(1_000, "hello");
        line.close(1_000, first);
        let deadline = line.deadline();
        line.close(2_000, CloseCause::Shutdown);
        line.connection.close(CloseCause::PeerClosed, &[3, 232], at(2_000), &TIMEOUTS);
        line.say(2_000, "too late");
        line.connection.send_ping(b"beat", &mut line.pool, at(2_000));
        line.connection.send_pong(b"answer", &mut line.pool, at(2_000));
        line.connection.pause(at(2_000));
        assert!(line.connection.is_reading(), "draining is not paused");
        assert_eq!(line.connection.probe(at(2_000)), None);
        assert_eq!(line.connection.on_pong(1, at(2_000)), None);
        assert_eq!(line.deadline(), deadline, "none of it gains time");
        line.write_all(3_000);
        assert_eq!(read(&line.wire), expected);
    }
}

#[test]
fn a_peers_close_is_echoed_as_it_came() {
    for echo in [&b""[..], b"\x03\xe8", b"\x11\x94bye"] {
        let mut line = Line::quiet();
        let heard = line.hear(1_000, &frame(CLOSE, echo));
        assert_eq!(heard, Ok(vec![Incoming::Close(echo.to_vec())]));
        line.connection.close(CloseCause::PeerClosed, echo, at(1_000), &TIMEOUTS);
        line.write_all(1_000);
        assert_eq!(read(&line.wire), [(CLOSE, echo.to_vec())]);
        // Both close frames are sent: only the peer's FIN is missing.
        assert!(line.half_close(1_000));
        line.assert_due(1_500, Expiry::Disconnect);
    }
}

#[test]
fn a_close_ends_a_pause() {
    let mut line = Line::quiet();
    line.hear_count(1_000, &frame(TEXT, &[b'x'; 1_000])[..500], 0);
    line.connection.pause(at(1_000));
    line.close(2_000, OVERTAKES);
    assert!(line.connection.is_reading(), "its input is drained");
    assert!(!line.connection.resume(at(3_000), &TIMEOUTS));
    line.assert_due(7_000, Expiry::Disconnect);
}

#[test]
fn a_peer_that_answers_the_close_does_not_linger() {
    let answer = frame(0x88, &1011_u16.to_be_bytes());
    // The text of what is discarded is not judged.
    let before = frame(TEXT, b"on its way when we closed, \xff");
    // Cut where a message was under way, or between two.
    for begun in [0, 3, before.len()] {
        let mut line = Line::quiet();
        line.hear(1_000, &before[..begun]).expect("legal");
        line.close(2_000, OVERTAKES);
        line.write_all(2_000);
        line.connection.half_close(at(2_000), &TIMEOUTS);
        line.hear(3_000, &before[begun..]).expect("drained");
        line.hear(3_000, &answer[..4]).expect("drained");
        assert_eq!(line.connection.deadline(&TIMEOUTS), at(7_000), "not answered yet");
        line.hear(3_000, &answer[4..]).expect("drained");
        line.assert_due(3_500, Expiry::Disconnect);
    }
}

#[test]
fn an_answer_does_not_end_what_is_not_written_yet() {
    let mut line = Line::quiet();
    line.close(1_000, OVERTAKES);
    line.hear(2_000, &frame(0x88, b"")).expect("drained");
    assert_eq!(line.connection.deadline(&TIMEOUTS), at(6_000));
    line.write_all(3_000);
    assert!(line.connection.half_close(at(3_000), &TIMEOUTS));
    line.assert_due(3_500, Expiry::Disconnect);
}

#[test]
fn garbage_after_our_close_is_no_answer() {
    let mut line = Line::quiet();
    line.close(1_000, OVERTAKES);
    line.write_all(1_000);
    assert!(line.half_close(1_000));
    line.hear(2_000, &[0xff; 40]).expect("drained");
    line.hear(2_000, &frame(0x88, b"")).expect("drained");
    assert_eq!(line.connection.held(), 0);
    line.assert_due(6_000, Expiry::Disconnect);
}

#[test]
fn a_close_frame_inside_garbage_or_a_message_is_no_answer() {
    let answer = frame(CLOSE, b"");
    for (before, after) in [
        // In the payload of a message whose first half came before our close.
        (&frame(TEXT, &[&[b'x'; 10], &answer[..], &[b'x'; 10]].concat())[..16], &answer[..]),
        // Behind a frame that breaks the rules.
        (b"", &[&[TEXT, 0], &answer[..]].concat()),
    ] {
        let mut line = Line::quiet();
        line.hear_count(1_000, before, 0);
        line.close(2_000, OVERTAKES);
        line.write_all(2_000);
        assert!(line.half_close(2_000));
        line.hear_count(3_000, after, 0);
        line.assert_due(7_000, Expiry::Disconnect);
    }
}

#[test]
fn an_answer_to_a_close_that_still_waits_does_not_cut_off_the_backlog() {
    let mut line = Line::quiet();
    line.say(1_000, "hello");
    line.close(1_000, DELIVERS);
    line.hear_count(2_000, &frame(CLOSE, b""), 0);
    assert_eq!(line.deadline(), at(11_000));
    line.write_all(10_000);
    assert!(line.half_close(10_000));
    assert_eq!(read(&line.wire), [(TEXT, b"hello".to_vec()), close_frame(1000, "")]);
}

#[test]
fn shedding_a_close_that_waits_replaces_it_and_what_it_waits_behind() {
    for written in [0, 1, 6, 7, 8] {
        let mut line = Line::quiet();
        line.say(1_000, "begun");
        line.say(1_000, "unbegun");
        line.close(1_000, DELIVERS);
        line.write(1_000, written);
        assert!(line.connection.shed(at(2_000), &TIMEOUTS));
        assert!(!line.connection.shed(at(2_000), &TIMEOUTS), "there is no more to give");
        assert!(line.deadline() <= at(7_000), "a linger at most");
        line.write_all(3_000);
        assert!(line.half_close(3_000));
        let mut expected = vec![(TEXT, b"begun".to_vec()), (TEXT, b"unbegun".to_vec())];
        expected.truncate(written.div_ceil(7));
        expected.push(close_frame(1011, "relay out of buffer memory"));
        assert_eq!(read(&line.wire), expected, "{written} bytes written before");
    }
}

#[test]
fn without_messages_ahead_of_the_close_there_is_nothing_to_shed() {
    let mut line = Line::quiet();
    line.say(1_000, "open");
    assert!(!line.connection.shed(at(1_000), &TIMEOUTS), "not closing");
    line.write(1_000, 1);
    line.close(1_000, OVERTAKES);
    assert!(!line.connection.shed(at(1_000), &TIMEOUTS), "they were dropped");
    line.write_all(1_000);
    assert!(!line.connection.shed(at(1_000), &TIMEOUTS), "all is written");
    assert_eq!(
        read(&line.wire),
        [(TEXT, b"open".to_vec()), close_frame(1011, "heartbeat timeout")]
    );

    // No other close frame follows one that is begun.
    let mut line = Line::quiet();
    line.say(1_000, "hello");
    line.close(1_000, DELIVERS);
    line.write(1_000, line.connection.backlog() - 1);
    assert!(!line.connection.shed(at(1_000), &TIMEOUTS));
    line.write_all(1_000);
    assert_eq!(read(&line.wire), [(TEXT, b"hello".to_vec()), close_frame(1000, "")]);
}

#[test]
fn input_while_closing_is_thrown_away_unread_and_bounded() {
    let mut line = Line::quiet();
    line.close(1_000, OVERTAKES);
    let noise = vec![0xff; DRAIN_MAX / 4];
    for _ in 0..4 {
        line.hear_count(1_100, &noise, 0);
        assert!(!line.connection.is_done());
        line.assert_holds(line.connection.backlog());
    }
    line.hear_count(1_200, &[0xff], 0);
    assert!(line.connection.is_done(), "the peer sends on and on");
}

#[test]
fn a_violation_ends_the_rest_of_the_piece() {
    let mut line = Line::quiet();
    let mut piece = &[frame(TEXT, b"1"), vec![TEXT, 0], frame(TEXT, b"2")].concat()[..];
    let mut next = |line: &mut Line, ms| {
        line.connection.next_incoming(
            &mut piece,
            &mut line.codec,
            &mut Work::unbounded(),
            at(ms),
            &TIMEOUTS,
        )
    };
    let one = next(&mut line, 1).expect("legal").expect("whole");
    assert!(matches!(one, Incoming::Message(message) if Message::bytes(&message) == b"1"));
    let cause = next(&mut line, 1).expect_err("unmasked");
    assert_eq!(cause, CloseCause::ProtocolError);
    line.close(1, cause);
    assert_eq!(next(&mut line, 1), Ok(None));
    line.write_all(1);
    assert_eq!(read(&line.wire), [close_frame(1002, "protocol error")]);
}

// Random connections

/// Drives one connection with random events until its disconnect.
fn live(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut line = Line::accepted();
    let stream = [
        frame(TEXT, b"message"),
        frame(TEXT_BEGUN, b"frag"),
        frame(PING, b"here?"),
        frame(FINISHED, b"ments"),
    ]
    .concat();
    let (mut ms, mut heard, mut pinged, mut closed) = (0, 0, 0, None);
    for step in 0.. {
        let context = format!("seed {seed}, step {step}, {ms} ms");
        assert!(step < 3_000, "{context}: it never ends");
        let open = line.connection.is_open();
        match rng.random_range(0..12) {
            0 if line.connection.is_head() => match rng.random_range(0..4) {
                0 => line.connection.refuse(b"HTTP/1.1 4xx", at(ms), &TIMEOUTS),
                1 => line.connection.wait(at(ms + 10_000)),
                _ => line.connection.open(at(ms + rng.random_range(1..30_000)), at(ms)),
            },
            1 if matches!(line.connection.state, State::Waiting { .. }) => {
                line.connection.open(at(ms + rng.random_range(1..30_000)), at(ms));
            }
            2 if open => line.say(ms, &"x".repeat(rng.random_range(0..200))),
            3 if open => {
                line.connection.probe(at(ms));
            }
            4 if open => line.connection.pause(at(ms)),
            5 => {
                line.connection.resume(at(ms), &TIMEOUTS);
            }
            6..8 if open && line.connection.is_reading() => {
                // Where the stream ends it begins again.
                let end = (heard + rng.random_range(0..30)).min(stream.len());
                line.hear(ms, &stream[heard..end]).expect("legal frames");
                heard = end % stream.len();
            }
            8..10 => line.write(ms, rng.random_range(0..=line.connection.backlog())),
            10 if open && rng.random_bool(0.03) => {
                let cause = if rng.random_bool(0.5) { OVERTAKES } else { DELIVERS };
                line.close(ms, cause);
                closed = Some(cause);
            }
            11 if line.connection.is_closing() && rng.random_bool(0.1) => line.connection.on_end(),
            _ => {
                let ahead = line.deadline().since(at(ms)).as_micros().div_ceil(1000) as u64;
                ms += match rng.random_range(0..10) {
                    0 => ahead + rng.random_range(0..100_000),
                    1..3 => ahead,
                    _ => rng.random_range(0..=ahead.min(4_000)),
                };
                if rng.random_bool(0.8) && line.connection.is_reading() {
                    line.connection.on_pong(pinged, at(ms));
                }
            }
        }
        line.half_close(ms);
        while let Some(expiry) = line.timer(ms) {
            match expiry {
                Expiry::Head => line.connection.refuse(b"HTTP/1.1 4xx", at(ms), &TIMEOUTS),
                Expiry::Claim => line.connection.open(at(ms + 1), at(ms)),
                Expiry::Ping(sequence) => {
                    pinged = sequence;
                    line.connection.send_ping(&sequence.to_be_bytes(), &mut line.pool, at(ms));
                }
                Expiry::Close(cause) => {
                    assert_eq!(closed.replace(cause), None, "{context}: closed twice");
                    line.close(ms, cause);
                }
                Expiry::Disconnect => {
                    assert!(line.connection.is_closing(), "{context}");
                    return;
                }
            }
        }
        assert!(line.deadline() > at(ms), "{context}: {:?}", line.connection);
        let (paused, held) = (!line.connection.is_reading(), line.connection.held());
        assert!(held > 0 || paused || line.connection.inbound.is_none(), "{context}");
        assert_eq!(line.connection.outbox.is_none(), line.connection.backlog() == 0, "{context}");
        if line.connection.is_done() {
            match closed {
                None => assert_eq!(line.wire, b"HTTP/1.1 4xx", "{context}"),
                Some(_) => {
                    let seen = read(&line.wire);
                    let close = seen.iter().position(|(first, _)| *first == CLOSE);
                    assert_eq!(close, Some(seen.len() - 1), "{context}: one close, the last frame");
                }
            }
            return;
        }
    }
}

#[test]
fn random_connections_always_have_a_deadline_and_end() {
    (0..2_000).for_each(live);
}

#[test]
fn a_closing_connection_that_is_shed_loses_its_input_before_its_close() {
    let mut line = Line::quiet();
    line.hear_count(1_000, &frame(TEXT, &[b'x'; 1_000])[..500], 0);
    line.close(2_000, OVERTAKES);
    let close = line.connection.backlog();
    assert!(line.connection.held() > close);
    assert!(line.connection.shed(at(2_000), &TIMEOUTS));
    assert_eq!(line.connection.backlog(), close);
    line.assert_holds(close);
}

#[test]
fn an_open_connection_knows_its_age_and_its_last_round_trip() {
    let mut line = Line::accepted();
    assert_eq!(line.connection.summary(at(1_000)), None, "not open yet");
    // Two hundredths before the wrap.
    let opened = 10 * (1 << 32) - 20;
    line.connection.open(at(opened + 30_000), at(opened));
    let summary = |age, round_trip: Option<u64>| {
        let round_trip = round_trip.map(Duration::from_millis);
        Some(ConnectionSummary { age: Duration::from_millis(age), round_trip })
    };
    assert_eq!(line.connection.summary(at(opened + 1_239)), summary(1_230, None));
    let due = at(opened + 30_000);
    assert_eq!(line.connection.handle_timeout(due, &TIMEOUTS), Some(Expiry::Ping(1)));
    line.connection.on_pong(1, at(opened + 30_042));
    assert_eq!(line.connection.summary(at(opened + 40_000)), summary(40_000, Some(42)));
    line.connection.close(CloseCause::Shutdown, &[], at(opened + 50_000), &TIMEOUTS);
    assert_eq!(line.connection.summary(at(opened + 50_000)), None);
}

#[test]
fn a_tls_handshake_without_write_progress_expires_as_a_late_head() {
    let timeouts = Timeouts { write: Duration::from_millis(400), ..TIMEOUTS };
    let mut connection = Connection::new(at(0), &timeouts);
    connection.on_transport_buffered(TransportBuffered { unread: 0, unsent: 3000 }, at(100));
    assert_eq!(connection.held(), 3000);
    assert_eq!(connection.deadline(&timeouts), at(500));
    connection.on_transport_buffered(TransportBuffered { unread: 70, unsent: 2000 }, at(300));
    assert_eq!((connection.held(), connection.deadline(&timeouts)), (2070, at(700)));
    assert_eq!(connection.handle_timeout(at(699), &timeouts), None);
    assert_eq!(connection.handle_timeout(at(700), &timeouts), Some(Expiry::Head));
    connection.on_transport_buffered(TransportBuffered::default(), at(710));
    assert_eq!((connection.held(), connection.deadline(&timeouts)), (0, at(5000)));
}
