//! Heartbeat: every edge case in virtual time.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;

const STANDARD: Timeouts = Timeouts::STANDARD;

/// `ms` milliseconds after the start.
fn at(ms: u64) -> Instant {
    Instant::from_micros(1000 * ms)
}

fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn timeouts(ping_interval: u64, pong: u64) -> Timeouts {
    Timeouts {
        ping_interval: Duration::from_secs(ping_interval),
        pong: Duration::from_secs(pong),
        ..STANDARD
    }
}

/// A heartbeat, its timeouts and whether its peer is read; all instants in milliseconds, the
/// first ping due at 30,000.
struct Line {
    heartbeat: Heartbeat,
    timeouts: Timeouts,
    paused: Option<u64>,
}

impl Line {
    fn new() -> Self {
        Self::with(STANDARD)
    }

    fn with(timeouts: Timeouts) -> Self {
        Self { heartbeat: Heartbeat::new(at(30_000)), timeouts, paused: None }
    }

    /// The timers fire. If nothing is due, the deadline must be in the future.
    fn timer(&mut self, ms: u64) -> Option<HeartbeatAction> {
        let reading = self.paused.is_none();
        let beat = self.heartbeat.handle_timeout(at(ms), reading, &self.timeouts);
        if beat.is_none() {
            assert!(self.deadline() > at(ms), "nothing due at {ms}, yet the deadline has passed");
        }
        beat
    }

    fn deadline(&self) -> Instant {
        self.heartbeat.deadline(self.paused.is_none(), &self.timeouts)
    }

    fn pong(&mut self, sequence: u32, ms: u64) -> Option<PongResult> {
        self.heartbeat.on_pong(sequence, at(ms))
    }

    fn pause(&mut self, ms: u64) {
        assert_eq!(self.paused.replace(ms), None);
    }

    fn resume(&mut self, ms: u64) {
        let since = self.paused.take().expect("paused before");
        self.heartbeat.on_unread(at(since), at(ms), &self.timeouts);
    }

    /// The peer is silent from now on: it is alive until `verdict`, then dead.
    #[track_caller]
    fn assert_dead_at(&mut self, verdict: u64) {
        loop {
            let deadline = self.deadline();
            let ms = deadline.as_micros() / 1000;
            assert!(self.timer(ms - 1).is_none(), "nothing is due before {ms}");
            match self.timer(ms).expect("something is due at the deadline") {
                HeartbeatAction::Ping(_) => {
                    assert!(ms < verdict, "alive at {ms}, to die at {verdict}");
                }
                HeartbeatAction::Dead => break assert_eq!(ms, verdict),
            }
        }
    }
}

fn round_trip(ms: u64) -> PongResult {
    PongResult { round_trip: Some(millis(ms)), answers_probe: false }
}

const LATE_BUT_VALID: PongResult = PongResult { round_trip: None, answers_probe: false };

#[test]
fn it_is_small() {
    assert!(size_of::<Heartbeat>() <= 32, "{} bytes on every connection", size_of::<Heartbeat>());
}

// The cadence

#[test]
fn a_live_peer_is_pinged_at_a_fixed_cadence() {
    let mut line = Line::new();
    for sequence in 1..=3000 {
        let due = 30_000 * u64::from(sequence);
        assert_eq!(line.deadline(), at(due));
        assert_eq!(line.timer(due - 1), None);
        // A timer wheel is late by up to one tick; the delays must not add up.
        assert_eq!(line.timer(due + 65), Some(HeartbeatAction::Ping(sequence)));
        assert_eq!(line.timer(due + 65), None);
        assert_eq!(line.pong(sequence, due + 100), Some(round_trip(35)));
    }
}

#[test]
fn the_first_ping_is_due_when_the_caller_says() {
    for first in [1, 29_999, 30_000] {
        let mut heartbeat = Heartbeat::new(at(first));
        assert_eq!(heartbeat.deadline(true, &STANDARD), at(first));
        assert_eq!(
            heartbeat.handle_timeout(at(first), true, &STANDARD),
            Some(HeartbeatAction::Ping(1))
        );
        assert_eq!(heartbeat.deadline(true, &STANDARD), at(first + 30_000));
    }
}

