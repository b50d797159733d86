//! Handshake of a session, driven record by record.
//!
//! Owns the connection in rustls until the handshake is complete, what the ClientHello asked
//! for, and the secrets that rustls showed. Must not know what follows.

use std::sync::Arc;

use rustls::server::UnbufferedServerConnection;
use rustls::{Error, ServerConfig};

use super::driver::{Say, run};
use super::extract::{Secrets, take_caught};
use super::hello::{self, Hello};
use crate::server::net::tls::is_served;
use crate::server::net::tls_record::HEADER;

/// The state needed until the handshake is complete.
pub(super) struct Handshake {
    pub(super) inner: Box<UnbufferedServerConnection>,
    /// The only server name that is served; `None`: any.
    served: Option<Arc<str>>,
    pub(super) has_hello: bool,
    /// The peer has sent its last byte.
    pub(super) has_hung_up: bool,
    /// The name that the peer asked for.
    pub(super) asked: Option<Box<str>>,
    /// How much of the pending input rustls has seen: it must not see less the next time.
    pub(super) shown: usize,
    /// The configuration lets secrets out.
    pub(super) may_rest: bool,
    pub(super) secrets: Option<Box<Secrets>>,
}

impl Handshake {
    pub(super) fn new(config: Arc<ServerConfig>, served: Option<Arc<str>>) -> Result<Self, Error> {
        let may_rest = config.enable_secret_extraction;
        Ok(Self {
            inner: Box::new(UnbufferedServerConnection::new(config)?),
            served,
            has_hello: false,
            has_hung_up: false,
            asked: None,
            shown: 0,
            may_rest,
            secrets: None,
        })
    }

    /// Continues up to the end of the handshake, and shows rustls no record behind it. Counts
    /// the bytes of the ciphertext that were consumed.
    pub(super) fn advance(
        &mut self,
        used: &mut usize,
        ciphertext: &mut [u8],
        unsent: &mut Vec<u8>,
    ) -> Result<(), Error> {
        if !self.look_at_hello(ciphertext, unsent)? {
            return Ok(());
        }
        loop {
            let rest = &mut ciphertext[*used..];
            let show = next_record_end(rest, self.shown);
            let (mut consumed, mut has_ended) = (0, false);
            let output = (&mut Vec::new(), &mut *unsent);
            let input = (&mut consumed, &mut rest[..show]);
            let result = run(&mut self.inner, input, output, &mut has_ended, Say::Nothing);
            if let Some(secrets) = take_caught() {
                self.secrets = Some(secrets);
            }
            *used += consumed;
            self.shown = show - consumed;
            result?;
            if !self.inner.is_handshaking() || *used + self.shown == ciphertext.len() {
                return Ok(());
            }
        }
    }

    /// Whether the ClientHello is complete; an error if it asks for a name that is not
    /// served. Checked before the session answers, because rustls would send access_denied
    /// instead of unrecognized_name.
    fn look_at_hello(&mut self, ciphertext: &[u8], unsent: &mut Vec<u8>) -> Result<bool, Error> {
        if self.has_hello {
            return Ok(true);
        }
        let hello = hello::read(ciphertext);
        self.has_hello = hello != Hello::Partial;
        self.asked = match hello {
            Hello::Partial => return Ok(false),
            Hello::Malformed => return Ok(true),
            // The answer would cost a signature.
            Hello::Complete(_) if self.has_hung_up => {
                let error = "the peer disconnected during the handshake";
                return Err(Error::General(error.into()));
            }
            Hello::Complete(asked) => asked,
        };
        if is_served(self.asked.as_deref(), self.served.as_deref()) {
            return Ok(true);
        }
        unsent.extend_from_slice(hello::UNRECOGNIZED_NAME);
        Err(Error::General("the server name is not served here".into()))
    }
}

/// The end of the first record that ends behind `shown`; if it is incomplete, that of `bytes`.
fn next_record_end(bytes: &[u8], shown: usize) -> usize {
    let mut end = 0;
    while end <= shown {
        let Some(&[_, _, _, high, low]) = bytes.get(end..).and_then(<[u8]>::first_chunk) else {
            return bytes.len();
        };
        end += HEADER + usize::from(u16::from_be_bytes([high, low]));
    }
    end.min(bytes.len())
}
