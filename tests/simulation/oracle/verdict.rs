//! Oracle of the heartbeat: which peers are dead, and whether a close has the right cause.

use std::collections::VecDeque;
use std::time::Duration;

use pyrycode_relay::config::{MESSAGE_MAX, PHONE_BACKLOG_MIN};
use pyrycode_relay::relay::Input;
use pyrycode_relay::time::{Instant, TICK};

use super::notices::ASKED;
use super::{Before, Oracle, Slot, Wish, has_place};
use crate::wire::{self, Part};
use crate::world::{PeerId, World};

/// A ping that is late by more than this was delayed by a pause of the relay.
const HELD_UP: Duration = Duration::from_secs(1);

/// Code and reason of a close frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Words(pub(crate) u16, pub(crate) String);

impl From<(u16, &str)> for Words {
    fn from((code, reason): (u16, &str)) -> Self {
        Self(code, reason.to_owned())
    }
}

impl Words {
    pub(super) fn shed() -> Self {
        Self::from((1011, "relay out of buffer memory"))
    }

    pub(super) fn is_shed(&self) -> bool {
        *self == Self::shed()
    }
}

#[derive(Debug)]
struct Asked {
    payload: Vec<u8>,
    /// It may have been due since, and was written later if the socket was full.
    due: Instant,
    written: Instant,
    /// How late the relay had been by then, all in all.
    late: Duration,
}

/// The pings that one peer was sent, and the time in which it may not have been
/// heard.
pub(super) struct Pings {
    /// Those that it has not answered.
    asked: VecDeque<Asked>,
    answered: usize,
    /// How many it had been sent before the last probe.
    probed: Option<usize>,
    /// When the last one that it answered was written.
    alive: Instant,
    /// How late the relay had been by then, all in all.
    late: Duration,
    /// How long it was not read since, and since when it is not.
    paused: Duration,
    paused_since: Option<Instant>,
    /// How long it certainly was not read while it owed the first of them.
    unread: Duration,
    /// Something waits for its socket, and may have been due since then.
    blocked_since: Option<Instant>,
    /// When its socket last took something.
    progress: Instant,
}

impl Pings {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            asked: VecDeque::new(),
            answered: 0,
            probed: None,
            alive: now,
            late: Duration::ZERO,
            paused: Duration::ZERO,
            paused_since: None,
            unread: Duration::ZERO,
            blocked_since: None,
            progress: now,
        }
    }

    /// Its heartbeat begins.
    pub(super) fn open(&mut self, now: Instant, late: Duration) {
        (self.alive, self.late) = (now, late);
    }

    pub(super) fn on_read(&mut self, is_read: bool, now: Instant) {
        if !is_read {
            self.paused_since.get_or_insert(now);
        } else if let Some(since) = self.paused_since.take() {
            // The relay counts whole milliseconds.
            let rounding = Duration::from_millis(1);
            self.paused += now.since(since) + rounding;
            if let Some(first) = self.asked.front() {
                self.unread += now.since(since.max(first.written)).saturating_sub(rounding);
            }
        }
    }

    /// Records a probe; returns how many pings were sent before. An unanswered probe is sent
    /// again, and any answer to it counts.
    pub(super) fn probe(&mut self) -> usize {
        let probed = self.probed.filter(|probed| self.answered <= *probed);
        *self.probed.insert(probed.unwrap_or(self.answered + self.asked.len()))
    }

    /// The ping of the probe for the claimants of this slot, the last one if it was sent again;
    /// `None`: it has not left.
    fn probe_sent(&self, slot: &Slot) -> Option<&Asked> {
        let begin = slot.asked.checked_sub(self.answered)?;
        let first = self.asked.get(begin)?;
        let has_left = |asked: &&Asked| asked.written >= slot.probed;
        let is_same = |asked: &&Asked| asked.payload == first.payload && has_left(asked);
        // Where an ordinary ping waited for its socket ahead of the probe, that is the first; only
        // a probe is sent again.
        let is_again = |asked: &&Asked| {
            let is_before = |it: &Asked| it.payload == asked.payload && it.written < slot.probed;
            has_left(asked) && self.asked.range(begin..).any(is_before)
        };
        self.asked.iter().rfind(is_same).or_else(|| self.asked.iter().rfind(is_again))
    }

    /// How many of these it answered, if only by answering a later one.
    pub(super) fn answered(&self) -> usize {
        self.answered
    }

    /// A ping that was due by then is not answered; perhaps its socket is full.
    fn may_owe_by(&self, then: Instant) -> bool {
        let first = self.asked.front().map(|asked| asked.due);
        first.or(self.blocked_since).is_some_and(|due| due <= then)
    }
}

