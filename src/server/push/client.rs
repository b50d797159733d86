//! One HTTPS POST.
//!
//! Owns the bounds on a call and on its reply, and the words for what may go wrong.
//! Knows neither tokens nor FCM.
//!
//! 1. A call takes [`CALL_TIMEOUT`] at most, whatever the server does.
//! 2. Of a reply's head at most [`HEAD_MAX`] are read, of its body [`REPLY_MAX`].
//! 3. Every call has a connection of its own: what a server sends too much, or a
//!    connection that has died at rest, is no other call's concern.

use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use ureq::http::Response;
use ureq::http::header::{AUTHORIZATION, CONTENT_TYPE};
use ureq::{Agent, Body, Error};

use super::CALL_TIMEOUT;
use crate::config::DESCRIPTORS_RESERVED;
use crate::relay::wake::IN_FLIGHT_MAX;
use crate::server::os::clock::wall_time;
use crate::server::outbound::dns::LOOKUPS_MAX;
use crate::server::outbound::https::{self, ATTEMPTS_BESIDE_MAX};
use crate::server::outbound::retry_after::retry_after;

/// The most bytes of a reply's body that are looked at.
const REPLY_MAX: u64 = 4096;
/// The most bytes of a reply's head.
const HEAD_MAX: usize = 8 * 1024;
/// A buffer of each call.
const BUFFER: usize = 16 * 1024;

const _: () = assert!(HEAD_MAX <= BUFFER);
// A call has one socket at a time, and while it connects perhaps more; others may be held
// by threads that a silent name server keeps beyond their calls.
const _: () = assert!(IN_FLIGHT_MAX + ATTEMPTS_BESIDE_MAX + LOOKUPS_MAX <= DESCRIPTORS_RESERVED);

/// Makes calls, any number at a time.
pub(super) struct Client(Agent);

/// A reply whose body is not yet read.
pub(super) struct Reply(Response<Body>);

impl Reply {
    pub(super) fn status(&self) -> u16 {
        self.0.status().as_u16()
    }

    /// How long it asks to be left alone, if it does.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        retry_after(self.0.headers(), wall_time())
    }

    /// The body as far as it came within the bounds.
    pub(super) fn read(mut self) -> Vec<u8> {
        let mut body = Vec::new();
        // What breaks off is judged by what there is.
        let _ = self.0.body_mut().as_reader().take(REPLY_MAX).read_to_end(&mut body);
        body
    }
}

impl Client {
    /// Trusts the authorities in the PEM file `ca` and no others; without one those
    /// that browsers trust.
    ///
    /// # Errors
    /// Why the file does not do.
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

    /// Posts, and waits for the reply's head.
    ///
    /// # Errors
    /// Why there is no reply.
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

/// What went wrong, in words of ours: those of an error may be the server's.
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
