//! State of a session at rest, for a hand-over, and back.
//!
//! A session in rustls has none: rustls does not give its state away.

use serde_bytes::ByteBuf;

use super::{Pending, Session, State};
use crate::server::net::tls_record::{Facts, RecordLayer, Saved};
use crate::state::v1;

impl Session {
    /// As plain values; `None` for one in rustls, and for one that is broken.
    pub(in crate::server) fn save(&self) -> Option<v1::Session> {
        let State::Rest(records) = &self.state else { return None };
        let saved = records.save()?;
        let material = saved.material.each_ref().map(|material| ByteBuf::from(*material));
        let Facts {
            has_ended,
            has_sent_end,
            owes_answer,
            key_updates,
            warnings,
            empty,
            renegotiations,
            message,
            message_len,
            skip,
        } = saved.facts;
        Some(v1::Session {
            version: saved.version,
            suite: saved.suite,
            has_ended,
            has_sent_end,
            owes_answer,
            key_updates,
            warnings,
            empty,
            renegotiations,
            message,
            message_len,
            skip,
            sequences: saved.sequences,
            material,
            partial: ByteBuf::from(self.partial()),
            unsent: ByteBuf::from(self.unsent()),
            is_ending: self.is_ending(),
        })
    }

    /// Continues the session; `None` if the values are not those of one.
    pub(in crate::server) fn restore(saved: &v1::Session) -> Option<Self> {
        let [send, receive] = &saved.material;
        let material = [send.as_slice().try_into().ok()?, receive.as_slice().try_into().ok()?];
        let records = RecordLayer::restore(&Saved {
            version: saved.version,
            suite: saved.suite,
            facts: Facts {
                has_ended: saved.has_ended,
                has_sent_end: saved.has_sent_end,
                owes_answer: saved.owes_answer,
                key_updates: saved.key_updates,
                warnings: saved.warnings,
                empty: saved.empty,
                renegotiations: saved.renegotiations,
                message: saved.message,
                message_len: saved.message_len,
                skip: saved.skip,
            },
            sequences: saved.sequences,
            material,
        })?;
        let pending = Pending {
            partial: saved.partial.to_vec(),
            unsent: saved.unsent.to_vec(),
            is_ending: saved.is_ending,
            error: None,
        };
        let is_pending =
            pending.is_ending || !(pending.partial.is_empty() && pending.unsent.is_empty());
        let pending = is_pending.then(|| Box::new(pending));
        Some(Self { state: State::Rest(records), pending })
    }
}