impl Oracle {
    /// Bytes on their way to a peer, as the relay wrote them; through TLS there may be progress
    /// without any, within a record.
    pub(crate) fn on_written(
        &mut self,
        peer: usize,
        bytes: &[u8],
        is_progress: bool,
        is_short: bool,
        now: Instant,
    ) {
        let late = self.late;
        let due_now = if self.woke == now { now - HELD_UP } else { now };
        let record = &mut self.records[peer];
        record.tap.feed(bytes);
        let pings = &mut record.pings;
        while let Some(part) = record.tap.next() {
            match part {
                Part::Ping(payload) => {
                    let due = pings.blocked_since.unwrap_or(due_now);
                    pings.asked.push_back(Asked { payload, due, written: now, late });
                }
                Part::Close(code, reason) => {
                    let words = Words(code, reason);
                    let is_right = record.words.as_ref() == Some(&words) || words.is_shed();
                    assert!(is_right, "(4) {peer} is told {words:?}, not {:?}", record.words);
                }
                Part::Text(text) if record.wish == Wish::Binary => {
                    self.notices.on_text(peer, &text);
                }
                Part::Answer { .. } | Part::Text(_) | Part::Pong(_) => {}
            }
        }
        if is_progress {
            pings.progress = now;
        }
        if !is_short {
            pings.blocked_since = None;
        } else if pings.blocked_since.is_none() {
            pings.blocked_since = Some(due_now);
            pings.progress = now;
        }
    }

    /// These pongs are about to reach the relay.
    pub(crate) fn on_pongs(&mut self, peer: usize, payloads: &[Vec<u8>]) {
        let pings = &mut self.records[peer].pings;
        for payload in payloads {
            // It answers every earlier one, too.
            let place = pings.asked.iter().rposition(|asked| asked.payload == *payload);
            for asked in pings.asked.drain(..place.map_or(0, |place| place + 1)) {
                (pings.alive, pings.late) = (asked.written, asked.late);
                pings.answered += 1;
                pings.unread = Duration::ZERO;
            }
            if pings.asked.is_empty() {
                pings.paused = Duration::ZERO;
            }
        }
    }

    /// A peer that does not answer has lost its place by now (2).
    pub(crate) fn nobody_is_overdue(&self, world: &World) {
        let timeouts = &world.config.timeouts;
        let patience = timeouts.ping_interval + timeouts.pong + TICK;
        for slot in self.slots.values() {
            self.no_claimant_waits_too_long(world, slot);
            for peer in slot.holder.iter().chain(&slot.phones) {
                let pings = &self.records[*peer].pings;
                let paused =
                    pings.paused_since.map_or(Duration::ZERO, |since| world.now.since(since));
                let allowed = patience + self.late - pings.late + pings.paused + paused;
                let silent = world.now.since(pings.alive);
                assert!(silent <= allowed, "(2) {peer} is silent for {silent:?} and kept");
            }
        }
    }

    /// A probe that is not answered ends with a takeover, in time (2).
    fn no_claimant_waits_too_long(&self, world: &World, slot: &Slot) {
        let (Some(holder), false) = (slot.holder, slot.claimants.is_empty()) else { return };
        let timeouts = &world.config.timeouts;
        let waited = world.now.since(slot.probed);
        let allowed = timeouts.probe_max + TICK + self.late - slot.late;
        assert!(waited <= allowed, "(2) a claimant of {holder}'s slot waits for {waited:?}");
        // TLS may have sent the ping with a part of a record whose rest waits.
        if let Some(sent) = self.records[holder].pings.probe_sent(slot)
            && !world.peers[holder].tls.is_on()
        {
            let (had, allowed) =
                (world.now.since(sent.written), timeouts.probe + TICK + self.late - sent.late);
            assert!(had <= allowed, "(2) {holder} has had the probe for {had:?}");
        }
    }

    /// Only a verdict says `heartbeat timeout`, and only of one that deserves it (3).
    pub(super) fn check_verdict(
        &mut self,
        world: &World,
        call: Input<'_>,
        before: &Before,
        after: &Before,
    ) {
        if after.heartbeat_timeouts == before.heartbeat_timeouts {
            return;
        }
        let Input::ReadToEnd(id) = call else { panic!("(3) a verdict on unread input: {call:?}") };
        let peer = world.find(id).expect("its socket is there");
        assert_eq!(after.heartbeat_timeouts, before.heartbeat_timeouts + 1, "(3) two verdicts");
        assert!(self.records[peer].has_place, "(3) {peer} had no place");
        assert!(world.peers[peer].up.arrived.is_empty(), "(3) {peer} was not read to its end");
        let pings = &self.records[peer].pings;
        assert_eq!(pings.paused_since, None, "(3) {peer} is not read");
        let timeouts = &world.config.timeouts;
        if after.takeovers > before.takeovers {
            let slot = &self.slots[&self.records[peer].server_id];
            assert_eq!(slot.holder, Some(peer), "(3) {peer} held nothing");
            // The time runs from when the ping was sent, but not for ever.
            let had = pings.probe_sent(slot).map(|sent| world.now.since(sent.written));
            let is_over = had.is_some_and(|had| had >= timeouts.probe)
                || world.now.since(slot.probed) >= timeouts.probe_max;
            assert!(is_over, "(3) {peer} had {had:?} for the probe");
            assert!(!slot.claimants.is_empty(), "(3) no binary claims the place of {peer}");
            assert!(pings.may_owe_by(slot.probed), "(3) {peer} answered the probe");
        } else {
            let due = world.now - timeouts.pong - pings.unread + TICK;
            assert!(pings.may_owe_by(due), "(3) {peer} owes {:?}", pings.asked.front());
        }
    }

