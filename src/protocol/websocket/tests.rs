//! WebSocket: frames in every split, the rules of RFC 6455, and the memory of a message.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, RngExt as _, SeedableRng as _};

use super::*;

const MAX: usize = 256 * 1024;
const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

// First bytes of frames.
const FIN: u8 = 0x80;
const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = FIN | 0x8;
const PING: u8 = FIN | 0x9;
const PONG: u8 = FIN | 0xa;

/// The encoding of a frame's length.
#[derive(Clone, Copy, Debug)]
enum Spelling {
    Shortest,
    Bits16,
    Bits64,
}

/// The header of a client's frame, masked with [`KEY`].
fn header(first: u8, len: u64, spelling: Spelling) -> Vec<u8> {
    let mut bytes = vec![first];
    match (spelling, len) {
        (Spelling::Shortest, 0..=125) => bytes.push(0x80 | len as u8),
        (Spelling::Bits16, 0..=0xffff) | (Spelling::Shortest, 126..=0xffff) => {
            bytes.push(0x80 | 126);
            bytes.extend((len as u16).to_be_bytes());
        }
        _ => {
            bytes.push(0x80 | 127);
            bytes.extend(len.to_be_bytes());
        }
    }
    bytes.extend(KEY);
    bytes
}

/// A client's frame.
fn frame(first: u8, payload: impl AsRef<[u8]>) -> Vec<u8> {
    spelled(first, payload, Spelling::Shortest)
}

fn spelled(first: u8, payload: impl AsRef<[u8]>, spelling: Spelling) -> Vec<u8> {
    let payload = payload.as_ref();
    let mut bytes = header(first, payload.len() as u64, spelling);
    bytes.extend(payload.iter().zip(KEY.iter().cycle()).map(|(byte, key)| byte ^ key));
    bytes
}

fn close(code: u16, reason: impl AsRef<[u8]>) -> Vec<u8> {
    frame(CLOSE, [&code.to_be_bytes()[..], reason.as_ref()].concat())
}

fn text(payload: &str) -> Incoming {
    Incoming::Message(Message { payload: payload.into(), is_text: true })
}

fn binary(payload: &[u8]) -> Incoming {
    Incoming::Message(Message { payload: payload.to_vec(), is_text: false })
}

fn ping(payload: &'static [u8]) -> Incoming {
    Incoming::Ping(payload.into())
}

fn pong(payload: &'static [u8]) -> Incoming {
    Incoming::Pong(payload.into())
}

/// The decoded items of a stream, and the cause that ended it.
type Received = (Vec<Incoming>, Option<CloseCause>);

/// The next item, used: a message has been checked.
fn next(
    codec: &mut Codec,
    reassembly: &mut Reassembly,
    input: &mut &[u8],
) -> Result<Option<Incoming>, CloseCause> {
    let incoming = codec.next(reassembly, input, &mut Work::unbounded())?;
    if let Some(Incoming::Message(message)) = &incoming {
        message.text()?;
    }
    Ok(incoming)
}

/// The receiving end of one connection.
struct Receiver {
    codec: Codec,
    reassembly: Reassembly,
    received: Received,
}

impl Receiver {
    fn new() -> Self {
        Self {
            codec: Codec::new(MAX),
            reassembly: Reassembly::default(),
            received: (Vec::new(), None),
        }
    }

    /// Hands in a piece of the stream.
    fn receive(&mut self, mut piece: &[u8]) {
        while self.received.1.is_none() {
            match next(&mut self.codec, &mut self.reassembly, &mut piece) {
                Ok(Some(incoming)) => self.received.0.push(incoming),
                Ok(None) => {
                    assert!(piece.is_empty(), "None means used up");
                    break;
                }
                Err(cause) => self.received.1 = Some(cause),
            }
            self.assert_accounts_for_its_memory();
        }
    }

    fn assert_accounts_for_its_memory(&self) {
        let held = self.reassembly.held();
        assert!(
            held >= self.reassembly.frame.capacity(),
            "holds more than the {held} bytes reported"
        );
        assert_eq!(self.reassembly.is_empty(), held == 0, "at rest means nothing is held");
    }
}

fn whole(stream: &[u8]) -> Received {
    let mut receiver = Receiver::new();
    receiver.receive(stream);
    receiver.received
}

fn byte_by_byte(stream: &[u8]) -> Received {
    let mut receiver = Receiver::new();
    stream.chunks(1).for_each(|piece| receiver.receive(piece));
    receiver.received
}

