//! Manifest: what travels beside the state, readable whatever the state is.
//!
//! Owns its format, JSON, in which a program skips the fields that it does not know: so the
//! listeners and the counts survive a state that cannot be read.

use serde::{Deserialize, Serialize};

use crate::state::v1::Listener;

/// The metrics listener, whose time is that of the whole relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminRecord {
    /// When the relay started, in nanoseconds since 1970.
    pub started_ns: u64,
    /// How long the relay has run, in microseconds.
    pub uptime_us: u64,
}

/// What hand-overs leave behind for the next program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// Hand-overs done.
    pub done: u64,
    /// Hand-overs refused.
    pub refused: u64,
    /// Why the last one was refused, and what was said about it.
    pub last_refusal: Option<(String, String)>,
    /// The connections that this hand-over drops.
    pub dropped: u64,
    /// When the pause began, on the monotonic clock of the system, in microseconds.
    pub paused_at_us: u64,
    /// Log lines lost since the start of the relay.
    pub log_lines_dropped: u64,
}

/// The first message of a hand-over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of the program that hands over.
    pub version: String,
    /// The format of the state.
    pub format: u32,
    /// The listening sockets, in the order of their descriptors.
    pub listeners: Vec<Listener>,
    /// The metrics listener, whose descriptor is the next.
    pub admin: Option<AdminRecord>,
    /// The number of descriptors of connections.
    pub descriptors: usize,
    /// The size of the state in bytes.
    pub state: u64,
    /// What hand-overs leave behind.
    #[serde(default)]
    pub record: Record,
}

impl Manifest {
    /// The number of descriptors that come with the manifest.
    #[must_use]
    pub fn listening(&self) -> usize {
        self.listeners.len() + usize::from(self.admin.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_a_later_program_are_skipped_and_missing_ones_have_a_default() {
        let text = r#"{"version":"9","format":7,"listeners":[{"speaks":1,"is_proxied":true,
            "more":1}],"admin":null,"descriptors":3,"state":4,"later":{},"record":{"done":5}}"#;
        let manifest: Manifest = serde_json::from_str(text).unwrap();
        assert_eq!(manifest.listeners, [Listener { speaks: 1, is_proxied: true }]);
        assert_eq!(manifest.record, Record { done: 5, ..Record::default() });
        let again = serde_json::to_string(&manifest).unwrap();
        assert_eq!(serde_json::from_str::<Manifest>(&again).unwrap(), manifest);
    }
}
