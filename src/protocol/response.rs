//! HTTP responses of the relay, as bytes.
//!
//! Owns the one table of refusals, the 101, the two health responses and the ACME challenge
//! response. Must not know why a response is sent: the gates ([`super::request`], `relay/`)
//! decide that.
//!
//! 1. Every response but the 101 has `Connection: close` and its length, so no peer waits for
//!    more or sends another request.
//! 2. Every response has `Date`; each 429 and 503 has `Retry-After`.
//! 3. No response names software or echoes a byte of the request.

use std::io::Write as _;

use serde::Serialize;

/// A refused request: an HTTP response with an empty body, after which the connection is
/// closed. Valid for HEAD too, since there is no body to leave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// 400: a malformed head, a body, a missing or bad header.
    BadRequest,
    /// 400 with the one supported WebSocket version (RFC 6455, 4.4).
    WebSocketVersion,
    /// 403: a load balancer's own connection asked for more than its health.
    Forbidden,
    /// 404: no such path.
    NotFound,
    /// 405 of the WebSocket endpoints.
    OnlyGet,
    /// 405 of the health endpoints.
    OnlyGetOrHead,
    /// 408: the head did not arrive in time.
    RequestTimeout,
    /// 421: the host is not the one served.
    Misdirected,
    /// 426: not a WebSocket upgrade, or below HTTP/1.1.
    UpgradeRequired,
    /// 429: too many upgrade attempts from this address.
    TooManyRequests {
        /// Whole seconds until the next attempt is allowed.
        retry_after: u32,
    },
    /// 431: the head is too long or has too many fields.
    HeadTooLarge,
    /// 503: full or draining.
    Unavailable,
}

const UNAVAILABLE: &str = "503 Service Unavailable";
/// For every 503 (RFC 9110, 10.2.3): within 10 s a shut-down has ended, and a connection may
/// have become free.
pub const RETRY_LATER: &str = "Retry-After: 10\r\n";

/// When a response is made: the `Date` field (RFC 9110, 6.6.1), as IMF-fixdate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Date([u8; Date::LEN]);

impl Date {
    const LEN: usize = 29;

    /// `text` in the form of RFC 9110, 5.6.7; `None` if its length is wrong.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        text.as_bytes().try_into().ok().map(Self)
    }

    /// The value of the field.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl Default for Date {
    /// Used until the shell hands in the date.
    fn default() -> Self {
        Self(*b"Thu, 01 Jan 1970 00:00:00 GMT")
    }
}

/// The status line, and the fields that every response but the 101 has.
fn begin(status: &str, date: &Date, length: usize, out: &mut Vec<u8>) {
    write!(
        out,
        "HTTP/1.1 {status}\r\nDate: {}\r\nConnection: close\r\nContent-Length: {length}\r\n",
        date.as_str()
    )
    .expect("a Vec takes every write");
}

impl Refusal {
    /// Status code and reason phrase.
    #[must_use]
    pub const fn status(self) -> &'static str {
        match self {
            Self::BadRequest | Self::WebSocketVersion => "400 Bad Request",
            Self::Forbidden => "403 Forbidden",
            Self::NotFound => "404 Not Found",
            Self::OnlyGet | Self::OnlyGetOrHead => "405 Method Not Allowed",
            Self::RequestTimeout => "408 Request Timeout",
            Self::Misdirected => "421 Misdirected Request",
            Self::UpgradeRequired => "426 Upgrade Required",
            Self::TooManyRequests { .. } => "429 Too Many Requests",
            Self::HeadTooLarge => "431 Request Header Fields Too Large",
            Self::Unavailable => UNAVAILABLE,
        }
    }

    /// The status code.
    #[must_use]
    pub fn code(self) -> u16 {
        self.status()[..3].parse().expect("a status begins with its number")
    }

    /// The whole response.
    #[must_use]
    pub fn bytes(self, date: &Date) -> Vec<u8> {
        let mut out = Vec::with_capacity(192);
        if self == Self::UpgradeRequired {
            // RFC 9110, 7.8: a server that sends Upgrade must name it in Connection.
            write!(
                out,
                "HTTP/1.1 {}\r\nDate: {}\r\nConnection: Upgrade, close\r\n\
                 Content-Length: 0\r\nUpgrade: websocket\r\n\r\n",
                self.status(),
                date.as_str()
            )
            .expect("a Vec takes every write");
            return out;
        }
        begin(self.status(), date, 0, &mut out);
        let field = match self {
            Self::WebSocketVersion => "Sec-WebSocket-Version: 13\r\n",
            Self::OnlyGet => "Allow: GET\r\n",
            Self::OnlyGetOrHead => "Allow: GET, HEAD\r\n",
            Self::Unavailable => RETRY_LATER,
            _ => "",
        };
        out.extend_from_slice(field.as_bytes());
        if let Self::TooManyRequests { retry_after } = self {
            write!(out, "Retry-After: {retry_after}\r\n").expect("a Vec takes every write");
        }
        out.extend_from_slice(b"\r\n");
        out
    }
}

