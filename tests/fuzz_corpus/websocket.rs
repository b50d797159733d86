//! WebSocket frames: the result does not depend on how the bytes are split, and equals that of
//! a straightforward reader of RFC 6455.

use pyrycode_relay::protocol::close::{CloseCause, is_sendable};
use pyrycode_relay::protocol::websocket::{Codec, Incoming, Reassembly};
use pyrycode_relay::protocol::work::Work;

use super::bytes::{Bytes, pieces};

/// One so small that short inputs reach it, and one that they can only declare.
const MESSAGE_MAX: [usize; 2] = [600, 100_000];

/// The events on a connection, in order.
#[derive(Debug, PartialEq)]
struct Said {
    events: Vec<Event>,
    /// `None`: the bytes are used up, perhaps in the middle of a message.
    cause: Option<CloseCause>,
    is_between: bool,
}

#[derive(Debug, PartialEq)]
enum Event {
    Message { is_text: bool, payload: Vec<u8> },
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Vec<u8>),
}

/// Reads the bytes in pieces, whole, and with the simple reader.
pub(crate) fn run(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let pattern = bytes.take(4);
    let bytes = bytes.rest();
    let message_max = MESSAGE_MAX[pattern.first().map_or(0, |length| usize::from(length & 1))];
    let mut codec = Codec::new(message_max);
    let whole = read(&mut codec, &[bytes]);
    // The codec is shared by all connections and keeps nothing of the one before.
    let in_pieces = read(&mut codec, &pieces(pattern, bytes));
    assert_eq!(in_pieces, whole, "cut by {pattern:?}");
    assert_eq!(whole, read_plainly(bytes, message_max));
}

fn read(codec: &mut Codec, pieces: &[&[u8]]) -> Said {
    let mut reassembly = Reassembly::default();
    let mut events = Vec::new();
    let mut received = 0;
    for piece in pieces {
        received += piece.len();
        let mut input = *piece;
        loop {
            match codec.next(&mut reassembly, &mut input, &mut Work::unbounded()) {
                Ok(Some(incoming)) => match event(incoming) {
                    Ok(event) => events.push(event),
                    Err(cause) => return Said { events, cause: Some(cause), is_between: false },
                },
                Ok(None) => break,
                Err(cause) => return Said { events, cause: Some(cause), is_between: false },
            }
        }
        assert!(input.is_empty(), "input is left over");
        // What a header declares allocates nothing, only what has come.
        assert!(reassembly.held() <= 4 * received + 8 * 1024, "{} bytes", reassembly.held());
    }
    Said { events, cause: None, is_between: reassembly.is_empty() }
}

fn event(incoming: Incoming) -> Result<Event, CloseCause> {
    Ok(match incoming {
        Incoming::Message(message) => {
            let payload = message.bytes().to_vec();
            assert_eq!(message.text()?, str::from_utf8(&payload).ok());
            Event::Message { is_text: message.is_text(), payload }
        }
        Incoming::Ping(payload) => Event::Ping(payload.to_vec()),
        Incoming::Pong(payload) => Event::Pong(payload.to_vec()),
        Incoming::Close(payload) => Event::Close(payload),
    })
}

/// The same with all bytes at hand.
fn read_plainly(mut bytes: &[u8], message_max: usize) -> Said {
    let mut said = Said { events: Vec::new(), cause: None, is_between: true };
    let mut message = None;
    while let Some((frame, rest)) = match split_frame(bytes, message.as_ref(), message_max) {
        Ok(split) => split,
        Err(cause) => return Said { cause: Some(cause), is_between: false, ..said },
    } {
        bytes = rest;
        match accept(frame, &mut message) {
            Ok(event) => said.events.extend(event),
            Err(cause) => return Said { cause: Some(cause), is_between: false, ..said },
        }
    }
    said.is_between = bytes.is_empty() && message.is_none();
    said
}

/// A message of which the last fragment has not come.
struct Begun {
    is_text: bool,
    payload: Vec<u8>,
}

struct Frame {
    is_final: bool,
    opcode: u8,
    payload: Vec<u8>,
}

/// RFC 6455 §5.2: the first frame and what follows it, once it is all there; but
/// refused as soon as a byte of its header is.
fn split_frame<'a>(
    bytes: &'a [u8],
    message: Option<&Begun>,
    message_max: usize,
) -> Result<Option<(Frame, &'a [u8])>, CloseCause> {
    let Some((first, rest)) = bytes.split_first() else { return Ok(None) };
    let (is_final, opcode) = (first & 0x80 != 0, first & 0x0f);
    let is_known = matches!(opcode, 0..=2 | 8..=10);
    let is_out_of_turn = match opcode {
        8.. => !is_final,
        _ => (opcode == 0) != message.is_some(),
    };
    if !is_known || first & 0x70 != 0 || is_out_of_turn {
        return Err(CloseCause::ProtocolError);
    }
    let Some((second, rest)) = rest.split_first() else { return Ok(None) };
    if second & 0x80 == 0 {
        return Err(CloseCause::ProtocolError);
    }
    let length_len = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let Some((length, rest)) = rest.split_at_checked(length_len) else { return Ok(None) };
    let Some((mask, rest)) = rest.split_at_checked(4) else { return Ok(None) };
    let length = match length {
        [] => u64::from(second & 0x7f),
        length => length.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
    };
    if length > i64::MAX as u64 {
        return Err(CloseCause::ProtocolError);
    }
    if opcode >= 8 {
        if length > 125 {
            return Err(CloseCause::ProtocolError);
        }
    } else if length > (message_max - message.map_or(0, |begun| begun.payload.len())) as u64 {
        return Err(CloseCause::MessageTooBig);
    }
    let Some((payload, rest)) = rest.split_at_checked(length as usize) else { return Ok(None) };
    let payload = payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
    Ok(Some((Frame { is_final, opcode, payload }, rest)))
}

/// The message that a frame completes, if any.
fn accept(frame: Frame, message: &mut Option<Begun>) -> Result<Option<Event>, CloseCause> {
    match frame.opcode {
        8 => return close(frame.payload).map(Some),
        9 => return Ok(Some(Event::Ping(frame.payload))),
        10 => return Ok(Some(Event::Pong(frame.payload))),
        _ => {}
    }
    let begun =
        message.get_or_insert_with(|| Begun { is_text: frame.opcode == 1, payload: Vec::new() });
    begun.payload.extend(frame.payload);
    if begun.is_text
        && let Err(error) = str::from_utf8(&begun.payload)
        // A character may be cut by a fragment, but not by the end.
        && (frame.is_final || error.error_len().is_some())
    {
        return Err(CloseCause::InvalidUtf8);
    }
    let Some(whole) = message.take_if(|_| frame.is_final) else { return Ok(None) };
    Ok(Some(Event::Message { is_text: whole.is_text, payload: whole.payload }))
}

/// RFC 6455 §5.5.1 and §7.4.
fn close(payload: Vec<u8>) -> Result<Event, CloseCause> {
    match *payload {
        [] => {}
        [high, low, ref reason @ ..] if is_sendable(u16::from_be_bytes([high, low])) => {
            str::from_utf8(reason).map_err(|_| CloseCause::InvalidUtf8)?;
        }
        _ => return Err(CloseCause::ProtocolError),
    }
    Ok(Event::Close(payload))
}
