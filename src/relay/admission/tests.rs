//! Admission: every edge case of the three limits, in virtual time.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

const HASH_KEYS: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
const SEEDS: [u64; 6] = [1, 2, 3, 5, 8, 0xC0FFEE];

fn client(address: &str) -> ClientKey {
    ClientKey::from(address.parse::<IpAddr>().unwrap())
}

fn nth(number: u32) -> ClientKey {
    ClientKey::from(IpAddr::from(Ipv4Addr::from(number)))
}

fn secs(seconds: u64) -> Instant {
    Instant::START + Duration::from_secs(seconds)
}

/// How many attempts in a row are allowed at this instant, of at most 100.
fn allowed(limiter: &mut RateLimiter, client: ClientKey, now: Instant) -> usize {
    (0..100).take_while(|_| limiter.allow(client, now)).count()
}

#[test]
fn clients_are_told_apart_by_address_and_by_64_bits_of_ipv6() {
    let cases = [
        ("192.0.2.1", "192.0.2.1", true),
        ("192.0.2.1", "192.0.2.2", false),
        ("192.0.2.1", "193.0.2.1", false),
        ("192.0.2.1", "::ffff:192.0.2.1", true),
        ("192.0.2.1", "::ffff:192.0.2.2", false),
        ("192.0.2.1", "::192.0.2.1", false),
        ("0.0.0.0", "::", false),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", true),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", false),
        ("2001:db8:1:2::1", "2001:db8:0:2::1", false),
        ("2001:db8:1:2::1", "3001:db8:1:2::1", false),
        ("::1", "::2", true),
    ];
    for (one, other, is_same) in cases {
        assert_eq!(client(one) == client(other), is_same, "{one} {other}");
    }
}

#[test]
fn sizes_used_in_the_memory_bound() {
    assert_eq!(size_of::<ClientKey>(), 9);
    assert_eq!(size_of::<(ClientKey, Instant)>(), 24);
}

#[test]
fn the_burst_at_once_then_one_per_interval() {
    // Per minute, burst, microseconds between attempts.
    let cases = [
        (10, 20, 6_000_000),
        (10, 1, 6_000_000),
        (1, 3, 60_000_000),
        (60, 2, 1_000_000),
        (7, 5, 8_571_429),
        (u32::MAX, 4, 1),
    ];
    for (per_minute, burst, micros) in cases {
        let context = format!("{per_minute} a minute, burst {burst}");
        let mut limiter = RateLimiter::new(per_minute, burst, HASH_KEYS);
        let interval = Duration::from_micros(micros);
        let a = nth(1);
        let start = secs(1_000);
        assert_eq!(allowed(&mut limiter, a, start), burst as usize, "{context}");
        assert!(!limiter.allow(a, start + interval - Duration::from_micros(1)), "{context}");
        assert_eq!(allowed(&mut limiter, a, start + interval), 1, "{context}");
        // Three intervals refill three, or as many as the bucket holds.
        let later = start + interval * 4;
        assert_eq!(allowed(&mut limiter, a, later), burst.min(3) as usize, "{context}");
        // A year refills no more than the bucket holds.
        let later = start + Duration::from_secs(365 * 86_400);
        assert_eq!(allowed(&mut limiter, a, later), burst as usize, "{context}");
    }
}

#[test]
fn zero_turns_the_limiter_off() {
    for (per_minute, burst) in [(0, 20), (10, 0), (0, 0)] {
        let mut limiter = RateLimiter::new(per_minute, burst, HASH_KEYS);
        assert_eq!(allowed(&mut limiter, nth(1), secs(1)), 100, "{per_minute} {burst}");
        assert!(limiter.is_empty(), "{per_minute} {burst}");
    }
}

#[test]
fn clients_have_separate_buckets() {
    let mut limiter = RateLimiter::new(10, 2, HASH_KEYS);
    assert_eq!(allowed(&mut limiter, client("2001:db8::1"), secs(1)), 2);
    assert_eq!(allowed(&mut limiter, client("2001:db8::2"), secs(1)), 0);
    assert_eq!(allowed(&mut limiter, client("2001:db8:0:1::1"), secs(1)), 2);
    assert_eq!(allowed(&mut limiter, client("192.0.2.1"), secs(1)), 2);
    assert_eq!(limiter.len(), 3);
}

#[test]
fn refused_attempts_cost_nothing() {
    let mut limiter = RateLimiter::new(10, 1, HASH_KEYS);
    assert!(limiter.allow(nth(1), secs(0)));
    for second in 1..6 {
        assert!(!limiter.allow(nth(1), secs(second)), "{second}");
    }
    assert!(limiter.allow(nth(1), secs(6)));
}

