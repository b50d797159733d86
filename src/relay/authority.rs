//! The port for certificate authorities.
//!
//! Owns what is answered there beside the health endpoints (RFC 8555 §8.3): one challenge
//! at a time. Knows no authority and no certificate.

use super::conn_id::ConnId;
use super::relay::{Relay, Stage};
use crate::protocol::fault::{Cause, Fault};
use crate::protocol::request::Request;
use crate::protocol::response::{self, Refusal};
use crate::time::Instant;

impl Relay {
    /// The connection may ask for the answer to a challenge, and for health.
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

    /// On the port for certificate authorities there is the answer to a challenge, beside
    /// the health endpoints: the checker of a hosting service may reach no other port.
    pub(super) fn answer_authority(
        &mut self,
        id: ConnId,
        request: &Request<'_>,
        now: Instant,
    ) -> Result<(), Fault> {
        let asked = request.path().strip_prefix("/.well-known/acme-challenge/");
        let challenge = self.challenge.as_ref().filter(|(token, _)| asked == Some(token));
        let Some((_, content)) = challenge else {
            return Err(Fault::new(Refusal::NotFound, Cause::UnknownPath));
        };
        request.read_only()?;
        let mut answer = Vec::new();
        response::challenge(content, &self.date, request.is_head(), &mut answer);
        self.refuse(id, &answer, now);
        Ok(())
    }
}
