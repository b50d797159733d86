//! Gate: keeps the metrics listener's threads from accepting while the program is replaced.
//!
//! Owns the count of threads that wait before it. A connection that a thread has accepted is
//! answered; later ones wait in the kernel's backlog for the next program.

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

    pub(super) fn is_closed(&self) -> bool {
        self.lock().is_closed
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
}
