//! Request head: its syntax, and the gates that depend on one head alone.
//!
//! Owns the parser of RFC 9112 (the only importer of httparse), as strict as the RFC allows,
//! because differences between parsers are what request smuggling exploits. Must not know
//! other connections, rate limits, caps, sockets or time.
//!
//! 1. The result for a prefix holds for the whole: later bytes complete [`Head::Partial`] and
//!    change nothing else.
//! 2. In an accepted head the only control bytes are CR LF, in pairs, and tabs; it has no
//!    body, so the bytes after it can only be WebSocket frames.
//! 3. The value of `x-pyrycode-token` never leaves this file, `Debug` included.

mod target;

use std::borrow::Cow;
use std::fmt;
use std::str;

pub use target::{Endpoint, is_same_host};

use super::fault::{Cause, Fault};
use super::response::Refusal;
use crate::config::{HEAD_MAX, HEADERS_MAX};

/// Maximum length of a server-id, in bytes.
pub const SERVER_ID_MAX: usize = 128;

/// Result for the bytes received so far.
#[derive(Debug)]
pub enum Head<'a> {
    /// The blank line has not arrived yet, and nothing is wrong so far.
    Partial,
    /// The head is complete and well-formed.
    Complete {
        /// The request.
        request: Request<'a>,
        /// Length of the head in bytes; WebSocket frames follow.
        len: usize,
    },
}

/// The role that a request asks for. Values that go only to the log are decoded lossily.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity<'a> {
    /// The daemon that claims a server-id.
    Binary {
        /// 1 to [`SERVER_ID_MAX`] bytes of visible ASCII.
        server_id: &'a str,
        /// For the log; not empty.
        version: Cow<'a, str>,
    },
    /// A client that connects for a server-id.
    Phone {
        /// 1 to [`SERVER_ID_MAX`] bytes of visible ASCII.
        server_id: &'a str,
        /// For the log; not empty.
        device_name: Option<Cow<'a, str>>,
    },
}

/// A well-formed request without a body.
pub struct Request<'a> {
    method: &'a str,
    path: &'a str,
    /// The authority of the target, which replaces Host (RFC 9112, 3.2.2).
    authority: Option<&'a str>,
    /// The digit after `HTTP/1.`.
    minor_version: u8,
    fields: Vec<httparse::Header<'a>>,
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.method)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// Parses a head from all bytes received so far.
///
/// # Errors
/// 431 beyond [`HEAD_MAX`] bytes or [`HEADERS_MAX`] fields, 400 for a malformed head and for
/// a request with a body; as soon as the bytes show it.
pub fn parse(bytes: &[u8]) -> Result<Head<'_>, Fault> {
    let Some(len) = head_len(bytes)? else { return Ok(Head::Partial) };
    let mut storage = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Request::new(&mut storage);
    let malformed = || Fault::malformed(bytes);
    let status = head.parse(&bytes[..len]).map_err(|_| malformed())?;
    let (Some(method), Some(target), Some(minor_version)) = (head.method, head.path, head.version)
    else {
        return Err(malformed());
    };
    // httparse and [`head_len`] must agree on the end of the head.
    if status != httparse::Status::Complete(len) {
        return Err(malformed());
    }
    let (path, authority) = target::path(target).ok_or_else(malformed)?;
    let fields = head.headers.to_vec();
    let request = Request { method, path, authority, minor_version, fields };
    request.judge_host()?;
    request.judge_no_body()?;
    Ok(Head::Complete { request, len })
}

/// Length of the head with its blank line, `None` while the blank line is missing.
///
/// One pass over lines only, so that a head sent byte by byte costs one scan per byte; and
/// strict about line ends, because httparse accepts a bare LF and skips leading empty lines.
/// Errors are found in reading order, which gives invariant 1.
fn head_len(bytes: &[u8]) -> Result<Option<usize>, Fault> {
    let window = &bytes[..bytes.len().min(HEAD_MAX)];
    let mut lines = 0;
    let mut rest = window;
    while let Some(end) = find_control(rest) {
        match rest[end..] {
            // Its LF may still come.
            [b'\r'] => break,
            [b'\r', b'\n', ..] if end > 0 => lines += 1,
            [b'\r', b'\n', ..] if lines > 0 => {
                return Ok(Some(window.len() - rest.len() + 2));
            }
            _ => return Err(Fault::malformed(bytes)),
        }
        if lines > 1 + HEADERS_MAX {
            return Err(Fault::new(Refusal::HeadTooLarge, Cause::TooManyFields));
        }
        rest = &rest[end + 2..];
    }
    if bytes.len() < HEAD_MAX {
        return Ok(None);
    }
    Err(Fault::new(Refusal::HeadTooLarge, Cause::HeadTooLong))
}

