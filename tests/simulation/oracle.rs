//! Oracle: sections 3, 4 and 5 of the contract as a model of the relay.
//!
//! Owns, for every server-id, its holder, its claimants and its phones, and for every
//! connection its unanswered pings; all derived from the input and never from the relay's
//! state. After each call the relay has to agree. Does not know messages other than close
//! notices: [`crate::chaos`] follows the others.
//!
//! The numbers in its messages are those of [`crate::chaos`].

mod notices;
mod verdict;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use pyrycode_relay::config::{PHONES_PER_SERVER_MAX, READ_SIZE};
use pyrycode_relay::protocol::close::CloseCause;
use pyrycode_relay::relay::Input;
use pyrycode_relay::time::{Instant, TICK};

use crate::wire::{self, Decoder};
use crate::world::{PeerId, World};
use notices::Notices;
use verdict::Pings;
pub(crate) use verdict::Words;

/// The role that a connection requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Binary,
    Phone,
    Nothing,
}

/// The state of one peer.
struct Record {
    wish: Wish,
    server_id: String,
    address: IpAddr,
    /// Bytes of its request head that the relay has not got.
    head_left: usize,
    /// It has a place: it holds a slot, waits for one or is on one.
    has_place: bool,
    pings: Pings,
    tap: Decoder,
    /// The close frame that it is sent, if it is sent one.
    words: Option<Words>,
}

/// One server-id that is held or in grace.
#[derive(Default)]
struct Slot {
    holder: Option<usize>,
    claimants: Vec<usize>,
    phones: Vec<usize>,
    /// When the grace ends.
    until: Instant,
    /// When its phones may be told of a shut-down.
    phones_from: Instant,
    /// When the claimants began to wait.
    probed: Instant,
    /// How often the holder had been pinged by then.
    asked: usize,
    /// How late the relay had been by then, all in all.
    late: Duration,
}

/// The relay's numbers before a call.
pub(crate) struct Before {
    takeovers: u64,
    shed: u64,
    heartbeat_timeouts: u64,
    binary_requests: u64,
    notices: u64,
    buffered: usize,
    /// What waited for the phones of a binary that says something.
    backlogs: Vec<(usize, usize)>,
}

pub(crate) struct Oracle {
    slots: BTreeMap<String, Slot>,
    records: Vec<Record>,
    /// Places by address.
    places: HashMap<IpAddr, u32>,
    place_count: usize,
    capacity: usize,
    is_draining: bool,
    /// When all peers were told of the shut-down.
    told_by: Instant,
    /// The current call has exhausted the budget.
    is_shedding: bool,
    /// In the current call a binary had a phone closed.
    is_requested: bool,
    /// The total delay of the relay's timers, and the time of the last one.
    late: Duration,
    woke: Instant,
    notices: Notices,
}

const RECLAIMED: (u16, &str) = (4404, "binary reclaimed server-id");
const LEAVING: (u16, &str) = (1001, "shutting down");
const CLAIMED: (u16, &str) = (4409, "server-id already claimed");

