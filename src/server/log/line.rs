//! Line: one log record as one line, in logfmt or JSON.
//!
//! Owns the closed list of keys and the escaping. Must not know where lines go or what time
//! it is.
//!
//! 1. A line contains one line feed, its last byte, so that no peer can forge a line.
//! 2. No character in it moves a cursor, hides text or reorders text on a terminal.
//! 3. A value takes at most [`VALUE_MAX`] bytes of the line.
//! 4. Both formats escape as JSON strings do (RFC 8259 section 7), so that one parser
//!    unquotes both.

use std::fmt::{self, Display, Write};
use std::time::Duration;

use log::kv::{Error, Key, Value, VisitSource, VisitValue};
use log::{Level, Record};

use crate::config::LogFormat;

#[cfg(test)]
mod tests;

/// Every key that a log line may have beside `time`, `level` and `msg`. Payloads, tokens and
/// other headers have no key, so they cannot be logged.
pub const KEYS: &[&str] = &[
    // The event and the parties.
    "server_id",
    "conn_id",
    "binary_conn_id",
    "device_name",
    "remote",
    "binary_version",
    "err",
    "path",
    "from",
    "to",
    "close_code",
    "cause",
    "header",
    "server_name",
    // The number of rate-limited warnings left out before this one.
    "dropped",
    // The summary of a connection at its end: `in` is from its peer.
    "role",
    "age_ms",
    "rtt_ms",
    "frames_in",
    "bytes_in",
    "frames_out",
    "bytes_out",
    // Push wakes.
    "status",
    "token_fp",
    "duration",
    "fcm_message_id",
    // How the process runs.
    "listen",
    "metrics_listen",
    "version",
    "connections",
    "descriptors",
    "buffer_memory",
    "signal",
    "pid",
    "stopped_ms",
    "pause_ms",
    "lost",
    // Certificates.
    "domain",
    "expires_in_days",
    "retry_in_s",
];

/// The size limit of a value in a line, escapes included and quotes excluded; a longer one
/// is cut and ends in `…`.
pub const VALUE_MAX: usize = 256;

const ELLIPSIS: char = '…';

/// Appends the line of a record, with its line feed, to `text`. `since_epoch` is its time as
/// the duration since 1970.
///
/// # Panics
///
/// In debug builds, on a key that is not in [`KEYS`]; release builds leave it out.
pub(super) fn render(
    format: LogFormat,
    since_epoch: Duration,
    record: &Record<'_>,
    text: &mut String,
) {
    let start = text.len();
    let mut line = Line { format, text, start };
    line.push_str("time", str::from_utf8(&rfc3339(since_epoch)).unwrap_or_default());
    line.push_str("level", name(record.level()));
    match record.args().as_str() {
        Some(message) => line.push_str("msg", message),
        None => line.push("msg", Shape::Text, record.args()),
    }
    // Only the visitor could fail, and it never does.
    let _ = record.key_values().visit(&mut line);
    if format == LogFormat::Json {
        line.text.push('}');
    }
    line.text.push('\n');
}

/// The level as Go's `slog` writes it; a level that `slog` does not name is written as its
/// distance from a named one.
fn name(level: Level) -> &'static str {
    match level {
        Level::Error => "ERROR",
        Level::Warn => "WARN",
        Level::Info => "INFO",
        Level::Debug => "DEBUG",
        Level::Trace => "DEBUG-4",
    }
}

struct Line<'a> {
    format: LogFormat,
    text: &'a mut String,
    /// Where the line starts.
    start: usize,
}

/// Whether JSON quotes a value.
#[derive(Clone, Copy, PartialEq)]
enum Shape {
    Text,
    /// An integer or a boolean, the same word in both formats.
    Word,
}

impl Line<'_> {
    fn push(&mut self, key: &str, shape: Shape, value: impl Display) {
        self.push_with(key, shape, |escaped| write!(escaped, "{value}"));
    }

    /// A text that needs no formatting, which takes longer than all else.
    fn push_str(&mut self, key: &str, value: &str) {
        self.push_with(key, Shape::Text, |escaped| escaped.write_str(value));
    }

    fn push_with(
        &mut self,
        key: &str,
        shape: Shape,
        write: impl FnOnce(&mut Escaped<'_>) -> fmt::Result,
    ) {
        let text = &mut *self.text;
        let is_first = text.len() == self.start;
        match self.format {
            LogFormat::Logfmt => {
                text.push_str(if is_first { "" } else { " " });
                text.push_str(key);
                text.push('=');
            }
            LogFormat::Json => {
                text.push_str(if is_first { "{\"" } else { ",\"" });
                text.push_str(key);
                text.push_str("\":");
            }
        }
        let start = text.len();
        let mut escaped = Escaped { text, start, cut: start, is_full: false, is_plain: true };
        // An error means that the value is full and formatting stopped early.
        let _ = write(&mut escaped);
        let is_plain = escaped.is_plain && text.len() > start;
        let is_quoted = match self.format {
            LogFormat::Logfmt => !is_plain,
            LogFormat::Json => shape == Shape::Text,
        };
        if is_quoted {
            text.insert(start, '"');
            text.push('"');
        }
    }
}