/// The path in a possibly incomplete head, without its query; for the log. `None`: the head
/// has no path, or it is incomplete.
#[must_use]
pub fn path_of(bytes: &[u8]) -> Option<&str> {
    let line = bytes.split(|byte| matches!(byte, b'\r' | b'\n')).next()?;
    let mut words = str::from_utf8(line).ok()?.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    words.next()?;
    let is_method = !method.is_empty() && method.bytes().all(|b| b.is_ascii_uppercase());
    let (path, _) = target::path(target).filter(|_| is_method)?;
    (!path.is_empty()).then_some(path)
}

/// Position of the first control byte other than a tab.
///
/// By blocks, whose inner loop has no exit and is vectorised: for a head of 8 KiB sent byte
/// by byte, 33 million bytes are scanned.
fn find_control(bytes: &[u8]) -> Option<usize> {
    const BLOCK: usize = 32;
    let is_control = |b: &u8| b.is_ascii_control() && *b != b'\t';
    let is_clean = |block: &&[u8]| !block.iter().fold(false, |found, b| found | is_control(b));
    let clean = BLOCK * bytes.chunks(BLOCK).take_while(is_clean).count();
    bytes.get(clean..)?.iter().position(is_control).map(|at| clean + at)
}

/// The elements of a list-valued field, last to first (RFC 9110, 5.6.1).
fn elements_reversed(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.rsplit(|&b| b == b',').map(<[u8]>::trim_ascii)
}

/// Base64 of 16 bytes. The four unused bits of the 22nd digit may be set: the key is hashed
/// as text, and the reference accepts them too.
fn is_websocket_key(key: &[u8]) -> bool {
    key.strip_suffix(b"==").is_some_and(|digits| {
        let is_digit = |&b: &u8| b.is_ascii_alphanumeric() || b == b'+' || b == b'/';
        digits.len() == 22 && digits.iter().all(is_digit)
    })
}