/// Appends the 101 (RFC 6455, 4.2.2): no subprotocol, no extension. `accept` is the digest of
/// the peer's key, `request_id` the connection's name in the log; both are generated by the
/// relay and visible ASCII.
pub fn switching_protocols(accept: &str, request_id: &str, date: &Date, out: &mut Vec<u8>) {
    debug_assert!([accept, request_id].iter().all(|v| v.bytes().all(|b| b.is_ascii_graphic())));
    for part in [
        "HTTP/1.1 101 Switching Protocols\r\nDate: ",
        date.as_str(),
        "\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
        "Sec-WebSocket-Accept: ",
        accept,
        "\r\nx-request-id: ",
        request_id,
        "\r\n\r\n",
    ] {
        out.extend_from_slice(part.as_bytes());
    }
}

/// The body of `/healthz`. The order of the fields is the order of the keys on the wire,
/// which is part of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Health {
    /// Whether the relay serves or drains.
    pub status: Status,
    /// The version of the program.
    pub version: &'static str,
    /// Binaries that hold a slot over an open WebSocket.
    pub connected_binaries: u64,
    /// Registered phones.
    pub connected_phones: u64,
    /// Whole seconds since the start.
    pub uptime_seconds: u64,
}

/// Whether the relay serves or drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Serving: 200.
    Ok,
    /// Shutting down: 503.
    Draining,
}

/// Appends the response to `/healthz`; to a HEAD request the same without its body (RFC 9110,
/// 9.3.2).
pub fn health(health: &Health, date: &Date, is_head: bool, out: &mut Vec<u8>) {
    health_with(health.status, health, date, is_head, out);
}

/// The same with another body for this status.
pub fn health_with(
    status: Status,
    body: &impl Serialize,
    date: &Date,
    is_head: bool,
    out: &mut Vec<u8>,
) {
    let (status, later) = match status {
        Status::Ok => ("200 OK", ""),
        Status::Draining => (UNAVAILABLE, RETRY_LATER),
    };
    let body = serde_json::to_vec(body).expect("a struct of numbers and strings is JSON");
    begin(status, date, body.len(), out);
    write!(
        out,
        "Content-Type: application/json; charset=utf-8\r\nCache-Control: no-store\r\n{later}\r\n"
    )
    .expect("a Vec takes every write");
    if !is_head {
        out.extend_from_slice(&body);
    }
}

/// Appends the response to a challenge of a certificate authority (RFC 8555 §8.3); to a HEAD
/// request the same without its body.
pub fn challenge(answer: &str, date: &Date, is_head: bool, out: &mut Vec<u8>) {
    begin("200 OK", date, answer.len(), out);
    out.extend_from_slice(
        b"Content-Type: application/octet-stream\r\nCache-Control: no-store\r\n\r\n",
    );
    if !is_head {
        out.extend_from_slice(answer.as_bytes());
    }
}