/// Asserts the result of both ways to split the stream.
#[track_caller]
fn assert_heard(stream: &[u8], incoming: Vec<Incoming>, cause: Option<CloseCause>, what: &str) {
    let expected = (incoming, cause);
    assert_eq!(whole(stream), expected, "{what}, in one piece");
    assert_eq!(byte_by_byte(stream), expected, "{what}, byte by byte");
}

// What a peer may send

#[test]
fn messages_and_control_frames() {
    for (stream, incoming) in [
        (frame(FIN | TEXT, "{}"), text("{}")),
        (frame(FIN | TEXT, ""), text("")),
        (frame(FIN | TEXT, "grüße 🦀"), text("grüße 🦀")),
        (frame(FIN | BINARY, b"{}"), binary(b"{}")),
        (frame(FIN | BINARY, b"\xff\x00"), binary(b"\xff\x00")),
        (frame(PING, "here?"), ping(b"here?")),
        (frame(PING, ""), ping(b"")),
        (frame(PONG, "here"), pong(b"here")),
        (frame(PING, [7; 125]), ping(&[7; 125])),
    ] {
        let what = format!("{incoming:?}");
        assert_heard(&stream, vec![incoming], None, &what);
    }
}

#[test]
fn text_and_bytes_of_a_message() {
    let (received, _) = whole(&[frame(FIN | TEXT, "1"), frame(FIN | BINARY, "2")].concat());
    let [Incoming::Message(one), Incoming::Message(two)] = &received[..] else {
        panic!("{received:?}")
    };
    assert_eq!((one.is_text(), one.text(), one.bytes()), (true, Ok(Some("1")), &b"1"[..]));
    assert_eq!((two.is_text(), two.text(), two.bytes()), (false, Ok(Some("2")), &b"2"[..]));
    let (received, _) = whole(&frame(FIN | BINARY, [0xff]));
    let [Incoming::Message(message)] = &received[..] else { panic!("{received:?}") };
    assert_eq!((message.text(), message.bytes()), (Ok(None), &[0xff][..]), "need not be UTF-8");
}

#[test]
fn several_frames_in_one_piece_come_out_in_order() {
    let stream = [
        frame(FIN | TEXT, "1"),
        frame(PING, "2"),
        frame(FIN | BINARY, "3"),
        frame(PONG, "4"),
        frame(FIN | TEXT, "5"),
    ];
    let incoming = vec![text("1"), ping(b"2"), binary(b"3"), pong(b"4"), text("5")];
    assert_heard(&stream.concat(), incoming, None, "five frames");
}

#[test]
fn lengths_need_not_be_minimal() {
    for spelling in [Spelling::Bits16, Spelling::Bits64] {
        for (stream, incoming) in [
            (spelled(FIN | TEXT, "short", spelling), text("short")),
            (spelled(FIN | TEXT, "", spelling), text("")),
            (spelled(PING, "short", spelling), ping(b"short")),
            (spelled(CLOSE, 1000_u16.to_be_bytes(), spelling), Incoming::Close(vec![3, 232])),
        ] {
            assert_heard(&stream, vec![incoming], None, &format!("{spelling:?}"));
        }
    }
    let fragments = [
        spelled(TEXT, "ab", Spelling::Bits64),
        spelled(PING, "", Spelling::Bits16),
        spelled(FIN | CONTINUATION, "cd", Spelling::Bits16),
    ];
    assert_heard(&fragments.concat(), vec![ping(b""), text("abcd")], None, "fragments");
}

#[test]
fn every_length_around_the_borders_of_the_header_forms() {
    for len in [0, 1, 124, 125, 126, 127, 128, 65_534, 65_535, 65_536, MAX - 1, MAX] {
        let payload = "x".repeat(len);
        assert_heard(&frame(FIN | TEXT, &payload), vec![text(&payload)], None, &len.to_string());
    }
}

#[test]
fn fragments_become_one_message() {
    let stream = [
        frame(TEXT, "one "),
        frame(CONTINUATION, ""),
        frame(CONTINUATION, "two "),
        frame(FIN | CONTINUATION, "three"),
        frame(BINARY, ""),
        frame(FIN | CONTINUATION, [0xff]),
        frame(TEXT, ""),
        frame(FIN | CONTINUATION, ""),
    ];
    let incoming = vec![text("one two three"), binary(&[0xff]), text("")];
    assert_heard(&stream.concat(), incoming, None, "three fragmented messages");
}

