//! The HTTP answers of the relay as bytes.
//!
//! Owns the one table of refusals, the 101 and the two health answers. Must not
//! know why an answer is given: the gates ([`super::request`], the relay layer)
//! decide that.
//!
//! Invariants:
//! 1. Every answer but the 101 says `Connection: close` and its length, so no
//!    peer waits for more or sends another request.
//! 2. No answer names software, and none echoes a byte of the request.

use std::io::Write as _;

use serde::Serialize;

/// Why a request is not served: an HTTP answer with an empty body, after which
/// the connection is closed. Good for HEAD too, there being no body to leave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// 400: a malformed head, a body, a missing or bad header.
    BadRequest,
    /// 400 with the one WebSocket version there is (RFC 6455, 4.4).
    WebSocketVersion,
    /// 403: a load balancer's own connection asked for more than its health.
    Forbidden,
    /// 404: no such path.
    NotFound,
    /// 405 of the WebSocket endpoints.
    OnlyGet,
    /// 405 of the health endpoints.
    OnlyGetOrHead,
    /// 408: the head did not come in time.
    RequestTimeout,
    /// 421: the Host is not ours.
    Misdirected,
    /// 426: not a WebSocket upgrade, or below HTTP/1.1.
    UpgradeRequired,
    /// 429: too many upgrade attempts from this address.
    TooManyRequests,
    /// 431: the head is too long or has too many fields.
    HeadTooLarge,
    /// 503: full or draining.
    Unavailable,
}

/// An answer without a body: status, then field lines beyond the usual two.
macro_rules! empty_answer {
    ($status:literal $(, $field:literal)*) => {
        concat!(
            "HTTP/1.1 ", $status, "\r\nConnection: close\r\nContent-Length: 0\r\n",
            $($field, "\r\n",)* "\r\n"
        ).as_bytes()
    };
}

impl Refusal {
    /// The whole answer.
    #[must_use]
    pub const fn bytes(self) -> &'static [u8] {
        match self {
            Self::BadRequest => empty_answer!("400 Bad Request"),
            Self::WebSocketVersion => {
                empty_answer!("400 Bad Request", "Sec-WebSocket-Version: 13")
            }
            Self::Forbidden => empty_answer!("403 Forbidden"),
            Self::NotFound => empty_answer!("404 Not Found"),
            Self::OnlyGet => empty_answer!("405 Method Not Allowed", "Allow: GET"),
            Self::OnlyGetOrHead => empty_answer!("405 Method Not Allowed", "Allow: GET, HEAD"),
            Self::RequestTimeout => empty_answer!("408 Request Timeout"),
            Self::Misdirected => empty_answer!("421 Misdirected Request"),
            // RFC 9110, 7.8: who sends Upgrade must name it in Connection.
            Self::UpgradeRequired => concat!(
                "HTTP/1.1 426 Upgrade Required\r\nConnection: Upgrade, close\r\n",
                "Content-Length: 0\r\nUpgrade: websocket\r\n\r\n"
            )
            .as_bytes(),
            Self::TooManyRequests => empty_answer!("429 Too Many Requests"),
            Self::HeadTooLarge => empty_answer!("431 Request Header Fields Too Large"),
            Self::Unavailable => empty_answer!("503 Service Unavailable"),
        }
    }
}

/// Appends the 101 (RFC 6455, 4.2.2): no subprotocol, no extension. `accept` is
/// the digest of the peer's key, `request_id` what the log calls this
/// connection; both are ours and visible ASCII.
pub fn switching_protocols(accept: &str, request_id: &str, out: &mut Vec<u8>) {
    debug_assert!([accept, request_id].iter().all(|v| v.bytes().all(|b| b.is_ascii_graphic())));
    for part in [
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
        "Sec-WebSocket-Accept: ",
        accept,
        "\r\nx-request-id: ",
        request_id,
        "\r\n\r\n",
    ] {
        out.extend_from_slice(part.as_bytes());
    }
}

/// What `/healthz` tells. The order of the fields is the order of the keys on
/// the wire, which is part of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Health {
    /// Whether the relay serves or leaves.
    pub status: Status,
    /// The version of the program.
    pub version: &'static str,
    /// Binaries that hold a slot over an open WebSocket.
    pub connected_binaries: u64,
    /// Phones registered.
    pub connected_phones: u64,
    /// Whole seconds since the start.
    pub uptime_seconds: u64,
}

