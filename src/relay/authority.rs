//! The port for certificate authorities.
//!
//! Owns what is answered there (RFC 8555 §8.3): one challenge at a time, and nothing to
//! anybody else. Knows no authority and no certificate.

use super::conn_id::ConnId;
use super::relay::{Relay, Stage};
use crate::protocol::request::Request;
use crate::protocol::response::{self, Refusal};
use crate::time::Instant;

impl Relay {
    /// The connection may ask for the answer to a challenge only.
    pub fn confine_to_challenges(&mut self, id: ConnId) {
        if let Some(entry) = self.entry_mut(id) {
            entry.stage = Stage::Challenge;
        }
    }

    /// What to answer a certificate authority (RFC 8555 §8.3): the token that it asks
    /// for, and the answer. The one before is forgotten.
    pub fn answer_challenge(&mut self, challenge: Option<(String, String)>) {
        self.challenge = challenge;
    }

    /// On the port for certificate authorities there is the answer to a challenge, and
    /// nothing else.
    pub(super) fn answer_authority(
        &mut self,
        id: ConnId,
        request: &Request<'_>,
        now: Instant,
    ) -> Result<(), Refusal> {
        let asked = request.path().strip_prefix("/.well-known/acme-challenge/");
        let challenge = self.challenge.as_ref().filter(|(token, _)| asked == Some(token));
        let Some((_, content)) = challenge else { return Err(Refusal::NotFound) };
        request.read_only()?;
        let mut answer = Vec::new();
        response::challenge(content, request.is_head(), &mut answer);
        self.refuse(id, &answer, now);
        Ok(())
    }
}
