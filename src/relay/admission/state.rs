//! State of the limits on attempts, and of the counts that are made anew from connections.

use std::hash::Hash;

use super::{ClientKey, ClientLimiter, ConnectionCaps, RateLimiter, RequestLimits};
use crate::state::v1;
use crate::time::Instant;

impl ClientKey {
    pub(in crate::relay) fn save(&self) -> v1::ClientKey {
        match *self {
            Self::V4(octets) => v1::ClientKey::V4(octets),
            Self::V6(octets) => v1::ClientKey::V6(octets),
        }
    }

    pub(in crate::relay) fn restore(saved: &v1::ClientKey) -> Self {
        match *saved {
            v1::ClientKey::V4(octets) => Self::V4(octets),
            v1::ClientKey::V6(octets) => Self::V6(octets),
        }
    }
}

impl<K: Clone + Eq + Hash> RateLimiter<K> {
    /// When each bucket is full again, with keys as `key` makes them.
    pub(in crate::relay) fn save<S: Ord>(&self, key: impl Fn(&K) -> S) -> v1::RateLimiter<S> {
        let table = |table: &std::collections::HashMap<K, Instant, _>| {
            let entries = table.iter().map(|(client, full_at)| (key(client), full_at.as_micros()));
            let mut entries: Vec<_> = entries.collect();
            entries.sort_unstable();
            entries
        };
        v1::RateLimiter {
            current: table(&self.current),
            previous: table(&self.previous),
            turned: self.turned.as_micros(),
        }
    }

    /// Continues with what [`Self::save`] returned, under the limits of this limiter.
    pub(in crate::relay) fn restore<S>(
        &mut self,
        saved: &v1::RateLimiter<S>,
        key: impl Fn(&S) -> K,
    ) {
        let entry = |(client, full_at): &(S, u64)| (key(client), Instant::from_micros(*full_at));
        self.current.extend(saved.current.iter().map(entry));
        self.previous.extend(saved.previous.iter().map(entry));
        self.turned = Instant::from_micros(saved.turned);
    }
}

impl ClientLimiter {
    pub(in crate::relay) fn save(&self) -> v1::ClientLimiter {
        v1::ClientLimiter {
            clients: self.clients.save(ClientKey::save),
            prefixes: self.prefixes.save(|prefix| *prefix),
        }
    }

    pub(in crate::relay) fn restore(&mut self, saved: &v1::ClientLimiter) {
        self.clients.restore(&saved.clients, ClientKey::restore);
        self.prefixes.restore(&saved.prefixes, |prefix| *prefix);
    }
}

impl RequestLimits {
    pub(in crate::relay) fn save(&self) -> v1::ClientLimiter {
        self.rate.save()
    }

    pub(in crate::relay) fn restore(&mut self, saved: &v1::ClientLimiter) {
        self.rate.restore(saved);
    }

    /// Counts a connection that was admitted before.
    pub(in crate::relay) fn count(&mut self, client: ClientKey) {
        self.caps.count(client);
    }
}

impl ConnectionCaps {
    /// Counts a connection that was admitted before: a cap may be lower than it was then.
    pub(in crate::relay) fn count(&mut self, client: ClientKey) {
        self.live += 1;
        if self.per_client > 0 {
            *self.by_client.entry(client).or_insert(0) += 1;
        }
    }
}