// Pong timeout

#[test]
fn a_pong_just_before_the_deadline_is_on_time() {
    let mut line = Line::new();
    assert_eq!(line.timer(30_000), Some(HeartbeatAction::Ping(1)));
    assert_eq!(line.timer(59_999), None);
    assert_eq!(line.pong(1, 59_999), Some(round_trip(29_999)));
    assert_eq!(line.timer(60_000), Some(HeartbeatAction::Ping(2)));
}

#[test]
fn a_pong_at_the_deadline_is_on_time_because_input_comes_before_timers() {
    let mut line = Line::new();
    assert_eq!(line.timer(30_000), Some(HeartbeatAction::Ping(1)));
    assert_eq!(line.pong(1, 60_000), Some(round_trip(30_000)));
    assert_eq!(line.timer(60_000), Some(HeartbeatAction::Ping(2)));
}

#[test]
fn without_a_pong_by_the_deadline_the_peer_is_dead_and_not_pinged() {
    let mut line = Line::new();
    assert_eq!(line.timer(30_000), Some(HeartbeatAction::Ping(1)));
    assert_eq!(line.timer(59_999), None);
    assert_eq!(line.deadline(), at(60_000));
    assert_eq!(line.timer(60_000), Some(HeartbeatAction::Dead));
}

#[test]
fn a_pong_that_is_read_before_a_late_timer_fires_saves_the_peer() {
    let mut line = Line::new();
    assert_eq!(line.timer(30_000), Some(HeartbeatAction::Ping(1)));
    assert_eq!(line.pong(1, 60_064), Some(round_trip(30_064)));
    assert_eq!(line.timer(60_065), Some(HeartbeatAction::Ping(2)));
}

#[test]
fn the_pong_timeout_runs_from_the_due_time_of_the_ping_not_from_its_sending() {
    let mut line = Line::new();
    assert_eq!(line.timer(30_900), Some(HeartbeatAction::Ping(1)));
    line.assert_dead_at(60_000);
}

#[test]
fn a_peer_that_dies_right_after_a_pong_is_detected_within_sixty_seconds() {
    let mut line = Line::new();
    assert_eq!(line.timer(30_000), Some(HeartbeatAction::Ping(1)));
    assert_eq!(line.pong(1, 30_001), Some(round_trip(1)));
    line.assert_dead_at(90_000);
}

#[test]
fn only_a_pong_proves_that_the_peer_is_alive() {
    // Received data, the peer's own pings and sent data have no call here: only pongs are
    // reported to the heartbeat.
    let mut line = Line::new();
    assert_eq!(line.timer(30_000), Some(HeartbeatAction::Ping(1)));
    for ms in (30_001..60_000).step_by(7) {
        assert_eq!(line.timer(ms), None);
    }
    assert_eq!(line.timer(60_000), Some(HeartbeatAction::Dead));
}

// Which pongs count

#[test]
fn a_late_pong_for_an_older_ping_counts_for_that_ping_only() {
    let mut line = Line::with(timeouts(30, 100));
    assert_eq!(line.timer(30_000), Some(HeartbeatAction::Ping(1)));
    assert_eq!(line.timer(60_000), Some(HeartbeatAction::Ping(2)));
    assert_eq!(line.timer(90_000), Some(HeartbeatAction::Ping(3)));
    assert_eq!(line.pong(1, 100_000), Some(LATE_BUT_VALID));
    line.assert_dead_at(160_000);
}

#[test]
fn a_pong_for_the_latest_of_several_pings_answers_them_all() {
    let mut line = Line::with(timeouts(30, 100));
    for sequence in 1..=3 {
        assert_eq!(line.timer(30_000 * u64::from(sequence)), Some(HeartbeatAction::Ping(sequence)));
    }
    assert_eq!(line.pong(3, 91_000), Some(round_trip(1_000)));
    assert_eq!(line.pong(1, 91_000), None);
    assert_eq!(line.pong(2, 91_000), None);
    assert_eq!(line.deadline(), at(120_000));
    line.assert_dead_at(220_000);
}

