//! Beside the loop: the connections between the event loop and its helper threads.
//!
//! Owns what passes in both directions: push wakes and snapshots go out; outcomes,
//! certificates and challenges arrive in the mailbox; systemd's watchdog is notified.
//! Nothing here blocks.

use std::io;

use super::{Core, Server};
use crate::relay::Input;
use crate::server::certificates::source::Source;
use crate::server::messages::{Challenge, LoopMessage, LoopSnapshot};
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
        let tls = &mut self.tcp.tls;
        tls.domain = source.domain();
        tls.config = Some(config);
        if let Some(certified) = certified {
            tls.serve(certified);
        }
        tls.renewer = Some(source.start(self.mailbox.handle())?);
        Ok(self)
    }

    /// Uses `notifier` to report the state of the loop to systemd.
    #[must_use]
    pub fn with_notifier(self, notifier: Option<Notifier>) -> Self {
        Self { watchdog: Watchdog { notifier, due: None }, ..self }
    }

    pub(super) fn on_messages(&mut self, now: Instant) {
        while let Some(message) = self.mailbox.take() {
            match message {
                LoopMessage::Snapshot(reply) => {
                    let report = LoopSnapshot {
                        relay: self.tcp.core.snapshot(),
                        tls: self.tcp.tls.stats.clone(),
                        turns: self.turns.clone(),
                        handover: self.handover.stats(),
                    };
                    // The receiver may have timed out.
                    let _ = reply.try_send(report);
                }
                LoopMessage::NextArrival(told) => self.tcp.awaits_arrival = Some(told),
                // The next step of the loop asks for its outcome.
                LoopMessage::Rehearsed => {}
                LoopMessage::WakeDone(outcome) => {
                    self.handover.calls = self.handover.calls.saturating_sub(1);
                    self.tcp.core.handle(Input::WakeDone(outcome), now);
                }
                LoopMessage::Certificate(Some(certified)) => {
                    self.tcp.tls.stats.reloads += 1;
                    self.tcp.tls.serve(certified);
                }
                LoopMessage::Certificate(None) => self.tcp.tls.stats.failed_reloads += 1,
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
                self.tcp.core.handle(Input::Challenge(Some((&token, &answer))), now);
            }
            Challenge::Tls(config) => self.tcp.tls.config = Some(config),
            Challenge::None(config) => {
                self.tcp.tls.config = Some(config);
                self.tcp.core.handle(Input::Challenge(None), now);
            }
        }
    }

    /// Queues the core's wakes; the outcome of each arrives in the mailbox later.
    pub(super) fn push(&mut self, now: Instant) {
        // A call must not be under way when the program ends.
        if self.handover.holds_wakes() {
            return;
        }
        while let Some(wake) = self.tcp.core.poll_wake() {
            let refused = match &self.push {
                Some(handle) => handle.enqueue(wake).err(),
                None => Some(wake),
            };
            self.handover.calls += usize::from(refused.is_none());
            if let Some(wake) = refused {
                self.tcp.core.handle(Input::WakeDone(push::not_queued(&wake)), now);
            }
        }
    }
}

/// The connection to systemd, if there is one, and its watchdog.
#[derive(Debug, Default)]
pub(super) struct Watchdog {
    notifier: Option<Notifier>,
    /// When to notify the watchdog next; `None`: systemd does not ask for it.
    pub(super) due: Option<Instant>,
}

impl Watchdog {
    /// The loop runs.
    pub(super) fn ready(&mut self, now: Instant) {
        if let Some(notifier) = &self.notifier {
            notifier.ready();
            self.due = Some(now).filter(|_| notifier.watchdog.is_some());
        }
        self.turn(now);
    }

    /// Another program is about to take over.
    pub(super) fn reloading(&self, at_us: u64) {
        if let Some(notifier) = &self.notifier {
            notifier.reloading(at_us);
        }
    }

    /// It did not.
    pub(super) fn reloaded(&self) {
        if let Some(notifier) = &self.notifier {
            notifier.reloaded();
        }
    }

    /// The loop is about to end.
    pub(super) fn stopping(&self) {
        if let Some(notifier) = &self.notifier {
            notifier.stopping();
        }
    }

    /// Notifies the watchdog when that is due. A loop that is stuck does not, so systemd
    /// restarts the process.
    pub(super) fn turn(&mut self, now: Instant) {
        if self.due.is_some_and(|due| due <= now)
            && let Some(notifier) = &self.notifier
        {
            notifier.alive();
            self.due = notifier.watchdog.map(|interval| now + interval);
        }
    }
}
