//! Gate: keeps the metrics listener's threads from accepting while the program is replaced.
//!
//! Owns the count of threads that wait before it. A connection that a thread has accepted is
//! answered; later ones wait in the kernel's backlog for the next program.

use std::net::SocketAddr;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The gate, open at first.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    opened: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_closed: bool,
    /// The threads that wait for it to open.
    waiting: usize,
    /// Connections of the relay itself, which end a thread's wait in accept(2).
    own: Vec<SocketAddr>,
}

impl Gate {
    /// Waits while the gate is closed. A thread calls it before it accepts.
    pub(super) fn pass(&self) {
        let mut state = self.lock();
        if !state.is_closed {
            return;
        }
        state.waiting += 1;
        let opened = self.opened.wait_while(state, |state| state.is_closed);
        opened.unwrap_or_else(PoisonError::into_inner).waiting -= 1;
    }

    pub(super) fn close(&self) {
        self.lock().is_closed = true;
    }

    /// Notes the address from which `dial` has connected. Meanwhile no thread asks
    /// [`Self::is_own`].
    pub(super) fn dial(&self, dial: impl FnOnce() -> Option<SocketAddr>) {
        let mut state = self.lock();
        state.own.extend(dial());
    }

    /// Whether a connection is one of the relay itself; true once for each.
    pub(super) fn is_own(&self, peer: SocketAddr) -> bool {
        let mut state = self.lock();
        let place = state.own.iter().position(|own| *own == peer);
        place.map(|place| state.own.swap_remove(place)).is_some()
    }

    pub(super) fn open(&self) {
        self.lock().is_closed = false;
        self.opened.notify_all();
    }

    /// The number of threads that wait.
    pub(super) fn waiting(&self) -> usize {
        self.lock().waiting
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    #[test]
    fn threads_wait_before_a_closed_gate_and_pass_an_open_one() {
        let gate = Arc::<Gate>::default();
        gate.pass();
        gate.close();
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let gate = Arc::clone(&gate);
                thread::Builder::new().spawn(move || gate.pass()).unwrap()
            })
            .collect();
        while gate.waiting() < 3 {
            thread::yield_now();
        }
        gate.open();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(gate.waiting(), 0);
    }

    #[test]
    fn the_relay_s_own_connection_is_known_once() {
        let gate = Gate::default();
        let (own, other) = (([127, 0, 0, 1], 1).into(), ([127, 0, 0, 1], 2).into());
        gate.dial(|| Some(own));
        assert!(!gate.is_own(other));
        assert!(gate.is_own(own) && !gate.is_own(own));
    }
}