#[test]
fn pongs_that_match_no_unanswered_ping() {
    let mut line = Line::with(timeouts(30, 100));
    assert_eq!(line.pong(0, 1), None, "nothing was sent");
    assert_eq!(line.pong(1, 1), None, "guessed before it was sent");
    assert_eq!(line.timer(30_000), Some(HeartbeatAction::Ping(1)));
    assert_eq!(line.timer(60_000), Some(HeartbeatAction::Ping(2)));
    for (sequence, why) in [(0, "never a number"), (3, "not sent yet"), (u32::MAX, "not sent yet")]
    {
        assert_eq!(line.pong(sequence, 60_001), None, "{sequence}: {why}");
    }
    assert_eq!(line.pong(1, 60_002), Some(LATE_BUT_VALID));
    assert_eq!(line.pong(1, 60_003), None, "already acknowledged");
    line.assert_dead_at(160_000);
}

#[test]
fn repeating_an_old_pong_does_not_keep_a_peer_alive() {
    let mut line = Line::new();
    assert_eq!(line.timer(30_000), Some(HeartbeatAction::Ping(1)));
    assert_eq!(line.pong(1, 30_100), Some(round_trip(100)));
    assert_eq!(line.timer(60_000), Some(HeartbeatAction::Ping(2)));
    for ms in (60_000..90_000).step_by(100) {
        assert_eq!(line.pong(1, ms), None);
    }
    assert_eq!(line.timer(90_000), Some(HeartbeatAction::Dead));
}

#[test]
fn a_payload_decodes_only_with_its_key() {
    const KEY: u64 = 0x0123_4567_89ab_cdef;
    for sequence in [1, 2, 255, 65_536, u32::MAX] {
        let payload = Heartbeat::payload(KEY, sequence);
        assert_eq!(Heartbeat::sequence(KEY, &payload), Some(sequence));
        assert_eq!(Heartbeat::sequence(KEY ^ (1 << 32), &payload), None, "another key");
        assert_eq!(Heartbeat::sequence(!KEY, &payload), None, "another key");
        assert_eq!(Heartbeat::sequence(KEY, &payload[..7]), None, "too short");
        assert_eq!(Heartbeat::sequence(KEY, &[&payload[..], &[0]].concat()), None, "too long");
    }
    assert_eq!(Heartbeat::sequence(KEY, &[]), None);
    assert_eq!(Heartbeat::sequence(KEY, &[0; 8]), None);
    assert_eq!(Heartbeat::sequence(KEY, b"ping"), None);
}

// Probes

#[test]
fn a_probe_is_answered_by_its_own_pong() {
    let mut line = Line::new();
    assert_eq!(line.heartbeat.probe(at(1_000)), 1);
    let answer = PongResult { round_trip: Some(millis(250)), answers_probe: true };
    assert_eq!(line.pong(1, 1_250), Some(answer));
    assert_eq!(line.heartbeat.probe(at(2_000)), 2, "the next probe is a new ping");
}

#[test]
fn a_probe_is_answered_by_the_pong_of_a_later_ping() {
    let mut line = Line::new();
    assert_eq!(line.heartbeat.probe(at(29_000)), 1);
    assert_eq!(line.timer(30_000), Some(HeartbeatAction::Ping(2)));
    let answer = PongResult { round_trip: Some(millis(500)), answers_probe: true };
    assert_eq!(line.pong(2, 30_500), Some(answer));
    assert_eq!(line.pong(1, 30_600), None);
}

#[test]
fn a_probe_is_not_answered_by_the_pong_of_an_earlier_ping() {
    let mut line = Line::new();
    assert_eq!(line.timer(30_000), Some(HeartbeatAction::Ping(1)));
    assert_eq!(line.heartbeat.probe(at(31_000)), 2);
    assert_eq!(line.pong(1, 32_000), Some(LATE_BUT_VALID));
    let answer = PongResult { round_trip: Some(millis(2_000)), answers_probe: true };
    assert_eq!(line.pong(2, 33_000), Some(answer));
}

