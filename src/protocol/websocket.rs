//! WebSocket: frames and messages; the only importer of tungstenite.
//!
//! Owns framing in both directions and the state of an incomplete message. Must not know
//! time, sockets or what a message means.
//!
//! A tungstenite context takes kilobytes and reserves the length that a frame header declares
//! before the payload has arrived. So a connection at rest has no context, and a context
//! receives whole frames only:
//!
//! 1. This file parses frame headers and rejects at the header what can be rejected there;
//!    the bytes of an incomplete frame are buffered as received.
//! 2. Pings and pongs go through one context that all connections share ([`Codec`]); it is
//!    idle between any two calls. tungstenite also parses and writes every frame header, and
//!    computes the handshake.
//! 3. Data frames never reach a context, which would copy them once more and check text with
//!    std. The fragments of a message are collected in [`Reassembly`], which holds no more than
//!    their payload. Those of text are checked as they arrive, so invalid UTF-8 is rejected at
//!    the fragment that has it; a whole message is checked where it is used ([`Message::text`]).
//! 4. Close frames never reach a context: tungstenite 0.30 rejects the valid code 1014, and
//!    its own reply would be a second close frame.

mod reassembly;

use std::io::{self, Cursor, Read, Write};
use std::mem;

use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};
use tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};

pub use self::reassembly::Reassembly;
use self::reassembly::{Fragments, append_unmasked};
pub(super) use self::state::are_frames;
use super::close::{CloseCause, is_sendable};
use super::work::Work;

/// Maximum length of the header of a frame that is sent.
pub(super) const HEADER_MAX: usize = 10;
/// Maximum length of a header that a peer sends: the same and a masking key.
const MASKED_HEADER_MAX: usize = HEADER_MAX + 4;
/// Maximum payload of a control frame (RFC 6455 §5.5).
const CONTROL_PAYLOAD_MAX: usize = 125;
/// tungstenite zero-fills this many bytes at every read: 4 KiB cost 89 ns, 16 KiB 215 ns, and
/// most messages are smaller than either.
const READ_BUFFER: usize = 4 * 1024;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// A whole text message.
    Text,
    /// A whole binary message.
    Binary,
    /// RFC 6455 §5.5.1.
    Close,
    /// RFC 6455 §5.5.2.
    Ping,
    /// RFC 6455 §5.5.3.
    Pong,
}

/// The value of `Sec-WebSocket-Accept` for a `Sec-WebSocket-Key` (RFC 6455 §4.2.2).
#[must_use]
pub fn accept_key(key: &str) -> String {
    tungstenite::handshake::derive_accept_key(key.as_bytes())
}

/// The length of the header that [`append_header`] writes (RFC 6455 §5.2).
#[must_use]
pub const fn header_len(len: usize) -> usize {
    match len {
        0..=125 => 2,
        126..=0xffff => 4,
        _ => HEADER_MAX,
    }
}

/// Appends the header of an unmasked, unfragmented frame.
pub fn append_header(opcode: Opcode, len: usize, out: &mut impl Write) {
    let opcode = match opcode {
        Opcode::Text => OpCode::Data(Data::Text),
        Opcode::Binary => OpCode::Data(Data::Binary),
        Opcode::Close => OpCode::Control(Control::Close),
        Opcode::Ping => OpCode::Control(Control::Ping),
        Opcode::Pong => OpCode::Control(Control::Pong),
    };
    FrameHeader { opcode, ..FrameHeader::default() }
        .format(len as u64, out)
        .expect("there is room for it");
}

/// Appends a whole frame.
pub fn append_frame(opcode: Opcode, payload: &[u8], out: &mut Vec<u8>) {
    append_header(opcode, payload.len(), out);
    out.extend_from_slice(payload);
}

/// The length, header included, of the sent frame at the start of `bytes`.
///
/// # Panics
/// If `bytes` do not begin with a frame header that this file wrote.
#[must_use]
pub fn frame_len(bytes: &[u8]) -> usize {
    try_frame_len(bytes).expect("the outbox holds whole frames that we wrote")
}

/// The same; `None` where no frame header starts.
fn try_frame_len(bytes: &[u8]) -> Option<usize> {
    let mut cursor = Cursor::new(bytes);
    let (_, len) = FrameHeader::parse(&mut cursor).ok().flatten()?;
    usize::try_from(len).ok()?.checked_add(cursor.position() as usize)
}

/// What a peer sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A whole message.
    Message(Message),
    /// A ping; the pong has to carry the same payload.
    Ping(tungstenite::Bytes),
    /// A pong, possibly unsolicited.
    Pong(tungstenite::Bytes),
    /// A valid close frame; the payload to echo.
    Close(Vec<u8>),
}

/// A whole message after unmasking and reassembly.
#[derive(Debug, PartialEq, Eq)]
pub struct Message {
    payload: Vec<u8>,
    is_text: bool,
}

