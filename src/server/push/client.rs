//! HTTP client: one HTTPS POST per call.
//!
//! Owns the limits of a call and its reply, and the error texts. Must not know tokens or FCM.
//!
//! 1. A call takes [`CALL_TIMEOUT`] at most, whatever the server does.
//! 2. At most [`HEAD_MAX`] bytes of a reply's head are read, and [`REPLY_MAX`] of its body.
//! 3. Every call has its own connection, so that surplus bytes of one reply or a dead idle
//!    connection cannot affect another call.

use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use ureq::http::Response;
use ureq::http::header::{AUTHORIZATION, CONTENT_TYPE};
use ureq::{Agent, Body, Error};

use super::CALL_TIMEOUT;
use crate::config::DESCRIPTORS_RESERVED;
use crate::relay::push_wake::IN_FLIGHT_MAX;
use crate::server::os::clock::wall_time;
use crate::server::outbound::dns::LOOKUPS_MAX;
use crate::server::outbound::https::{self, ATTEMPTS_BESIDE_MAX};
use crate::server::outbound::retry_after::retry_after;

/// The number of bytes of a reply's body that are read.
const REPLY_MAX: u64 = 4096;
/// The size limit of a reply's head.
const HEAD_MAX: usize = 8 * 1024;
/// The size of a call's input buffer and of its output buffer.
const BUFFER: usize = 16 * 1024;

const _: () = assert!(HEAD_MAX <= BUFFER);
// A call has one socket, and more while it connects to several addresses; a silent name
// server may keep lookup threads, each with a socket, beyond their calls.
const _: () = assert!(IN_FLIGHT_MAX + ATTEMPTS_BESIDE_MAX + LOOKUPS_MAX <= DESCRIPTORS_RESERVED);

/// Makes calls, any number at a time.
pub(super) struct Client(Agent);

/// A reply whose body has not been read.
pub(super) struct Reply(Response<Body>);

impl Reply {
    pub(super) fn status(&self) -> u16 {
        self.0.status().as_u16()
    }

    /// The wait that the reply asks for (Retry-After), if any.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        retry_after(self.0.headers(), wall_time())
    }

    /// The body as far as it arrived within the limits.
    pub(super) fn read(mut self) -> Vec<u8> {
        let mut body = Vec::new();
        // After an error the part that arrived is used.
        let _ = self.0.body_mut().as_reader().take(REPLY_MAX).read_to_end(&mut body);
        body
    }
}

impl Client {
    /// A client that trusts the certificate authorities in the PEM file `ca` and no others;
    /// without a file, those that browsers trust.
    ///
    /// # Errors
    /// The reason why the file cannot be used.
    pub(super) fn new(ca: Option<&Path>) -> Result<Self, String> {
        let config = https::config(ca)?
            .timeout_global(Some(CALL_TIMEOUT))
            .max_idle_connections(0)
            .max_response_header_size(HEAD_MAX)
            .input_buffer_size(BUFFER)
            .output_buffer_size(BUFFER)
            .build();
        Ok(Self(https::agent(config)))
    }

    /// Sends a POST and waits for the reply's head.
    ///
    /// # Errors
    /// The reason why there is no reply.
    pub(super) fn post(
        &self,
        url: &str,
        content_type: &str,
        bearer: Option<&str>,
        body: &str,
    ) -> Result<Reply, &'static str> {
        let mut request = self.0.post(url).header(CONTENT_TYPE, content_type);
        if let Some(token) = bearer {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        request.send(body).map(Reply).map_err(|error| cause(&error))
    }
}

/// The error as one of a fixed set of texts: an error's own text may quote the server.
fn cause(error: &Error) -> &'static str {
    match error {
        Error::Timeout(_) => "timed out",
        Error::HostNotFound => "host not found",
        Error::Rustls(error) => tls_cause(error),
        Error::Tls(_) | Error::TlsRequired => "TLS failed",
        Error::Io(error) => io_cause(error),
        Error::Protocol(_) | Error::LargeResponseHeader(..) => "the reply is not HTTP",
        _ => "the call failed",
    }
}

fn io_cause(error: &io::Error) -> &'static str {
    if let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref()) {
        return tls_cause(error);
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused",
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "connection reset",
        io::ErrorKind::UnexpectedEof => "connection closed",
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "host unreachable",
        io::ErrorKind::TimedOut => "timed out",
        _ => "I/O error",
    }
}

fn tls_cause(error: &rustls::Error) -> &'static str {
    match error {
        rustls::Error::InvalidCertificate(_) => "the server's certificate is not trusted",
        _ => "TLS failed",
    }
}

#[cfg(test)]
mod tests {
    use ureq::Timeout;

    use super::*;

    #[test]
    fn what_goes_wrong_is_told_in_words_of_ours() {
        let names = rustls::CertificateError::NotValidForNameContext {
            expected: rustls::pki_types::ServerName::try_from("localhost").unwrap(),
            presented: vec!["hunter2".into()],
        };
        let refused = rustls::Error::InvalidCertificate(names);
        for (error, expected) in [
            (Error::BadUri("hunter2".into()), "the call failed"),
            (Error::Rustls(refused.clone()), "the server's certificate is not trusted"),
            (Error::Io(io::Error::other(refused)), "the server's certificate is not trusted"),
            (Error::Io(io::Error::other("hunter2")), "I/O error"),
            (Error::Io(io::ErrorKind::ConnectionRefused.into()), "connection refused"),
            (Error::Rustls(rustls::Error::General("hunter2".into())), "TLS failed"),
            (Error::Timeout(Timeout::Global), "timed out"),
        ] {
            assert_eq!(cause(&error), expected, "{error:?}");
        }
    }
}