#[test]
fn there_is_one_probe_at_a_time() {
    let mut line = Line::new();
    assert_eq!(line.heartbeat.probe(at(1_000)), 1);
    assert_eq!(line.heartbeat.probe(at(2_000)), 1);
    assert_eq!(line.timer(30_000), Some(HeartbeatAction::Ping(2)));
    assert_eq!(line.heartbeat.probe(at(31_000)), 1);
    assert!(line.pong(1, 32_000).expect("was sent").answers_probe);
    assert_eq!(line.heartbeat.probe(at(33_000)), 3);
}

#[test]
fn an_unanswered_probe_changes_neither_cadence_nor_pong_timeout() {
    for probes in [&[1_000][..], &[29_999], &[30_000], &[45_000], &[59_999], &[1_000, 45_000]] {
        let mut line = Line::new();
        let mut probes = probes.iter().peekable();
        while let Some(&probe) = probes.next_if(|&&ms| ms <= 30_000) {
            line.heartbeat.probe(at(probe));
        }
        assert!(matches!(line.timer(30_000), Some(HeartbeatAction::Ping(_))));
        for &probe in probes {
            line.heartbeat.probe(at(probe));
        }
        line.assert_dead_at(60_000);
    }
}

#[test]
fn an_answered_probe_answers_the_earlier_pings_and_leaves_the_cadence() {
    let mut line = Line::new();
    assert_eq!(line.timer(30_000), Some(HeartbeatAction::Ping(1)));
    assert_eq!(line.heartbeat.probe(at(50_000)), 2);
    assert!(line.pong(2, 51_000).expect("was sent").answers_probe);
    assert_eq!(line.timer(60_000), Some(HeartbeatAction::Ping(3)));
    line.assert_dead_at(90_000);
}

#[test]
fn a_probe_still_unanswered_after_an_earlier_pong_is_not_counted_in_the_cadence() {
    let mut line = Line::new();
    assert_eq!(line.timer(30_000), Some(HeartbeatAction::Ping(1)));
    assert_eq!(line.heartbeat.probe(at(31_000)), 2);
    assert_eq!(line.pong(1, 32_000), Some(LATE_BUT_VALID));
    assert_eq!(line.timer(60_000), Some(HeartbeatAction::Ping(3)));
    line.assert_dead_at(90_000);
}

// Reading paused

#[test]
fn a_paused_peer_is_pinged_but_does_not_time_out() {
    let mut line = Line::new();
    line.pause(20_000);
    for sequence in 1..=10 {
        let due = 30_000 * u64::from(sequence);
        assert_eq!(line.deadline(), at(due));
        assert_eq!(line.timer(due), Some(HeartbeatAction::Ping(sequence)));
    }
    line.resume(310_000);
    assert_eq!(line.timer(310_000), None);
    assert_eq!(line.pong(10, 310_001), Some(round_trip(10_001)));
    assert_eq!(line.timer(330_000), Some(HeartbeatAction::Ping(11)));
    line.assert_dead_at(360_000);
}

#[test]
fn time_in_which_the_peer_was_not_read_is_credited_to_the_millisecond() {
    for (paused, resumed) in
        [(30_000, 30_001), (31_000, 43_217), (59_999, 60_000), (40_000, 99_000)]
    {
        let mut line = Line::new();
        assert_eq!(line.timer(30_000), Some(HeartbeatAction::Ping(1)));
        line.pause(paused);
        while line.deadline() <= at(resumed) {
            assert!(matches!(
                line.timer(line.deadline().as_micros() / 1000),
                Some(HeartbeatAction::Ping(_))
            ));
        }
        line.resume(resumed);
        line.assert_dead_at(60_000 + (resumed - paused));
    }
}

#[test]
fn there_is_no_credit_for_time_before_the_ping_was_due() {
    let mut line = Line::new();
    line.pause(10_000);
    line.resume(25_000);
    line.pause(26_000);
    assert_eq!(line.timer(30_000), Some(HeartbeatAction::Ping(1)));
    line.resume(31_500);
    line.assert_dead_at(61_500);
}

