//! Routing envelope: `{"conn_id":"…","frame":F}`.
//!
//! Owns the envelope of a phone's frame, the form of the close notice and the parser of a
//! binary's envelope. The bytes of a frame are never changed. Must not know connections.
//!
//! serde_json validates JSON without building a tree of values and without recursion
//! (`RawValue` skips a value with its own stack), so depth costs memory, bounded by the
//! message size, and no thread stack.

mod shortened;

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use self::shortened::Shortened;
use super::conn_id::PublicId;
use super::counts::closed_list;
use crate::config::{ENVELOPE_MAX, NESTING_MAX};

/// Bytes that the envelope adds to a frame.
pub const OVERHEAD: usize = PREFIX.len() + PublicId::LEN + MIDDLE.len() + SUFFIX.len();
// The bound that docs/PROTOCOL.md gives to authors of binaries.
const _: () = assert!(OVERHEAD <= ENVELOPE_MAX);

const PREFIX: &str = r#"{"conn_id":""#;
const MIDDLE: &str = r#"","frame":"#;
const CLOSE_CODE: &str = r#"","close_code":"#;
const SUFFIX: &str = "}";

/// Maximum length of a device token, in bytes. FCM's have about 160 and may grow.
pub const DEVICE_TOKEN_MAX: usize = 4096;
/// The only supported push service.
const PLATFORM: &str = "fcm";

closed_list! {
    /// Why an envelope is dropped.
    pub enum Dropped {
        /// Not UTF-8.
        NotUtf8 => "not_utf8",
        /// Not JSON, not an object, a duplicated key, or a field of the wrong type.
        Malformed => "malformed",
        /// Nested deeper than [`NESTING_MAX`].
        TooDeep => "too_deep",
        /// No `conn_id`, or an empty one.
        NoConnId => "no_conn_id",
        /// Neither a frame nor a close code.
        NoFrame => "no_frame",
        /// The conn_id names no phone of this server-id.
        UnknownPhone => "unknown_phone",
        /// A push wake while push wake is off.
        PushWakeOff => "push_wake_off",
        /// A push wake without a known platform or a token, or with a token that is too long.
        PushWakeMalformed => "push_wake_malformed",
        /// A push wake beyond a limit: of this server-id, or on all wakes in flight.
        PushWakeLimit => "push_wake_limit",
    }
}

impl Dropped {
    /// Whether the dropped envelope asked for a push wake.
    #[must_use]
    pub const fn is_push_wake(self) -> bool {
        matches!(self, Self::PushWakeOff | Self::PushWakeMalformed | Self::PushWakeLimit)
    }
}

/// A binary's request.
#[derive(Debug, PartialEq, Eq)]
pub enum Envelope<'a> {
    /// Deliver the frame, if there is one, then close, if there is a code.
    Deliver {
        /// The phone's conn_id as the binary wrote it.
        conn_id: Cow<'a, str>,
        /// The frame, byte for byte, without surrounding white space.
        frame: Option<&'a str>,
        /// Not 0.
        close_code: Option<u16>,
    },
    /// Send a push wake.
    PushWake {
        /// FCM's registration token of the device; 1 to [`DEVICE_TOKEN_MAX`] bytes.
        token: Cow<'a, str>,
    },
}

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow, default)]
    conn_id: Option<Text<'a>>,
    #[serde(borrow, default)]
    frame: Option<&'a RawValue>,
    #[serde(default)]
    close_code: Option<u16>,
    #[serde(borrow, default)]
    push_wake: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct PushWake<'a> {
    #[serde(borrow)]
    platform: Text<'a>,
    #[serde(borrow)]
    token: Text<'a>,
}

/// A string, borrowed unless it contains an escape.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Parses a binary's message.
///
/// # Errors
/// Why the message is dropped.
pub fn unwrap(message: &str) -> Result<Envelope<'_>, Dropped> {
    Shortened::new(message).and_then(|it| unwrap_shortened(&it)).map_or_else(|| parse(message), Ok)
}

/// `None` unless the string that was shortened is in the frame.
fn unwrap_shortened<'a>(message: &Shortened<'a>) -> Option<Envelope<'a>> {
    let Ok(Envelope::Deliver { conn_id, frame, close_code }) = parse(message.as_str()) else {
        return None;
    };
    let frame = frame.filter(|frame| message.is_gap_in(frame))?;
    let conn_id = match conn_id {
        Cow::Borrowed(conn_id) => Cow::Borrowed(message.original(conn_id)),
        Cow::Owned(conn_id) => Cow::Owned(conn_id),
    };
    Some(Envelope::Deliver { conn_id, frame: Some(message.original(frame)), close_code })
}