#[test]
fn control_frames_may_come_between_fragments() {
    let stream = [
        frame(PING, "0"),
        frame(TEXT, "a"),
        frame(PING, "1"),
        frame(PONG, "2"),
        frame(CONTINUATION, "b"),
        frame(PING, "3"),
        frame(FIN | CONTINUATION, "c"),
        frame(PONG, "4"),
    ];
    let incoming = vec![ping(b"0"), ping(b"1"), pong(b"2"), ping(b"3"), text("abc"), pong(b"4")];
    assert_heard(&stream.concat(), incoming, None, "interleaved");
    let closed = [frame(TEXT, "a"), close(1001, "bye")].concat();
    assert_heard(&closed, vec![Incoming::Close(b"\x03\xe9bye".to_vec())], None, "and a close");
}

#[test]
fn a_character_may_be_cut_by_fragments() {
    let crab = "🦀".as_bytes();
    for at in 0..=crab.len() {
        let stream = [frame(TEXT, &crab[..at]), frame(FIN | CONTINUATION, &crab[at..])].concat();
        assert_heard(&stream, vec![text("🦀")], None, &format!("cut at {at}"));
    }
    let singly: Vec<u8> = [
        frame(TEXT, &crab[..1]),
        frame(CONTINUATION, &crab[1..2]),
        frame(PING, ""),
        frame(CONTINUATION, &crab[2..3]),
        frame(FIN | CONTINUATION, &crab[3..]),
    ]
    .concat();
    assert_heard(&singly, vec![ping(b""), text("🦀")], None, "one byte each");
}

// Close frames

#[test]
fn every_valid_close_is_to_be_echoed_as_it_came() {
    for code in (1000..=1003_u16).chain(1007..=1014).chain([3000, 3999, 4000, 4404, 4999]) {
        for reason in ["", "bye", "grüße"] {
            let payload = [&code.to_be_bytes()[..], reason.as_bytes()].concat();
            let what = format!("{code} {reason}");
            assert_heard(&close(code, reason), vec![Incoming::Close(payload)], None, &what);
        }
    }
    let longest = [&[3, 232][..], &[b'x'; 123]].concat();
    assert_heard(&frame(CLOSE, &longest), vec![Incoming::Close(longest)], None, "125 bytes");
}

#[test]
fn an_empty_close_is_to_be_echoed_empty() {
    assert_heard(&frame(CLOSE, ""), vec![Incoming::Close(Vec::new())], None, "empty");
}

#[test]
fn close_codes_that_may_not_be_sent() {
    let all = [0..=999, 1004..=1006, 1015..=2999, 5000..=u16::MAX];
    for code in all.into_iter().flatten() {
        let received = whole(&close(code, ""));
        assert_eq!(received, (vec![], Some(CloseCause::ProtocolError)), "{code}");
    }
}

#[test]
fn malformed_close_frames() {
    for (stream, cause, what) in [
        (frame(CLOSE, [3]), CloseCause::ProtocolError, "half a code"),
        (close(1000, b"\xff"), CloseCause::InvalidUtf8, "reason not UTF-8"),
        (close(1000, &"🦀".as_bytes()[..3]), CloseCause::InvalidUtf8, "reason cut in a character"),
        (close(1005, b"\xff"), CloseCause::ProtocolError, "bad code before bad reason"),
    ] {
        assert_heard(&stream, vec![], Some(cause), what);
    }
}

// Violations