#[test]
fn credit_ends_with_the_pong_it_was_given_for() {
    let mut line = Line::new();
    assert_eq!(line.timer(30_000), Some(HeartbeatAction::Ping(1)));
    line.pause(31_000);
    line.resume(51_000);
    assert_eq!(line.pong(1, 52_000), Some(round_trip(22_000)));
    assert_eq!(line.timer(60_000), Some(HeartbeatAction::Ping(2)));
    line.assert_dead_at(90_000);
}

#[test]
fn repeated_pauses_do_not_keep_a_dead_peer_alive_for_ever() {
    // Half of the time is not read, so thirty seconds of reading take sixty.
    let mut line = Line::new();
    assert_eq!(line.timer(30_000), Some(HeartbeatAction::Ping(1)));
    let mut ms = 30_000;
    loop {
        line.pause(ms);
        line.resume(ms + 100);
        ms += 200;
        match line.timer(ms) {
            Some(HeartbeatAction::Dead) => break assert_eq!(ms, 90_000),
            _ => assert!(ms < 90_000, "still alive at {ms}"),
        }
    }
}

#[test]
fn pauses_shorter_than_a_millisecond_add_up() {
    // Nine tenths of the time are not read, so thirty seconds of reading take three hundred.
    let mut heartbeat = Heartbeat::new(at(30_000));
    assert_eq!(
        heartbeat.handle_timeout(at(30_000), true, &STANDARD),
        Some(HeartbeatAction::Ping(1))
    );
    let mut micros = 30_000_000;
    let dead_at = loop {
        let resumed = Instant::from_micros(micros + 631);
        heartbeat.on_unread(Instant::from_micros(micros), resumed, &STANDARD);
        micros += 701;
        assert!(micros < 400_000_000, "still alive");
        let now = Instant::from_micros(micros);
        if heartbeat.handle_timeout(now, true, &STANDARD) == Some(HeartbeatAction::Dead) {
            break micros / 1000;
        }
    };
    assert!((329_000..333_000).contains(&dead_at), "dead at {dead_at} ms");
}

#[test]
fn partial_acknowledgement_with_credit_never_times_out_early() {
    let mut line = Line::new();
    assert_eq!(line.timer(30_000), Some(HeartbeatAction::Ping(1)));
    line.pause(40_000);
    assert_eq!(line.timer(60_000), Some(HeartbeatAction::Ping(2)));
    line.resume(65_000);
    assert_eq!(line.pong(1, 66_000), Some(LATE_BUT_VALID));
    // Ping 2 was due at 60 s and not read for 5 s.
    assert_ne!(line.timer(94_999), Some(HeartbeatAction::Dead));
    assert!(line.pong(2, 94_999).is_some());
}

#[test]
fn a_ping_that_falls_due_while_paused_is_credited_from_then() {
    let mut line = Line::new();
    assert_eq!(line.timer(30_000), Some(HeartbeatAction::Ping(1)));
    assert_eq!(line.pong(1, 30_010), Some(round_trip(10)));
    line.pause(50_000);
    assert_eq!(line.timer(60_000), Some(HeartbeatAction::Ping(2)));
    line.resume(70_000);
    line.assert_dead_at(100_000);
}

// Stops of the relay itself

#[test]
fn after_a_stop_of_seventy_seconds_a_pong_that_waited_unread_is_on_time() {
    let mut line = Line::new();
    assert_eq!(line.timer(30_000), Some(HeartbeatAction::Ping(1)));
    // Stopped from 31 s to 101 s; afterwards all input is read first.
    assert_eq!(line.pong(1, 101_000), Some(round_trip(71_000)));
    assert_eq!(line.timer(101_000), Some(HeartbeatAction::Ping(2)));
    assert_eq!(line.timer(101_000), None);
    assert_eq!(line.pong(2, 101_020), Some(round_trip(20)));
    assert_eq!(line.timer(131_000), Some(HeartbeatAction::Ping(3)));
    assert_eq!(line.pong(3, 131_020), Some(round_trip(20)));
    assert_eq!(line.timer(161_000), Some(HeartbeatAction::Ping(4)));
}

