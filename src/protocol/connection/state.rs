//! State of a connection, and back.

use super::closing::Closing;
use super::{Connection, State};
use crate::config::READ_SIZE;
use crate::protocol::heartbeat::Heartbeat;
use crate::protocol::inbound::Inbound;
use crate::protocol::outbox::Outbox;
use crate::protocol::websocket::Codec;
use crate::state::{Unfit, v1};
use crate::time::Instant;

/// A connection as plain values.
#[derive(Debug)]
pub struct Saved {
    /// Its state.
    pub phase: v1::Phase,
    /// Input that is not handled.
    pub inbound: Option<v1::Inbound>,
    /// Output that is not written.
    pub outbox: Option<v1::Outbox>,
}

impl Connection {
    /// As plain values.
    #[must_use]
    pub fn save(&self) -> Saved {
        let phase = match &self.state {
            State::Head { deadline } => v1::Phase::Head { deadline: deadline.as_micros() },
            State::Waiting { deadline } => v1::Phase::Waiting { deadline: deadline.as_micros() },
            State::Open { heartbeat, since } => {
                v1::Phase::Open { since: *since, heartbeat: heartbeat.save() }
            }
            State::Closing(closing) => v1::Phase::Closing(closing.save()),
        };
        let inbound = self.inbound.as_ref().map(|inbound| inbound.save());
        let outbox = self.outbox.as_ref().map(|outbox| outbox.save());
        Saved { phase, inbound, outbox }
    }

    /// The connection of which [`Self::save`] returned `saved`.
    ///
    /// # Errors
    /// If its state cannot be.
    pub fn restore(saved: Saved, codec: &Codec) -> Result<Self, Unfit> {
        let Saved { phase, inbound, outbox } = saved;
        let state = match &phase {
            v1::Phase::Head { deadline } => {
                State::Head { deadline: Instant::from_micros(*deadline) }
            }
            v1::Phase::Waiting { deadline } => {
                State::Waiting { deadline: Instant::from_micros(*deadline) }
            }
            v1::Phase::Open { since, heartbeat } => {
                State::Open { heartbeat: Heartbeat::restore(heartbeat)?, since: *since }
            }
            v1::Phase::Closing(closing) => State::Closing(Closing::restore(closing)),
        };
        let inbound = inbound.map(|inbound| Inbound::restore(inbound, codec)).transpose()?;
        let outbox = outbox.map(Outbox::restore).transpose()?;
        Ok(Self { state, inbound: inbound.map(Box::new), outbox: outbox.map(Box::new) })
    }
}

impl Closing {
    fn save(&self) -> v1::Closing {
        let Self { deadline, drained, half_closed, peer_ended, answered, is_framed } = *self;
        let deadline = deadline.as_micros();
        v1::Closing { deadline, drained, half_closed, peer_ended, answered, is_framed }
    }

    fn restore(saved: &v1::Closing) -> Self {
        let v1::Closing { deadline, drained, half_closed, peer_ended, answered, is_framed } =
            *saved;
        let deadline = Instant::from_micros(deadline);
        Self { deadline, drained, half_closed, peer_ended, answered, is_framed }
    }
}

impl Inbound {
    fn save(&self) -> v1::Inbound {
        let (frame, fragments) = self.reassembly.save();
        v1::Inbound {
            kept: v1::Buffer::from(&self.kept),
            frame,
            fragments,
            below: self.below as u64,
            since: self.since.as_micros(),
            paused: self.paused.map(Instant::as_micros),
        }
    }

    fn restore(saved: v1::Inbound, codec: &Codec) -> Result<Self, Unfit> {
        let v1::Inbound { kept, frame, fragments, below, since, paused } = saved;
        Ok(Self {
            kept: kept.restore(2 * READ_SIZE),
            reassembly: codec.restore(frame, fragments)?,
            below: usize::try_from(below).map_err(|_| Unfit("buffered input"))?,
            since: Instant::from_micros(since),
            paused: paused.map(Instant::from_micros),
        })
    }
}
