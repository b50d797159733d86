//! Faults: why a request is refused, for the log.
//!
//! Owns the closed lists of causes and of headers that may be at fault. Must not know the
//! response bytes (`response.rs` does): the log names the cause, while the response
//! deliberately does not.

use super::response::Refusal;

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The response to the peer.
    pub refusal: Refusal,
    /// The cause.
    pub cause: Cause,
    /// The header at fault, in lower case; from a closed list.
    pub header: Option<&'static str>,
}

/// Cause of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The head violates RFC 9112.
    MalformedHead,
    /// More than 8 KiB of head.
    HeadTooLong,
    /// More than 64 fields.
    TooManyFields,
    /// The head did not arrive in time.
    Timeout,
    /// A TLS ClientHello on a plain listener.
    TlsClientHello,
    /// HTTP/2 with prior knowledge (RFC 9113, 3.4).
    Http2Preface,
    /// A PROXY header on a listener without the PROXY protocol.
    ProxyHeader,
    /// A request with a body.
    Body,
    /// A header is missing or empty.
    Missing,
    /// A header that may occur once is repeated.
    Repeated,
    /// A header has an invalid value.
    Invalid,
    /// The Host is not the one that is served.
    WrongHost,
    /// The method is not one of the endpoint's.
    Method,
    /// HTTP/1.0, which has no upgrade.
    OldHttp,
    /// There is no such path.
    UnknownPath,
    /// A load balancer's own connection may request health endpoints only.
    HealthOnly,
    /// Too many attempts by one client.
    RateLimit,
    /// A cap on connections is reached.
    Cap,
    /// The relay is shutting down.
    Draining,
}

impl Cause {
    /// Its name in the log.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::MalformedHead => "malformed_head",
            Self::HeadTooLong => "head_too_long",
            Self::TooManyFields => "too_many_fields",
            Self::Timeout => "timeout",
            Self::TlsClientHello => "tls_client_hello",
            Self::Http2Preface => "http2_preface",
            Self::ProxyHeader => "proxy_header",
            Self::Body => "body",
            Self::Missing => "missing",
            Self::Repeated => "repeated",
            Self::Invalid => "invalid",
            Self::WrongHost => "wrong_host",
            Self::Method => "method",
            Self::OldHttp => "old_http",
            Self::UnknownPath => "unknown_path",
            Self::HealthOnly => "health_only",
            Self::RateLimit => "rate_limit",
            Self::Cap => "cap",
            Self::Draining => "draining",
        }
    }
}

impl Fault {
    /// No header is at fault.
    #[must_use]
    pub const fn new(refusal: Refusal, cause: Cause) -> Self {
        Self { refusal, cause, header: None }
    }

    /// `header` is at fault.
    #[must_use]
    pub const fn of(refusal: Refusal, cause: Cause, header: &'static str) -> Self {
        Self { refusal, cause, header: Some(header) }
    }

    /// The fault of a malformed head, with the cause that its first bytes suggest.
    #[must_use]
    pub fn malformed(bytes: &[u8]) -> Self {
        const PROXY_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
        let cause = match bytes {
            [22, 3, ..] => Cause::TlsClientHello,
            _ if bytes.starts_with(b"PRI * HTTP/2.0") => Cause::Http2Preface,
            _ if bytes.starts_with(b"PROXY ") || bytes.starts_with(PROXY_V2) => Cause::ProxyHeader,
            _ => Cause::MalformedHead,
        };
        Self::new(Refusal::BadRequest, cause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_protocols_are_recognised_by_their_first_bytes() {
        for (bytes, cause) in [
            (&b"\x16\x03\x01\x02\x00\x01\x00"[..], Cause::TlsClientHello),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Cause::Http2Preface),
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", Cause::ProxyHeader),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11", Cause::ProxyHeader),
            (b"\r\n\r\nGET", Cause::MalformedHead),
            (b"", Cause::MalformedHead),
        ] {
            let fault = Fault::malformed(bytes);
            assert_eq!((fault.refusal, fault.cause), (Refusal::BadRequest, cause));
        }
    }
}
