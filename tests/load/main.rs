//! Load and faults on real sockets: the built program under overload.
//!
//! Scenarios run one after the other, each against relays of its own with the protocol's
//! timeouts, and print their measurements. A violation of the contract fails the run; times,
//! CPU and memory are only recorded, unless the contract calls them flat, bounded or idle,
//! and then they are compared with another measurement of the same run.
//!
//! Nothing leaves 127.0.0.0/8 and nothing needs root. Every wait has a deadline; where a
//! peer's pace is part of the scenario, a comment at the pause says so. Arguments select the
//! scenarios whose names contain one of them.

#![allow(clippy::disallowed_methods, reason = "tests live outside the deterministic core")]
#![allow(unreachable_pub, reason = "a test binary exports nothing")]
#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod attachment;
mod bulk;
mod burst;
mod churn;
mod client;
mod crowd;
mod crowding;
mod dials;
mod flood;
mod guard;
mod hellos;
mod hostile;
mod idle;
mod mute;
mod percentiles;
mod redial;
mod sharing;
mod shed;
mod starved;
mod support;
mod watch;

use std::panic::catch_unwind;
use std::process::ExitCode;
use std::time::Instant;

const SCENARIOS: &[(&str, fn())] = &[
    ("burst: hundreds of frames at connect", burst::at_connect),
    ("attachment: 30 MB to a phone at a third of the speed", attachment::at_a_third_of_the_speed),
    ("attachment: 112 queues that drain to an eighth", attachment::queues_that_drain_to_an_eighth),
    ("bulk: 64 MiB from four phones to a slow binary", bulk::to_a_slow_binary),
    ("bulk: 64 MiB from a binary to a slow phone", bulk::to_a_slow_phone),
    ("shed: a phone that never reads, beyond its backlog", shed::beyond_the_backlog),
    ("shed: a phone that never reads, out of time", shed::out_of_time),
    ("flood: frames beside 100 quiet pairs", flood::of_frames),
    ("flood: pings beside 100 quiet pairs", flood::of_pings),
    ("hostile: empty texts", hostile::bad_envelopes),
    ("hostile: pings", hostile::pings),
    ("hostile: smallest frames", hostile::smallest_frames),
    ("hostile: fragments", hostile::fragments),
    ("hostile: log of bad envelopes", hostile::log_of_bad_envelopes),
    ("hellos: 9,000 as their time ends, RSA-2048", hellos::burst_of_rsa_2048),
    ("hellos: 9,000 as their time ends, RSA-4096", hellos::burst_of_rsa_4096),
    ("hellos: 1,900 a second of one client", hellos::stream_of_rsa_2048),
    ("crowding: half heads", crowding::half_heads),
    ("crowding: first fragments", crowding::first_fragments),
    ("crowding: slow readers", crowding::slow_readers),
    ("sharing: eight phones of a slow binary", sharing::eight_phones),
    ("sharing: two deaths and a probe", sharing::deaths_and_a_probe),
    ("dials: 800 a second, 1,024 descriptors", dials::of_one_client),
    ("starved: 66 descriptors, 200 dialers", starved::to_two_connections),
    ("starved: 96 descriptors, 200 dialers", starved::with_live_pairs),
    ("idle: 10,000 binaries, plain and through TLS", idle::plain_and_tls),
    ("mute: stderr is not read", mute::stderr_is_not_read),
    ("redial: all clients at once", redial::all_at_once),
    ("churn: an hour in a minute", churn::an_hour),
];

fn main() -> ExitCode {
    // Cargo adds arguments such as `--quiet`, which are ignored.
    let words: Vec<String> = std::env::args().skip(1).filter(|w| !w.starts_with('-')).collect();
    if let Some((crowd::WORD, arguments)) = words.split_first().map(|(w, rest)| (w.as_str(), rest))
    {
        crowd::run(arguments);
        return ExitCode::SUCCESS;
    }
    guard::watch();
    let (mut passed, mut failed) = (0, 0);
    for (name, scenario) in SCENARIOS {
        if !words.is_empty() && !words.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        println!("\n{name}");
        let began = Instant::now();
        let outcome = catch_unwind(scenario);
        let verdict = if outcome.is_ok() { "ok" } else { "FAILED" };
        println!("  {verdict} after {:.1} s", began.elapsed().as_secs_f64());
        *(if outcome.is_ok() { &mut passed } else { &mut failed }) += 1;
    }
    println!("\nload: {passed} passed, {failed} failed");
    if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
