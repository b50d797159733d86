//! Congestion: the backpressure on the phones of one binary that is a slow consumer.
//!
//! Owns how much each phone has delivered since the binary's queue was last empty, and which
//! phones are paused. Must not know connections.
//!
//! 1. A slot is full from the high watermark of its binary's queue until the low watermark.
//! 2. A phone is paused when it delivers into a full slot. One that delivers nothing is never
//!    paused, so its pongs are read and its death is found.
//! 3. Paused phones are resumed together, those that delivered least first. Each round
//!    has room for at most 256 KiB, which the first may fill; every other phone gets one
//!    message through. So what two phones have delivered differs by no more than that and a
//!    message.

use crate::config::{BINARY_HIGH_WATER, BINARY_LOW_WATER};
use crate::relay::conn_id::ConnId;
use crate::state::v1;

/// One slot whose binary has been a slow consumer.
#[derive(Debug)]
pub(super) struct Congestion {
    is_full: bool,
    phones: Vec<Share>,
}

/// What one phone has had of the slot.
#[derive(Clone, Copy, Debug)]
struct Share {
    phone: ConnId,
    delivered: u64,
    is_paused: bool,
}

impl Congestion {
    /// For a slot with these phones.
    pub(super) fn new(phones: &[ConnId]) -> Self {
        let share = |phone: &ConnId| Share { phone: *phone, delivered: 0, is_paused: false };
        Self { is_full: false, phones: phones.iter().map(share).collect() }
    }

    /// A phone has joined the slot. It has no claim on what the others had before.
    pub(super) fn add(&mut self, phone: ConnId) {
        let delivered = self.phones.iter().map(|share| share.delivered).min().unwrap_or(0);
        self.phones.push(Share { phone, delivered, is_paused: false });
    }

    /// A phone has delivered `len` bytes, which makes a queue of `backlog`. Returns whether it
    /// has to be paused.
    pub(super) fn on_delivered(&mut self, phone: ConnId, len: usize, backlog: usize) -> bool {
        self.is_full |= backlog > BINARY_HIGH_WATER;
        let Some(share) = self.phones.iter_mut().find(|share| share.phone == phone) else {
            return false;
        };
        share.delivered += len as u64;
        share.is_paused |= self.is_full;
        self.is_full
    }

    /// The binary's queue has shrunk to `backlog`. Returns the phones to resume, in order.
    pub(super) fn on_drained(&mut self, backlog: usize) -> Vec<ConnId> {
        if !self.is_full || backlog > BINARY_LOW_WATER {
            return Vec::new();
        }
        self.is_full = false;
        let mut paused: Vec<Share> =
            self.phones.iter().copied().filter(|share| share.is_paused).collect();
        paused.sort_by_key(|share| share.delivered);
        let least = paused.first().map_or(0, |share| share.delivered);
        for share in &mut self.phones {
            share.is_paused = false;
            // A phone that delivered nothing saves nothing up.
            share.delivered = share.delivered.max(least);
        }
        paused.into_iter().map(|share| share.phone).collect()
    }

    /// The phone has ended.
    pub(super) fn remove(&mut self, phone: ConnId) {
        self.phones.retain(|share| share.phone != phone);
    }

    /// The phones that are paused.
    pub(super) fn paused(&self) -> impl Iterator<Item = ConnId> {
        self.phones.iter().filter(|share| share.is_paused).map(|share| share.phone)
    }

    /// As plain values, of the slot with this index.
    pub(super) fn save(&self, slot: u32) -> v1::Congestion {
        let share = |share: &Share| (share.phone.to_bits(), share.delivered, share.is_paused);
        let phones = self.phones.iter().map(share).collect();
        v1::Congestion { slot, is_full: self.is_full, phones }
    }

    /// The congestion of which [`Self::save`] returned `saved`.
    pub(super) fn restore(saved: &v1::Congestion) -> Self {
        let share = |&(phone, delivered, is_paused): &(u64, u64, bool)| {
            let phone = ConnId::from_bits(phone);
            Share { phone, delivered, is_paused }
        };
        Self { is_full: saved.is_full, phones: saved.phones.iter().map(share).collect() }
    }