#[test]
fn a_header_that_breaks_the_rules_is_refused_before_its_payload_comes() {
    use CloseCause::{MessageTooBig, ProtocolError};
    let started = || frame(TEXT, "begun");
    let head = |first, len| header(first, len, Spelling::Shortest);
    let mut cases: Vec<(String, Vec<u8>, CloseCause)> = vec![
        ("unmasked text".into(), vec![FIN | TEXT, 5], ProtocolError),
        ("unmasked empty text".into(), vec![FIN | TEXT, 0], ProtocolError),
        ("unmasked ping".into(), vec![PING, 0], ProtocolError),
        ("unmasked close".into(), vec![CLOSE, 2], ProtocolError),
        ("unmasked long text".into(), vec![FIN | TEXT, 126, 1, 0], ProtocolError),
        ("unmasked continuation".into(), [started(), vec![FIN, 1]].concat(), ProtocolError),
        ("ping of 126 bytes".into(), head(PING, 126), ProtocolError),
        ("pong of 64 KiB".into(), head(PONG, 65_536), ProtocolError),
        ("close of 126 bytes".into(), head(CLOSE, 126), ProtocolError),
        ("endless ping".into(), head(PING, u64::MAX), ProtocolError),
        ("fragmented ping".into(), head(0x9, 1), ProtocolError),
        ("fragmented pong".into(), head(0xa, 0), ProtocolError),
        ("fragmented close".into(), head(0x8, 2), ProtocolError),
        ("continuation of nothing".into(), head(CONTINUATION, 1), ProtocolError),
        ("last continuation of nothing".into(), head(FIN, 1), ProtocolError),
        (
            "continuation after a whole message".into(),
            [frame(FIN | TEXT, ""), head(FIN, 1)].concat(),
            ProtocolError,
        ),
        (
            "continuation after the last fragment".into(),
            [started(), frame(FIN, ""), head(FIN, 1)].concat(),
            ProtocolError,
        ),
        ("text in a text".into(), [started(), head(FIN | TEXT, 1)].concat(), ProtocolError),
        ("text begun in a text".into(), [started(), head(TEXT, 1)].concat(), ProtocolError),
        ("binary in a text".into(), [started(), head(FIN | BINARY, 1)].concat(), ProtocolError),
        ("one byte too many".into(), head(FIN | TEXT, MAX as u64 + 1), MessageTooBig),
        ("the same in a fragment".into(), head(BINARY, MAX as u64 + 1), MessageTooBig),
        ("2^62 bytes".into(), head(FIN | TEXT, 1 << 62), MessageTooBig),
        ("2^64 - 1 bytes".into(), head(FIN | BINARY, u64::MAX), ProtocolError),
        (
            "one byte too many in all".into(),
            [started(), head(FIN, MAX as u64 - 4)].concat(),
            MessageTooBig,
        ),
        (
            "a sum that overflows".into(),
            [started(), head(CONTINUATION, i64::MAX as u64)].concat(),
            MessageTooBig,
        ),
    ];
    for opcode in (0x3..=0x7).chain(0xb..=0xf) {
        cases.push((format!("opcode {opcode:x}"), head(FIN | opcode, 1), ProtocolError));
        cases.push((format!("opcode {opcode:x}, no FIN"), head(opcode, 1), ProtocolError));
        let within = [started(), head(FIN | opcode, 1)].concat();
        cases.push((format!("opcode {opcode:x} in a text"), within, ProtocolError));
    }
    for reserved in [0x40, 0x20, 0x10, 0x70] {
        for first in [FIN | TEXT, BINARY, PING, PONG, CLOSE] {
            let what = format!("reserved bits {reserved:x} on {first:x}");
            cases.push((what, head(first | reserved, 1), ProtocolError));
        }
        let within = [started(), head(FIN | reserved, 1)].concat();
        cases.push((
            format!("reserved bits {reserved:x} on a continuation"),
            within,
            ProtocolError,
        ));
    }
    for (what, stream, cause) in cases {
        assert_eq!(whole(&stream).1, Some(cause), "{what}, in one piece");
        assert_eq!(byte_by_byte(&stream).1, Some(cause), "{what}, byte by byte");
    }
}

#[test]
fn a_violation_in_the_first_two_bytes_waits_for_no_more() {
    let started = || frame(TEXT, "begun");
    // Lengths that have bytes of their own, which never come.
    for len in [0x80, 0x80 | 126, 0x80 | 127] {
        for first in [FIN | TEXT | 0x40, BINARY | 0x20, PING | 0x10, 0x9, 0x8, FIN | 0x3, FIN | 0xb]
            .into_iter()
            .chain([CONTINUATION, FIN | CONTINUATION])
        {
            let cause = Some(CloseCause::ProtocolError);
            assert_eq!(whole(&[first]).1, cause, "{first:x} alone");
            assert_eq!(whole(&[first, len]).1, cause, "{first:x} {len:x}");
            assert_eq!(byte_by_byte(&[first, len]).1, cause, "{first:x} {len:x}");
        }
        for first in [TEXT, FIN | BINARY, FIN | TEXT | 0x10] {
            let stream = [started(), vec![first]].concat();
            assert_eq!(whole(&stream).1, Some(CloseCause::ProtocolError), "{first:x} in a text");
        }
        // Nothing is wrong yet.
        for first in [TEXT, FIN | BINARY, PING, CLOSE] {
            assert_eq!(whole(&[first, len]).1, None, "{first:x} {len:x}");
        }
    }
    for unmasked in [0, 5, 126, 127] {
        let cause = Some(CloseCause::ProtocolError);
        assert_eq!(whole(&[FIN | TEXT, unmasked]).1, cause, "unmasked, {unmasked}");
        assert_eq!(byte_by_byte(&[PING, unmasked]).1, cause, "unmasked ping, {unmasked}");
    }
}

