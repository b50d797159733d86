//! Snapshots: requests to the event loop for what it counts and holds.
//!
//! Owns the wait for its answer.
//!
//! 1. A request costs the event loop a copy of a kilobyte.
//! 2. While the loop is stuck, each holder has at most one request in the mailbox.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::time::Duration;

use crate::server::messages::{LoopHandle, LoopMessage, LoopSnapshot};

/// How long to wait for the event loop. Prometheus gives up after 10 s by default.
pub(super) const LOOP_TIMEOUT: Duration = Duration::from_secs(2);

/// The requests of one thread.
#[derive(Debug)]
pub(super) struct Snapshots {
    to_loop: LoopHandle,
    /// A request that the event loop has not answered in time.
    unanswered: Option<Receiver<LoopSnapshot>>,
}

impl Snapshots {
    pub(super) fn new(to_loop: LoopHandle) -> Self {
        Self { to_loop, unanswered: None }
    }

    /// The state now; `None` if the event loop does not answer in time.
    pub(super) fn take(&mut self) -> Option<LoopSnapshot> {
        // An answer that arrived late is out of date and discarded.
        let owed =
            self.unanswered.take().filter(|owed| owed.try_recv() == Err(TryRecvError::Empty));
        let reply = owed.unwrap_or_else(|| {
            let (reply, answer) = mpsc::sync_channel(1);
            self.to_loop.send(LoopMessage::Snapshot(reply));
            answer
        });
        match reply.recv_timeout(LOOP_TIMEOUT) {
            Ok(report) => Some(report),
            Err(RecvTimeoutError::Timeout) => {
                self.unanswered = Some(reply);
                None
            }
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use mio::{Poll, Token};

    use super::*;
    use crate::server::messages::mailbox::Mailbox;
    use crate::server::os::clock::monotonic;

    #[test]
    fn a_stuck_loop_is_asked_once_and_its_late_answer_is_not_news() {
        let poll = Poll::new().unwrap();
        let mut mailbox = Mailbox::new(poll.registry(), Token(0)).unwrap();
        let mut snapshots = Snapshots::new(mailbox.handle());
        assert_eq!(snapshots.take(), None);
        let Some(LoopMessage::Snapshot(reply)) = mailbox.take() else { panic!("it was not asked") };
        assert_eq!(snapshots.take(), None);
        assert!(mailbox.take().is_none(), "it was asked again");

        let counting = |binaries| {
            let mut report = LoopSnapshot::default();
            report.relay.binaries = binaries;
            report
        };
        reply.send(counting(1)).unwrap();
        let worker = std::thread::Builder::new().spawn(move || snapshots.take()).unwrap();
        let until = monotonic() + 10 * LOOP_TIMEOUT;
        let reply = loop {
            match mailbox.take() {
                Some(LoopMessage::Snapshot(reply)) => break reply,
                Some(other) => panic!("{other:?}"),
                None => std::thread::yield_now(),
            }
            assert!(monotonic() < until, "it was not asked anew");
        };
        reply.send(counting(2)).unwrap();
        assert_eq!(worker.join().unwrap(), Some(counting(2)), "and not what was true before");
    }
}
