//! Deadlines: when each state of a connection is over, and what follows.
//!
//! Owns the choice among the deadlines of a connection's parts. Must not know timers.

use super::closing::Closing;
use super::{Connection, Expiry, State};
use crate::config::Timeouts;
use crate::protocol::close::CloseCause;
use crate::protocol::heartbeat::HeartbeatAction;
use crate::time::Instant;

impl Connection {
    /// When [`Self::handle_timeout`] has to be called next.
    #[must_use]
    pub fn deadline(&self, timeouts: &Timeouts) -> Instant {
        let own = match &self.state {
            State::Head { deadline }
            | State::Waiting { deadline }
            | State::Closing(Closing { deadline, .. }) => *deadline,
            State::Open { heartbeat, .. } => heartbeat.deadline(!self.is_stopped(), timeouts),
        };
        own.min(self.message_deadline(timeouts)).min(self.write_deadline(timeouts))
    }

    /// What is due at `now`, one expiry per call.
    pub fn handle_timeout(&mut self, now: Instant, timeouts: &Timeouts) -> Option<Expiry> {
        let reading = !self.is_stopped();
        let stuck = now >= self.write_deadline(timeouts);
        let unfinished = now >= self.message_deadline(timeouts);
        match &mut self.state {
            State::Head { deadline } => (stuck || now >= *deadline).then_some(Expiry::Head),
            State::Closing(closing) => {
                (stuck || now >= closing.deadline).then_some(Expiry::Disconnect)
            }
            State::Waiting { .. } | State::Open { .. } if stuck => {
                Some(Expiry::Close(CloseCause::WriteTimeout))
            }
            State::Waiting { deadline } => (now >= *deadline).then_some(Expiry::Claim),
            State::Open { .. } if unfinished => Some(Expiry::Close(CloseCause::MessageTimeout)),
            State::Open { heartbeat, .. } => {
                match heartbeat.handle_timeout(now, reading, timeouts)? {
                    HeartbeatAction::Ping(sequence) => Some(Expiry::Ping(sequence)),
                    HeartbeatAction::Dead => Some(Expiry::Close(CloseCause::HeartbeatTimeout)),
                }
            }
        }
    }

    /// Deadline of the incomplete message.
    fn message_deadline(&self, timeouts: &Timeouts) -> Instant {
        match (&self.state, &self.inbound) {
            (State::Open { .. }, Some(inbound))
                if inbound.paused.is_none() && !inbound.reassembly.is_empty() =>
            {
                inbound.since + timeouts.message
            }
            _ => Instant::NEVER,
        }
    }

    /// Deadline for write progress.
    fn write_deadline(&self, timeouts: &Timeouts) -> Instant {
        self.outbox.as_ref().map_or(Instant::NEVER, |outbox| outbox.progress() + timeouts.write)
    }
}
