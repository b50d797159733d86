//! Renewer handle: controls the thread that renews or reloads the certificate.
//!
//! Owns waking the thread and, when dropped, ending it. Must not know files or authorities.

use std::sync::mpsc::SyncSender;

/// A handle to the thread, which ends when the handle is dropped.
#[derive(Debug)]
pub(in crate::server) struct RenewerHandle(SyncSender<()>);

impl RenewerHandle {
    pub(in crate::server) fn new(sender: SyncSender<()>) -> Self {
        Self(sender)
    }

    /// Makes the thread read the files again, or attempt a due renewal, at once.
    pub(in crate::server) fn renew_now(&self) {
        // A full channel means that a request is already pending.
        let _ = self.0.try_send(());
    }
}
