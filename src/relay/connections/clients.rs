//! Clients: the bytes that each client holds, and what to shed from the one that holds most.
//!
//! Owns the sum of each client, the order of clients by that sum, and the order in which a
//! client's holdings are shed. Must not know the budget, nor connections beyond their index.
//!
//! A client is an address (IPv6: a /64). If that address is a proxy's, because the proxy names
//! no client, all peers would be one client, and the largest connection of all would be shed
//! once more. The client is then the slot: its members share a server-id, and further shares
//! cost further claims.
//!
//! 1. A client has a record ⇔ it has a holding. A client without queued bytes costs nothing.
//! 2. A record's sum is that of its holdings, and its place in the ranking is that of its sum.
//!
//! A change costs two or three searches in sorted tables. So a connection's holding
//! is recorded when it may matter, not at each change ([`super::Connections`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use slab::Slab;

use super::ranking::{Ranking, bucket};
use crate::relay::admission::ClientKey;
use crate::relay::keyed_hash::HashKeys;
use crate::relay::slots::SlotKey;

/// Clients, or holdings of a client, that are compared to find the largest: within a size
/// class, whose members differ by a quarter at most.
const COMPARED_MAX: usize = 64;

/// A client, for the sharing of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::relay) enum Client {
    /// An address.
    Address(ClientKey),
    /// The members of a slot, whose address is a proxy's.
    Slot(SlotKey),
}

/// A thing that holds bytes for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Holding {
    /// A connection, by its index.
    Connection(u32),
    /// A slot in grace.
    Grace(SlotKey),
}

/// What a client's holdings are ordered by; the one with the most is shed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// The largest first.
    Size,
    /// The oldest first; this is the number of connections accepted before it.
    Age(u64),
}

/// A holding as it is recorded.
#[derive(Clone, Copy, Debug)]
struct Share {
    /// Index of the client's record.
    record: u32,
    order: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Record {
    client: Client,
    bytes: usize,
    holdings: u32,
    /// Its place in the ranking.
    place: u32,
}

/// Every client that holds a byte.
#[derive(Debug)]
pub(super) struct Clients {
    by_client: HashMap<Client, u32, HashKeys>,
    records: Slab<Record>,
    ranking: Ranking,
    shares: BTreeMap<Holding, Share>,
    /// By record, then in the order in which they are shed, from the last one on.
    ordered: BTreeSet<(u32, u64, Holding)>,
}

impl Clients {
    pub(super) fn new(hash_keys: HashKeys) -> Self {
        Self {
            by_client: HashMap::with_hasher(hash_keys),
            records: Slab::new(),
            ranking: Ranking::default(),
            shares: BTreeMap::new(),
            ordered: BTreeSet::new(),
        }
    }

    /// `client` holds `bytes` by `holding`, which may have been another client's before.
    pub(super) fn set(&mut self, holding: Holding, client: Client, bytes: usize, order: Order) {
        let order = match order {
            Order::Size => bucket(bytes) as u64,
            Order::Age(before) => u64::MAX - before,
        };
        if let Some(share) = self.shares.get_mut(&holding)
            && self.records[share.record as usize].client == client
        {
            let (record, old) = (share.record, share.bytes);
            if share.order != order {
                self.ordered.remove(&(record, share.order, holding));
                self.ordered.insert((record, order, holding));
            }
            (share.order, share.bytes) = (order, bytes);
            return self.add(record, old, bytes);
        }
        self.remove(holding);
        if bytes == 0 {
            return;
        }
        let record = *self.by_client.entry(client).or_insert_with(|| {
            self.records.insert(Record { client, bytes: 0, holdings: 0, place: 0 }) as u32
        });
        self.records[record as usize].holdings += 1;
        self.ordered.insert((record, order, holding));
        self.shares.insert(holding, Share { record, order, bytes });
        self.add(record, 0, bytes);
    }

    /// `holding` holds nothing any more.
    pub(super) fn remove(&mut self, holding: Holding) {
        let Some(Share { record, order, bytes }) = self.shares.remove(&holding) else { return };
        self.ordered.remove(&(record, order, holding));
        self.add(record, bytes, 0);
        let entry = &mut self.records[record as usize];
        entry.holdings -= 1;
        if entry.holdings == 0 {
            let client = entry.client;
            self.by_client.remove(&client);
            self.records.remove(record as usize);
        }
    }

    /// A client holds `new` bytes where it held `old`.
    fn add(&mut self, record: u32, old: usize, new: usize) {
        let entry = &mut self.records[record as usize];
        let before = entry.bytes;
        entry.bytes = before - old + new;
        let (after, mut place) = (entry.bytes, entry.place);
        let moved = self.ranking.change(record, before, after, &mut place);
        self.records[record as usize].place = place;
        if let Some((moved, place)) = moved {
            self.records[moved as usize].place = place;
        }
    }

    /// What to shed: of the client that holds most, the first in order. Of clients and of
    /// holdings that are within a quarter of the largest, at most [`COMPARED_MAX`] are
    /// compared.
    pub(super) fn first_to_shed(&self) -> Option<Holding> {
        let newest = self.ranking.highest().iter().rev().take(COMPARED_MAX);
        // Of two with as many bytes the same one is shed after a hand-over as before.
        let rank = |record: &&u32| {
            let Record { bytes, client, .. } = self.records[**record as usize];
            (bytes, client)
        };
        let record = *newest.max_by_key(rank)?;
        let first = (record, 0, Holding::Connection(0));
        let all = (record, u64::MAX, Holding::Grace(SlotKey::MAX));
        let mut last = self.ordered.range(first..=all).rev().take(COMPARED_MAX);
        let (_, highest, holding) = *last.next()?;
        let same = last.take_while(|(_, order, _)| *order == highest).map(|(.., other)| *other);
        same.chain([holding]).max_by_key(|holding| self.bytes(*holding))
    }