#[test]
fn after_a_stop_of_seventy_seconds_a_peer_without_a_pong_is_dead() {
    let mut line = Line::new();
    assert_eq!(line.timer(30_000), Some(HeartbeatAction::Ping(1)));
    assert_eq!(line.timer(101_000), Some(HeartbeatAction::Dead));
}

#[test]
fn a_ping_delayed_by_a_stop_gives_the_peer_its_full_time() {
    for stopped in [2_000, 70_000, 3 * 24 * 3600 * 1000] {
        let mut line = Line::new();
        let woken = 30_000 + stopped;
        assert_eq!(line.timer(woken), Some(HeartbeatAction::Ping(1)));
        line.assert_dead_at(woken + 30_000);
    }
}

#[test]
fn only_a_ping_late_by_more_than_a_second_restarts_the_cadence() {
    for (late, next_due) in [(1_000, 60_000), (1_001, 61_001)] {
        let mut line = Line::new();
        assert_eq!(line.timer(30_000 + late), Some(HeartbeatAction::Ping(1)));
        assert!(line.pong(1, 30_000 + late).is_some());
        assert_eq!(line.deadline(), at(next_due), "late by {late} ms");
    }
}

#[test]
fn a_stop_of_days_is_followed_by_one_ping_and_the_usual_cadence() {
    const DAYS: u64 = 9 * 24 * 3600 * 1000;
    let mut line = Line::new();
    for sequence in 1..=5 {
        let now = DAYS + 30_000 * u64::from(sequence - 1);
        assert_eq!(line.timer(now), Some(HeartbeatAction::Ping(sequence)));
        assert_eq!(line.timer(now), None);
        assert_eq!(line.pong(sequence, now + 40), Some(round_trip(40)));
        assert_eq!(line.deadline(), at(now + 30_000));
    }
}

#[test]
fn a_delayed_ping_does_not_time_out_at_once_however_short_the_timeouts() {
    for (interval, pong) in [(200, 200), (200, 500), (100, 300)] {
        let short = Timeouts { ping_interval: millis(interval), pong: millis(pong), ..STANDARD };
        for stopped in (0..=3_000).step_by(50) {
            let mut line = Line::with(short.clone());
            let woken = 30_000 + stopped;
            assert_eq!(
                line.timer(woken),
                Some(HeartbeatAction::Ping(1)),
                "stopped for {stopped} ms"
            );
            assert_eq!(line.timer(woken), None, "stopped for {stopped} ms");
            assert_ne!(
                line.timer(woken + pong / 2),
                Some(HeartbeatAction::Dead),
                "stopped for {stopped} ms"
            );
            assert!(line.pong(1, woken + pong / 2).is_some());
        }
    }
}

// Timeout and interval in any relation

#[test]
fn with_a_timeout_longer_than_the_interval_several_pings_are_outstanding() {
    let mut line = Line::with(timeouts(10, 25));
    for (due, sequence) in [(30_000, 1), (40_000, 2), (50_000, 3)] {
        assert_eq!(line.timer(due), Some(HeartbeatAction::Ping(sequence)));
    }
    assert_eq!(line.pong(1, 54_999), Some(LATE_BUT_VALID));
    assert_eq!(line.timer(55_000), None);
    assert_eq!(line.timer(60_000), Some(HeartbeatAction::Ping(4)));
    line.assert_dead_at(65_000);
}

#[test]
fn with_a_timeout_shorter_than_the_interval_death_is_detected_between_two_pings() {
    let mut line = Line::with(timeouts(30, 10));
    assert_eq!(line.timer(30_000), Some(HeartbeatAction::Ping(1)));
    assert_eq!(line.pong(1, 39_999), Some(round_trip(9_999)));
    assert_eq!(line.deadline(), at(60_000));
    line.assert_dead_at(70_000);
}

// Random walks compared with a model that lists every ping