    /// Of n slow phones none is closed for its backlog that has no more than one part
    /// in n + 1 of the budget, or one largest message (4).
    pub(super) fn check_backlogs(&self, world: &World, input: usize, before: &Before) {
        let full = Words::from((1011, "phone backlog full"));
        for (phone, had) in &before.backlogs {
            if has_place(world, *phone) || self.last_words(world, *phone).as_ref() != Some(&full) {
                continue;
            }
            let is_slow = |peer: &usize| world.backlog(PeerId(*peer)) > 0;
            let slow = (0..world.peers.len()).filter(is_slow).count();
            let part = world.config.limits.buffer_memory / (slow + 1);
            // The message that this input ended may have been a largest one.
            let most = had + input + MESSAGE_MAX;
            assert!(most > part.max(PHONE_BACKLOG_MIN), "(4) {phone} of {slow} has but {most}");
        }
    }

    /// Whether it was its binary that ended this phone, by an envelope.
    pub(super) fn is_binarys_doing(&mut self, world: &World, phone: usize) -> bool {
        let Some(words) = self.last_words(world, phone) else { return false };
        match (words.0, words.1.as_str()) {
            (1011, "phone backlog full") => {
                let is_slow = self.records[phone].pings.blocked_since.is_some();
                assert!(is_slow, "(4) {phone} was not slow");
            }
            (ASKED, "") => {}
            // The memory for what stood before its close was spent at once.
            _ if words.is_shed() && self.is_requested => {}
            _ => return false,
        }
        self.records[phone].words = Some(words);
        true
    }

    /// Why this peer lost its place in a call about itself.
    pub(super) fn check_cause(&mut self, world: &World, peer: usize, call: Input<'_>) {
        let Some(words) = self.last_words(world, peer) else {
            let is_cut = matches!(
                call,
                Input::End(_) | Input::Disconnected(_) | Input::Hangup(_) | Input::Reset(_)
            );
            let is_cut = is_cut || self.is_shedding;
            return assert!(is_cut, "(4) {peer} is gone without a close after {call:?}");
        };
        let record = &self.records[peer];
        let (actor, pings) = (&world.peers[peer], &record.pings);
        let is_input = matches!(call, Input::Bytes(..) | Input::Continue(_));
        let is_verdict = matches!(call, Input::ReadToEnd(_));
        let is_right = match (words.0, words.1.as_str()) {
            // Its own close comes back.
            (1000, "bye") => is_input && actor.sent_close,
            (1002, "protocol error") | (1007, "invalid UTF-8") | (1009, "message too big") => {
                is_input && actor.was_bad
            }
            (1007, "frame is not valid JSON") => {
                is_input && actor.was_bad && record.wish == Wish::Phone
            }
            (1008, "message timeout") => is_verdict && actor.was_late,
            (1011, "heartbeat timeout") => is_verdict,
            (1011, "write timeout") => {
                let waits = pings.blocked_since.is_some();
                let since = world.now.since(pings.progress);
                is_verdict && waits && since >= world.config.timeouts.write
            }
            (4404, "binary disconnected") => {
                let slot = &self.slots[&record.server_id];
                is_input && record.wish == Wish::Phone && slot.holder.is_none()
            }
            _ => false,
        };
        assert!(is_right, "(4) {peer} is told {words:?} after {call:?}");
        self.records[peer].words = Some(words);
    }

    /// The peer lost its place and is told so.
    pub(super) fn expect(&mut self, world: &World, peer: usize, words: (u16, &str)) {
        assert!(!has_place(world, peer), "(5) {peer} should be told {words:?}");
        let words = Words::from(words);
        let said = self.last_words(world, peer);
        // If the peer was shed as well, it receives that close or is gone.
        let is_shed = self.is_shedding && said.as_ref().is_none_or(Words::is_shed);
        let is_right = said.as_ref() == Some(&words) || is_shed;
        assert!(is_right, "(4) {peer} is told {said:?}, not {words:?}");
        self.records[peer].words = Some(words);
    }

    /// The close frame at the end of what waits for the peer.
    pub(super) fn last_words(&self, world: &World, peer: usize) -> Option<Words> {
        let outgoing = world.relay.queued(world.peers[peer].id).collect::<Vec<_>>().concat();
        let waiting = [world.peers[peer].tls.accepted(), outgoing].concat();
        let tail = &waiting[waiting.len().saturating_sub(127)..];
        if !tail.contains(&(wire::FIN | wire::CLOSE)) {
            return None;
        }
        // Perhaps: a ping's payload may be anything. The frames tell.
        let mut tap = self.records[peer].tap.clone();
        tap.feed(&waiting);
        let mut words = None;
        while let Some(part) = tap.next() {
            assert_eq!(words, None, "(4) {peer} is told more after it");
            if let Part::Close(code, reason) = part {
                words = Some(Words(code, reason));
            }
        }
        words
    }
}
