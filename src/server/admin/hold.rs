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
    /// One for each thread, while they come to rest.
    dials: Vec<TcpStream>,
}

impl AdminHold {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, dials: Vec::new() }
    }

    /// Lets no thread accept any more, except a connection that ends its wait.
    pub fn hold(&mut self) {
        self.shared.gate.close();
        let Ok(address) = self.shared.listener.local_addr() else { return };
        // Without a free descriptor there is none; then the threads are not at rest.
        self.dials = (0..THREADS).filter_map(|_| TcpStream::connect(address).ok()).collect();
    }

    /// Whether no thread accepts or answers.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        self.shared.gate.waiting() == THREADS
    }

    /// Lets the threads accept again.
    pub fn release(&mut self) {
        self.dials.clear();
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