/// A bucket per client, refilled every microsecond. Replay a failure with the seed it names.
fn replay(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let (per_minute, burst) = (rng.random_range(1..100), rng.random_range(1..30));
    let interval = 60_000_000_u64.div_ceil(per_minute);
    let full = interval * u64::from(burst);
    let mut limiter = RateLimiter::new(per_minute as u32, burst, HASH_KEYS);
    let mut buckets = BTreeMap::new();
    let mut now = rng.random_range(0..1_000_000_000);
    for step in 0..20_000 {
        now += match rng.random_range(0..200) {
            0 => full * rng.random_range(1..4),
            1..10 => interval * rng.random_range(1..4),
            _ => rng.random_range(0..interval / 4),
        };
        let number = rng.random_range(0..6);
        let (credit, filled_at) = buckets.entry(number).or_insert((full, now));
        *credit = (*credit + (now - *filled_at)).min(full);
        *filled_at = now;
        let is_allowed = *credit >= interval;
        if is_allowed {
            *credit -= interval;
        }
        assert_eq!(
            limiter.allow(nth(number), Instant::from_micros(now)),
            is_allowed,
            "replay({seed:#x}) step {step}: {per_minute} a minute, burst {burst}"
        );
    }
}

#[test]
fn agrees_with_a_naive_token_bucket() {
    for seed in SEEDS {
        replay(seed);
    }
}

#[test]
fn full_buckets_are_forgotten() {
    let mut limiter = RateLimiter::new(10, 20, HASH_KEYS);
    for number in 0..1_000 {
        assert!(limiter.allow(nth(number), secs(200)));
    }
    assert_eq!(limiter.len(), 1_000);
    // One refill time is 120 s: the generations turn once, then again.
    assert!(limiter.allow(nth(5_000), secs(320)));
    assert_eq!(limiter.len(), 1_001);
    assert!(limiter.allow(nth(5_000), secs(440)));
    assert_eq!(limiter.len(), 1);
}

#[test]
fn an_empty_bucket_is_remembered_over_a_turn() {
    let mut limiter = RateLimiter::new(10, 20, HASH_KEYS);
    limiter.allow(nth(1), secs(200));
    assert_eq!(allowed(&mut limiter, nth(2), secs(319)), 20);
    limiter.allow(nth(1), secs(320));
    assert_eq!(allowed(&mut limiter, nth(2), secs(320)), 0);
    assert_eq!(allowed(&mut limiter, nth(2), secs(325)), 1);
}

#[test]
fn a_million_addresses_fill_a_bounded_table_and_lock_out_no_client() {
    let mut limiter = RateLimiter::new(10, 2, HASH_KEYS);
    let now = secs(1_000);
    let honest = client("192.0.2.1");
    assert_eq!(allowed(&mut limiter, honest, now), 2);
    let mut most = 0;
    for number in 0..1_000_000 {
        assert!(limiter.allow(nth(number), now), "{number}");
        // A client with repeated attempts is not forgotten, however many others there are.
        if number % 20_000 == 0 {
            assert!(!limiter.allow(honest, now), "{number}");
        }
        most = most.max(limiter.len());
    }
    assert!(most <= RATE_TABLE_MAX, "{most}");
    // The tables have not grown beyond the bound at RATE_TABLE_MAX.
    for table in [&limiter.current, &limiter.previous] {
        assert!(table.capacity() <= GENERATION_MAX, "{}", table.capacity());
    }
    // The latest clients are remembered, the first ones find a full bucket.
    assert_eq!(allowed(&mut limiter, nth(999_999), now), 1);
    assert_eq!(allowed(&mut limiter, nth(999_999 - GENERATION_MAX as u32 + 10), now), 1);
    assert_eq!(allowed(&mut limiter, nth(0), now), 2);
}

#[test]
fn the_total_cap_counts_all_clients() {
    let mut caps = ConnectionCaps::new(2, 0, HASH_KEYS);
    assert!(!caps.is_full());
    assert_eq!(caps.admit(nth(1)), Ok(()));
    assert_eq!(caps.admit(nth(1)), Ok(()));
    assert!(caps.is_full());
    assert_eq!(caps.admit(nth(2)), Err(CapReached::Total));
    assert_eq!(caps.live(), 2);
    caps.release(nth(1));
    assert_eq!((caps.live(), caps.is_full()), (1, false));
    assert_eq!(caps.admit(nth(2)), Ok(()));
    assert!(caps.by_client.is_empty());
}

#[test]
fn the_cap_per_client_counts_clients_separately() {
    let mut caps = ConnectionCaps::new(4, 2, HASH_KEYS);
    assert_eq!(caps.admit(nth(1)), Ok(()));
    assert_eq!(caps.admit(nth(1)), Ok(()));
    assert_eq!(caps.admit(nth(1)), Err(CapReached::PerClient));
    assert_eq!(caps.live(), 2, "a refused connection is not counted");
    assert_eq!(caps.admit(nth(2)), Ok(()));
    caps.release(nth(1));
    assert_eq!(caps.admit(nth(1)), Ok(()));
    assert_eq!(caps.admit(nth(3)), Ok(()));
    // Both caps are reached: the error is the total.
    assert_eq!(caps.admit(nth(1)), Err(CapReached::Total));
    assert_eq!(caps.admit(nth(4)), Err(CapReached::Total));

    for number in [1, 1, 2, 3] {
        caps.release(nth(number));
    }
    assert_eq!(caps.live(), 0);
    assert!(caps.by_client.is_empty(), "clients without a connection are forgotten");
}

