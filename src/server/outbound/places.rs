//! Places: a counting semaphore whose permits are released when dropped.
//!
//! Owns the count. Must not know what a place is for.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// The semaphore; clones share it.
#[derive(Clone)]
pub(super) struct Places(Arc<Shared>);

struct Shared {
    free: Mutex<usize>,
    freed: Condvar,
}

/// One place, released on drop.
pub(super) struct Place(Places);

impl Places {
    pub(super) fn new(count: usize) -> Self {
        Self(Arc::new(Shared { free: Mutex::new(count), freed: Condvar::new() }))
    }

    /// A place, if one becomes free within `timeout`.
    pub(super) fn take_within(&self, timeout: Duration) -> Option<Place> {
        let free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.0.freed.wait_timeout_while(free, timeout, |free| *free == 0);
        let (mut free, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *free = free.checked_sub(1)?;
        Some(Place(self.clone()))
    }

    /// A place, if one is free now.
    pub(super) fn take(&self) -> Option<Place> {
        self.take_within(Duration::ZERO)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let shared = &self.0.0;
        *shared.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        shared.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_place_is_free_again_when_it_is_dropped() {
        let places = Places::new(2);
        let (first, second) = (places.take(), places.take());
        assert!(first.is_some() && second.is_some() && places.take().is_none());
        drop(first);
        assert!(places.take().is_some());
    }

    #[test]
    fn a_place_is_waited_for() {
        let places = Places::new(1);
        let held = places.take().expect("it is free");
        thread::scope(|scope| {
            let waiting = scope.spawn(|| places.take_within(Duration::from_secs(60)).is_some());
            drop(held);
            assert!(waiting.join().expect("it does not panic"));
        });
        let held = places.take();
        assert!(held.is_some() && places.take_within(Duration::from_millis(1)).is_none());
    }
}
