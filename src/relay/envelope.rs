//! The routing envelope: `{"conn_id":"…","frame":F}`.
//!
//! Owns how a phone's frame is wrapped for its binary, how its end is told and how
//! a binary's envelope is read. The bytes of a frame are never changed. Knows no
//! connection.
//!
//! JSON is checked by serde_json without a tree of values and without
//! recursion (`RawValue` skips a value with a stack of its own), so depth costs
//! memory that the message size bounds and never the thread's stack.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::conn_id::PublicId;
use crate::config::NESTING_MAX;

/// Bytes that the envelope adds to a frame.
pub const OVERHEAD: usize = PREFIX.len() + PublicId::LEN + MIDDLE.len() + SUFFIX.len();
// What client authors are told (RELAY.md section 6).
const _: () = assert!(OVERHEAD <= 64);

const PREFIX: &str = r#"{"conn_id":""#;
const MIDDLE: &str = r#"","frame":"#;
const CLOSE_CODE: &str = r#"","close_code":"#;
const SUFFIX: &str = "}";

/// The most bytes of a device token. FCM's are some 160 and may grow.
pub const DEVICE_TOKEN_MAX: usize = 4096;
/// The one push service that is known.
const PLATFORM: &str = "fcm";

/// Why an envelope is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// Not UTF-8.
    NotUtf8,
    /// Not JSON, not an object, a duplicated key, or a field of the wrong type.
    Malformed,
    /// Nested deeper than [`NESTING_MAX`].
    TooDeep,
    /// No `conn_id`, or an empty one.
    NoConnId,
    /// Neither a frame nor a close code.
    NoFrame,
    /// The conn_id names no phone of this server-id.
    UnknownPhone,
    /// A push wake, and push wake is off.
    PushWakeOff,
    /// A push wake without a platform we know or a token, or with one too long.
    PushWakeMalformed,
    /// A push wake too many: of this server-id, or of all at a time.
    PushWakeLimit,
}

impl Dropped {
    /// Every cause, for counters that start at zero.
    pub const ALL: [Self; 9] = [
        Self::NotUtf8,
        Self::Malformed,
        Self::TooDeep,
        Self::NoConnId,
        Self::NoFrame,
        Self::UnknownPhone,
        Self::PushWakeOff,
        Self::PushWakeMalformed,
        Self::PushWakeLimit,
    ];

    /// The value of `cause` in metrics and log lines.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::NotUtf8 => "not_utf8",
            Self::Malformed => "malformed",
            Self::TooDeep => "too_deep",
            Self::NoConnId => "no_conn_id",
            Self::NoFrame => "no_frame",
            Self::UnknownPhone => "unknown_phone",
            Self::PushWakeOff => "push_wake_off",
            Self::PushWakeMalformed => "push_wake_malformed",
            Self::PushWakeLimit => "push_wake_limit",
        }
    }

    /// Whether what was dropped asked for a push wake.
    #[must_use]
    pub const fn is_push_wake(self) -> bool {
        matches!(self, Self::PushWakeOff | Self::PushWakeMalformed | Self::PushWakeLimit)
    }
}

/// What a binary asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Envelope<'a> {
    /// Deliver the frame, if there is one, then close, if there is a code.
    Deliver {
        /// The phone's conn_id as the binary wrote it.
        conn_id: Cow<'a, str>,
        /// The frame, byte for byte, without white space around it.
        frame: Option<&'a str>,
        /// Not 0.
        close_code: Option<u16>,
    },
    /// Wake a sleeping phone.
    PushWake {
        /// What FCM knows the device by; 1 to [`DEVICE_TOKEN_MAX`] bytes.
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

/// A string that is borrowed where it holds no escape.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Reads a binary's message.
///
/// # Errors
/// Why it is to be dropped.
pub fn unwrap(message: &str) -> Result<Envelope<'_>, Dropped> {
    // serde would take an array for the fields in order.
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

/// Reads the object that asks for a wake; other fields in it are ignored.
fn push_wake(object: &str) -> Result<Envelope<'_>, Dropped> {
    // As above, an array is no object.
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

/// The frame that a phone's message is: one JSON value that a binary can read,
/// byte for byte, without white space around it.
#[must_use]
pub fn frame(message: &str) -> Option<&str> {
    let value: &RawValue = serde_json::from_str(message).ok()?;
    Some(value.get()).filter(|frame| !is_too_deep(frame, NESTING_MAX))
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

/// Whether valid JSON nests deeper than `limit`. Only a text with that many
/// opening brackets is looked at closely, which honest ones never have.
fn is_too_deep(json: &str, limit: usize) -> bool {
    let opens = |byte: &u8| matches!(byte, b'[' | b'{');
    if json.len() < 2 * limit || json.bytes().filter(opens).count() <= limit {
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

#[cfg(test)]
mod json_tests;
#[cfg(test)]
mod tests;
