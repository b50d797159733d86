//! History: the last ten minutes of the metrics, for a status page that is opened later.
//!
//! Owns a ring of samples and the thread that fills it. Must not know HTTP.
//!
//! 1. Memory is fixed: at most [`SAMPLES_MAX`] samples of about a kilobyte.
//! 2. An idle relay is not woken: while nothing is connected and nothing has changed, the
//!    thread waits for the loop to accept a connection instead of for the next sample.

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::metrics::{self, Surroundings};
use super::snapshots::Snapshots;
use crate::server::log::Sink;
use crate::server::messages::{LoopHandle, LoopMessage, LoopSnapshot};
use crate::server::os::clock::wall_time;

/// The time that the status page shows.
const WINDOW: Duration = Duration::from_secs(600);
/// Time between two samples: the width of a column of the page.
const PERIOD: Duration = Duration::from_secs(20);
/// One at each end of the window, one in progress, and those between.
const SAMPLES_MAX: usize = (WINDOW.as_secs() / PERIOD.as_secs()) as usize + 2;

/// The samples of the last ten minutes.
#[derive(Debug, Default)]
pub(super) struct History {
    samples: Mutex<VecDeque<Sample>>,
}

#[derive(Clone, Debug)]
struct Sample {
    /// Since 1970.
    at: Duration,
    report: LoopSnapshot,
    around: Surroundings,
}

impl History {
    fn push(&self, sample: Sample) {
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        if samples.len() == SAMPLES_MAX {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    /// The samples, oldest first: a line `# N ms ago`, then the metrics that differ from
    /// those of the sample before. A sample from before the window is the state at its
    /// beginning, because nothing has changed until the next one.
    pub(super) fn text(&self, now: Duration) -> String {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let begin = now.saturating_sub(WINDOW);
        let shown = samples
            .iter()
            .enumerate()
            .filter(|(index, _)| samples.get(index + 1).is_none_or(|next| next.at > begin));
        let (mut text, mut before) = (String::new(), String::new());
        for (_, sample) in shown {
            let age = now.saturating_sub(sample.at).min(WINDOW);
            let _ = writeln!(text, "# {} ms ago", age.as_millis());
            let lines = metrics::text(&sample.report, &sample.around);
            let known: BTreeSet<&str> = before.lines().collect();
            for line in lines.lines().filter(|it| !it.starts_with('#') && !known.contains(it)) {
                text.push_str(line);
                text.push('\n');
            }
            before = lines;
        }
        text
    }
}

/// The thread that fills a history, until the process ends.
pub(super) struct Recorder {
    pub(super) snapshots: Snapshots,
    pub(super) sink: Sink,
    /// When the process started, since 1970.
    pub(super) started: Duration,
    pub(super) to_loop: LoopHandle,
}

impl Recorder {
    pub(super) fn run(mut self, history: &History) {
        // Before the first client there is nothing to remember.
        let Ok(()) = self.next_arrival().recv() else { return };
        let mut last = None;
        loop {
            // Asked for before the sample, so that no connection falls between the two.
            let arrival = self.next_arrival();
            let report = self.snapshots.take();
            if let Some(report) = report.clone() {
                let around = Surroundings::now(self.started, &self.sink);
                history.push(Sample { at: wall_time(), report, around });
            }
            let is_idle =
                report == last && report.as_ref().is_some_and(|it| it.relay.connections == 0);
            if is_idle {
                // The loop has ended if nothing comes of it.
                let Ok(()) = arrival.recv() else { return };
                // What was true until now; what the connection does is in the next sample.
                last = None;
                continue;
            }
            last = report;
            #[expect(clippy::disallowed_methods, reason = "no thread waits for this one")]
            thread::sleep(PERIOD);
        }
    }

    /// Receives when the loop accepts a connection.
    fn next_arrival(&self) -> Receiver<()> {
        let (told, arrival) = mpsc::sync_channel(1);
        self.to_loop.send(LoopMessage::NextArrival(told));
        arrival
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::admin::process::Usage;

    fn sample(seconds: u64, binaries: usize) -> Sample {
        let mut report = LoopSnapshot::default();
        report.relay.binaries = binaries;
        let around =
            Surroundings { started: Duration::ZERO, usage: Usage::now(), log_lines_dropped: 0 };
        Sample { at: Duration::from_secs(seconds), report, around }
    }

    /// The ages in the text, and the numbers of binaries that are told.
    fn told(history: &History, now: u64) -> (Vec<u64>, Vec<String>) {
        let text = history.text(Duration::from_secs(now));
        let ages = text.lines().filter_map(|line| line.strip_prefix("# ")?.strip_suffix(" ms ago"));
        let name = "pyrycode_relay_connected_binaries ";
        let binaries = text.lines().filter_map(|line| line.strip_prefix(name));
        (ages.map(|age| age.parse().unwrap()).collect(), binaries.map(str::to_owned).collect())
    }

    #[test]
    fn a_sample_tells_what_has_changed() {
        let history = History::default();
        assert_eq!(history.text(Duration::ZERO), "");
        for (at, binaries) in [(1000, 0), (1020, 0), (1040, 7), (1060, 7), (1080, 0)] {
            history.push(sample(at, binaries));
        }
        let (ages, binaries) = told(&history, 1090);
        assert_eq!(ages, [90_000, 70_000, 50_000, 30_000, 10_000]);
        assert_eq!(binaries, ["0", "7", "0"]);
    }

    #[test]
    fn the_state_at_the_beginning_of_the_window_is_kept() {
        let history = History::default();
        for (at, binaries) in [(0, 1), (20, 2), (5000, 2), (5020, 3)] {
            history.push(sample(at, binaries));
        }
        let (ages, binaries) = told(&history, 5030);
        assert_eq!(ages, [600_000, 30_000, 10_000]);
        assert_eq!(binaries, ["2", "3"]);
        // Long idle: what was true last is true now.
        assert_eq!(told(&history, 99_999), (vec![600_000], vec!["3".into()]));
    }

    #[test]
    fn memory_is_fixed() {
        let history = History::default();
        for second in 0..1000 {
            history.push(sample(20 * second, second as usize));
        }
        let samples = history.samples.lock().unwrap();
        assert_eq!(samples.len(), SAMPLES_MAX);
        assert!(samples.back().unwrap().at - samples.front().unwrap().at > WINDOW);
    }
}