/// Parses a binary's message as it stands.
fn parse(message: &str) -> Result<Envelope<'_>, Dropped> {
    // serde accepts an array as a struct's fields in order.
    if !message.trim_ascii_start().starts_with('{') {
        return Err(Dropped::Malformed);
    }
    let fields: Fields<'_> = serde_json::from_str(message).map_err(|_| Dropped::Malformed)?;
    if is_too_deep(message, NESTING_MAX + 1) {
        return Err(Dropped::TooDeep);
    }
    let conn_id = fields.conn_id.map(|text| text.0).filter(|conn_id| !conn_id.is_empty());
    let Some(conn_id) = conn_id else {
        return push_wake(fields.push_wake.ok_or(Dropped::NoConnId)?.get());
    };
    let frame = fields.frame.map(RawValue::get);
    let close_code = fields.close_code.filter(|code| *code != 0);
    if frame.is_none() && close_code.is_none() {
        return Err(Dropped::NoFrame);
    }
    Ok(Envelope::Deliver { conn_id, frame, close_code })
}

/// Parses the object that asks for a wake; other fields in it are ignored.
fn push_wake(object: &str) -> Result<Envelope<'_>, Dropped> {
    // An array is refused as in [`unwrap`].
    let wake = object.strip_prefix('{').and_then(|_| serde_json::from_str(object).ok());
    match wake {
        Some(PushWake { platform: Text(platform), token: Text(token) })
            if platform == PLATFORM && (1..=DEVICE_TOKEN_MAX).contains(&token.len()) =>
        {
            Ok(Envelope::PushWake { token })
        }
        _ => Err(Dropped::PushWakeMalformed),
    }
}

/// The frame in a phone's message: one JSON value that a binary can parse, byte for byte,
/// without surrounding white space.
#[must_use]
pub fn frame(message: &str) -> Option<&str> {
    let frame = Shortened::new(message).and_then(|it| Some(it.original(value(it.as_str())?)));
    frame.or_else(|| value(message))
}

/// The only JSON value in `text`, unless it nests too deep.
fn value(text: &str) -> Option<&str> {
    let value: &RawValue = serde_json::from_str(text).ok()?;
    Some(value.get()).filter(|value| !is_too_deep(value, NESTING_MAX))
}

/// The parts of the envelope around `frame`, in order.
#[must_use]
pub fn wrap<'a>(conn_id: &'a str, frame: &'a str) -> [&'a [u8]; 5] {
    [PREFIX, conn_id, MIDDLE, frame, SUFFIX].map(str::as_bytes)
}

/// The parts of the close notice, in order: the phone has ended with `code`, in
/// decimal.
#[must_use]
pub fn notice<'a>(conn_id: &'a str, code: &'a str) -> [&'a [u8]; 5] {
    [PREFIX, conn_id, CLOSE_CODE, code, SUFFIX].map(str::as_bytes)
}

/// Whether valid JSON nests deeper than `limit`. The depth is computed only for a text with
/// that many opening brackets, which real frames do not have.
fn is_too_deep(json: &str, limit: usize) -> bool {
    if json.len() < 2 * limit || opening_brackets(json) <= limit {
        return false;
    }
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => depth += 1,
            b']' | b'}' if !in_string => depth -= 1,
            _ => {}
        }
        if depth > limit {
            return true;
        }
    }
    false
}

/// Number of `[` and `{`, in strings as well. Sums of bytes in bytes, as many as cannot
/// overflow, use vector instructions.
fn opening_brackets(json: &str) -> usize {
    // The two differ in this bit, and no other byte becomes one of them with it.
    const CASE: u8 = b'[' ^ b'{';
    let in_chunk =
        |chunk: &[u8]| -> u8 { chunk.iter().map(|byte| u8::from(byte | CASE == b'{')).sum() };
    json.as_bytes().chunks(u8::MAX.into()).map(|chunk| usize::from(in_chunk(chunk))).sum()
}

#[cfg(test)]
mod json_tests;
#[cfg(test)]
mod tests;