/// The reference model of a heartbeat.
struct Model {
    timeouts: Timeouts,
    next_due: Instant,
    sent: u32,
    sent_at: Instant,
    /// Unanswered pings: number and, but for a probe, when it was due.
    unanswered: Vec<(u32, Option<Instant>)>,
    probe: Option<u32>,
    paused: Option<Instant>,
    /// Pauses since the last pong that answered every ping.
    unread: Vec<(Instant, Instant)>,
    /// How much later than exact the pong timeout may be: credit and delays are accounted to
    /// the oldest ping, and remain when only that one is answered.
    slack: Duration,
}

impl Model {
    fn verdict(&self) -> Option<Instant> {
        let due = self.unanswered.iter().find_map(|&(_, due)| due)?;
        let unread: Duration = self.unread.iter().map(|&(from, to)| to.since(from.max(due))).sum();
        Some(due + self.timeouts.pong + unread)
    }

    fn pinged(&mut self, due: Option<Instant>, now: Instant) -> u32 {
        self.sent += 1;
        self.sent_at = now;
        self.unanswered.push((self.sent, due));
        self.sent
    }

    /// The expected action of the timer, where it need not be exact.
    fn timer(&mut self, now: Instant) -> Option<HeartbeatAction> {
        if self.paused.is_none() && self.verdict().is_some_and(|verdict| now >= verdict) {
            return Some(HeartbeatAction::Dead);
        }
        self.ping(now)
    }

    fn ping(&mut self, now: Instant) -> Option<HeartbeatAction> {
        let late = now.as_micros().checked_sub(self.next_due.as_micros())?;
        if late >= 4_000_000 {
            if self.unanswered.iter().any(|(_, due)| due.is_some()) {
                self.slack += now.since(self.next_due);
            }
            self.next_due = now;
        }
        let due = self.next_due;
        self.next_due += self.timeouts.ping_interval;
        Some(HeartbeatAction::Ping(self.pinged(Some(due), now)))
    }

    fn pong(&mut self, sequence: u32, now: Instant) -> Option<PongResult> {
        if !self.unanswered.iter().any(|&(number, _)| number == sequence) {
            return None;
        }
        self.unanswered.retain(|&(number, _)| number > sequence);
        if self.unanswered.is_empty() {
            self.unread.clear();
            self.slack = Duration::ZERO;
        } else {
            self.slack += self.unread.iter().map(|&(from, to)| to.since(from)).sum::<Duration>();
        }
        let answers_probe = self.probe.take_if(|probe| *probe <= sequence).is_some();
        let round_trip = (sequence == self.sent).then(|| now.since(self.sent_at));
        Some(PongResult { round_trip, answers_probe })
    }
}