impl<'kvs> VisitSource<'kvs> for Line<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        if KEYS.contains(&key.as_str()) {
            return value.visit(Pair { line: self, key: key.as_str() });
        }
        debug_assert!(false, "log key {key:?} is not on the closed list");
        Ok(())
    }
}

struct Pair<'a, 'b> {
    line: &'a mut Line<'b>,
    key: &'a str,
}

impl VisitValue<'_> for Pair<'_, '_> {
    /// Leaves out a key without a value.
    fn visit_null(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn visit_any(&mut self, value: Value<'_>) -> Result<(), Error> {
        self.line.push(self.key, Shape::Text, value);
        Ok(())
    }

    fn visit_str(&mut self, value: &str) -> Result<(), Error> {
        self.line.push_str(self.key, value);
        Ok(())
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), Error> {
        self.line.push(self.key, Shape::Word, value);
        Ok(())
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), Error> {
        self.line.push(self.key, Shape::Word, value);
        Ok(())
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), Error> {
        self.line.push(self.key, Shape::Word, value);
        Ok(())
    }
}

/// Escapes and cuts a value on its way into the line.
struct Escaped<'a> {
    text: &'a mut String,
    /// Where the value starts.
    start: usize,
    /// Where to cut the value so that the ellipsis still fits.
    cut: usize,
    is_full: bool,
    /// The value needs no quotes in logfmt.
    is_plain: bool,
}

impl Write for Escaped<'_> {
    /// Nearly every value is short and plain: it is copied whole.
    fn write_str(&mut self, value: &str) -> fmt::Result {
        let is_short =
            self.text.len() - self.start + value.len() + ELLIPSIS.len_utf8() <= VALUE_MAX;
        if is_short && !self.is_full && value.bytes().all(is_plain) {
            self.text.push_str(value);
            self.cut = self.text.len();
            return Ok(());
        }
        value.chars().try_for_each(|c| self.write_char(c))
    }

    fn write_char(&mut self, c: char) -> fmt::Result {
        if self.is_full {
            return Err(fmt::Error);
        }
        self.is_plain &= !(c.is_whitespace() || matches!(c, '=' | '"' | '\\') || is_hazard(c));
        match c {
            '"' => self.text.push_str("\\\""),
            '\\' => self.text.push_str("\\\\"),
            '\n' => self.text.push_str("\\n"),
            '\r' => self.text.push_str("\\r"),
            '\t' => self.text.push_str("\\t"),
            _ if is_hazard(c) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(self.text, "\\u{unit:04x}")?;
                }
            }
            _ => self.text.push(c),
        }
        let length = self.text.len() - self.start;
        if length + ELLIPSIS.len_utf8() <= VALUE_MAX {
            self.cut = self.text.len();
        } else if length > VALUE_MAX {
            self.text.truncate(self.cut);
            self.text.push(ELLIPSIS);
            self.is_full = true;
        }
        Ok(())
    }
}

/// Whether a byte is a character that neither format escapes or quotes.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~') && !matches!(byte, b'=' | b'"' | b'\\')
}

/// Whether a terminal or an editor may interpret a character instead of showing it: controls
/// (C0, DEL, C1 with U+0085), line and paragraph separators, and format characters that
/// reorder text (Unicode UAX #9) or are invisible.
fn is_hazard(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// A time since 1970 as RFC 3339 in UTC, to the millisecond, rounded down; the year modulo
/// 10,000.
fn rfc3339(since_epoch: Duration) -> [u8; 24] {
    let (seconds, millis) = (since_epoch.as_secs(), since_epoch.subsec_millis());
    // Howard Hinnant's civil_from_days: years start on 1 March, so that the
    // leap day is the last; an era is the 400 years after which it repeats.
    let days = seconds / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (carry, month) = if month < 10 { (0, month + 3) } else { (1, month - 9) };
    let year = 400 * era + year + carry;
    let mut text = *b"0000-00-00T00:00:00.000Z";
    for (field, value) in [
        (0..4, year),
        (5..7, month),
        (8..10, day),
        (11..13, seconds / 3_600 % 24),
        (14..16, seconds / 60 % 60),
        (17..19, seconds % 60),
        (20..23, u64::from(millis)),
    ] {
        let mut rest = value;
        for digit in text[field].iter_mut().rev() {
            *digit += (rest % 10) as u8;
            rest /= 10;
        }
    }
    text
}
