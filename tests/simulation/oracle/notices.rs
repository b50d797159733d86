//! Oracle of the close notices: which binary receives one, for which phone, and when.
//!
//! Owns the expected notices by sections 4 to 6 of the contract, derived from the end of each
//! phone and its slot; and compares them with what the relay queues and writes.

use std::collections::{HashMap, HashSet};

use super::{Before, Oracle, has_place};
use crate::world::World;

/// What the chaos's binaries close a phone with.
pub(super) const ASKED: u16 = 4321;

#[derive(Default)]
pub(super) struct Notices {
    /// Not yet written, by the phone's conn_id.
    due: HashMap<String, Notice>,
    /// Phones that were told of.
    told: HashSet<String>,
    /// Server-ids whose binary was closed in the call under way while memory was
    /// spent: whether the phone or the binary ended first cannot be seen.
    unsure: HashSet<String>,
    /// The minimum and maximum number that the current call may queue.
    least: u64,
    most: u64,
}

struct Notice {
    binary: usize,
    /// `None`: any.
    code: Option<u16>,
    is_sure: bool,
}

impl Oracle {
    /// Before what the call under way has done is looked at.
    pub(super) fn begin_notices(&mut self, world: &World, is_shedding: bool) {
        self.notices.unsure = self
            .slots
            .iter()
            .filter(|(_, slot)| slot.holder.is_some_and(|holder| !has_place(world, holder)))
            .filter(|_| is_shedding)
            .map(|(server_id, _)| server_id.clone())
            .collect();
        (self.notices.least, self.notices.most) = (0, 0);
    }

    /// The phone has lost its place by its own doing, or the relay's.
    pub(super) fn expect_notice(&mut self, world: &World, phone: usize) {
        let server_id = &self.records[phone].server_id;
        let words = self.last_words(world, phone);
        if words.as_ref().is_some_and(|words| words.0 == ASKED) {
            return;
        }
        let notices = &mut self.notices;
        let is_unsure = notices.unsure.contains(server_id);
        let Some(binary) = self.slots[server_id].holder.filter(|_| !is_unsure) else {
            notices.most += u64::from(is_unsure);
            return;
        };
        let code = match &words {
            // The memory for its close was spent at once.
            None if self.is_shedding => None,
            None => Some(1001),
            Some(words) if words.0 == 0 => Some(1005),
            Some(words) => Some(words.0),
        };
        // Or the binary had asked for that close, and its frames were given up.
        let is_sure = !(self.is_requested && words.is_some_and(|words| words.is_shed()));
        notices.least += u64::from(is_sure);
        notices.most += 1;
        let id = world.relay.conn_id(world.peers[phone].id);
        assert!(!notices.told.contains(&id), "(12) {phone} ended twice");
        let before = notices.due.insert(id, Notice { binary, code, is_sure });
        assert!(before.is_none(), "(12) {phone} ended twice");
    }

    /// Checks that the relay has queued what it should.
    pub(super) fn check_notices(&self, before: &Before, after: &Before) {
        let Notices { least, most, .. } = self.notices;
        let queued = after.notices - before.notices;
        assert!((least..=most).contains(&queued), "(12) {queued} notices, not {least} to {most}");
    }

    /// Checks that every binary still connected has received its notices.
    pub(crate) fn no_notice_is_missing(&self) {
        for (id, notice) in &self.notices.due {
            let is_there = self.records[notice.binary].has_place;
            assert!(!(notice.is_sure && is_there), "(12) {} is not told of {id}", notice.binary);
        }
    }
}

impl Notices {
    /// Handles a message written to a binary.
    pub(super) fn on_text(&mut self, binary: usize, text: &str) {
        let rest = text.strip_prefix("{\"conn_id\":\"").expect("(12) a conn_id");
        let (conn_id, rest) = rest.split_once("\",\"").expect("(12) a conn_id");
        assert!(!self.told.contains(conn_id), "(12) {text} after the notice");
        let Some(code) = rest.strip_prefix("close_code\":") else { return };
        let code = code.strip_suffix('}').and_then(|code| code.parse().ok());
        let code: u16 = code.expect("(12) a code and nothing else");
        let notice = self.due.remove(conn_id).expect("(12) a phone that has ended");
        assert_eq!(notice.binary, binary, "(12) {text} to another binary");
        assert_eq!(notice.code.unwrap_or(code), code, "(12) {text}");
        self.told.insert(conn_id.to_owned());
    }
}
