//! Echo server on the relay's own event loop, connections, codec and buffers, for suites
//! that test WebSocket endpoints by the messages they return.
//!
//! Owns the response to a message: the same message. Accepts every upgrade, on any path and
//! without the relay's headers, and has no connection caps; so the relay itself needs no such
//! mode. All timeouts and rules below that are the relay's, except that a message may have
//! 16 MiB.
//!
//! `echo [ADDRESS]` binds (default 127.0.0.1:0), prints the address to stdout, and ends on
//! SIGTERM.

use std::collections::VecDeque;
use std::error::Error;
use std::net::{IpAddr, SocketAddr};

use pyrycode_relay::config::{Config, Limits, Timeouts};
use pyrycode_relay::protocol::close::CloseCause;
use pyrycode_relay::protocol::connection::{Connection, Expiry};
use pyrycode_relay::protocol::fault::{Cause, Fault};
use pyrycode_relay::protocol::heartbeat::Heartbeat;
use pyrycode_relay::protocol::outbox_pool::OutboxPool;
use pyrycode_relay::protocol::request::{self, Head};
use pyrycode_relay::protocol::response::{self, Date, Refusal};
use pyrycode_relay::protocol::transport::Slices;
use pyrycode_relay::protocol::websocket::{self, Codec, Incoming, Opcode};
use pyrycode_relay::protocol::work::Work;
use pyrycode_relay::relay::{ConnId, Effect, Input, ListenerKind};
use pyrycode_relay::server::net::listener::Listener;
use pyrycode_relay::server::os::signals::{Hangup, Signals};
use pyrycode_relay::server::{Core, Server};
use pyrycode_relay::time::{Instant, Wheel};
use slab::Slab;

/// The largest messages of Autobahn's group 9.
const MESSAGE_MAX: usize = 16 * 1024 * 1024;

fn main() -> Result<(), Box<dyn Error>> {
    #[expect(clippy::disallowed_methods, reason = "argv is read here")]
    let address = std::env::args().nth(1);
    let address: SocketAddr = address.as_deref().unwrap_or("127.0.0.1:0").parse()?;
    let limits = Limits { message: MESSAGE_MAX, ..Limits::default() };
    let config = Config { limits, ..Config::default() };

    let signals = Signals::install(Hangup::Nothing)?;
    let listener = Listener::bind(address)?;
    println!("listening on {}", listener.local_addr()?);
    let echo = Echo::new(&config);
    Server::new(echo, vec![listener], Some(signals), config.timeouts.shutdown)?.run()?;
    Ok(())
}

/// Echo server: connections that receive their own messages.
struct Echo {
    timeouts: Timeouts,
    codec: Codec,
    pool: OutboxPool,
    connections: Connections,
    /// Deadlines by slab index.
    timers: Wheel,
    effects: VecDeque<Effect>,
    accepted: u64,
    is_draining: bool,
}

struct Entry {
    id: ConnId,
    connection: Connection,
    /// The 101 was sent.
    is_websocket: bool,
}

struct Connections(Slab<Entry>);

impl Connections {
    /// The connection of this id, unless the id is stale.
    fn find(&mut self, id: ConnId) -> Option<&mut Entry> {
        self.0.get_mut(id.index()).filter(|entry| entry.id == id)
    }

    /// The same, read-only.
    fn peek(&self, id: ConnId) -> Option<&Connection> {
        let entry = self.0.get(id.index()).filter(|entry| entry.id == id);
        entry.map(|entry| &entry.connection)
    }
}

impl Echo {
    fn new(config: &Config) -> Self {
        Self {
            timeouts: config.timeouts.clone(),
            codec: Codec::new(config.limits.message),
            pool: OutboxPool::default(),
            connections: Connections(Slab::new()),
            timers: Wheel::new(Instant::START),
            effects: VecDeque::new(),
            accepted: 0,
            is_draining: false,
        }
    }

