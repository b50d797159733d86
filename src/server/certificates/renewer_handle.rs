//! Renewer handle: controls the thread that renews or reloads the certificate.
//!
//! Owns waking the thread and, when dropped, ending it, and what keeps it from ordering. Must
//! not know files or authorities.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::SyncSender;

/// A handle to the thread, which ends when the handle is dropped.
#[derive(Debug)]
pub(in crate::server) struct RenewerHandle {
    wake: SyncSender<()>,
    orders: Arc<Orders>,
}

impl RenewerHandle {
    /// A handle that wakes the thread by a message, and holds its `orders`, if it places any.
    pub(in crate::server) fn new(wake: SyncSender<()>, orders: Arc<Orders>) -> Self {
        Self { wake, orders }
    }

    /// Makes the thread read the files again, or attempt a due renewal, at once.
    pub(in crate::server) fn renew_now(&self) {
        // A full channel means that a request is already pending.
        let _ = self.wake.try_send(());
    }

    /// Keeps the thread from ordering a certificate until [`Self::release`]. Returns false
    /// while one is being ordered.
    pub(in crate::server) fn hold(&self) -> bool {
        self.orders.move_on(FREE, HELD) || self.orders.0.load(Ordering::SeqCst) == HELD
    }

    /// Lets it order again.
    pub(in crate::server) fn release(&self) {
        self.orders.move_on(HELD, FREE);
    }
}

const FREE: u8 = 0;
const UNDER_WAY: u8 = 1;
const HELD: u8 = 2;

/// Whether an order is under way, or none may begin.
#[derive(Debug, Default)]
pub(in crate::server) struct Orders(AtomicU8);

impl Orders {
    /// Begins an order; false: none may begin now.
    pub(super) fn begin(&self) -> bool {
        self.move_on(FREE, UNDER_WAY)
    }

    /// The order has ended, or waits for its next attempt.
    pub(super) fn end(&self) {
        self.move_on(UNDER_WAY, FREE);
    }

    fn move_on(&self, from: u8, to: u8) -> bool {
        self.0.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_and_a_hold_exclude_each_other() {
        let (wake, _woken) = std::sync::mpsc::sync_channel(1);
        let orders = Arc::new(Orders::default());
        let handle = RenewerHandle::new(wake, Arc::clone(&orders));
        assert!(orders.begin());
        assert!(!handle.hold());
        handle.release();
        orders.end();
        assert!(handle.hold() && handle.hold() && !orders.begin());
        orders.end();
        assert!(!orders.begin(), "no order was under way");
        handle.release();
        assert!(orders.begin());
    }
}
