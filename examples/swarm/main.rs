//! Load tool: connects binaries and phones to a running relay, exchanges frames, replaces
//! connections, keeps them idle, and reports the machine that the relay needs for that load.
//!
//! `--help` lists the flags. Owns the schedule of a run: all clients connect, then stay for a
//! while. Times are measured at the clients, so a machine shared with the relay makes them
//! longer. Exits with 1 if a connection was refused or lost unexpectedly.

#![allow(clippy::disallowed_methods, reason = "a program of its own, with a clock")]
#![allow(unreachable_pub, reason = "an example exports nothing")]

mod client;
mod crowd;
mod options;
mod report;
mod stream;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use crowd::Crowd;
use options::Options;
use report::Machine;

/// How often progress is shown.
const PROGRESS: Duration = Duration::from_secs(5);
/// The run ends when no client has connected for this time.
const STUCK: Duration = Duration::from_secs(30);
/// How long clients that are busy at the end may take.
const REST: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args_os().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{}", options::HELP);
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("swarm: {error}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("swarm: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every client was admitted and no connection lost.
fn run(options: &Options) -> Result<bool, Box<dyn std::error::Error>> {
    let mut crowd = Crowd::new(options)?;
    let machine = Machine::new(options);
    let empty = machine.usage()?;

    let began = Instant::now();
    let (mut shown, mut open, mut last_came) = (began, 0, began);
    while crowd.coming() > 0 {
        crowd.turn()?;
        let now = Instant::now();
        if crowd.open() != open {
            (open, last_came) = (crowd.open(), now);
        }
        if now - last_came > STUCK {
            eprintln!("no client has connected for {} s", STUCK.as_secs());
            break;
        }
        show(&mut shown, began, &crowd);
    }
    let came = began.elapsed();
    let full = machine.usage()?;
    let ramp = full.since(&empty);

    crowd.begin(options);
    let before = crowd.tally.round_trips.len();
    let began = Instant::now();
    shown = began;
    while began.elapsed() < options.hold {
        crowd.turn()?;
        show(&mut shown, began, &crowd);
    }
    let stayed = began.elapsed();
    let held = machine.usage()?.since(&full);
    let returned = crowd.tally.round_trips.len() - before;
    crowd.rest();
    let began = Instant::now();
    while crowd.is_busy() && began.elapsed() < REST {
        crowd.turn()?;
    }
    print!("{}", report::of(options, &crowd, came, &ramp, stayed, &held, returned));
    if options.pid.is_some() {
        print!("{}", report::sizes(options, &crowd, &ramp, stayed, &held));
    }
    Ok(crowd.tally.refused == 0 && crowd.tally.lost == 0 && crowd.coming() == 0)
}

/// One line of progress, now and then.
fn show(shown: &mut Instant, began: Instant, crowd: &Crowd) {
    if shown.elapsed() >= PROGRESS {
        *shown = Instant::now();
        let tally = &crowd.tally;
        eprintln!(
            "{:>5} s  {} of {} open, {} refused, {} lost, {} pings answered, {} frames returned",
            began.elapsed().as_secs(),
            crowd.open(),
            crowd.all(),
            tally.refused,
            tally.lost,
            tally.pings,
            tally.round_trips.len(),
        );
    }
}
