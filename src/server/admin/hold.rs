//! Hold: the metrics listener while the program is replaced.
//!
//! Owns bringing its threads to rest: they sleep in accept(2), which only a connection ends,
//! so each is sent one.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use mio::net::TcpStream;

use super::http::{Shared, THREADS};

/// The metrics listener as a hand-over sees it.
#[derive(Debug)]
pub struct AdminHold {
    shared: Arc<Shared>,
    /// The number of threads that were at rest when a connection was last sent; `None`: none
    /// was.
    dialed_at: Option<usize>,
}

impl AdminHold {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, dialed_at: None }
    }

    /// Lets no thread accept any more, except a connection that ends its wait.
    pub fn hold(&mut self) {
        self.shared.gate.close();
    }

    /// Whether no thread accepts or answers. Call it again until it is true.
    pub fn has_come_to_rest(&mut self) -> bool {
        let at_rest = self.shared.gate.waiting();
        // One after another: a thread that answers a request takes none.
        if at_rest < THREADS && self.dialed_at.is_none_or(|before| before < at_rest) {
            self.dialed_at = Some(at_rest);
            // It ends as soon as it is accepted. If there is no descriptor, or nothing can
            // connect, the threads are not at rest.
            let address = self.shared.listener.local_addr();
            let dial = || address.and_then(TcpStream::connect).and_then(|it| it.local_addr()).ok();
            self.shared.gate.dial(dial);
        }
        at_rest == THREADS
    }

    /// Lets the threads accept again.
    pub fn release(&mut self) {
        self.dialed_at = None;
        self.shared.gate.open();
    }

    /// When the relay was started, since 1970, and how long it runs.
    #[must_use]
    pub fn times(&self) -> (Duration, Duration) {
        let uptime = self.shared.now().since(crate::time::Instant::START);
        (self.shared.started, uptime)
    }

    /// The listening socket.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.shared.listener.as_fd()
    }
}
