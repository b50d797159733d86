//! How other threads speak to the loop.
//!
//! Owns the queue and its wake-up. Must not know what a message does.
//!
//! A message wakes the loop; without one nothing here ever does.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};

use mio::{Registry, Token, Waker};
use rustls::ServerConfig;

use crate::relay::Snapshot;
use crate::relay::stats::WakeOutcome;
use crate::server::certificates::Certified;
use crate::server::net::tls_stats;

/// What whoever watches the relay gets to see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Of the core.
    pub relay: Snapshot,
    /// Of the transport above it.
    pub tls: tls_stats::Stats,
}

/// What another thread has to say.
#[derive(Debug)]
pub enum Message {
    /// Send what is counted and held now. Who asks must not wait for ever:
    /// a loop that has ended answers nobody.
    Report(SyncSender<Report>),
    /// A push wake has come to its end.
    WakeDone(WakeOutcome),
    /// What to do handshakes with from now on; or there was to be another and is
    /// none, and it stays what it is.
    Certificate(Option<Certified>),
    /// Answer this to the certificate authority, and nothing else.
    Challenge {
        /// What it asks for.
        challenge: Challenge,
        /// Told when it is so.
        taken: SyncSender<()>,
    },
}

/// What a certificate authority is answered.
#[derive(Debug)]
pub enum Challenge {
    /// Nothing; handshakes are done with this.
    None(Arc<ServerConfig>),
    /// On its own port a token, which the first names, with the second.
    Http(String, String),
    /// In handshakes that are for it alone; all others are done with this, too.
    Tls(Arc<ServerConfig>),
}

/// Another thread's end. Clones speak to the same loop.
#[derive(Clone, Debug)]
pub struct LoopHandle {
    sender: Sender<Message>,
    waker: Arc<Waker>,
}

impl LoopHandle {
    /// Puts a message into the mailbox and wakes the loop.
    pub fn send(&self, message: Message) {
        // A loop that has ended takes nothing more, and soon the process ends.
        if self.sender.send(message).is_ok() {
            let _ = self.waker.wake();
        }
    }
}

/// The loop's end.
#[derive(Debug)]
pub(super) struct Mailbox {
    messages: Receiver<Message>,
    post: LoopHandle,
}

impl Mailbox {
    /// A mailbox that makes `token` readable when a message has come.
    ///
    /// # Errors
    /// If there is no descriptor for the wake-up.
    pub(super) fn new(registry: &Registry, token: Token) -> io::Result<Self> {
        let (sender, messages) = mpsc::channel();
        let waker = Arc::new(Waker::new(registry, token)?);
        Ok(Self { messages, post: LoopHandle { sender, waker } })
    }

    pub(super) fn post(&self) -> LoopHandle {
        self.post.clone()
    }

    /// The next message. To be asked until there is none: several may have come
    /// with one wake-up.
    pub(super) fn take(&mut self) -> Option<Message> {
        self.messages.try_recv().ok()
    }
}
