//! Warnings about one connection's envelopes: at most one a minute of each kind, and a bounded
//! number a minute of all connections together.
//!
//! Owns when a connection was last warned about and how many warnings were suppressed since.
//! Must not know what is wrong, nor how it is logged.
//!
//! 1. A connection without faults has no entry here.
//! 2. At most [`CONNECTIONS_MAX`] connections have an entry at a time. While the table is
//!    full, other connections are not warned about.
//! 3. A suppressed warning is counted: in the next one of its connection and kind, or in the
//!    line at the end of the connection.

use std::collections::BTreeMap;
use std::time::Duration;

use super::conn_id::ConnId;
use super::envelope::Dropped;
use crate::state::v1;
use crate::time::Instant;

/// Time between two warnings of one kind and connection.
const INTERVAL: Duration = Duration::from_secs(60);
/// Maximum number of entries; a full table takes 100 KB.
const CONNECTIONS_MAX: usize = 1024;
/// Warnings of all connections together in one [`INTERVAL`]: at most some 17 MB of log a day.
const TOGETHER_MAX: u32 = 60;
/// Time between two searches of a full table for expired entries.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Kind of fault of an envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It cannot be parsed.
    Unmarshal,
    /// It is for an unknown phone.
    UnknownConnId,
    /// It asks for a push wake that is dropped.
    PushWake,
}

impl Kind {
    const COUNT: usize = 3;

    /// The log event.
    pub(super) const fn event(self) -> &'static str {
        match self {
            Self::Unmarshal => "binary_forwarder_unmarshal_err",
            Self::UnknownConnId => "binary_forwarder_unknown_conn_id",
            Self::PushWake => "binary_forwarder_push_wake_dropped",
        }
    }
}

impl From<Dropped> for Kind {
    fn from(cause: Dropped) -> Self {
        match cause {
            Dropped::UnknownPhone => Self::UnknownConnId,
            _ if cause.is_push_wake() => Self::PushWake,
            _ => Self::Unmarshal,
        }
    }
}

/// The warnings of one connection, by [`Kind`].
type Given = [Option<Warning>; Kind::COUNT];

#[derive(Clone, Copy, Debug)]
struct Warning {
    at: Instant,
    /// Warnings suppressed since then.
    left_out: u32,
}

/// Connections that were warned about.
#[derive(Debug, Default)]
pub(super) struct Warnings {
    given: BTreeMap<u64, Given>,
    sweep_at: Instant,
    /// When the current interval of [`TOGETHER_MAX`] began, and the warnings in it.
    began: Instant,
    together: u32,
}

impl Warnings {
    /// Counts a fault of the connection. `Some`: log a warning, with the number of warnings
    /// of this kind suppressed before; `None`: this one is suppressed.
    pub(super) fn warn(&mut self, id: ConnId, kind: Kind, now: Instant) -> Option<u32> {
        let is_known = self.given.contains_key(&id.to_bits());
        if !is_known && self.given.len() >= CONNECTIONS_MAX && !self.sweep(now) {
            return None;
        }
        if now.since(self.began) >= INTERVAL {
            (self.began, self.together) = (now, 0);
        }
        let is_due = |warning: &Option<Warning>| {
            warning.is_none_or(|warning| now.since(warning.at) >= INTERVAL)
        };
        let warning = &mut self.given.entry(id.to_bits()).or_default()[kind as usize];
        if is_due(warning) && self.together < TOGETHER_MAX {
            self.together += 1;
            let before = warning.replace(Warning { at: now, left_out: 0 });
            return Some(before.map_or(0, |before| before.left_out));
        }
        let warning = warning.get_or_insert(Warning { at: now, left_out: 0 });
        warning.left_out = warning.left_out.saturating_add(1);
        None
    }

    /// The connection has ended. Returns the number of its warnings that were suppressed since
    /// the last of each kind.
    pub(super) fn forget(&mut self, id: ConnId) -> u32 {
        let given = self.given.remove(&id.to_bits()).unwrap_or_default();
        given.into_iter().flatten().map(|warning| warning.left_out).fold(0, u32::saturating_add)
    }

    /// As plain values.
    pub(super) fn save(&self) -> v1::Warnings {
        let one = |warning: &Option<Warning>| warning.map(|it| (it.at.as_micros(), it.left_out));
        let given = self.given.iter().map(|(id, given)| (*id, given.iter().map(one).collect()));
        v1::Warnings {
            given: given.collect(),
            sweep_at: self.sweep_at.as_micros(),
            began: self.began.as_micros(),
            together: self.together,
        }
    }