#[test]
fn text_that_is_not_utf8() {
    let crab = "🦀".as_bytes();
    for (what, stream) in [
        ("a bad byte", frame(FIN | TEXT, b"ab\xffcd")),
        ("a character cut at the end", frame(FIN | TEXT, &crab[..3])),
        ("an overlong slash", frame(FIN | TEXT, b"\xc0\xaf")),
        ("a surrogate", frame(FIN | TEXT, b"\xed\xa0\x80")),
        ("beyond U+10FFFF", frame(FIN | TEXT, b"\xf4\x90\x80\x80")),
        (
            "a character cut by the end of the fragments",
            [frame(TEXT, "ok"), frame(FIN, &crab[..2])].concat(),
        ),
        (
            "a character that the next fragment does not finish",
            [frame(TEXT, &crab[..2]), frame(FIN, "ab")].concat(),
        ),
        (
            "a bad byte after a character across fragments",
            [frame(TEXT, &crab[..2]), frame(FIN, [&crab[2..], b"\xff"].concat())].concat(),
        ),
        (
            "the same, with an empty last fragment",
            [frame(TEXT, &crab[..2]), frame(CONTINUATION, ""), frame(FIN, "")].concat(),
        ),
    ] {
        assert_heard(&stream, vec![], Some(CloseCause::InvalidUtf8), what);
    }
}

#[test]
fn what_came_before_a_violation_is_delivered() {
    let stream = [frame(FIN | TEXT, "1"), frame(PING, "2"), vec![FIN | TEXT, 0]].concat();
    let incoming = vec![text("1"), ping(b"2")];
    assert_heard(&stream, incoming, Some(CloseCause::ProtocolError), "two, then a violation");
}

#[test]
fn the_limit_counts_the_message_not_its_frames() {
    let half = "x".repeat(MAX / 2);
    let exact = [frame(TEXT, &half), frame(PING, ""), frame(FIN, &half)].concat();
    assert_heard(&exact, vec![ping(b""), text(&half.repeat(2))], None, "exactly the limit");
    let over = [frame(TEXT, &half), frame(CONTINUATION, &half), header(FIN, 1, Spelling::Shortest)];
    assert_eq!(whole(&over.concat()).1, Some(CloseCause::MessageTooBig));
    // Two largest messages in a row are two messages.
    let again = [exact.clone(), exact].concat();
    assert_eq!(whole(&again).0.len(), 4);
}

#[test]
fn a_violation_on_one_connection_leaves_the_others_alone() {
    let mut codec = Codec::new(MAX);
    let crab = "🦀".as_bytes();
    let mut healthy = Reassembly::default();
    let mut receive =
        |reassembly: &mut Reassembly, bytes: &[u8]| next(&mut codec, reassembly, &mut &*bytes);
    assert_eq!(receive(&mut healthy, &frame(TEXT, &crab[..2])), Ok(None));
    for bad in [
        frame(FIN | TEXT, [0xff]),
        frame(FIN | CONTINUATION, ""),
        [frame(TEXT, "x"), frame(FIN, [0xff])].concat(),
        close(999, ""),
        vec![0xff; 40],
    ] {
        receive(&mut Reassembly::default(), &bad).expect_err("a violation");
        let fine = receive(&mut Reassembly::default(), &frame(FIN | TEXT, "fine"));
        assert_eq!(fine, Ok(Some(text("fine"))));
        assert_eq!(receive(&mut healthy, &frame(PING, "1")), Ok(Some(ping(b"1"))));
    }
    assert_eq!(receive(&mut healthy, &frame(FIN, &crab[2..])), Ok(Some(text("🦀"))));
}

// Memory

