//! In flight: wakes that were queued and have not ended.
//!
//! Owns the guarantee that each wake has one log line, also if the relay ends first. Must
//! not know how a wake is sent.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::report::WakeReport;
use crate::relay::push_wake::Wake;
use crate::relay::stats::WakeOutcome;

/// The wakes in flight, each under a number of its own.
#[derive(Default)]
pub(super) struct InFlight(Mutex<State>);

#[derive(Default)]
struct State {
    wakes: BTreeMap<u64, Flight>,
    next: u64,
    /// The relay has ended: no wake begins any more.
    is_over: bool,
}

struct Flight {
    wake: Arc<Wake>,
    began: Instant,
}

impl Flight {
    fn cut_short(&self, now: Instant) {
        let words = "the relay stopped before an answer arrived";
        WakeReport::Failed(WakeOutcome::SendFailed, words.into()).log(&self.wake, now - self.began);
    }
}

impl InFlight {
    /// Registers a wake and returns its number; `None`: the relay has ended.
    pub(super) fn begin(&self, wake: &Arc<Wake>, now: Instant) -> Option<u64> {
        let flight = Flight { wake: Arc::clone(wake), began: now };
        let mut state = self.lock();
        if state.is_over {
            drop(state);
            flight.cut_short(now);
            return None;
        }
        let number = state.next;
        state.next += 1;
        state.wakes.insert(number, flight);
        Some(number)
    }

    /// Logs the end of a wake, unless [`Self::close`] has logged it already.
    pub(super) fn end(&self, number: u64, report: &WakeReport, now: Instant) {
        let flight = self.lock().wakes.remove(&number);
        if let Some(Flight { wake, began }) = flight {
            report.log(&wake, now - began);
        }
    }

    /// The relay ends: logs all wakes in flight as failed, without waiting for them.
    pub(super) fn close(&self, now: Instant) {
        let mut state = self.lock();
        state.is_over = true;
        let wakes = std::mem::take(&mut state.wakes);
        drop(state);
        wakes.values().for_each(|flight| flight.cut_short(now));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::push_wake::DeviceToken;
    use crate::server::os::clock::monotonic;

    #[test]
    fn each_wake_ends_once_and_none_begins_after_the_end() {
        let in_flight = InFlight::default();
        let wake = Arc::new(Wake { device: DeviceToken::new("t"), server_id: "home".into() });
        let [first, second] =
            [0; 2].map(|_| in_flight.begin(&wake, monotonic()).expect("it is not over"));
        assert_ne!(first, second);
        in_flight.end(first, &WakeReport::Sent(None), monotonic());
        assert_eq!(in_flight.lock().wakes.keys().copied().collect::<Vec<_>>(), [second]);
        in_flight.close(monotonic());
        assert!(in_flight.lock().wakes.is_empty());
        in_flight.end(second, &WakeReport::Sent(None), monotonic());
        assert_eq!(in_flight.begin(&wake, monotonic()), None);
    }
}