impl Oracle {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            slots: BTreeMap::new(),
            records: Vec::new(),
            places: HashMap::new(),
            place_count: 0,
            capacity,
            is_draining: false,
            told_by: Instant::START,
            is_shedding: false,
            is_requested: false,
            late: Duration::ZERO,
            woke: Instant::START,
            notices: Notices::default(),
        }
    }

    pub(crate) fn before(&self, world: &World, call: Input<'_>) -> Before {
        let relay = &world.relay;
        let stats = relay.stats();
        let closes = |cause| stats.closes_by(cause).iter().sum();
        Before {
            takeovers: stats.takeovers,
            heartbeat_timeouts: closes(CloseCause::HeartbeatTimeout),
            shed: closes(CloseCause::OutOfBufferMemory),
            binary_requests: closes(CloseCause::BinaryRequest(0)),
            notices: stats.close_notices,
            buffered: relay.buffered(),
            backlogs: self.backlogs(world, call),
        }
    }

    fn backlogs(&self, world: &World, call: Input<'_>) -> Vec<(usize, usize)> {
        let (Input::Bytes(id, _) | Input::Continue(id)) = call else { return Vec::new() };
        let Some(binary) = world.find(id) else { return Vec::new() };
        let slot = self.slots.get(&self.records[binary].server_id);
        let phones = slot.filter(|slot| slot.holder == Some(binary)).map(|slot| &slot.phones);
        phones.into_iter().flatten().map(|phone| (*phone, world.backlog(PeerId(*phone)))).collect()
    }

    pub(crate) fn on_dial(&mut self, address: IpAddr, bytes: &[u8], now: Instant) {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        let head = str::from_utf8(end.map_or(b"", |end| &bytes[..end])).unwrap_or_default();
        let server_id = wire::field(head, "x-pyrycode-server").unwrap_or_default().to_owned();
        let wish = match head.split(' ').nth(1) {
            Some("/v1/server") => Wish::Binary,
            Some("/v1/client") => Wish::Phone,
            _ => Wish::Nothing,
        };
        self.records.push(Record {
            wish,
            server_id,
            address,
            head_left: end.map_or(usize::MAX, |end| end + 4),
            has_place: false,
            pings: Pings::new(now),
            tap: Decoder::default(),
            words: None,
        });
    }

    /// The relay comes `late` to its timers at `now`, because it stood still.
    pub(crate) fn on_late(&mut self, late: Duration, now: Instant) {
        self.late += late;
        self.woke = now;
    }

    /// The relay has done what it does about `call`.
    pub(crate) fn after(&mut self, world: &World, call: Input<'_>, before: &Before) {
        let changes = self.before(world, Input::Timeout);
        self.is_requested = changes.binary_requests > before.binary_requests;
        self.check_verdict(world, call, before, &changes);
        self.begin_notices(world, changes.shed > before.shed);
        if let Input::Bytes(id, _) | Input::Continue(id) = call
            && let Some(peer) = world.find(id)
        {
            self.check_backlogs(world, READ_SIZE, before);
            self.on_envelopes(world, peer);
        }
        self.is_shedding = changes.shed > before.shed;
        if self.is_shedding {
            self.on_shed(world, before);
        }
        match call {
            Input::Timeout => self.on_timeout(world),
            Input::ShutDown => self.on_shut_down(world),
            Input::Bytes(id, bytes) => {
                if let Some(peer) = world.find(id) {
                    self.on_input(world, peer, bytes.len());
                    self.reconcile(world, peer, call);
                }
            }
            Input::Challenge(_) | Input::Date(_) | Input::WakeDone(_) => {}
            Input::Proxied(id, _)
            | Input::Continue(id)
            | Input::Reset(id)
            | Input::Buffered(id, _)
            | Input::End(id)
            | Input::Disconnected(id)
            | Input::Hangup(id)
            | Input::ReadToEnd(id)
            | Input::Written(id, ..) => {
                if let Some(peer) = world.find(id) {
                    if matches!(call, Input::ReadToEnd(_)) && self.records[peer].head_left > 0 {
                        // Its time for a head is over.
                        self.records[peer].wish = Wish::Nothing;
                    }
                    self.reconcile(world, peer, call);
                }
            }
        }
        self.check_notices(before, &changes);
        let held = self.slots.values().filter(|slot| slot.holder.is_some()).count();
        let phones = self.slots.values().map(|slot| slot.phones.len()).sum();
        assert_eq!(world.relay.live(), (held, phones), "(5) binaries and phones, after {call:?}");
        assert_eq!(world.relay.slots(), self.slots.len(), "(5) slots, after {call:?}");
    }

    /// The last byte of a head decides what a connection is.
    fn on_input(&mut self, world: &World, peer: usize, count: usize) {
        let record = &mut self.records[peer];
        if record.head_left == 0 || record.head_left > count {
            record.head_left -= count.min(record.head_left);
            return;
        }
        record.head_left = 0;
        let server_id = record.server_id.clone();
        let per_address = world.config.limits.connections_per_ip;
        let is_full = self.place_count >= self.capacity
            || per_address > 0
                && self.places.get(&record.address).is_some_and(|count| *count >= per_address);
        if record.wish == Wish::Nothing || self.is_draining || is_full {
            return assert!(!has_place(world, peer), "(5) {peer} should be refused");
        }
        match record.wish {
            Wish::Phone => match self.slots.get_mut(&server_id) {
                None => self.expect(world, peer, (4404, "no server with that id")),
                Some(slot) if slot.phones.len() >= PHONES_PER_SERVER_MAX => {
                    self.expect(world, peer, (4429, "too many phones for server-id"));
                }
                Some(slot) => {
                    slot.phones.push(peer);
                    self.take_place(world, peer);
                }
            },
            Wish::Binary => {
                self.take_place(world, peer);
                let slot = self.slots.entry(server_id).or_default();
                if let Some(holder) = slot.holder {
                    if slot.claimants.is_empty() {
                        slot.asked = self.records[holder].pings.probe();
                        slot.probed = world.now;
                        slot.late = self.late;
                    }
                    slot.claimants.push(peer);
                } else {
                    slot.holder = Some(peer);
                    for phone in std::mem::take(&mut slot.phones) {
                        self.lose_place(phone);
                        self.expect(world, phone, RECLAIMED);
                    }
                }
            }
            Wish::Nothing => {}
        }
    }

    /// Checks that exactly the expected peers lost their place because of `peer`'s input.
    fn reconcile(&mut self, world: &World, peer: usize, call: Input<'_>) {
        let server_id = self.records[peer].server_id.clone();
        let Some(slot) = self.slots.get(&server_id) else { return };
        let waits_on = slot.claimants.contains(&peer) && has_place(world, peer);
        assert!(!waits_on || !matches!(call, Input::Hangup(_)), "(5) {peer} has hung up and waits");
        self.on_envelopes(world, peer);
        self.on_answer(world, peer, &server_id);
        if self.records[peer].has_place && !has_place(world, peer) {
            self.check_cause(world, peer, call);
            self.leave(world, peer);
        }
        let Some(slot) = self.slots.get(&server_id) else { return };
        for other in slot.holder.iter().chain(&slot.claimants).chain(&slot.phones) {
            let words = || self.last_words(world, *other);
            assert!(has_place(world, *other), "(5) {other} lost its place, told {:?}", words());
        }
        for phone in slot.phones.clone() {
            let is_read = world.relay.is_reading(world.peers[phone].id);
            self.records[phone].pings.on_read(is_read, world.now);
        }
    }

    /// The effect of a binary on its phones, before any effect on itself.
    fn on_envelopes(&mut self, world: &World, binary: usize) {
        let Some(slot) = self.slots.get(&self.records[binary].server_id) else { return };
        if slot.holder != Some(binary) {
            return;
        }
        for phone in slot.phones.clone() {
            if !has_place(world, phone) && self.is_binarys_doing(world, phone) {
                self.leave(world, phone);
            }
        }
    }

    /// If the peer has answered the probe of its slot, the wait for it ends.
    fn on_answer(&mut self, world: &World, peer: usize, server_id: &str) {
        let slot = &self.slots[server_id];
        let Some(first) = slot.claimants.first().filter(|_| slot.holder == Some(peer)) else {
            return;
        };
        let is_told = || self.last_words(world, *first) == Some(Words::from(CLAIMED));
        // Where the peer has left as well, the first one may have taken its place.
        if has_place(world, *first) || !has_place(world, peer) && !is_told() {
            return;
        }
        let has_answered = self.records[peer].pings.answered() > slot.asked;
        assert!(has_answered, "(4) {peer} has not answered the probe");
        let rejected =
            self.slots.get_mut(server_id).map(|slot| std::mem::take(&mut slot.claimants));
        for claimant in rejected.unwrap_or_default() {
            self.lose_place(claimant);
            self.expect(world, claimant, CLAIMED);
        }
    }

    /// A peer has left its slot; checks that the consequences have happened.
    fn leave(&mut self, world: &World, peer: usize) {
        self.lose_place(peer);
        if self.records[peer].wish == Wish::Phone {
            self.expect_notice(world, peer);
        }
        let Some(slot) = self.slots.get_mut(&self.records[peer].server_id) else { return };
        slot.phones.retain(|other| *other != peer);
        slot.claimants.retain(|other| *other != peer);
        if slot.holder != Some(peer) {
            return;
        }
        if slot.claimants.is_empty() {
            slot.holder = None;
            slot.until = world.now + world.config.timeouts.grace;
            return;
        }
        let heir = slot.claimants.remove(0);
        slot.holder = Some(heir);
        let phones = std::mem::take(&mut slot.phones);
        let rejected = std::mem::take(&mut slot.claimants);
        self.records[heir].pings.open(world.now, self.late);
        for phone in phones {
            self.lose_place(phone);
            self.expect(world, phone, RECLAIMED);
        }
        for claimant in rejected {
            self.lose_place(claimant);
            self.expect(world, claimant, CLAIMED);
        }
        // What it had sent while it waited is read now.
        if !has_place(world, heir) {
            self.check_cause(world, heir, Input::Bytes(world.peers[heir].id, &[]));
            self.leave(world, heir);
        }
    }

    fn on_timeout(&mut self, world: &World) {
        if self.is_draining {
            self.on_leaving(world);
        }
        // The first tick of the wheel that is not before it.
        let is_over = |slot: &Slot| {
            let ticks = |micros: u128| micros.div_ceil(TICK.as_micros());
            let end = ticks(slot.until.as_micros().into());
            slot.holder.is_none() && end * TICK.as_micros() <= world.now.as_micros().into()
        };
        let mut phones = Vec::new();
        self.slots.retain(|_, slot| {
            let is_over = is_over(slot);
            if is_over {
                phones.append(&mut slot.phones);
            }
            !is_over
        });
        for phone in phones {
            self.lose_place(phone);
            self.expect(world, phone, (1000, ""));
        }
    }

    fn on_shut_down(&mut self, world: &World) {
        if std::mem::replace(&mut self.is_draining, true) {
            return;
        }
        let timeouts = &world.config.timeouts;
        self.told_by = world.now + world.config.drain + timeouts.phones_after + 2 * TICK;
        let slots = self.slots.values_mut();
        let claimants: Vec<usize> =
            slots.flat_map(|slot| std::mem::take(&mut slot.claimants)).collect();
        for claimant in claimants {
            self.lose_place(claimant);
            self.expect(world, claimant, LEAVING);
        }
        self.on_leaving(world);
        let holders = self.slots.values().filter(|slot| slot.holder.is_some());
        assert!(!world.config.drain.is_zero() || holders.count() == 0, "(4) a binary is left");
    }

    /// The peers that are told of the shut-down: binaries, and a moment later their phones.
    fn on_leaving(&mut self, world: &World) {
        let is_told = |oracle: &Self, peer| {
            let words = oracle.last_words(world, peer);
            !has_place(world, peer) && words == Some(Words::from(LEAVING))
        };
        for server_id in self.slots.keys().cloned().collect::<Vec<_>>() {
            let slot = &self.slots[&server_id];
            let told: Vec<usize> =
                slot.phones.iter().copied().filter(|phone| is_told(self, *phone)).collect();
            assert!(told.is_empty() || slot.holder.is_none(), "(4) {told:?} before the binary");
            assert!(told.is_empty() || world.now >= slot.phones_from, "(4) {told:?} too soon");
            for phone in told {
                self.leave(world, phone);
                self.expect(world, phone, LEAVING);
            }
            let holder = self.slots[&server_id].holder;
            if let Some(binary) = holder.filter(|binary| is_told(self, *binary)) {
                self.leave(world, binary);
                self.expect(world, binary, LEAVING);
                let phones_from = world.now + world.config.timeouts.phones_after;
                self.slots.entry(server_id).and_modify(|slot| slot.phones_from = phones_from);
            }
        }
        let has_place = |record: &Record| record.has_place;
        let is_over = world.now >= self.told_by + self.late;
        assert!(!is_over || !self.records.iter().any(has_place), "(4) a peer was not told");
    }

    /// The budget is exhausted: the peer with the most bytes is closed in any case.
    fn on_shed(&mut self, world: &World, before: &Before) {
        let limit = world.config.limits.buffer_memory;
        assert!(
            before.buffered + 1024 * 1024 > limit,
            "(4) {} bytes are not too many",
            before.buffered
        );
        let order = [Wish::Phone, Wish::Binary];
        for wish in order {
            for peer in 0..self.records.len() {
                let record = &self.records[peer];
                if record.wish == wish && record.has_place && !has_place(world, peer) {
                    let words = self.last_words(world, peer);
                    if words.is_none_or(|words| words.is_shed()) {
                        self.records[peer].words = Some(Words::shed());
                        self.leave(world, peer);
                    }
                }
            }
        }
    }

    fn take_place(&mut self, world: &World, peer: usize) {
        let record = &mut self.records[peer];
        record.has_place = true;
        record.pings.open(world.now, self.late);
        self.place_count += 1;
        *self.places.entry(record.address).or_default() += 1;
    }

    fn lose_place(&mut self, peer: usize) {
        let record = &mut self.records[peer];
        assert!(std::mem::replace(&mut record.has_place, false), "{peer} had no place");
        self.place_count -= 1;
        *self.places.entry(record.address).or_default() -= 1;
    }
}

/// Whether the relay has a place for the peer.
fn has_place(world: &World, peer: usize) -> bool {
    world.relay.has_place(world.peers[peer].id)
}
