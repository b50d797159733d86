//! Mailbox: messages from other threads to the event loop.
//!
//! Owns the queue and its wake-up. Must not know what a message means.
//!
//! 1. A message wakes the loop; without one the mailbox never does.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use mio::{Registry, Token, Waker};

/// The end of another thread. Clones send to the same mailbox.
#[derive(Debug)]
pub struct Handle<M> {
    sender: Sender<M>,
    waker: Arc<Waker>,
}

impl<M> Clone for Handle<M> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), waker: Arc::clone(&self.waker) }
    }
}

impl<M> Handle<M> {
    /// Puts a message into the mailbox and wakes the loop. After the loop has ended the
    /// message is dropped.
    pub fn send(&self, message: M) {
        if self.sender.send(message).is_ok() {
            let _ = self.waker.wake();
        }
    }
}

/// The end of the loop.
#[derive(Debug)]
pub(in crate::server) struct Mailbox<M> {
    messages: Receiver<M>,
    handle: Handle<M>,
}

impl<M> Mailbox<M> {
    /// A mailbox that makes `token` readable when a message has come.
    ///
    /// # Errors
    /// If there is no descriptor for the wake-up.
    pub(in crate::server) fn new(registry: &Registry, token: Token) -> io::Result<Self> {
        let (sender, messages) = mpsc::channel();
        let waker = Arc::new(Waker::new(registry, token)?);
        Ok(Self { messages, handle: Handle { sender, waker } })
    }

    pub(in crate::server) fn handle(&self) -> Handle<M> {
        self.handle.clone()
    }

    /// The next message. Call until `None`: several may have come with one wake-up.
    pub(in crate::server) fn take(&mut self) -> Option<M> {
        self.messages.try_recv().ok()
    }
}
