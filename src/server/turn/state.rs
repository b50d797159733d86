//! State of a turn and of the readiness of streams, for a hand-over.

use std::collections::VecDeque;

use super::{Flags, PeerEnd, Readiness, Turn, Usage};
use crate::relay::ConnId;
use crate::state::v1;

impl<B> Turn<B> {
    /// What waits to be served; `None` while effects or writes are left over.
    #[must_use]
    pub fn save(&self) -> Option<v1::Turn> {
        let ids = |ids: &VecDeque<ConnId>| ids.iter().map(|id| id.to_bits()).collect();
        let expiring = self.expiring.iter().map(|(id, unread)| (id.to_bits(), *unread as u64));
        (!self.is_behind && self.unwritten.is_empty()).then(|| v1::Turn {
            queues: self.queues.each_ref().map(ids),
            expiring: expiring.collect(),
        })
    }

    /// Continues with what [`Self::save`] returned. The streams of the connections must have
    /// the readiness that they had.
    #[must_use]
    pub fn restore(saved: v1::Turn, buffers: B) -> Self {
        let v1::Turn { queues, expiring } = saved;
        let ids = |ids: Vec<u64>| ids.into_iter().map(ConnId::from_bits).collect();
        let expiring = expiring.into_iter().map(|(id, unread)| {
            (ConnId::from_bits(id), usize::try_from(unread).unwrap_or(usize::MAX))
        });
        Self {
            queues: queues.map(ids),
            expiring: expiring.collect(),
            unwritten: VecDeque::new(),
            is_behind: false,
            buffers,
        }
    }

    /// Input was handed in outside a turn: its effects are to be carried out.
    pub fn on_input(&mut self) {
        self.is_behind = true;
    }
}

impl Readiness {
    /// As plain values.
    #[must_use]
    pub fn save(&self) -> v1::Readiness {
        let Self { is_readable, end, flags, usage } = *self;
        let end = match end {
            PeerEnd::Open => 0,
            PeerEnd::Closed => 1,
            PeerEnd::Broken => 2,
        };
        v1::Readiness {
            is_readable,
            end,
            has_unwanted: flags.contains(Flags::UNWANTED),
            has_kept: flags.contains(Flags::KEPT),
            is_queued: flags.contains(Flags::QUEUED),
            usage: usage.save(),
        }
    }

    /// The readiness of which [`Self::save`] returned `saved`.
    #[must_use]
    pub fn restore(saved: &v1::Readiness) -> Self {
        let v1::Readiness { is_readable, end, has_unwanted, has_kept, is_queued, usage } = *saved;
        let end = match end {
            0 => PeerEnd::Open,
            1 => PeerEnd::Closed,
            _ => PeerEnd::Broken,
        };
        let mut flags = Flags::empty();
        flags.set(Flags::UNWANTED, has_unwanted);
        flags.set(Flags::KEPT, has_kept);
        flags.set(Flags::QUEUED, is_queued);
        Self { is_readable, end, flags, usage: Usage::restore(usage) }
    }
}
