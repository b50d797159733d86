//! Timer wheel, compared with a map that does the same slowly.

use std::collections::BTreeMap;

use pyrycode_relay::time::{Instant, TICK, Wheel};

use super::bytes::Bytes;

/// One tick less than this is as far ahead as the wheel sees.
const TURN: u64 = 1024;

/// The armed keys: the tick at which each fires, and the sequence number of its arming.
struct Model {
    now: u64,
    count: u64,
    armed: BTreeMap<u32, (u64, u64)>,
}

impl Model {
    fn arm(&mut self, key: u32, at: Instant) {
        self.count += 1;
        let tick = at.as_micros().div_ceil(tick_micros()).clamp(self.now + 1, self.now + TURN);
        self.armed.insert(key, (tick, self.count));
    }

    fn first(&self) -> Option<(u64, u32)> {
        let first = self.armed.iter().min_by_key(|(_, armed)| **armed);
        first.map(|(key, (tick, _))| (*tick, *key))
    }

    fn pop(&mut self, now: Instant) -> Option<u32> {
        self.advance(now);
        let (_, key) = self.first().filter(|(tick, _)| *tick <= self.now)?;
        self.armed.remove(&key);
        Some(key)
    }

    fn advance(&mut self, now: Instant) {
        self.now = self.now.max(now.as_micros() / tick_micros());
    }

    /// When a key of this tick fires: now, if it is due already.
    fn fires(&self, tick: u64) -> Instant {
        Instant::from_micros(tick.max(self.now).saturating_mul(tick_micros()))
    }
}

fn tick_micros() -> u64 {
    TICK.as_micros() as u64
}

/// Applies each operation to both; then both must agree.
pub(crate) fn run(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let start = bytes.long() >> 8;
    let mut now = Instant::from_micros(start);
    let mut wheel = Wheel::new(now);
    let mut model = Model { now: start / tick_micros(), count: 0, armed: BTreeMap::new() };
    while !bytes.is_empty() {
        let choice = bytes.byte();
        let key = u32::from(bytes.byte());
        match choice % 8 {
            0 | 1 => {
                // Around now, in the past too.
                let micros = now.as_micros() + (u64::from(bytes.word()) << (choice >> 4));
                let at = Instant::from_micros(micros.saturating_sub(1 << 18));
                wheel.arm(key, at);
                model.arm(key, at);
                assert!(at < now || wheel.armed(key) >= Some(at.min(now + Wheel::HORIZON)));
            }
            2 => {
                let at = Instant::from_micros(bytes.long() >> 2);
                wheel.arm(key, at);
                model.arm(key, at);
            }
            3 => {
                wheel.disarm(key);
                model.armed.remove(&key);
            }
            4 => {
                now = Instant::from_micros(now.as_micros() + (u64::from(key) << (choice >> 3)));
                wheel.advance(now);
                model.advance(now);
            }
            5 => {
                let micros = u64::from(bytes.word()) << (choice >> 4);
                now = Instant::from_micros(now.as_micros() + micros);
                assert_eq!(wheel.pop_expired(now), model.pop(now));
            }
            6 => {
                // Time does not run backwards for it.
                let earlier = Instant::from_micros(now.as_micros() >> (choice >> 3));
                assert_eq!(wheel.pop_expired(earlier), model.pop(earlier));
            }
            _ => loop {
                let popped = wheel.pop_expired(now);
                assert_eq!(popped, model.pop(now));
                if popped.is_none() {
                    break;
                }
            },
        }
        assert_eq!(wheel.len(), model.armed.len());
        assert_eq!(wheel.is_empty(), model.armed.is_empty());
        assert_eq!(wheel.next_expiry(), model.first().map(|(tick, _)| model.fires(tick)));
        let armed = model.armed.get(&key).map(|(tick, _)| model.fires(*tick));
        assert_eq!(wheel.armed(key), armed);
    }
}
