//! Waiting: the admin listener's connections whose peer has to do something next.
//!
//! Owns their order of arrival, and closes the oldest of them where it would keep a new
//! connection waiting. Must not know requests.
//!
//! 1. If as many connections are in progress as may be, the oldest that waits for its peer is
//!    closed: whatever silent peers there are, the next connection is accepted.
//! 2. The newest connection is not closed before it had a place: if all others are being
//!    answered, the next one waits for the end of the first answer.

use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The connections in progress.
#[derive(Debug)]
pub(super) struct Waiting {
    max: usize,
    connections: Mutex<Connections>,
}

#[derive(Debug, Default)]
struct Connections {
    in_progress: usize,
    /// Connections accepted so far.
    accepted: u64,
    /// Those that wait, by their number.
    waiting: Vec<(u64, Arc<TcpStream>)>,
}

/// A connection in progress, until it is dropped.
#[derive(Debug)]
pub(super) struct Ticket<'a> {
    all: &'a Waiting,
    number: u64,
    stream: Arc<TcpStream>,
}

impl Waiting {
    /// No connections; `max` of them may be in progress.
    pub(super) fn new(max: usize) -> Self {
        Self { max, connections: Mutex::default() }
    }

    /// A connection was accepted, and waits for its peer.
    pub(super) fn enter(&self, stream: TcpStream) -> Ticket<'_> {
        let stream = Arc::new(stream);
        // It is added last, so that it is not the one to be closed.
        let number = self.change(|it| {
            it.in_progress += 1;
            it.accepted += 1;
            it.accepted
        });
        self.lock().waiting.push((number, Arc::clone(&stream)));
        Ticket { all: self, number, stream }
    }

    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the list, and closes the oldest that waits if there is no room for another.
    fn change<T>(&self, change: impl FnOnce(&mut Connections) -> T) -> T {
        let mut connections = self.lock();
        let result = change(&mut connections);
        let oldest = (0..connections.waiting.len()).min_by_key(|at| connections.waiting[*at].0);
        if connections.in_progress >= self.max
            && let Some(oldest) = oldest
        {
            let (_, stream) = connections.waiting.swap_remove(oldest);
            // Its thread reads the end, and is free. An error: the peer was faster.
            let _ = stream.shutdown(Shutdown::Both);
        }
        result
    }
}

impl Ticket<'_> {
    /// The connection.
    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// It has sent its request, and is no longer closed for others.
    pub(super) fn on_request(&self) {
        self.all.change(|it| it.waiting.retain(|(number, _)| *number != self.number));
    }

    /// It has its response, and waits for the peer to close.
    pub(super) fn on_response(&self) {
        let waits = (self.number, Arc::clone(&self.stream));
        self.all.change(|it| it.waiting.push(waits));
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.all.change(|it| {
            it.in_progress -= 1;
            it.waiting.retain(|(number, _)| *number != self.number);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use super::*;

    /// Both ends of a connection.
    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let dialer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (dialer, listener.accept().unwrap().0)
    }

    fn is_closed(dialer: &mut TcpStream) -> bool {
        dialer.set_nonblocking(true).unwrap();
        dialer.read(&mut [0]).is_ok_and(|count| count == 0)
    }

    #[test]
    fn the_oldest_that_waits_is_closed_when_all_places_are_taken() {
        let all = Waiting::new(3);
        let (mut dialers, streams): (Vec<_>, Vec<_>) = (0..4).map(|_| pair()).unzip();
        let mut streams = streams.into_iter();
        let mut enter = || all.enter(streams.next().unwrap());
        let asked = enter();
        asked.on_request();
        let second = enter();
        assert_eq!(dialers.iter_mut().filter_map(|it| is_closed(it).then_some(())).count(), 0);
        let third = enter();
        assert!(is_closed(&mut dialers[1]), "the oldest that waits");
        assert!(!is_closed(&mut dialers[0]), "it is being answered");
        assert!(!is_closed(&mut dialers[2]), "once is enough");
        drop(second);
        let fourth = enter();
        assert!(is_closed(&mut dialers[2]));
        fourth.on_request();
        drop(third);
        // It has its answer and waits again, and there is room.
        asked.on_response();
        assert!(!is_closed(&mut dialers[0]) && !is_closed(&mut dialers[3]));
    }

    #[test]
    fn the_end_of_an_answer_makes_room_where_all_were_answered() {
        let all = Waiting::new(2);
        let ((mut one, first), (mut other, second)) = (pair(), pair());
        let [first, second] = [first, second].map(|stream| {
            let ticket = all.enter(stream);
            ticket.on_request();
            ticket
        });
        assert!(!is_closed(&mut one) && !is_closed(&mut other));
        first.on_response();
        assert!(is_closed(&mut one) && !is_closed(&mut other));
        drop(second);
    }
}
