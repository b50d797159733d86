//! Hand-over of the loop: from SIGUSR2 to the next program, or back.
//!
//! Owns the phases, and what stands still in each. Decides nothing about peers, and does not
//! know what the state holds.
//!
//! ```text
//!  Idle ─▶ Waiting ─▶ Rehearsing ─▶ Quiet ─▶ execve(2)
//!    ▲        │            │           │         │
//!    └────────┴────────────┴───────────┴─────────┘ refused: everything goes on
//! ```
//!
//! 1. Waiting: push calls and an order of a certificate end; no new one begins.
//! 2. Rehearsing: a child takes a copy of the state over, while the loop serves on.
//! 3. Quiet: nothing is accepted; TLS handshakes and requests for metrics end. Whatever has
//!    not ended after [`QUIET`] is dropped.
//! 4. Then the state is packed between two turns, and the program executed in this process.
//!    Only from here on no connection is served: that is the pause.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::state::Saved;
use super::{Core, Server};
use crate::relay::Relay;
use crate::server::certificates::renewer_handle::RenewerHandle;
use crate::server::handover::manifest::{Manifest, Record};
use crate::server::handover::pack::{Fault, pack};
use crate::server::handover::program::{Identity, Program};
use crate::server::handover::rehearse::Rehearsal;
use crate::server::handover::{Beside, Cause, Refused};
use crate::server::messages::LoopMessage;
use crate::server::messages::handover_stats::{Done, HandoverStats, Refusal};
use crate::server::os::clock::system_micros;
use crate::server::os::signals::{Blocked, Signals};
use crate::state::{FORMAT, encode};
use crate::time::Instant;

/// How long push calls may take to end: as long as one may take.
const CALLS_WITHIN: Duration = Duration::from_secs(10);
/// How long an order of a certificate may take to end.
const ORDER_WITHIN: Duration = Duration::from_secs(60);
/// How long nothing is accepted while what cannot move comes to its end.
const QUIET: Duration = Duration::from_secs(1);
/// About what a connection takes in the state.
const STATE_PER_CONNECTION: usize = 128;
/// How often to look whether it has: no event tells the end of an order, or of a request for
/// metrics.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Saves a server; `None` while something is half done.
type Save<C> = for<'a> fn(&'a mut Server<C>) -> Option<Saved<'a>>;

/// What a server needs to hand over.
#[derive(Debug)]
pub struct Handover {
    /// The program to hand over to; `None`: its file is not known.
    pub program: Option<Program>,
    /// What takes part besides the loop.
    pub beside: Box<dyn Beside>,
}

/// Hand-overs of a loop.
#[derive(Debug)]
pub(super) struct State<C> {
    setup: Option<(Handover, Save<C>)>,
    phase: Phase,
    /// Push calls that have not ended.
    pub(super) calls: usize,
    /// When the current phase began.
    since: Instant,
    stats: HandoverStats,
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    Idle,
    Waiting,
    Rehearsing(Rehearsal, Identity),
    Quiet(Identity),
}

impl<C> Default for State<C> {
    fn default() -> Self {
        Self {
            setup: None,
            phase: Phase::Idle,
            calls: 0,
            since: Instant::START,
            stats: HandoverStats::default(),
        }
    }
}

impl<C> State<C> {
    /// Whether push wakes wait for the end of the hand-over.
    pub(super) fn holds_wakes(&self) -> bool {
        self.is_running()
    }

    fn is_running(&self) -> bool {
        !matches!(self.phase, Phase::Idle)
    }

    /// When [`Server::hand_over`] has to be called at the latest.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        matches!(self.phase, Phase::Waiting | Phase::Quiet(_)).then(|| now + LOOK_EVERY)
    }

    pub(super) fn stats(&self) -> HandoverStats {
        HandoverStats { is_running: self.is_running(), ..self.stats.clone() }
    }

    /// Goes on counting where the program before stopped.
    pub(super) fn continue_from(&mut self, record: &Record) {
        let last = record.last_refusal.clone();
        self.stats.done = record.done;
        self.stats.refused = record.refused;
        self.stats.last_refusal = last.map(|(cause, said)| Refusal { cause, said });
    }

    /// Another program has handed over to this one.
    pub(super) fn on_done(&mut self, done: Done) {
        self.stats.done += 1;
        self.stats.last_done = Some(done);
    }

    fn enter(&mut self, phase: Phase, now: Instant) {
        self.phase = phase;
        self.since = now;
    }
}

impl Server<Relay> {
    /// Lets SIGUSR2 hand over.
    #[must_use]
    pub fn with_handover(self, setup: Handover) -> Self {
        self.with_handover_of(setup, Self::save)
    }
}

impl<C: Core> Server<C> {
    /// Lets SIGUSR2 hand over what `save` saves.
    fn with_handover_of(mut self, setup: Handover, save: Save<C>) -> Self {
        self.handover.setup = Some((setup, save));
        self
    }

