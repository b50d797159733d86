//! Wire: a minimal WebSocket client codec.
//!
//! Owns framing (RFC 6455 §5) and the parsing of HTTP responses, written independently of the
//! relay's own. Strict: it panics on anything that a server must not send, so every
//! simulation checks the wire as well. Knows no connection and no time.
//!
//! 1. The relay sends whole, unmasked, minimal frames: text, close, ping, pong.
//! 2. Nothing follows a close frame, or a response other than 101.

#![allow(dead_code, reason = "no suite uses all of it")]

use std::ops::Range;
use std::str;

/// RFC 6455 §5.2.
pub(crate) const TEXT: u8 = 1;
pub(crate) const BINARY: u8 = 2;
pub(crate) const CLOSE: u8 = 8;
pub(crate) const PING: u8 = 9;
pub(crate) const PONG: u8 = 10;
/// The bit of the first byte that ends a message.
pub(crate) const FIN: u8 = 0x80;

const MASK: [u8; 4] = [0x5a, 0x00, 0xff, 0x13];

/// A whole masked frame.
pub(crate) fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    raw_frame(FIN | opcode, payload)
}

/// A masked frame with this first byte.
pub(crate) fn raw_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    push_length(&mut out, payload.len() as u64);
    out.extend_from_slice(&MASK);
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

/// Appends the length field of a masked frame, in its shortest form.
pub(crate) fn push_length(out: &mut Vec<u8>, len: u64) {
    match len {
        0..126 => out.push(0x80 | len as u8),
        126..0x1_0000 => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        _ => {
            out.push(0x80 | 127);
            out.extend_from_slice(&len.to_be_bytes());
        }
    }
}

/// The payload of a pong, if `frame` is one of a peer's.
pub(crate) fn pong(frame: &[u8]) -> Option<Vec<u8>> {
    let [first, _, _, _, _, _, masked @ ..] = frame else { return None };
    let payload = masked.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask);
    (*first == FIN | PONG).then(|| payload.collect())
}

/// The payload of a close frame; code 0 gives an empty one.
pub(crate) fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    if code == 0 { Vec::new() } else { [&code.to_be_bytes(), reason.as_bytes()].concat() }
}

/// One frame or response from the relay.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// An HTTP answer, head and body.
    Answer {
        status: u16,
        text: String,
    },
    /// A text message.
    Text(String),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    /// Code (0: empty) and reason.
    Close(u16, String),
}

/// Parses the relay's output, in pieces of any size.
#[derive(Clone, Debug, Default)]
pub(crate) struct Decoder {
    buffer: Vec<u8>,
    /// Bytes of `buffer` already used.
    used: usize,
    is_upgraded: bool,
    is_over: bool,
}

impl Decoder {
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        assert!(!self.is_over || bytes.is_empty(), "{} bytes after the last", bytes.len());
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether a frame or a response is incomplete.
    pub(crate) fn is_midway(&self) -> bool {
        self.used < self.buffer.len()
    }

    pub(crate) fn next(&mut self) -> Option<Part> {
        let bytes = &self.buffer[self.used..];
        let decoded = if self.is_upgraded { decode_frame(bytes) } else { decode_answer(bytes) };
        let Some((part, len)) = decoded else {
            self.buffer.drain(..self.used);
            self.used = 0;
            if self.buffer.is_empty() {
                self.buffer = Vec::new();
            }
            return None;
        };
        self.used += len;
        match &part {
            Part::Answer { status: 101, .. } => self.is_upgraded = true,
            Part::Answer { .. } | Part::Close(..) => {
                self.is_over = true;
                assert_eq!(self.used, self.buffer.len(), "bytes after {part:?}");
            }
            _ => {}
        }
        Some(part)
    }
}

fn decode_answer(bytes: &[u8]) -> Option<(Part, usize)> {
    let head_len = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = str::from_utf8(&bytes[..head_len]).expect("a head is ASCII");
    let status: u16 = head
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3))
        .and_then(|status| status.parse().ok())
        .unwrap_or_else(|| panic!("no status line: {head:?}"));
    assert!(field(head, "date").is_some_and(|date| date.ends_with(" GMT")), "{head:?}");
    let retries = field(head, "retry-after").is_some();
    assert_eq!(retries, matches!(status, 429 | 503), "{head:?}");
    let body_len = field(head, "content-length").map_or(0, |len| len.parse().expect("a length"));
    let text = str::from_utf8(bytes.get(..head_len + body_len)?).expect("a body is UTF-8");
    if status != 101 {
        assert_eq!(field(head, "connection").map(|value| value.contains("close")), Some(true));
    }
    Some((Part::Answer { status, text: text.to_owned() }, head_len + body_len))
}

/// The value of a header field, by its lower-case name.
pub(crate) fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (field, value) = line.split_once(':')?;
        field.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// The relay's next frame in `bytes`, once it is complete: its opcode and the range
/// of its payload. Fails the test if the frame is not final, masked or not minimal.
pub(crate) fn first_frame(bytes: &[u8]) -> Option<(u8, Range<usize>)> {
    let [first, second, rest @ ..] = bytes else { return None };
    assert_eq!(first & 0xf0, FIN, "fragmented, or reserved bits");
    assert_eq!(second & 0x80, 0, "a server must not mask");
    let opcode = first & 0x0f;
    let (len, start) = match second & 0x7f {
        126 => {
            let len = usize::from(u16::from_be_bytes(*rest.first_chunk()?));
            assert!(len >= 126, "a minimal length");
            (len, 4)
        }
        127 => {
            let len = u64::from_be_bytes(*rest.first_chunk()?) as usize;
            assert!(len >= 65_536, "a minimal length");
            (len, 10)
        }
        len => (usize::from(len), 2),
    };
    assert!(len < 126 || opcode == TEXT, "a short control frame");
    (start + len <= bytes.len()).then_some((opcode, start..start + len))
}

fn decode_frame(bytes: &[u8]) -> Option<(Part, usize)> {
    let (opcode, range) = first_frame(bytes)?;
    let (payload, end) = (&bytes[range.clone()], range.end);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text is UTF-8");
    let part = match opcode {
        TEXT => Part::Text(text(payload)),
        PING => Part::Ping(payload.to_vec()),
        PONG => Part::Pong(payload.to_vec()),
        CLOSE => match payload {
            [] => Part::Close(0, String::new()),
            [high, low, reason @ ..] => {
                Part::Close(u16::from_be_bytes([*high, *low]), text(reason))
            }
            [_] => panic!("a close frame with half a code"),
        },
        _ => panic!("opcode {opcode}"),
    };
    Some((part, end))
}
