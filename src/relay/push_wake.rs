//! Push wakes on their way from a binary to the shell.
//!
//! Owns who asks for one and hearing what came of it. Which are taken on is `wake.rs`'s to
//! say; how a device is woken, the shell's.

use super::conn_id::ConnId;
use super::envelope::Dropped;
use super::relay::Relay;
use super::stats::WakeOutcome;
use super::wake::{DeviceToken, Wake};
use crate::time::Instant;

impl Relay {
    /// A binary asks for a wake.
    pub(super) fn on_push_wake(
        &mut self,
        binary: ConnId,
        token: &str,
        now: Instant,
    ) -> Result<(), Dropped> {
        let Some(slot) = self.entry(binary).map(|entry| entry.slot) else { return Ok(()) };
        let Some(wakes) = &mut self.wakes else { return Err(Dropped::PushWakeOff) };
        let server_id = self.registry.server_id(slot);
        let wake = || Wake { device: DeviceToken::new(token), server_id: server_id.into() };
        wakes.accept(server_id, wake, now)
    }

    /// The next wake to carry out; its outcome is told to
    /// [`Self::handle_wake_done`], once.
    pub fn poll_wake(&mut self) -> Option<Wake> {
        self.wakes.as_mut()?.next()
    }

    /// A wake that was handed out has come to its end.
    pub fn handle_wake_done(&mut self, outcome: WakeOutcome) {
        self.stats.on_wake(outcome);
        if let Some(wakes) = &mut self.wakes {
            wakes.on_done();
        }
    }
}