impl Message {
    /// The payload as text; `None`: a binary message, which need not be UTF-8, is not.
    ///
    /// # Errors
    /// If a text message is not UTF-8 (RFC 6455 §8.1): the cause to close with.
    pub fn text(&self) -> Result<Option<&str>, CloseCause> {
        match simdutf8::basic::from_utf8(&self.payload) {
            Ok(text) => Ok(Some(text)),
            Err(_) if self.is_text => Err(CloseCause::InvalidUtf8),
            Err(_) => Ok(None),
        }
    }

    /// The payload.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.payload
    }

    /// Whether it is a text message.
    #[must_use]
    pub fn is_text(&self) -> bool {
        self.is_text
    }
}

/// The context that all connections share.
#[derive(Debug)]
pub struct Codec {
    context: WebSocketContext,
    message_max: usize,
    /// The memory of the last message that was given back.
    spare: Vec<u8>,
}

impl Codec {
    /// For messages of at most `message_max` bytes after reassembly.
    #[must_use]
    pub fn new(message_max: usize) -> Self {
        Self { context: fresh_context(message_max), message_max, spare: Vec::new() }
    }

    /// Consumes `input` up to the end of the next message or control frame. `None`: `input`
    /// is consumed or `work` is spent, and an incomplete message is in `reassembly`.
    ///
    /// # Errors
    /// The cause to close with; `reassembly` and the rest of `input` are then meaningless.
    pub fn next(
        &mut self,
        reassembly: &mut Reassembly,
        input: &mut &[u8],
        work: &mut Work,
    ) -> Result<Option<Incoming>, CloseCause> {
        while !input.is_empty() && !work.is_spent() {
            let incoming = if reassembly.frame.is_empty() {
                let Some((header, len)) = self.header(input, reassembly)? else {
                    reassembly.frame.extend_from_slice(input);
                    *input = &[];
                    return Ok(None);
                };
                let Some((frame, rest)) = input.split_at_checked(len) else {
                    reassembly.frame.extend_from_slice(input);
                    *input = &[];
                    return Ok(None);
                };
                *input = rest;
                work.spend(frame.len());
                match is_whole(&header) {
                    true => Some(self.message(&header, frame, &[])),
                    false => self.decode(&header, frame, reassembly)?,
                }
            } else {
                let Some((header, rest)) = self.finish(reassembly, input)? else {
                    return Ok(None);
                };
                let mut begun = mem::take(&mut reassembly.frame);
                work.spend(begun.len() + rest.len());
                if is_whole(&header) {
                    Some(self.message(&header, &begun, rest))
                } else {
                    begun.extend_from_slice(rest);
                    self.decode(&header, &begun, reassembly)?
                }
            };
            if incoming.is_some() {
                return Ok(incoming);
            }
        }
        Ok(None)
    }