    /// Handles more bytes of a request head.
    fn handle_head(&mut self, id: ConnId, input: &[u8], now: Instant) {
        let Some(entry) = self.connections.find(id) else { return };
        let head = [&entry.connection.take_kept(), input].concat();
        let judged = match request::parse(&head) {
            Ok(Head::Partial) => return entry.connection.keep(head, now),
            Ok(Head::Complete { .. }) if self.is_draining => {
                Err(Fault::new(Refusal::Unavailable, Cause::Draining))
            }
            Ok(Head::Complete { request, len }) => request.upgrade().map(|key| (key, len)),
            Err(fault) => Err(fault),
        };
        let date = Date::default();
        self.effects.push_back(Effect::Transmit(id));
        match judged {
            Ok((key, len)) => {
                let mut answer = Vec::new();
                let accept = websocket::accept_key(key);
                response::switching_protocols(&accept, &format!("{id:?}"), &date, &mut answer);
                entry.connection.send_answer(&answer, now);
                entry.is_websocket = true;
                // The relay spreads first pings over the interval. Whole, it outlasts
                // a case, which counts every frame it did not cause as a fault.
                entry.connection.open(now + self.timeouts.ping_interval, now);
                self.handle_frames(id, &head[len..], now);
            }
            Err(fault) => {
                let answer = fault.refusal.bytes(&date);
                entry.connection.refuse(&answer, now, &self.timeouts);
            }
        }
    }

    /// Handles input. Input behind a message waits until the echo is sent: so at most one
    /// echo is queued, and the close that a later frame causes does not overtake it. (In the
    /// relay messages go to another peer.)
    fn handle_frames(&mut self, id: ConnId, mut input: &[u8], now: Instant) {
        let Some(Entry { connection, .. }) = self.connections.find(id) else { return };
        loop {
            match connection.next_incoming(
                &mut input,
                &mut self.codec,
                &mut Work::unbounded(),
                now,
                &self.timeouts,
            ) {
                Ok(None) => break,
                Ok(Some(Incoming::Message(message))) => {
                    if let Err(cause) = message.text() {
                        connection.close(cause, &[], now, &self.timeouts);
                        continue;
                    }
                    let opcode = if message.is_text() { Opcode::Text } else { Opcode::Binary };
                    connection.send_message(opcode, &[message.bytes()], &mut self.pool, now);
                    connection.keep(input.to_vec(), now);
                    connection.pause(now);
                    break;
                }
                Ok(Some(Incoming::Ping(payload))) => {
                    connection.send_pong(&payload, &mut self.pool, now);
                }
                Ok(Some(Incoming::Pong(payload))) => {
                    if let Some(sequence) = Heartbeat::sequence(id.to_bits(), &payload) {
                        connection.on_pong(sequence, now);
                    }
                }
                Ok(Some(Incoming::Close(echo))) => {
                    connection.close(CloseCause::PeerClosed, &echo, now, &self.timeouts);
                }
                Err(cause) => connection.close(cause, &[], now, &self.timeouts),
            }
        }
        self.effects.push_back(Effect::Transmit(id));
        self.remove_if_done(id);
    }

    /// Resumes reading if the echo is sent.
    fn resume(&mut self, id: ConnId, now: Instant) {
        let Some(Entry { connection, .. }) = self.connections.find(id) else { return };
        if connection.backlog() == 0 && connection.resume(now, &self.timeouts) {
            let early = connection.take_kept();
            self.handle_frames(id, &early, now);
            self.effects.push_back(Effect::Resume(id));
        }
    }

    /// Closes on the server's initiative.
    fn close(&mut self, id: ConnId, cause: CloseCause, now: Instant) {
        let Some(Entry { connection, .. }) = self.connections.find(id) else { return };
        let early = connection.take_kept();
        connection.close(cause, &[], now, &self.timeouts);
        self.handle_frames(id, &early, now);
        self.effects.push_back(Effect::Resume(id));
        self.settle(id);
    }

    /// Sets the timer to the connection's deadline.
    fn settle(&mut self, id: ConnId) {
        let Some(entry) = self.connections.find(id) else { return };
        let deadline = entry.connection.deadline(&self.timeouts);
        self.timers.arm(id.index() as u32, deadline);
    }

    fn remove_if_done(&mut self, id: ConnId) {
        if self.connections.find(id).is_some_and(|entry| entry.connection.is_done()) {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: ConnId) {
        if self.connections.find(id).is_some() {
            self.connections.0.remove(id.index());
            self.timers.disarm(id.index() as u32);
            self.effects.push_back(Effect::Disconnect(id));
        }
    }
}

impl Echo {
    fn handle_bytes(&mut self, id: ConnId, bytes: &[u8], now: Instant) {
        let Some(entry) = self.connections.find(id) else { return };
        if entry.connection.is_head() {
            self.handle_head(id, bytes, now);
        } else {
            self.handle_frames(id, bytes, now);
        }
        self.settle(id);
    }

    fn handle_end(&mut self, id: ConnId) {
        let Some(Entry { connection, .. }) = self.connections.find(id) else { return };
        connection.on_end();
        if !connection.is_closing() || connection.is_done() {
            self.remove(id);
        }
    }