    /// SIGUSR2 has arrived.
    pub(super) fn begin_handover(&mut self, now: Instant) {
        let program = self.handover.setup.as_ref().and_then(|(setup, _)| setup.program.as_ref());
        let refused = match program {
            _ if self.shut_down.drained_by.is_some() => {
                Refused::new(Cause::Draining, "the relay is shutting down")
            }
            _ if self.handover.is_running() || self.arrival.is_under_way() => {
                Refused::new(Cause::Running, "a hand-over is under way")
            }
            None => Refused::new(Cause::NoProgram, "the file of this program is not known"),
            Some(program) => {
                let path = program.path().display();
                log::info!(path:% = path, from = env!("CARGO_PKG_VERSION"); "handover_started");
                return self.handover.enter(Phase::Waiting, now);
            }
        };
        self.on_refused(refused);
    }

    /// Ends a hand-over that is under way, because the relay shuts down.
    pub(super) fn abandon_handover(&mut self, now: Instant) {
        if self.handover.is_running() {
            let refused = Refused::new(Cause::Draining, "the relay is shutting down");
            self.go_on(refused, now);
        }
    }

    /// Carries a hand-over on, as far as it goes.
    pub(super) fn hand_over(&mut self, now: Instant) {
        let phase = std::mem::take(&mut self.handover.phase);
        let next = match phase {
            Phase::Idle => return,
            Phase::Waiting => self.wait(now),
            Phase::Rehearsing(rehearsal, identity) => self.on_rehearsed(rehearsal, identity),
            Phase::Quiet(identity) => self.come_to_rest(identity, now),
        };
        match next {
            // The same phase again goes on with its time.
            Ok((phase, true)) => self.handover.enter(phase, now),
            Ok((phase, false)) => self.handover.phase = phase,
            Err(refused) => self.go_on(refused, now),
        }
    }

    /// What push calls and orders come to; returns the next phase, and whether it is another.
    fn wait(&mut self, now: Instant) -> Result<(Phase, bool), Refused> {
        let waited = now.since(self.handover.since);
        let is_order_over = self.tcp.tls.renewer.as_ref().is_none_or(RenewerHandle::hold);
        if self.handover.calls == 0 && is_order_over {
            // Effects that are left over are carried out in the next turn.
            return Ok(match self.rehearse()? {
                Some((rehearsal, identity)) => (Phase::Rehearsing(rehearsal, identity), true),
                None => (Phase::Waiting, false),
            });
        }
        if self.handover.calls > 0 && waited >= CALLS_WITHIN {
            let why = format!("{} not answered within {CALLS_WITHIN:?}", self.handover.calls);
            return Err(Refused::new(Cause::PushCalls, why));
        }
        if waited >= ORDER_WITHIN {
            let why = format!("a certificate is being ordered for more than {ORDER_WITHIN:?}");
            return Err(Refused::new(Cause::CertificateOrder, why));
        }
        Ok((Phase::Waiting, false))
    }

    fn rehearse(&mut self) -> Result<Option<(Rehearsal, Identity)>, Refused> {
        // Before the file is started: a change while it starts is a change.
        let identity = self.identity()?;
        let packed = self.pack(0).map_err(|fault| Refused::new(Cause::Pack, fault))?;
        let Some(packed) = packed else { return Ok(None) };
        let handle = self.handle();
        let wake = move || handle.send(LoopMessage::Rehearsed);
        self.tcp.is_shared = true;
        let rehearsal = Rehearsal::start(self.program()?, packed, wake);
        Ok(Some((rehearsal.map_err(|error| Refused::new(Cause::Start, error))?, identity)))
    }

    fn program(&self) -> Result<&Program, Refused> {
        let program = self.handover.setup.as_ref().and_then(|(setup, _)| setup.program.as_ref());
        program.ok_or_else(|| Refused::new(Cause::NoProgram, "the file is not known"))
    }

    fn identity(&self) -> Result<Identity, Refused> {
        let program = self.program()?;
        let named = |error| {
            Refused::new(Cause::Start, format_args!("{}: {error}", program.path().display()))
        };
        program.identity().map_err(named)
    }

    fn on_rehearsed(
        &mut self,
        rehearsal: Rehearsal,
        identity: Identity,
    ) -> Result<(Phase, bool), Refused> {
        let Some(outcome) = rehearsal.outcome() else {
            return Ok((Phase::Rehearsing(rehearsal, identity), false));
        };
        self.tcp.is_shared = false;
        let ready = outcome?;
        if ready.format != FORMAT {
            let (version, format) = (ready.version, ready.format);
            let why = format!("{version} took a state of format {format} over, not of {FORMAT}");
            return Err(Refused::new(Cause::Answer, why));
        }
        log::info!(
            version = ready.version, dropped = Some(ready.dropped).filter(|count| *count > 0);
            "handover_rehearsed"
        );
        self.tcp.is_quiet = true;
        if let Some((setup, _)) = &mut self.handover.setup {
            setup.beside.hold();
        }
        Ok((Phase::Quiet(identity), true))
    }