    /// The header of the incomplete frame and what it lacks, from `input`; `None` if `input`
    /// ends before the frame does.
    fn finish<'a>(
        &self,
        reassembly: &mut Reassembly,
        input: &mut &'a [u8],
    ) -> Result<Option<(FrameHeader, &'a [u8])>, CloseCause> {
        let (header, len) = loop {
            if let Some(found) = self.header(&reassembly.frame, reassembly)? {
                break found;
            }
            let Some((&byte, rest)) = input.split_first() else { return Ok(None) };
            reassembly.frame.push(byte);
            *input = rest;
        };
        let Some((more, rest)) = input.split_at_checked(len - reassembly.frame.len()) else {
            reassembly.frame.extend_from_slice(input);
            *input = &[];
            return Ok(None);
        };
        *input = rest;
        Ok(Some((header, more)))
    }

    /// The message that a whole frame is: a part with at least the header, and the rest.
    fn message(&mut self, header: &FrameHeader, begun: &[u8], rest: &[u8]) -> Incoming {
        let mut payload = mem::take(&mut self.spare);
        payload.clear();
        let mut mask = header.mask.unwrap_or_default();
        append_unmasked(&mut payload, &begun[received_header_len(header, begun)..], mask);
        mask.rotate_left(payload.len() % 4);
        append_unmasked(&mut payload, rest, mask);
        let is_text = header.opcode == OpCode::Data(Data::Text);
        Incoming::Message(Message { payload, is_text })
    }

    /// Takes the memory of a message back, for the next one. Memory that was just in use is in
    /// the cache, and the allocator's need not be.
    pub fn recycle(&mut self, message: Message) {
        self.spare = message.payload;
    }

    /// The header at the start of `bytes` and the length of its frame, or `None` if the
    /// header is incomplete. Everything that a header alone shows to be wrong is rejected
    /// here, before the payload arrives.
    fn header(
        &self,
        bytes: &[u8],
        reassembly: &Reassembly,
    ) -> Result<Option<(FrameHeader, usize)>, CloseCause> {
        if !has_valid_start(bytes, reassembly.fragmented_len().is_some()) {
            return Err(CloseCause::ProtocolError);
        }
        let mut cursor = Cursor::new(&bytes[..bytes.len().min(MASKED_HEADER_MAX)]);
        let parsed = FrameHeader::parse(&mut cursor).map_err(|_| CloseCause::ProtocolError)?;
        let Some((header, len)) = parsed else { return Ok(None) };
        // The top bit of a 64-bit length is reserved too (RFC 6455 §5.2).
        if len > i64::MAX as u64 {
            return Err(CloseCause::ProtocolError);
        }
        let limit = match header.opcode {
            OpCode::Control(_) if len > CONTROL_PAYLOAD_MAX as u64 => {
                return Err(CloseCause::ProtocolError);
            }
            OpCode::Control(_) => CONTROL_PAYLOAD_MAX,
            OpCode::Data(_) => self.message_max - reassembly.fragmented_len().unwrap_or(0),
        };
        if len > limit as u64 {
            return Err(CloseCause::MessageTooBig);
        }
        Ok(Some((header, cursor.position() as usize + len as usize)))
    }

    /// Decodes a control frame or a fragment. `None`: a fragment before the last.
    fn decode(
        &mut self,
        header: &FrameHeader,
        frame: &[u8],
        reassembly: &mut Reassembly,
    ) -> Result<Option<Incoming>, CloseCause> {
        let payload_len = frame.len() - received_header_len(header, frame);
        if header.opcode == OpCode::Control(Control::Close) {
            return close_payload(header, &frame[frame.len() - payload_len..]).map(Some);
        }
        if let OpCode::Data(data) = header.opcode {
            let mut fragments = reassembly.fragments.take().unwrap_or_else(|| {
                let is_text = data == Data::Text;
                Box::new(Fragments { is_text, payload: Vec::new(), checked: 0 })
            });
            let masked = &frame[frame.len() - payload_len..];
            fragments.append(masked, header.mask.unwrap_or_default())?;
            if header.is_final {
                return Ok(Some(Incoming::Message(fragments.finish())));
            }
            reassembly.fragments = Some(fragments);
            return Ok(None);
        }
        match self.context.read(&mut Feed(frame)) {
            Ok(tungstenite::Message::Ping(payload)) => Ok(Some(Incoming::Ping(payload))),
            Ok(tungstenite::Message::Pong(payload)) => Ok(Some(Incoming::Pong(payload))),
            Ok(_) | Err(_) => {
                self.context = fresh_context(self.message_max);
                Err(CloseCause::ProtocolError)
            }
        }
    }
}

/// Whether the first two bytes of a frame, or as many as there are, obey RFC 6455 §5.2. They
/// are judged when they arrive: a peer in error may never send the rest of the header.
fn has_valid_start(bytes: &[u8], is_continued: bool) -> bool {
    const FIN: u8 = 0x80;
    const RESERVED: u8 = 0x70;
    const MASKED: u8 = 0x80;
    let Some(first) = bytes.first() else { return true };
    let opcode = OpCode::from(first & 0x0f);
    let is_first_valid = first & RESERVED == 0
        && match opcode {
            OpCode::Control(Control::Reserved(_)) | OpCode::Data(Data::Reserved(_)) => false,
            OpCode::Control(_) => first & FIN != 0,
            // A continuation needs a message to continue, and only control frames may come
            // between.
            OpCode::Data(data) => (data == Data::Continue) == is_continued,
        };
    is_first_valid && bytes.get(1).is_none_or(|second| second & MASKED != 0)
}

/// The length of a header as received; a received length need not be minimal.
fn received_header_len(header: &FrameHeader, frame: &[u8]) -> usize {
    let length_bytes = match frame[1] & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    2 + length_bytes + header.mask.map_or(0, |mask| mask.len())
}

/// Whether a frame is a whole message.
fn is_whole(header: &FrameHeader) -> bool {
    header.is_final && matches!(header.opcode, OpCode::Data(data) if data != Data::Continue)
}

/// Unmasks and validates the payload of a close frame (RFC 6455 §5.5.1, §7.4).
fn close_payload(header: &FrameHeader, masked: &[u8]) -> Result<Incoming, CloseCause> {
    let mask = header.mask.unwrap_or_default();
    let payload: Vec<u8> =
        masked.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
    match *payload {
        [] => {}
        [high, low, ref reason @ ..] if is_sendable(u16::from_be_bytes([high, low])) => {
            str::from_utf8(reason).map_err(|_| CloseCause::InvalidUtf8)?;
        }
        _ => return Err(CloseCause::ProtocolError),
    }
    Ok(Incoming::Close(payload))
}

fn fresh_context(message_max: usize) -> WebSocketContext {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .max_message_size(Some(message_max))
        .max_frame_size(Some(message_max));
    WebSocketContext::new(Role::Server, Some(config))
}

/// One whole frame as a stream. The pongs that tungstenite writes by itself are discarded:
/// the outbox sends pongs.
struct Feed<'a>(&'a [u8]);

impl Read for Feed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.0.read(buffer)
    }
}

impl Write for Feed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

mod state;
#[cfg(test)]
mod tests;