    /// The bytes of a holding.
    pub(super) fn bytes(&self, holding: Holding) -> usize {
        self.shares.get(&holding).map_or(0, |share| share.bytes)
    }

    /// Every slot in grace, and its client.
    pub(super) fn graces(&self) -> impl Iterator<Item = (SlotKey, Client)> {
        let first = Holding::Grace(SlotKey::default());
        self.shares.range(first..).filter_map(|(holding, share)| match holding {
            Holding::Grace(slot) => Some((*slot, self.records[share.record as usize].client)),
            Holding::Connection(_) => None,
        })
    }

    /// The client that a holding is recorded for.
    pub(super) fn client(&self, holding: Holding) -> Option<Client> {
        self.shares.get(&holding).map(|share| self.records[share.record as usize].client)
    }

    /// Number of holdings, after a check that records, tables and ranking agree.
    pub(super) fn audit(&self) -> usize {
        let mut sums = HashMap::<u32, (usize, u32)>::new();
        for (holding, share) in &self.shares {
            assert!(
                self.ordered.contains(&(share.record, share.order, *holding)),
                "A7: {holding:?}"
            );
            let (bytes, holdings) = sums.entry(share.record).or_default();
            (*bytes, *holdings) = (*bytes + share.bytes, *holdings + 1);
        }
        assert_eq!(self.ordered.len(), self.shares.len(), "A7: holdings in order");
        assert_eq!(self.records.len(), sums.len(), "A7: clients that hold a byte");
        assert_eq!(self.by_client.len(), sums.len(), "A7: clients by their key");
        let ranked = self.records.iter().filter(|(_, record)| record.bytes > 0).count();
        assert_eq!(self.ranking.len(), ranked, "A7: clients in the ranking");
        for (index, record) in &self.records {
            let index = index as u32;
            assert_eq!(sums.get(&index), Some(&(record.bytes, record.holdings)), "A7: {record:?}");
            assert_eq!(self.by_client.get(&record.client), Some(&index), "A7: {record:?}");
            let is_ranked = self.ranking.has(index, record.bytes, record.place);
            assert!(record.bytes == 0 || is_ranked, "A7: {record:?}");
        }
        self.shares.len()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn clients() -> Clients {
        Clients::new(HashKeys::new([1, 2]))
    }

    fn address(number: u8) -> Client {
        Client::Address(ClientKey::from(IpAddr::V4(Ipv4Addr::new(192, 0, 2, number))))
    }

    #[test]
    fn the_client_with_the_largest_sum_loses_its_largest() {
        let mut clients = clients();
        // One large connection, and many small ones that are more together.
        clients.set(Holding::Connection(0), address(1), 256_000, Order::Size);
        for index in 1..=20 {
            clients.set(
                Holding::Connection(index),
                address(2),
                10_000 + index as usize,
                Order::Size,
            );
        }
        assert_eq!(clients.first_to_shed(), Some(Holding::Connection(0)));
        for index in 21..=30 {
            clients.set(Holding::Connection(index), address(2), 10_000, Order::Size);
        }
        assert_eq!(clients.first_to_shed(), Some(Holding::Connection(20)));
        clients.remove(Holding::Connection(20));
        assert_eq!(clients.first_to_shed(), Some(Holding::Connection(19)));
        clients.audit();
    }

    #[test]
    fn the_oldest_goes_first_where_age_decides() {
        let mut clients = clients();
        for (index, age) in [(7, 3), (8, 1), (9, 2)] {
            clients.set(Holding::Connection(index), address(1), 100, Order::Age(age));
        }
        clients.set(Holding::Connection(1), address(2), 250, Order::Age(0));
        for expected in [8, 1] {
            let first = clients.first_to_shed();
            assert_eq!(first, Some(Holding::Connection(expected)));
            clients.remove(Holding::Connection(expected));
        }
        clients.audit();
    }

    /// Random changes, compared with a list.
    #[test]
    fn random_changes_agree_with_a_list() {
        let seed = 0xC0FFEE;
        let mut rng = StdRng::seed_from_u64(seed);
        let mut clients = clients();
        let mut held: Vec<(u8, usize)> = vec![(0, 0); 60];
        for step in 0..20_000 {
            let index = rng.random_range(0..held.len());
            let bytes = if rng.random_bool(0.3) { 0 } else { rng.random_range(1..100_000) };
            let client = rng.random_range(0..5);
            held[index] = (client, bytes);
            let holding = match index {
                50.. => Holding::Grace(SlotKey::for_test(index as u32)),
                _ => Holding::Connection(index as u32),
            };
            match bytes {
                0 => clients.remove(holding),
                _ => clients.set(holding, address(client), bytes, Order::Size),
            }
            let sum = |client| -> usize {
                held.iter().filter(|(of, _)| *of == client).map(|(_, bytes)| bytes).sum()
            };
            let context = format!("seed {seed}, step {step}");
            let most = (0..5).map(sum).max().unwrap_or_default();
            let first = clients.first_to_shed();
            assert_eq!(first.is_some(), most > 0, "{context}");
            let index = match first {
                Some(Holding::Connection(index)) => index as usize,
                Some(Holding::Grace(slot)) => slot.index(),
                None => continue,
            };
            let (client, bytes) = held[index];
            assert_eq!(sum(client), most, "{context}: the client that holds most");
            let own = held.iter().filter(|(of, _)| *of == client).map(|(_, bytes)| *bytes);
            assert_eq!(Some(bytes), own.max(), "{context}: its largest");
            if step % 100 == 0 {
                clients.audit();
            }
        }
    }
}
