//! The hold on the thread that keeps the certificate fresh.
//!
//! Owns waking it and, by being dropped, ending it. Knows neither files nor authorities.

use std::sync::mpsc::SyncSender;

/// The thread that keeps the certificate fresh; it ends when this is dropped.
#[derive(Debug)]
pub(in crate::server) struct RenewerHandle(SyncSender<()>);

impl RenewerHandle {
    pub(in crate::server) fn new(nudges: SyncSender<()>) -> Self {
        Self(nudges)
    }

    /// Has it do now what it would do later: read files again, or try again.
    pub(in crate::server) fn renew_now(&self) {
        // Full: it is about to.
        let _ = self.0.try_send(());
    }
}