/// Appends the response to `/readyz`: 200 while upgrades are accepted, else 503.
pub fn ready(is_ready: bool, date: &Date, out: &mut Vec<u8>) {
    let (status, later) = if is_ready { ("200 OK", "") } else { (UNAVAILABLE, RETRY_LATER) };
    begin(status, date, 0, out);
    write!(out, "Cache-Control: no-store\r\n{later}\r\n").expect("a Vec takes every write");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Status and reason, and the sorted field lines, of a response without a body.
    fn taken_apart(answer: &[u8]) -> (&str, Vec<&str>) {
        let answer = std::str::from_utf8(answer).unwrap();
        assert!(answer.contains("\r\nDate: Sat, 28 Nov 2026 06:16:16 GMT\r\n"), "{answer}");
        let mut lines: Vec<_> = answer.strip_suffix("\r\n\r\n").unwrap().split("\r\n").collect();
        let status = lines.remove(0).strip_prefix("HTTP/1.1 ").unwrap();
        lines.sort_unstable();
        (status, lines)
    }

    fn date() -> Date {
        Date::new("Sat, 28 Nov 2026 06:16:16 GMT").unwrap()
    }

    #[test]
    fn refusals() {
        const CLOSE: &str = "Connection: close";
        for (refusal, status, connection, extra) in [
            (Refusal::BadRequest, "400 Bad Request", CLOSE, None),
            (
                Refusal::WebSocketVersion,
                "400 Bad Request",
                CLOSE,
                Some("Sec-WebSocket-Version: 13"),
            ),
            (Refusal::Forbidden, "403 Forbidden", CLOSE, None),
            (Refusal::NotFound, "404 Not Found", CLOSE, None),
            (Refusal::OnlyGet, "405 Method Not Allowed", CLOSE, Some("Allow: GET")),
            (Refusal::OnlyGetOrHead, "405 Method Not Allowed", CLOSE, Some("Allow: GET, HEAD")),
            (Refusal::RequestTimeout, "408 Request Timeout", CLOSE, None),
            (Refusal::Misdirected, "421 Misdirected Request", CLOSE, None),
            (
                Refusal::UpgradeRequired,
                "426 Upgrade Required",
                "Connection: Upgrade, close",
                Some("Upgrade: websocket"),
            ),
            (
                Refusal::TooManyRequests { retry_after: 7 },
                "429 Too Many Requests",
                CLOSE,
                Some("Retry-After: 7"),
            ),
            (Refusal::HeadTooLarge, "431 Request Header Fields Too Large", CLOSE, None),
            (Refusal::Unavailable, "503 Service Unavailable", CLOSE, Some("Retry-After: 10")),
        ] {
            let mut fields =
                vec![connection, "Content-Length: 0", "Date: Sat, 28 Nov 2026 06:16:16 GMT"];
            fields.extend(extra);
            fields.sort_unstable();
            assert_eq!(taken_apart(&refusal.bytes(&date())), (status, fields), "{refusal:?}");
            assert!(status.starts_with(&refusal.code().to_string()));
        }
    }

    #[test]
    fn switching_protocols_is_appended() {
        let mut out = b"before".to_vec();
        switching_protocols("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "client-7", &date(), &mut out);
        let expected = "beforeHTTP/1.1 101 Switching Protocols\r\n\
            Date: Sat, 28 Nov 2026 06:16:16 GMT\r\n\
            Upgrade: websocket\r\n\
            Connection: Upgrade\r\n\
            Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\
            x-request-id: client-7\r\n\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn health_to_get_and_head() {
        for (status, line, word, later) in [
            (Status::Ok, "200 OK", "ok", ""),
            (Status::Draining, "503 Service Unavailable", "draining", "Retry-After: 10\r\n"),
        ] {
            let told = Health {
                status,
                version: "1.2.3",
                connected_binaries: 4,
                connected_phones: 56,
                uptime_seconds: 789,
            };
            let body = format!(
                "{{\"status\":\"{word}\",\"version\":\"1.2.3\",\"connected_binaries\":4,\
                 \"connected_phones\":56,\"uptime_seconds\":789}}"
            );
            let head = format!(
                "HTTP/1.1 {line}\r\nDate: Sat, 28 Nov 2026 06:16:16 GMT\r\nConnection: close\r\n\
                 Content-Length: {}\r\nContent-Type: application/json; charset=utf-8\r\n\
                 Cache-Control: no-store\r\n{later}\r\n",
                body.len()
            );
            let (mut to_get, mut to_head) = (Vec::new(), Vec::new());
            health(&told, &date(), false, &mut to_get);
            health(&told, &date(), true, &mut to_head);
            assert_eq!(String::from_utf8(to_head).unwrap(), head);
            assert_eq!(String::from_utf8(to_get).unwrap(), head + &body);
        }
    }

    #[test]
    fn readiness_is_a_status_without_a_body() {
        for (is_ready, status, later) in
            [(true, "200 OK", None), (false, "503 Service Unavailable", Some("Retry-After: 10"))]
        {
            let mut fields = vec![
                "Cache-Control: no-store",
                "Connection: close",
                "Content-Length: 0",
                "Date: Sat, 28 Nov 2026 06:16:16 GMT",
            ];
            fields.extend(later);
            let mut answer = Vec::new();
            ready(is_ready, &date(), &mut answer);
            assert_eq!(taken_apart(&answer), (status, fields));
        }
    }

    #[test]
    fn a_date_has_one_length() {
        assert_eq!(Date::new("28 Nov 2026"), None);
        assert_eq!(Date::default().as_str(), "Thu, 01 Jan 1970 00:00:00 GMT");
    }
}