impl<'a> Request<'a> {
    /// The endpoint that the path names.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::of(self.path)
    }

    /// The path as sent, without its query. May be anything.
    #[must_use]
    pub const fn path(&self) -> &'a str {
        self.path
    }

    /// The host that the request is addressed to, without port and brackets: from an absolute
    /// target, else from the Host field. `None`: an HTTP/1.0 request without one.
    #[must_use]
    pub fn host(&self) -> Option<&'a str> {
        let field = || self.only("host").ok().and_then(|host| str::from_utf8(host).ok());
        self.authority.or_else(field).map(target::host)
    }

    /// Whether the request is for this host, regardless of the port (RFC 9110, 7.2).
    #[must_use]
    pub fn is_for(&self, domain: &str) -> bool {
        self.host().is_some_and(|host| is_same_host(host, domain))
    }

    /// Whether the response must not have a body.
    #[must_use]
    pub fn is_head(&self) -> bool {
        self.method == "HEAD"
    }

    /// The gate of the health endpoints.
    ///
    /// # Errors
    /// 405 for a method other than GET and HEAD.
    pub fn read_only(&self) -> Result<(), Fault> {
        if matches!(self.method, "GET" | "HEAD") {
            return Ok(());
        }
        Err(Fault::new(Refusal::OnlyGetOrHead, Cause::Method))
    }

    /// The gate of the required headers.
    ///
    /// Of a repeated field the first value counts, as in the reference; except for the
    /// server-id, where a load balancer might choose a different value.
    ///
    /// # Errors
    /// 400 if one is missing or empty, or if the server-id is invalid or repeated; 404 for an
    /// endpoint without upgrades.
    pub fn identity(&self) -> Result<Identity<'a>, Fault> {
        match self.endpoint() {
            Endpoint::Server => {
                let server_id = self.server_id()?;
                self.required("user-agent")?;
                let version = String::from_utf8_lossy(self.required("x-pyrycode-version")?);
                Ok(Identity::Binary { server_id, version })
            }
            Endpoint::Client => {
                let server_id = self.server_id()?;
                self.required("user-agent")?;
                self.required("x-pyrycode-token")?;
                let device_name = self.required("x-pyrycode-device-name").ok();
                let device_name = device_name.map(String::from_utf8_lossy);
                Ok(Identity::Phone { server_id, device_name })
            }
            Endpoint::Health | Endpoint::Ready | Endpoint::Other => {
                Err(Fault::new(Refusal::NotFound, Cause::UnknownPath))
            }
        }
    }

    /// The gate of the WebSocket handshake (RFC 6455, 4.2.1). Returns the key.
    ///
    /// # Errors
    /// In this order: 405 for a method other than GET, 426 without an upgrade to WebSocket or
    /// below HTTP/1.1, 400 that names version 13 for another version, 400 for a key that is
    /// not base64 of 16 bytes.
    pub fn upgrade(&self) -> Result<&'a str, Fault> {
        if self.method != "GET" {
            return Err(Fault::new(Refusal::OnlyGet, Cause::Method));
        }
        if self.minor_version < 1 {
            return Err(Fault::new(Refusal::UpgradeRequired, Cause::OldHttp));
        }
        // Proxies without WebSocket support remove both.
        for (name, token) in [("upgrade", "websocket"), ("connection", "upgrade")] {
            if !self.has_token(name, token) {
                let is_there = self.values(name).next().is_some();
                let cause = if is_there { Cause::Invalid } else { Cause::Missing };
                return Err(Fault::of(Refusal::UpgradeRequired, cause, name));
            }
        }
        const VERSION: &str = "sec-websocket-version";
        let version = self.only(VERSION);
        if version != Ok(b"13") {
            let cause = version.err().unwrap_or(Cause::Invalid);
            return Err(Fault::of(Refusal::WebSocketVersion, cause, VERSION));
        }
        let key = self.only("sec-websocket-key").and_then(|key| {
            let key = Some(key).filter(|key| is_websocket_key(key));
            key.and_then(|key| str::from_utf8(key).ok()).ok_or(Cause::Invalid)
        });
        key.map_err(|cause| Fault::of(Refusal::BadRequest, cause, "sec-websocket-key"))
    }

    /// The entries of X-Forwarded-For from right to left, the nearest hop first. An entry
    /// that is not UTF-8 is returned empty.
    pub fn forwarded_for(&self) -> impl Iterator<Item = &'a str> {
        self.values("x-forwarded-for")
            .rev()
            .flat_map(elements_reversed)
            .map(|entry| str::from_utf8(entry).unwrap_or_default())
    }

    /// RFC 9112, 3.2: one valid Host, which only HTTP/1.0 may leave out.
    fn judge_host(&self) -> Result<(), Fault> {
        let mut hosts = self.values("host");
        let cause = match (hosts.next(), hosts.next()) {
            (Some(host), None) if str::from_utf8(host).is_ok_and(target::is_authority) => {
                return Ok(());
            }
            (None, _) if self.minor_version == 0 => return Ok(()),
            (None, _) => Cause::Missing,
            (Some(_), None) => Cause::Invalid,
            (Some(_), Some(_)) => Cause::Repeated,
        };
        Err(Fault::of(Refusal::BadRequest, cause, "host"))
    }

    /// No body, and unambiguously none (RFC 9112, 6.3).
    fn judge_no_body(&self) -> Result<(), Fault> {
        let mut lengths = self.values("content-length");
        let is_empty = match (lengths.next(), lengths.next()) {
            (None, _) => true,
            (Some(length), None) => length == b"0",
            _ => false,
        };
        let is_encoded = self.values("transfer-encoding").next().is_some();
        let header = match (is_empty, is_encoded) {
            (true, false) => return Ok(()),
            (false, _) => "content-length",
            (true, true) => "transfer-encoding",
        };
        Err(Fault::of(Refusal::BadRequest, Cause::Body, header))
    }

    fn server_id(&self) -> Result<&'a str, Fault> {
        const NAME: &str = "x-pyrycode-server";
        let id = self.only(NAME).and_then(|id| {
            let is_good = id.len() <= SERVER_ID_MAX && id.iter().all(u8::is_ascii_graphic);
            let id = str::from_utf8(id).ok().filter(|_| is_good).ok_or(Cause::Invalid)?;
            if id.is_empty() { Err(Cause::Missing) } else { Ok(id) }
        });
        id.map_err(|cause| Fault::of(Refusal::BadRequest, cause, NAME))
    }

    /// The values of a field, in order, without surrounding white space.
    fn values(&self, name: &'static str) -> impl DoubleEndedIterator<Item = &'a [u8]> {
        let named = move |field: &&httparse::Header<'a>| field.name.eq_ignore_ascii_case(name);
        self.fields.iter().filter(named).map(|field| field.value)
    }

    /// The value of a field that occurs exactly once; else the cause.
    fn only(&self, name: &'static str) -> Result<&'a [u8], Cause> {
        let mut values = self.values(name);
        match (values.next(), values.next()) {
            (Some(value), None) => Ok(value),
            (Some(_), Some(_)) => Err(Cause::Repeated),
            (None, _) => Err(Cause::Missing),
        }
    }

    /// The first value of a field, which must not be empty.
    fn required(&self, name: &'static str) -> Result<&'a [u8], Fault> {
        let value = self.values(name).next().filter(|value| !value.is_empty());
        value.ok_or(Fault::of(Refusal::BadRequest, Cause::Missing, name))
    }

    /// Whether a list-valued field contains `token`, in any case, in any of its lines.
    fn has_token(&self, name: &'static str, token: &str) -> bool {
        let is_token = |element: &[u8]| element.eq_ignore_ascii_case(token.as_bytes());
        self.values(name).flat_map(elements_reversed).any(is_token)
    }
}

#[cfg(test)]
mod tests;
