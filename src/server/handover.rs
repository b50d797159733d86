//! Hand-over: the parts of a live upgrade that deal with the operating system.
//!
//! Owns how a state travels with its descriptors, the rehearsal in a child, and the execution
//! of the next program. Must not know what the state means: it is bytes here. The phases of a
//! hand-over belong to the event loop.

pub mod manifest;
pub mod pack;
pub mod program;
pub mod rehearse;

use std::fmt::{self, Debug, Display};
use std::os::fd::BorrowedFd;

use self::manifest::AdminRecord;

/// Why a hand-over was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The relay is shutting down.
    Draining,
    /// Another hand-over is under way.
    Running,
    /// The program's own file is not known.
    NoProgram,
    /// Push calls have not ended in time.
    PushCalls,
    /// A certificate is being ordered.
    CertificateOrder,
    /// The state or the descriptors could not be packed.
    Pack,
    /// The program could not be started.
    Start,
    /// The rehearsing child exited with another status than 0.
    Exit,
    /// The rehearsing child was ended by a signal.
    Signal,
    /// The rehearsing child's answer was another than a relay's.
    Answer,
    /// The rehearsing child did not answer in time.
    Timeout,
    /// The program's file has changed since the rehearsal.
    Changed,
    /// execve(2) failed.
    Execute,
}

impl Cause {
    /// Its label in the log.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::Running => "running",
            Self::NoProgram => "no_program",
            Self::PushCalls => "push_calls",
            Self::CertificateOrder => "certificate_order",
            Self::Pack => "pack",
            Self::Start => "start",
            Self::Exit => "exit",
            Self::Signal => "signal",
            Self::Answer => "answer",
            Self::Timeout => "timeout",
            Self::Changed => "changed",
            Self::Execute => "execute",
        }
    }
}

/// A hand-over that was refused, and what is said about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub cause: Cause,
    /// The error of a call, or the first words of the program.
    pub said: String,
}

impl Refused {
    /// A refusal with these words.
    pub fn new(cause: Cause, said: impl Display) -> Self {
        Self { cause, said: said.to_string() }
    }
}

impl Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.cause.label(), self.said)
    }
}

/// What takes part in a hand-over beside the loop: the metrics listener and the log.
pub trait Beside: Debug + Send {
    /// Begins nothing new. Its threads come to rest, which may take a moment.
    fn hold(&mut self);

    /// Whether they have. It is called again until they have.
    fn has_come_to_rest(&mut self) -> bool;

    /// Goes on after a hand-over that failed.
    fn release(&mut self);

    /// The metrics listener.
    fn admin(&self) -> Option<(AdminRecord, BorrowedFd<'_>)>;

    /// Writes every log line out, so far as they are accepted at once, and returns the number of
    /// lines lost since the start of the relay.
    fn flush(&mut self) -> u64;
}