    fn handle_written(&mut self, id: ConnId, count: usize, now: Instant) {
        let Some(Entry { connection, .. }) = self.connections.find(id) else { return };
        let is_more = connection.on_written(count, &mut self.pool, now).has_more;
        if connection.half_close(now, &self.timeouts) {
            self.effects.push_back(Effect::HalfClose(id));
        }
        if is_more {
            self.effects.push_back(Effect::Transmit(id));
        }
        self.resume(id, now);
        self.settle(id);
        self.remove_if_done(id);
    }

    fn handle_timeout(&mut self, now: Instant) {
        while let Some(index) = self.timers.pop_expired(now) {
            let Entry { id, connection, .. } = &mut self.connections.0[index as usize];
            let id = *id;
            match connection.handle_timeout(now, &self.timeouts) {
                None => {}
                Some(Expiry::Ping(sequence)) => {
                    let payload = Heartbeat::payload(id.to_bits(), sequence);
                    connection.send_ping(&payload, &mut self.pool, now);
                    self.effects.push_back(Effect::Transmit(id));
                }
                Some(Expiry::Disconnect) => self.remove(id),
                Some(Expiry::Head | Expiry::Claim | Expiry::Close(_)) => {
                    self.effects.push_back(Effect::ReadThenExpire(id));
                }
            }
            self.settle(id);
        }
    }

    fn expire_after_read(&mut self, id: ConnId, now: Instant) {
        let Some(Entry { connection, .. }) = self.connections.find(id) else { return };
        match connection.handle_timeout(now, &self.timeouts) {
            Some(Expiry::Close(cause)) => self.close(id, cause, now),
            Some(Expiry::Head) => {
                let answer = Refusal::RequestTimeout.bytes(&Date::default());
                connection.refuse(&answer, now, &self.timeouts);
                self.effects.push_back(Effect::Transmit(id));
                self.settle(id);
            }
            _ => {}
        }
    }

    fn shut_down(&mut self, now: Instant) {
        self.is_draining = true;
        let entries = self.connections.0.iter().map(|(_, entry)| entry);
        let open: Vec<ConnId> =
            entries.filter(|entry| entry.is_websocket).map(|entry| entry.id).collect();
        for id in open {
            self.close(id, CloseCause::Shutdown, now);
        }
    }
}

impl Core for Echo {
    fn handle_accept(&mut self, _: IpAddr, _: ListenerKind, now: Instant) -> ConnId {
        let slot = self.connections.0.vacant_entry();
        let id = ConnId::new(slot.key() as u32, self.accepted);
        self.accepted = self.accepted.wrapping_add(1);
        let connection = Connection::new(now, &self.timeouts);
        slot.insert(Entry { id, connection, is_websocket: false });
        self.settle(id);
        id
    }

    fn handle(&mut self, input: Input<'_>, now: Instant) {
        match input {
            Input::Bytes(id, bytes) => self.handle_bytes(id, bytes, now),
            Input::End(id) => self.handle_end(id),
            Input::Disconnected(id) => self.remove(id),
            Input::Written(id, count, _) => self.handle_written(id, count, now),
            Input::ReadToEnd(id) => self.expire_after_read(id, now),
            Input::Timeout => self.handle_timeout(now),
            Input::ShutDown => self.shut_down(now),
            // A peer that is not read is being written to, and the write will fail. The other
            // inputs come from TLS, a load balancer and push wakes, which are absent here.
            Input::Hangup(_)
            | Input::Reset(_)
            | Input::Continue(_)
            | Input::Buffered(..)
            | Input::Proxied(..)
            | Input::Challenge(_)
            | Input::Date(_)
            | Input::WakeDone(_) => {}
        }
    }

    fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.timers.next_expiry()
    }

    fn is_reading(&self, id: ConnId) -> bool {
        self.connections.peek(id).is_some_and(Connection::is_reading)
    }

    fn is_request(&self, id: ConnId) -> bool {
        self.connections.peek(id).is_some_and(Connection::is_head)
    }

    fn has_closed(&self, id: ConnId) -> bool {
        self.connections.peek(id).is_some_and(Connection::has_closed)
    }

    fn outgoing(&self, id: ConnId) -> Slices<'_> {
        self.connections.peek(id).map_or_else(Slices::default, Connection::outgoing)
    }

    fn websockets(&self) -> usize {
        self.connections.0.iter().filter(|(_, entry)| entry.is_websocket).count()
    }
}
