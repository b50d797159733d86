//! Guard: no process outlives the suite, however the suite ends.
//!
//! A scenario that returns or panics drops its processes, which kills them. The guard covers
//! ends that do not unwind: a signal, and a run that hangs.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::process;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

/// The longest a run may take: several times what it does take.
const RUN_MAX: Duration = Duration::from_secs(15 * 60);

/// Ends the suite and its children when a signal comes or the time is over.
pub fn watch() {
    let (mut signals, told) = UnixStream::pair().unwrap();
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        pipe::register(signal, told.try_clone().unwrap()).unwrap();
    }
    signals.set_read_timeout(Some(RUN_MAX)).unwrap();
    thread::spawn(move || {
        // Kept open: an end of file is neither a signal nor a timeout.
        let _told = told;
        let why = if signals.read(&mut [0]).is_ok() { "a signal" } else { "out of time" };
        for child in children() {
            // It may have ended by itself.
            let _ = kill_process(child, Signal::KILL);
        }
        println!("\nload: 0 passed, 1 failed\nended by {why}");
        process::exit(1);
    });
}

/// The processes that this one started and has not waited for.
fn children() -> Vec<Pid> {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let pids: Vec<i32> = lists
        .flat_map(|list| list.split_whitespace().map(str::parse).collect::<Vec<_>>())
        .flatten()
        .collect();
    pids.into_iter().filter_map(Pid::from_raw).collect()
}
