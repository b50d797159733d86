//! Who may come in, and how much all that are in may hold.
//!
//! Owns the three limits that look at more than one connection: attempts per client
//! or server-id ([`RateLimiter`]), live connections ([`ConnectionCaps`]) and queued
//! bytes ([`Budget`]). They count and answer; what a refusal looks like and whom
//! to shed is the caller's. Must not know connections, HTTP or a clock.
//!
//! 1. Memory is bounded whatever peers do: the limiter by [`RATE_TABLE_MAX`],
//!    the caps by the connections that are live.
//! 2. Running out of table never refuses anybody: the limiter forgets clients
//!    and so errs on the side of letting in.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::mem;
use std::net::IpAddr;
use std::time::Duration;

use super::keyed_hash::HashKeys;
use crate::config::{NOTSENT_LOWAT, PHONE_BACKLOG_MIN};
use crate::time::Instant;

/// What limits per client count by: an IPv4 address, or an IPv6 /64, which is
/// what one customer has at least (RFC 6177). An IPv4-mapped IPv6 address
/// (RFC 4291 §2.5.5.2) is the IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientKey {
    /// The whole address.
    V4([u8; 4]),
    /// The first 64 bits of the address.
    V6([u8; 8]),
}

impl From<IpAddr> for ClientKey {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::V4(v4.octets()),
            IpAddr::V6(v6) => {
                let [a, b, c, d, e, f, g, h, ..] = v6.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

/// The most clients that a [`RateLimiter`] remembers: two generations of 28,672,
/// each the 7/8 that a hash table of 32,768 buckets holds. A bucket takes 24 bytes
/// of entry and 1 of control, so both take 1.6 MB when full.
pub const RATE_TABLE_MAX: usize = 2 * GENERATION_MAX;
const GENERATION_MAX: usize = 32_768 / 8 * 7;

/// Attempts per client: `burst` at once, then `per_minute`; a refused attempt costs
/// nothing. They are upgrades here; whoever counts others has its own `K` for
/// whose they are.
///
/// A token bucket kept as one instant per client, when its bucket is full again
/// (the generic cell rate algorithm, ITU-T I.371). A client whose bucket is full
/// is like one never seen, so its entry is garbage.
///
/// Clients live in two generations; an attempt moves its client into the current
/// one. When the current generation is one refill time old, or full, it becomes
/// the previous one, and what that still held is forgotten: after a refill time
/// all of it is garbage; before, the table was full, and it is the clients that
/// have stayed away longest. They find a full bucket when they return.
///
/// What many addresses give an attacker: whoever goes round more than
/// [`RATE_TABLE_MAX`] addresses or /64s within a refill time (2 minutes by
/// default) is forgotten before each return and never refused. A table without
/// bound would still let that many make 9,557 attempts a second. A table that
/// refuses strangers when full would let them lock out everybody else. The
/// connection cap and the byte budget hold against them; nobody else notices.
#[derive(Debug)]
pub struct RateLimiter<K = ClientKey> {
    /// Time in which one attempt is refilled; zero: the limiter is off.
    interval: Duration,
    /// Time in which an empty bucket is full again.
    refill: Duration,
    current: HashMap<K, Instant, HashKeys>,
    previous: HashMap<K, Instant, HashKeys>,
    /// When `previous` was last replaced.
    turned: Instant,
}

impl<K: Clone + Eq + Hash> RateLimiter<K> {
    /// Lets every client attempt `burst` times at once and then `per_minute` times
    /// a minute; the time between is rounded up to whole microseconds. 0 for either
    /// turns the limiter off.
    #[must_use]
    pub fn new(per_minute: u32, burst: u32, hash_keys: [u64; 2]) -> Self {
        const MINUTE: u64 = 60_000_000;
        let interval = match (per_minute, burst) {
            (0, _) | (_, 0) => Duration::ZERO,
            _ => Duration::from_micros(MINUTE.div_ceil(u64::from(per_minute))),
        };
        let table = HashMap::with_hasher(HashKeys::new(hash_keys));
        Self {
            interval,
            refill: interval * burst,
            current: table.clone(),
            previous: table,
            turned: Instant::START,
        }
    }

    /// Whether `client` may make an attempt now; if so it is counted.
    pub fn allow(&mut self, client: K, now: Instant) -> bool {
        if self.interval.is_zero() {
            return true;
        }
        if self.current.len() >= GENERATION_MAX || now.since(self.turned) >= self.refill {
            self.turn(now);
        }
        let known = self.previous.remove(&client).unwrap_or(now);
        let full_at = self.current.entry(client).or_insert(known);
        let after = (*full_at).max(now) + self.interval;
        let is_allowed = after.since(now) <= self.refill;
        if is_allowed {
            *full_at = after;
        }
        is_allowed
    }

    /// Clients remembered, those whose bucket is full again included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.current.len() + self.previous.len()
    }

    /// Whether no client is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn turn(&mut self, now: Instant) {
        mem::swap(&mut self.current, &mut self.previous);
        self.current.clear();
        self.turned = now;
    }
}

/// Which cap a connection ran into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CapReached {
    /// As many connections are live as may be.
    Total,
    /// This client has as many live connections as one may have.
    PerClient,
}

