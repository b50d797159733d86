//! Waiting: the admin listener's connections, and whether their peer has to do something next.
//!
//! Owns their order of arrival, and closes the oldest that waits for its peer where it would
//! keep a new connection waiting. Must not know requests.
//!
//! 1. If as many connections are in progress as may be, the oldest that waits for its peer is
//!    closed: whatever silent peers there are, the next connection is accepted. A connection
//!    that is closed is no longer in progress, so that no second one is closed for the same
//!    place.
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

/// In their order of arrival.
#[derive(Debug, Default)]
struct Connections(Vec<Connection>);

#[derive(Debug)]
struct Connection {
    stream: Arc<TcpStream>,
    waits: bool,
}

/// A connection, in progress until it is dropped or closed for another.
#[derive(Debug)]
pub(super) struct Ticket<'a> {
    all: &'a Waiting,
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
        let mut connections = self.lock();
        // It is added last, so that it is not the one to be closed.
        connections.close_oldest_from(self.max - 1);
        connections.0.push(Connection { stream: Arc::clone(&stream), waits: true });
        Ticket { all: self, stream }
    }

    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connections {
    /// Closes the oldest that waits if there are `count` connections.
    fn close_oldest_from(&mut self, count: usize) {
        if self.0.len() >= count
            && let Some(oldest) = self.0.iter().position(|it| it.waits)
        {
            // Its thread reads the end, and is free. An error: the peer was faster.
            let _ = self.0.remove(oldest).stream.shutdown(Shutdown::Both);
        }
    }
}

impl Ticket<'_> {
    /// The connection.
    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// It has sent its request, and is no longer closed for others.
    pub(super) fn on_request(&self) {
        self.set_waits(false);
    }

    /// It has its response, and waits for the peer to close.
    pub(super) fn on_response(&self) {
        self.set_waits(true);
    }

    fn set_waits(&self, waits: bool) {
        let mut connections = self.all.lock();
        // One that is closed already has no place.
        if let Some(it) = connections.0.iter_mut().find(|it| self.is_of(it)) {
            it.waits = waits;
        }
        connections.close_oldest_from(self.all.max);
    }

    fn is_of(&self, connection: &Connection) -> bool {
        Arc::ptr_eq(&self.stream, &connection.stream)
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.all.lock().0.retain(|it| !self.is_of(it));
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

    #[test]
    fn no_second_one_is_closed_for_the_same_place() {
        let all = Waiting::new(4);
        let (mut dialers, tickets): (Vec<_>, Vec<_>) = (0..4)
            .map(|_| {
                let (dialer, stream) = pair();
                (dialer, all.enter(stream))
            })
            .unzip();
        // The thread of the first has not noticed yet.
        tickets[1].on_request();
        tickets[0].on_request();
        tickets[0].on_response();
        let closed: Vec<_> = dialers.iter_mut().map(is_closed).collect();
        assert_eq!(closed, [true, false, false, false]);
    }
}