    /// Whether it can be that of a slot with these phones: each of them once, and none paused
    /// unless it is full.
    pub(super) fn is_of(&self, phones: &[ConnId]) -> bool {
        let is_known = |share: &Share| phones.contains(&share.phone);
        let is_once =
            |phone: &ConnId| self.phones.iter().filter(|it| it.phone == *phone).count() == 1;
        self.phones.iter().all(is_known)
            && phones.iter().all(is_once)
            && (self.is_full || self.paused().next().is_none())
    }

    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KB: usize = 1_000;

    fn phone(number: u32) -> ConnId {
        ConnId::new(number, number.into())
    }

    /// What phones that always have messages of `len` bytes deliver to a binary that reads in
    /// steps of `step`.
    fn delivered(count: u32, len: usize, step: usize, rounds: usize) -> Vec<u64> {
        let mut ready: Vec<ConnId> = (0..count).map(phone).collect();
        let mut slot = Congestion::new(&ready);
        let (mut backlog, mut sums) = (0_usize, vec![0; count as usize]);
        for _ in 0..rounds {
            for phone in std::mem::take(&mut ready) {
                loop {
                    backlog += len;
                    sums[phone.index()] += len as u64;
                    if slot.on_delivered(phone, len, backlog) {
                        break;
                    }
                }
            }
            while ready.is_empty() {
                backlog = backlog.saturating_sub(step);
                ready = slot.on_drained(backlog);
            }
        }
        sums
    }

    #[test]
    fn no_two_phones_differ_by_more_than_a_round_and_a_message() {
        for (count, len, step) in [(8, 31 * KB, 4 * KB), (16, 262 * KB, 1), (2, 100, 64 * KB)] {
            for rounds in 1..40 {
                let sums = delivered(count, len, step.max(KB), rounds);
                let spread = sums.iter().max().unwrap() - sums.iter().min().unwrap();
                let most = (BINARY_HIGH_WATER + len) as u64;
                assert!(spread <= most, "{count} x {len}, {rounds} rounds: {sums:?}");
            }
        }
    }

    #[test]
    fn a_phone_that_delivers_nothing_is_not_paused() {
        let mut slot = Congestion::new(&[phone(1), phone(2)]);
        assert!(!slot.on_delivered(phone(1), KB, BINARY_HIGH_WATER));
        assert!(slot.on_delivered(phone(2), KB, BINARY_HIGH_WATER + 1));
        assert_eq!(slot.paused().collect::<Vec<_>>(), [phone(2)]);
        assert_eq!(slot.on_drained(BINARY_LOW_WATER + 1), []);
        // Below the high watermark it is full all the same.
        assert!(slot.on_delivered(phone(1), KB, BINARY_LOW_WATER + KB));
        assert_eq!(slot.on_drained(BINARY_LOW_WATER), [phone(2), phone(1)]);
        assert!(!slot.is_full() && slot.paused().next().is_none());
    }

    #[test]
    fn a_late_or_idle_phone_does_not_catch_up_on_what_others_had() {
        let mut slot = Congestion::new(&[phone(1), phone(2), phone(4)]);
        slot.on_delivered(phone(1), 5_000 * KB, 0);
        slot.on_delivered(phone(2), 5_001 * KB, BINARY_HIGH_WATER + 1);
        assert_eq!(slot.on_drained(0), [phone(2)]);
        slot.add(phone(3));
        slot.on_delivered(phone(3), 3 * KB, BINARY_HIGH_WATER + 1);
        slot.on_delivered(phone(4), 4 * KB, BINARY_HIGH_WATER + 1);
        slot.on_delivered(phone(2), KB, BINARY_HIGH_WATER + 1);
        slot.on_delivered(phone(1), KB, BINARY_HIGH_WATER + 1);
        assert_eq!(slot.on_drained(0), [1, 2, 3, 4].map(phone));
    }
}