/// Whether the relay serves or leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Serving: 200.
    Ok,
    /// Shutting down: 503.
    Draining,
}

/// Appends the answer to `/healthz`; to a HEAD request the same without its
/// body (RFC 9110, 9.3.2).
pub fn health(health: &Health, is_head: bool, out: &mut Vec<u8>) {
    let status = match health.status {
        Status::Ok => "200 OK",
        Status::Draining => "503 Service Unavailable",
    };
    let body = serde_json::to_vec(health).expect("a struct of numbers and strings is JSON");
    write!(
        out,
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\
         Content-Type: application/json; charset=utf-8\r\nCache-Control: no-store\r\n\r\n",
        body.len()
    )
    .expect("a Vec takes every write");
    if !is_head {
        out.extend_from_slice(&body);
    }
}

/// Appends the answer to a challenge of a certificate authority (RFC 8555 §8.3); to a
/// HEAD request the same without its body.
pub fn challenge(answer: &str, is_head: bool, out: &mut Vec<u8>) {
    write!(
        out,
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\
         Content-Type: application/octet-stream\r\nCache-Control: no-store\r\n\r\n",
        answer.len()
    )
    .expect("a Vec takes every write");
    if !is_head {
        out.extend_from_slice(answer.as_bytes());
    }
}

/// The answer to `/readyz`: 200 while upgrades are accepted, else 503.
#[must_use]
pub const fn ready(is_ready: bool) -> &'static [u8] {
    if is_ready {
        empty_answer!("200 OK", "Cache-Control: no-store")
    } else {
        empty_answer!("503 Service Unavailable", "Cache-Control: no-store")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Status and reason, and the sorted field lines, of an answer without body.
    fn taken_apart(answer: &[u8]) -> (&str, Vec<&str>) {
        let answer = std::str::from_utf8(answer).unwrap();
        let mut lines: Vec<_> = answer.strip_suffix("\r\n\r\n").unwrap().split("\r\n").collect();
        let status = lines.remove(0).strip_prefix("HTTP/1.1 ").unwrap();
        lines.sort_unstable();
        (status, lines)
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
            (Refusal::TooManyRequests, "429 Too Many Requests", CLOSE, None),
            (Refusal::HeadTooLarge, "431 Request Header Fields Too Large", CLOSE, None),
            (Refusal::Unavailable, "503 Service Unavailable", CLOSE, None),
        ] {
            let mut fields = vec![connection, "Content-Length: 0"];
            fields.extend(extra);
            fields.sort_unstable();
            assert_eq!(taken_apart(refusal.bytes()), (status, fields), "{refusal:?}");
        }
    }

    #[test]
    fn switching_protocols_is_appended() {
        let mut out = b"before".to_vec();
        switching_protocols("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "client-7", &mut out);
        let expected = "beforeHTTP/1.1 101 Switching Protocols\r\n\
            Upgrade: websocket\r\n\
            Connection: Upgrade\r\n\
            Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\
            x-request-id: client-7\r\n\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn health_to_get_and_head() {
        for (status, line, word) in [
            (Status::Ok, "200 OK", "ok"),
            (Status::Draining, "503 Service Unavailable", "draining"),
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
                "HTTP/1.1 {line}\r\nConnection: close\r\nContent-Length: {}\r\n\
                 Content-Type: application/json; charset=utf-8\r\nCache-Control: no-store\r\n\r\n",
                body.len()
            );
            let (mut to_get, mut to_head) = (Vec::new(), Vec::new());
            health(&told, false, &mut to_get);
            health(&told, true, &mut to_head);
            assert_eq!(String::from_utf8(to_head).unwrap(), head);
            assert_eq!(String::from_utf8(to_get).unwrap(), head + &body);
        }
    }

    #[test]
    fn readiness_is_a_status_without_a_body() {
        let fields = vec!["Cache-Control: no-store", "Connection: close", "Content-Length: 0"];
        assert_eq!(taken_apart(ready(true)), ("200 OK", fields.clone()));
        assert_eq!(taken_apart(ready(false)), ("503 Service Unavailable", fields));
    }
}