/// Live connections, of all and of each client.
#[derive(Debug)]
pub struct ConnectionCaps {
    total: usize,
    /// 0: off, and `by_client` stays empty.
    per_client: u32,
    live: usize,
    /// Clients with a live connection.
    by_client: HashMap<ClientKey, u32, HashKeys>,
}

impl ConnectionCaps {
    /// At most `total` live connections, at most `per_client` of each client;
    /// `per_client` 0 turns the latter off.
    #[must_use]
    pub fn new(total: usize, per_client: u32, hash_keys: [u64; 2]) -> Self {
        let by_client = HashMap::with_hasher(HashKeys::new(hash_keys));
        Self { total, per_client, live: 0, by_client }
    }

    /// Counts one connection of `client` in; each is [released](Self::release)
    /// once.
    ///
    /// # Errors
    ///
    /// The cap that stands against it; the connection is not counted.
    pub fn admit(&mut self, client: ClientKey) -> Result<(), CapReached> {
        if self.is_full() {
            return Err(CapReached::Total);
        }
        if self.per_client > 0 {
            let count = self.by_client.entry(client).or_insert(0);
            if *count >= self.per_client {
                return Err(CapReached::PerClient);
            }
            *count += 1;
        }
        self.live += 1;
        Ok(())
    }

    /// Counts one admitted connection of `client` out.
    pub fn release(&mut self, client: ClientKey) {
        debug_assert!(self.live > 0, "released more often than admitted");
        self.live = self.live.saturating_sub(1);
        if self.per_client > 0 {
            let Entry::Occupied(mut count) = self.by_client.entry(client) else {
                debug_assert!(false, "{client:?} released more often than admitted");
                return;
            };
            *count.get_mut() -= 1;
            // Without this the table would keep everybody who ever came.
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    /// Whether it is `clients` that are counted, each as often as it is in there.
    #[must_use]
    pub fn agrees(&self, clients: &[ClientKey]) -> bool {
        let mut left = self.by_client.clone();
        if self.per_client > 0 {
            for client in clients {
                let Some(count) = left.get_mut(client).filter(|count| **count > 0) else {
                    return false;
                };
                *count -= 1;
            }
        }
        self.live == clients.len() && left.values().all(|count| *count == 0)
    }

    /// Connections that are live.
    #[must_use]
    pub fn live(&self) -> usize {
        self.live
    }

    /// Connections that may be live.
    #[must_use]
    pub fn total(&self) -> usize {
        self.total
    }

    /// Whether the next connection, whosever it is, would be refused.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.live >= self.total
    }
}

/// The bytes that all queues of all connections hold together, and may hold.
#[derive(Clone, Debug)]
pub struct Budget {
    limit: usize,
    used: usize,
    /// Connections of which [`is_holder`] is true.
    holders: usize,
}

impl Budget {
    /// `limit` bytes, none of them used.
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        Self { limit, used: 0, holders: 0 }
    }

    /// One queue held `old` bytes and holds `new` now. Charges even what exceeds
    /// the budget, for the bytes are there; the caller sheds until
    /// [`is_exceeded`](Self::is_exceeded) says no.
    pub fn charge(&mut self, old: usize, new: usize) {
        debug_assert!(old <= self.used, "a queue gives back more than it was charged");
        self.used = self.used.saturating_sub(old) + new;
        self.holders = self.holders + usize::from(is_holder(new)) - usize::from(is_holder(old));
    }

    /// Whether `more` bytes may be queued behind a backlog of `backlog` bytes to a
    /// connection that is charged `charged`: the dynamic threshold of Choudhury and
    /// Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches"
    /// (IEEE/ACM Transactions on Networking 6(2), 1998), with α = 1. A backlog may be
    /// as long as what is then free, so one alone takes half the budget, and n that
    /// grow alike take 1/(n+1) each.
    ///
    /// Backlogs do not grow alike: where the first holds half, the threshold would
    /// stop the second at a quarter. A switch drops packets until the first one has
    /// drained; a connection would be closed for it. So 1/(n+1) is always admitted,
    /// n being the connections that hold more than 16 KiB, and so is one
    /// largest message. Should that spend the budget, the largest is shed.
    #[must_use]
    pub fn admits(&self, charged: usize, backlog: usize, more: usize) -> bool {
        let backlog = backlog + more;
        let free = self.limit.saturating_sub(self.used + more);
        let others = self.holders - usize::from(is_holder(charged));
        backlog <= free.max(self.limit / (others + 2)).max(PHONE_BACKLOG_MIN)
    }

    /// Bytes that may be in use.
    #[must_use]
    pub const fn limit(&self) -> usize {
        self.limit
    }

    /// Bytes in use.
    #[must_use]
    pub const fn used(&self) -> usize {
        self.used
    }

    /// Whether more bytes are in use than may be.
    #[must_use]
    pub const fn is_exceeded(&self) -> bool {
        self.used > self.limit
    }

    /// Connections of which [`is_holder`] is true.
    #[must_use]
    pub const fn holders(&self) -> usize {
        self.holders
    }
}

/// Whether a connection that is charged so much counts as one of those that share the
/// budget: a request head or a ping that waits for a moment does not.
#[must_use]
pub const fn is_holder(charged: usize) -> bool {
    charged > NOTSENT_LOWAT as usize
}

#[cfg(test)]
mod tests;