#[test]
fn a_cap_of_zero_admits_no_connection() {
    let mut caps = ConnectionCaps::new(0, 0, HASH_KEYS);
    assert!(caps.is_full());
    assert_eq!(caps.admit(nth(1)), Err(CapReached::Total));
}

#[test]
fn the_budget_follows_every_queue_and_is_exceeded_above_its_limit() {
    let mut budget = Budget::new(100);
    // Bytes of one queue before and after, bytes of all, whether the limit is exceeded.
    let cases = [
        (0, 60, 60, false),
        (0, 40, 100, false),
        (40, 41, 101, true),
        (0, 200, 301, true),
        (200, 0, 101, true),
        (60, 59, 100, false),
        (59, 59, 100, false),
        (59, 0, 41, false),
        (41, 0, 0, false),
    ];
    for (old, new, used, is_exceeded) in cases {
        budget.charge(old, new);
        assert_eq!((budget.used(), budget.is_exceeded()), (used, is_exceeded), "{old} {new}");
    }
}

#[test]
fn a_backlog_may_fill_the_free_bytes_or_its_fair_share() {
    const BUDGET: usize = 16 << 20;
    // Number of connections, bytes each holds, and the most that another may then hold.
    let third = BUDGET / 3;
    let cases = [
        (0, 0, BUDGET / 2),
        // Connections below the threshold are not counted.
        (1_000, 1_000, BUDGET / 2),
        (1, third, BUDGET / 3),
        (3, BUDGET / 5, BUDGET / 5),
        (3, 1 << 20, (BUDGET - (3 << 20)) / 2),
        // A late connection still gets its share.
        (1, BUDGET / 2, BUDGET / 3),
        (1, BUDGET, BUDGET / 3),
        // One message of maximum size is always admitted.
        (100, BUDGET / 100, PHONE_BACKLOG_MIN),
    ];
    for (count, each, most) in cases {
        let mut budget = Budget::new(BUDGET);
        (0..count).for_each(|_| budget.charge(0, each));
        for backlog in [0, 1, most / 2, most] {
            budget.charge(0, backlog);
            assert!(budget.admits(backlog, backlog, most - backlog), "{count} of {each}");
            assert!(!budget.admits(backlog, backlog, most - backlog + 1), "{count} of {each}");
            budget.charge(backlog, 0);
        }
        (0..count).for_each(|_| budget.charge(each, 0));
        assert_eq!((budget.used(), budget.holders()), (0, 0));
    }
}

// Prefixes

fn limiter() -> ClientLimiter {
    let mut keys = 0_u64..;
    ClientLimiter::new(10, 20, || [keys.next().unwrap_or(0), 7])
}

/// The `number`th /64 of the /48 `2001:db8:<site>::`.
fn in_prefix(site: u16, number: u16) -> ClientKey {
    let segments = [0x2001, 0xdb8, site, number, 0, 0, 0, 1];
    ClientKey::from(IpAddr::from(std::net::Ipv6Addr::from(segments)))
}

#[test]
fn a_whole_prefix_does_not_make_the_limiter_forget_others() {
    let (mut limiter, attacker) = (limiter(), client("192.0.2.1"));
    let spent = (0..100).take_while(|_| limiter.attempt(attacker, secs(0)).is_ok()).count();
    assert_eq!(spent, 20);
    let mut allowed = 0;
    for number in 0..=u16::MAX {
        allowed += u32::from(limiter.attempt(in_prefix(1, number), secs(1)).is_ok());
    }
    assert_eq!(allowed, 20 * PREFIX_CLIENTS, "what that many clients may do at once");
    assert!(limiter.attempt(attacker, secs(2)).is_err(), "its bucket is still empty");
    assert!(limiter.attempt(in_prefix(2, 1), secs(2)).is_ok(), "another prefix has its own");
}

#[test]
fn what_is_refused_as_a_client_or_as_a_prefix_costs_the_other_nothing() {
    let mut limiter = limiter();
    let all = 20 * PREFIX_CLIENTS;
    let greedy = in_prefix(1, 0);
    let own = (0..10 * all).filter(|_| limiter.attempt(greedy, secs(0)).is_ok()).count();
    assert_eq!(own, 20, "a client within its prefix");
    // Its refusals took nothing of the others'.
    let others = (20..all).filter(|n| limiter.attempt(in_prefix(1, *n as u16), secs(0)).is_ok());
    assert_eq!(others.count(), all as usize - 20);
    // Nor do those of a prefix that has nothing left take from one of its clients.
    let late = in_prefix(1, 60_000);
    assert!((0..50).all(|_| limiter.attempt(late, secs(0)).is_err()));
    let after = (0..100).take_while(|_| limiter.attempt(late, secs(60)).is_ok()).count();
    assert_eq!(after, 20);
}