#[test]
fn a_declared_length_allocates_nothing() {
    for len in [1, 125, 65_536, MAX as u64] {
        for first in [FIN | TEXT, BINARY] {
            let mut receiver = Receiver::new();
            receiver.receive(&header(first, len, Spelling::Bits64));
            assert_eq!(receiver.received, (vec![], None), "{len} bytes are allowed");
            assert!(
                receiver.reassembly.held() <= 16,
                "{} held for a header",
                receiver.reassembly.held()
            );
        }
    }
    let mut receiver = Receiver::new();
    receiver.receive(&header(FIN | TEXT, 1 << 62, Spelling::Bits64));
    assert_eq!(receiver.received.1, Some(CloseCause::MessageTooBig));
    assert!(
        receiver.reassembly.held() <= 16,
        "{} held for a refused header",
        receiver.reassembly.held()
    );
}

#[test]
fn memory_follows_what_has_come_and_ends_with_the_message() {
    let payload = vec![b'x'; MAX];
    let mut receiver = Receiver::new();
    let stream = frame(FIN | TEXT, &payload);
    let mut come = 0;
    for piece in stream.chunks(1000) {
        receiver.receive(piece);
        come += piece.len();
        let held = receiver.reassembly.held();
        assert!(held <= 2 * come, "{held} held of {come} that came");
    }
    assert_eq!(receiver.received.0.len(), 1);
    assert_eq!(receiver.reassembly.held(), 0);

    let half = &payload[..MAX / 2];
    for fragment in [frame(BINARY, half), frame(PING, ""), frame(FIN, half)] {
        fragment.chunks(1000).for_each(|piece| receiver.receive(piece));
        assert!(receiver.reassembly.held() <= 4 * MAX, "{} held", receiver.reassembly.held());
    }
    assert_eq!(receiver.received.1, None);
    assert_eq!(receiver.reassembly.held(), 0);
}

#[test]
fn a_control_frame_between_messages_leaves_nothing_behind() {
    let mut receiver = Receiver::new();
    for control in [frame(PING, "x"), frame(PONG, ""), frame(CLOSE, "")] {
        receiver.receive(&control[..3]);
        assert!(!receiver.reassembly.is_empty());
        receiver.receive(&control[3..]);
        assert!(receiver.reassembly.is_empty());
    }
    assert_eq!(receiver.received.0.len(), 3);
}

// Random streams, cut at random

/// A stream of frames, its decoded items, and the violation it ends with, if any.
fn random_stream(rng: &mut StdRng) -> (Vec<u8>, Received) {
    let spellings = [Spelling::Shortest, Spelling::Shortest, Spelling::Bits16, Spelling::Bits64];
    let (mut stream, mut incoming) = (Vec::new(), Vec::new());
    let spelled = |first, payload: &[u8], rng: &mut StdRng| {
        spelled(first, payload, *spellings.choose(rng).expect("not empty"))
    };
    for _ in 0..rng.random_range(0..12) {
        let len = match rng.random_range(0..4) {
            0 => rng.random_range(0..4),
            1 => rng.random_range(120..132),
            2 => rng.random_range(0..3_000),
            _ => rng.random_range(0..100),
        };
        match rng.random_range(0..6) {
            0 => {
                let payload: Vec<u8> = (0..len.min(125)).map(|_| rng.random()).collect();
                stream.extend(spelled(PING, &payload, rng));
                incoming.push(Incoming::Ping(payload.into()));
            }
            1 => {
                let payload: Vec<u8> = (0..len.min(125)).map(|_| rng.random()).collect();
                stream.extend(spelled(PONG, &payload, rng));
                incoming.push(Incoming::Pong(payload.into()));
            }
            kind => {
                let (opcode, payload) = if kind < 4 {
                    let text: String =
                        (0..len).map(|_| *['a', 'ü', '€', '🦀'].choose(rng).unwrap()).collect();
                    (TEXT, text.into_bytes())
                } else {
                    let mut bytes = vec![0; len];
                    rng.fill_bytes(&mut bytes);
                    (BINARY, bytes)
                };
                let mut first = opcode;
                let mut rest = &payload[..];
                while rng.random_bool(0.4) {
                    let (fragment, after) = rest.split_at(rng.random_range(0..=rest.len()));
                    stream.extend(spelled(first, fragment, rng));
                    (first, rest) = (CONTINUATION, after);
                    if rng.random_bool(0.3) {
                        stream.extend(spelled(PING, b"between", rng));
                        incoming.push(ping(b"between"));
                    }
                }
                stream.extend(spelled(FIN | first, rest, rng));
                incoming.push(if opcode == TEXT {
                    text(str::from_utf8(&payload).expect("was made of characters"))
                } else {
                    binary(&payload)
                });
            }
        }
    }
    let violations = [
        (vec![], None),
        (vec![FIN | TEXT, 0], Some(CloseCause::ProtocolError)),
        (frame(FIN | CONTINUATION, ""), Some(CloseCause::ProtocolError)),
        (frame(FIN | TEXT, [0xff]), Some(CloseCause::InvalidUtf8)),
        (close(1005, ""), Some(CloseCause::ProtocolError)),
        (header(TEXT, 1 << 40, Spelling::Bits64), Some(CloseCause::MessageTooBig)),
    ];
    let (end, cause) = violations.choose(rng).expect("not empty");
    stream.extend(end);
    (stream, (incoming, *cause))
}