/// One connection, until it is dead or 200 steps have passed. `healthy` is the probability
/// that the newest pong has arrived when time has passed. Returns whether it died.
fn walk(seed: u64, timeouts: &Timeouts, pauses: bool, healthy: f64) -> bool {
    let context = format!("walk({seed}, {timeouts:?}, {pauses}, {healthy})");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut now = at(rng.random_range(0..100_000));
    let first = now + millis(rng.random_range(1..=30_000));
    let mut heartbeat = Heartbeat::new(first);
    let mut model = Model {
        timeouts: timeouts.clone(),
        next_due: first,
        sent: 0,
        sent_at: first,
        unanswered: Vec::new(),
        probe: None,
        paused: None,
        unread: Vec::new(),
        slack: Duration::ZERO,
    };
    for step in 0..200 {
        let context = format!("{context}, step {step}, {now:?}, {heartbeat:?}");
        match rng.random_range(0..10) {
            0..4 => {
                let deadline = heartbeat.deadline(model.paused.is_none(), timeouts);
                if model.slack.is_zero() {
                    let verdict = model.verdict().filter(|_| model.paused.is_none());
                    let exact = verdict.map_or(model.next_due, |at| at.min(model.next_due));
                    assert_eq!(deadline, exact, "{context}");
                }
                let ahead = deadline.since(now).as_millis() as u64;
                now += millis(match rng.random_range(0..20) {
                    0 => ahead + rng.random_range(4_000..200_000),
                    1..6 => ahead.saturating_sub(1),
                    6..10 => ahead + rng.random_range(0..100),
                    10..14 => ahead,
                    _ => rng.random_range(0..=ahead),
                });
                // Late by at most a tick, or by seconds: where the cadence restarts in
                // between is the implementation's choice.
                if (millis(100)..millis(4_000)).contains(&now.since(model.next_due)) {
                    now += millis(4_000);
                }
                // Input is read before the timers fire.
                if rng.random_bool(healthy) {
                    let sequence = model.sent;
                    let answer = heartbeat.on_pong(sequence, now);
                    assert_eq!(answer, model.pong(sequence, now), "{context}");
                }
            }
            4..6 => {
                let sequence = rng.random_range(0..=model.sent + 1);
                let answer = heartbeat.on_pong(sequence, now);
                assert_eq!(answer, model.pong(sequence, now), "{context}");
            }
            6 => {
                let expected = match model.probe {
                    Some(probe) => probe,
                    None => model.pinged(None, now),
                };
                model.probe = Some(expected);
                assert_eq!(heartbeat.probe(now), expected, "{context}");
            }
            _ if !pauses => {}
            _ => match model.paused.take() {
                None => model.paused = Some(now),
                Some(since) => {
                    heartbeat.on_unread(since, now, timeouts);
                    model.unread.push((since, now));
                }
            },
        }
        loop {
            let reading = model.paused.is_none();
            let slack = model.slack;
            let overdue = model.verdict().filter(|_| reading).filter(|&verdict| now >= verdict);
            let beat = heartbeat.handle_timeout(now, reading, timeouts);
            let expected = match overdue {
                Some(verdict) if now < verdict + slack && beat != Some(HeartbeatAction::Dead) => {
                    model.ping(now)
                }
                _ => model.timer(now),
            };
            assert_eq!(beat, expected, "{context}, now {now:?}");
            match beat {
                Some(HeartbeatAction::Dead) => return true,
                Some(HeartbeatAction::Ping(_)) => {}
                None => break,
            }
        }
        let deadline = heartbeat.deadline(model.paused.is_none(), timeouts);
        assert!(deadline > now, "{context}: deadline {deadline:?} has passed");
    }
    false
}

#[test]
fn random_walks_agree_with_a_list_of_pings() {
    for timeouts in [STANDARD, timeouts(10, 25), timeouts(30, 10), timeouts(7, 100)] {
        for pauses in [false, true] {
            let deaths =
                |healthy| (0..300).filter(|&seed| walk(seed, &timeouts, pauses, healthy)).count();
            assert_eq!(deaths(1.0), 0, "{timeouts:?}: a peer that always answers was killed");
            assert!(deaths(0.0) > 50, "{timeouts:?}: too few walks saw a death");
        }
    }
}

#[test]
fn the_round_trip_is_measured_across_a_wrap_of_the_lower_bits() {
    // 2^32 µs after the start a ping is on its way.
    let start = (1 << 32) / 1000 - 30;
    let mut heartbeat = Heartbeat::new(at(start));
    assert_eq!(heartbeat.round_trip(), None);
    assert_eq!(
        heartbeat.handle_timeout(at(start), true, &STANDARD),
        Some(HeartbeatAction::Ping(1))
    );
    assert_eq!(heartbeat.round_trip(), None, "not before the answer");
    let answer = heartbeat.on_pong(1, at(start + 70));
    assert_eq!(answer.and_then(|answer| answer.round_trip), Some(millis(70)));
    assert_eq!(heartbeat.round_trip(), Some(millis(70)));
    let next = start + 30_000;
    assert_eq!(heartbeat.handle_timeout(at(next), true, &STANDARD), Some(HeartbeatAction::Ping(2)));
    assert_eq!(heartbeat.round_trip(), Some(millis(70)), "while the next is awaited");
    // On one machine a pong may arrive within the same microsecond.
    heartbeat.on_pong(2, at(next));
    assert_eq!(heartbeat.round_trip(), Some(Duration::from_micros(1)));
}