    /// The warnings of which [`Self::save`] returned `saved`. Kinds that this program does not
    /// know are left out.
    pub(super) fn restore(saved: v1::Warnings) -> Self {
        let one = |(at, left_out)| Warning { at: Instant::from_micros(at), left_out };
        let all = |(id, saved): (u64, v1::Given)| {
            let mut given = Given::default();
            for (place, saved) in given.iter_mut().zip(saved) {
                *place = saved.map(one);
            }
            (id, given)
        };
        Self {
            given: saved.given.into_iter().map(all).collect(),
            sweep_at: Instant::from_micros(saved.sweep_at),
            began: Instant::from_micros(saved.began),
            together: saved.together,
        }
    }

    /// Removes expired entries of a full table; returns whether there is room.
    fn sweep(&mut self, now: Instant) -> bool {
        if now >= self.sweep_at {
            self.sweep_at = now + SWEEP_INTERVAL;
            self.given.retain(|_, given| {
                given.iter().flatten().any(|warning| now.since(warning.at) < INTERVAL)
            });
        }
        self.given.len() < CONNECTIONS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(seconds: u64) -> Instant {
        Instant::START + Duration::from_secs(seconds)
    }

    fn id(number: usize) -> ConnId {
        ConnId::new(number as u32, 7)
    }

    #[test]
    fn a_connection_is_warned_about_once_a_minute_and_kind() {
        let mut warnings = Warnings::default();
        assert_eq!(warnings.warn(id(1), Kind::Unmarshal, after(0)), Some(0));
        for second in [0, 1, 30, 59] {
            assert_eq!(warnings.warn(id(1), Kind::Unmarshal, after(second)), None);
        }
        // Other kinds and other connections have a minute of their own.
        assert_eq!(warnings.warn(id(1), Kind::PushWake, after(59)), Some(0));
        assert_eq!(warnings.warn(id(2), Kind::Unmarshal, after(59)), Some(0));
        assert_eq!(warnings.warn(id(1), Kind::Unmarshal, after(60)), Some(4));
        assert_eq!(warnings.warn(id(1), Kind::Unmarshal, after(120)), Some(0));
    }

    #[test]
    fn a_connection_that_has_ended_is_forgotten() {
        let mut warnings = Warnings::default();
        assert_eq!(warnings.warn(id(1), Kind::Unmarshal, after(0)), Some(0));
        for _ in 0..3 {
            assert_eq!(warnings.warn(id(1), Kind::Unmarshal, after(1)), None);
            let _ = warnings.warn(id(1), Kind::PushWake, after(1));
        }
        assert_eq!(warnings.forget(id(1)), 5, "three of one kind and two of another");
        assert!(warnings.given.is_empty());
        assert_eq!(warnings.forget(id(1)), 0);
    }

    #[test]
    fn the_table_is_bounded_and_makes_room_when_entries_expire() {
        let mut warnings = Warnings::default();
        for number in 0..CONNECTIONS_MAX {
            let is_warned = number < TOGETHER_MAX as usize;
            let given = warnings.warn(id(number), Kind::Unmarshal, after(0));
            assert_eq!(given, is_warned.then_some(0), "{number}");
        }
        assert_eq!(warnings.warn(id(CONNECTIONS_MAX), Kind::Unmarshal, after(59)), None);
        assert_eq!(warnings.given.len(), CONNECTIONS_MAX);
        // Connections with an entry are still warned about.
        assert_eq!(warnings.warn(id(3), Kind::Unmarshal, after(60)), Some(0));
        assert_eq!(warnings.warn(id(CONNECTIONS_MAX), Kind::Unmarshal, after(60)), Some(0));
        assert_eq!(warnings.given.len(), 2);
    }

    #[test]
    fn every_cause_has_the_event_of_its_kind() {
        for cause in Dropped::ALL {
            let event = match cause.label() {
                "unknown_phone" => "binary_forwarder_unknown_conn_id",
                label if label.starts_with("push_wake") => "binary_forwarder_push_wake_dropped",
                _ => "binary_forwarder_unmarshal_err",
            };
            assert_eq!(Kind::from(cause).event(), event, "{cause:?}");
        }
    }
}
