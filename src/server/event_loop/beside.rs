//! Beside the loop: the connections between the event loop and its helper threads.
//!
//! Owns the hand-over in both directions: push wakes and snapshots go out; outcomes,
//! certificates and challenges arrive in the mailbox; systemd's watchdog is notified.
//! Nothing here blocks.

use std::io;

use super::{Core, Server};
use crate::relay::Input;
use crate::server::certificates::source::Source;
use crate::server::messages::{Certified, Challenge, LoopMessage, LoopSnapshot};
use crate::server::os::clock::wall_time;
use crate::server::os::systemd::Notifier;
use crate::server::push::{self, Push};
use crate::time::Instant;

impl<C: Core> Server<C> {
    /// Uses `push` to send the core's wakes.
    ///
    /// # Errors
    /// If its thread cannot be started.
    pub fn with_push(mut self, push: Option<Push>) -> io::Result<Self> {
        self.push = push.map(|push| push.start(self.handle())).transpose()?;
        Ok(self)
    }

    /// Uses the certificate from `source`, and each later one, for listeners whose
    /// [protocol](crate::config::ListenerProtocol) is TLS. SIGHUP makes the source look for a
    /// new certificate at once.
    ///
    /// # Errors
    /// If the source's thread cannot be started.
    pub fn with_tls(mut self, source: Source) -> io::Result<Self> {
        let (config, certified) = source.first();
        self.domain = source.domain();
        self.tls = Some(config);
        if let Some(certified) = certified {
            self.serve(certified);
        }
        self.renewer = Some(source.start(self.handle())?);
        Ok(self)
    }

    fn serve(&mut self, certified: Certified) {
        self.tls_stats.not_after = Some(certified.not_after);
        log::info!(expires_in_days = self.tls_stats.days_left(wall_time()); "certificate_served");
        self.tls = Some(certified.config);
    }

    /// Uses `notifier` to report the state of the loop to systemd.
    #[must_use]
    pub fn with_notifier(self, notifier: Option<Notifier>) -> Self {
        Self { notifier, ..self }
    }

    /// Notifies the watchdog, if there is one. A loop that is stuck does not, so systemd
    /// restarts the process.
    pub(super) fn notify_watchdog(&mut self) {
        if let Some(notifier) = &self.notifier
            && let Some(interval) = notifier.watchdog
        {
            notifier.alive();
            self.watchdog_due = Some(self.clock.now() + interval);
        }
    }

    pub(super) fn on_mail(&mut self, now: Instant) {
        while let Some(message) = self.mailbox.take() {
            match message {
                LoopMessage::Snapshot(reply) => {
                    let report =
                        LoopSnapshot { relay: self.core.snapshot(), tls: self.tls_stats.clone() };
                    // The receiver may have timed out.
                    let _ = reply.try_send(report);
                }
                LoopMessage::WakeDone(outcome) => self.core.handle(Input::WakeDone(outcome), now),
                LoopMessage::Certificate(Some(certified)) => {
                    self.tls_stats.reloads += 1;
                    self.serve(certified);
                }
                LoopMessage::Certificate(None) => self.tls_stats.failed_reloads += 1,
                LoopMessage::Challenge { challenge, taken } => {
                    self.answer(challenge, now);
                    // The receiver may have timed out.
                    let _ = taken.try_send(());
                }
            }
        }
    }

    fn answer(&mut self, challenge: Challenge, now: Instant) {
        match challenge {
            Challenge::Http(token, answer) => {
                self.core.handle(Input::Challenge(Some((&token, &answer))), now);
            }
            Challenge::Tls(config) => self.tls = Some(config),
            Challenge::None(config) => {
                self.tls = Some(config);
                self.core.handle(Input::Challenge(None), now);
            }
        }
    }

    /// Queues the core's wakes; the outcome of each arrives in the mailbox later.
    pub(super) fn push(&mut self, now: Instant) {
        while let Some(wake) = self.core.poll_wake() {
            let refused = match &self.push {
                Some(handle) => handle.hand_over(wake).err(),
                None => Some(wake),
            };
            if let Some(wake) = refused {
                self.core.handle(Input::WakeDone(push::not_handed_over(&wake)), now);
            }
        }
    }
}