#[test]
fn decoding_does_not_depend_on_how_the_stream_is_split() {
    for seed in 0..400 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (stream, expected) = random_stream(&mut rng);
        assert_eq!(whole(&stream), expected, "seed {seed}, in one piece");
        let largest = *[1, 2, 7, 100, 5_000].choose(&mut rng).expect("not empty");
        let mut receiver = Receiver::new();
        let mut rest = &stream[..];
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rng.random_range(1..=largest.min(rest.len())));
            receiver.receive(piece);
            rest = after;
        }
        assert_eq!(receiver.received, expected, "seed {seed}, in pieces of up to {largest}");
    }
}

#[test]
fn connections_that_share_a_codec_do_not_mix() {
    for seed in 0..40 {
        let mut rng = StdRng::seed_from_u64(seed);
        let streams: Vec<_> = (0..8).map(|_| random_stream(&mut rng)).collect();
        let mut codec = Codec::new(MAX);
        let mut receivers: Vec<(Reassembly, &[u8], Received)> = streams
            .iter()
            .map(|(stream, _)| (Reassembly::default(), &stream[..], (Vec::new(), None)))
            .collect();
        while let Some((reassembly, rest, received)) = {
            let mut busy: Vec<_> = receivers
                .iter_mut()
                .filter(|(_, rest, received)| !rest.is_empty() && received.1.is_none())
                .collect();
            let any = (!busy.is_empty()).then(|| busy.swap_remove(rng.random_range(0..busy.len())));
            any.map(|(reassembly, rest, received)| (reassembly, rest, received))
        } {
            let (mut piece, after) = rest.split_at(rng.random_range(1..=rest.len().min(300)));
            *rest = after;
            loop {
                match next(&mut codec, reassembly, &mut piece) {
                    Ok(Some(incoming)) => received.0.push(incoming),
                    Ok(None) => break,
                    Err(cause) => break received.1 = Some(cause),
                }
            }
        }
        for ((_, _, received), (_, expected)) in receivers.iter().zip(&streams) {
            assert_eq!(received, expected, "seed {seed}");
        }
    }
}

#[test]
fn noise_never_panics() {
    for seed in 0..2_000 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut noise = vec![0; rng.random_range(1..60)];
        rng.fill_bytes(&mut noise);
        if rng.random_bool(0.8) {
            noise[0] &= 0x8f;
        }
        if noise.len() > 1 {
            noise[1] |= 0x80;
        }
        assert_eq!(whole(&noise), byte_by_byte(&noise), "seed {seed}");
    }
}

// Sent frames

#[test]
fn sent_headers_match_rfc_6455() {
    for (len, expected) in [
        (0, &[0x81, 0][..]),
        (125, &[0x81, 125]),
        (126, &[0x81, 126, 0, 126]),
        (65_535, &[0x81, 126, 0xff, 0xff]),
        (65_536, &[0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
    ] {
        let mut out = vec![];
        append_header(Opcode::Text, len, &mut out);
        assert_eq!(out, expected, "{len}");
        assert_eq!(out.len(), header_len(len));
        out.resize(out.len() + len + 5, 0x81);
        assert_eq!(frame_len(&out), expected.len() + len, "{len}, whatever follows");
    }
    let mut out = b"before".to_vec();
    append_frame(Opcode::Ping, b"1", &mut out);
    append_frame(Opcode::Pong, b"22", &mut out);
    append_frame(Opcode::Close, &[3, 232], &mut out);
    assert_eq!(out, b"before\x89\x011\x8a\x0222\x88\x02\x03\xe8");
}

#[test]
fn the_accept_key_matches_rfc_6455() {
    assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
}