    /// Waits for what cannot move, then executes the program.
    fn come_to_rest(
        &mut self,
        rehearsed: Identity,
        now: Instant,
    ) -> Result<(Phase, bool), Refused> {
        let waited = now.since(self.handover.since);
        let setup = self.handover.setup.as_mut();
        let is_held = setup.is_none_or(|(setup, _)| setup.beside.has_come_to_rest());
        let is_at_rest = is_held && self.tcp.sockets.handshakes() == 0;
        if is_at_rest || waited >= QUIET {
            if let Some(refused) = self.execute(rehearsed) {
                return Err(refused);
            }
            // Effects were left over. They end, as nothing is accepted.
            if waited >= 2 * QUIET {
                return Err(Refused::new(Cause::Pack, "the relay does not come to rest"));
            }
        }
        Ok((Phase::Quiet(rehearsed), false))
    }

    /// Replaces this program. Returns the reason if that fails, and `None` while something is
    /// half done.
    fn execute(&mut self, rehearsed: Identity) -> Option<Refused> {
        let paused_at_us = system_micros();
        let packed = match self.pack(paused_at_us) {
            Ok(packed) => packed?,
            Err(fault) => return Some(Refused::new(Cause::Pack, fault)),
        };
        let program = match self.identity() {
            Ok(identity) if identity == rehearsed => self.program(),
            Ok(_) => Err(Refused::new(Cause::Changed, "the file has changed since the rehearsal")),
            Err(refused) => Err(refused),
        };
        let program = match program {
            Ok(program) => program,
            Err(refused) => return Some(refused),
        };
        // A shut-down that a handler has noted, but the loop not yet seen, would be lost.
        let blocked = match Blocked::new() {
            Ok(blocked) => blocked,
            Err(error) => return Some(Refused::new(Cause::Execute, error)),
        };
        if self.signals.as_ref().is_some_and(Signals::is_pending) {
            return None;
        }
        self.watchdog.reloading(paused_at_us);
        let error = program.execute(&packed);
        drop(blocked);
        self.watchdog.reloaded();
        Some(Refused::new(Cause::Execute, error))
    }

    /// Packs everything as it is now; `None` while something is half done.
    fn pack(&mut self, paused_at_us: u64) -> Result<Option<OwnedFd>, Fault> {
        let HandoverStats { done, refused, last_refusal, .. } = self.handover.stats.clone();
        let Some((setup, save)) = &mut self.handover.setup else { return Ok(None) };
        // A rehearsal loses no line.
        let log_lines_dropped = if paused_at_us > 0 { setup.beside.flush() } else { 0 };
        let admin = setup.beside.admin();
        let admin = admin.map(|(record, socket)| Ok((record, socket.try_clone_to_owned()?)));
        let admin = admin.transpose().map_err(|error: std::io::Error| Fault::new("dup", error))?;
        let save = *save;
        // To take every connection out of its epoll instance is no part of the pause.
        let epoll = (paused_at_us > 0).then(|| self.poll.registry().try_clone());
        let epoll = epoll.transpose().map_err(|error| Fault::new("epoll", error))?;
        let Some(saved) = save(self) else { return Ok(None) };
        let capacity = STATE_PER_CONNECTION * saved.sockets.len();
        let state = encode(env!("CARGO_PKG_VERSION"), &saved.state, capacity);
        let record = Record {
            done,
            refused,
            last_refusal: last_refusal.map(|Refusal { cause, said }| (cause, said)),
            dropped: saved.left_behind as u64,
            paused_at_us,
            log_lines_dropped,
        };
        let manifest = Manifest {
            version: env!("CARGO_PKG_VERSION").into(),
            format: FORMAT,
            listeners: saved.listeners.iter().map(|(kind, _)| *kind).collect(),
            admin: admin.as_ref().map(|(record, _)| *record),
            descriptors: saved.sockets.len(),
            state: state.len() as u64,
            record,
        };
        let kept = epoll.as_ref().map(AsFd::as_fd);
        let listening = saved.listeners.into_iter().map(|(_, socket)| socket);
        let mut listening: Vec<_> = listening.collect();
        listening.extend(admin.iter().map(|(_, socket)| socket.as_fd()));
        pack(&manifest, &state, &listening, &saved.sockets, kept).map(Some)
    }

    /// Goes on as if there had been no hand-over.
    fn go_on(&mut self, refused: Refused, now: Instant) {
        self.handover.enter(Phase::Idle, now);
        self.tcp.is_quiet = false;
        self.tcp.is_shared = false;
        if let Some((setup, _)) = &mut self.handover.setup {
            setup.beside.release();
        }
        if let Some(renewer) = &self.tcp.tls.renewer {
            renewer.release();
        }
        self.on_refused(refused);
        self.push(now);
    }

    fn on_refused(&mut self, refused: Refused) {
        let Refused { cause, said } = refused;
        log::warn!(cause = cause.label(), err = said; "handover_refused");
        let stats = &mut self.handover.stats;
        stats.refused += 1;
        stats.last_refusal = Some(Refusal { cause: cause.label().into(), said });
    }
}
