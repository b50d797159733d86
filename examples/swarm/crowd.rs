//! Crowd: all clients of a run on one poll.
//!
//! Owns the order of dialling (binaries first, then their phones, with a bounded number of
//! dials at a time) and the counts of outcomes.

use std::collections::{BTreeMap, VecDeque};
use std::error::Error;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

use crate::client::{Client, Event};
use crate::options::{Options, Shape};
use crate::stream::{Stream, Tls};

/// Upgrades under way at once.
const DIALLING: usize = 256;
/// The same where TLS sessions are resumed: each connection brings one ticket, and rustls
/// keeps eight.
const DIALLING_RESUMED: usize = 4;
/// The interval between the pings of a binary, if clients ping.
const BINARY_PINGS: Duration = Duration::from_secs(30);
/// The text before and after the string in a frame that is an object.
const OBJECT: [&str; 2] = [r#"{"v":2,"type":"noise_msg","data":"#, "}"];
/// Descriptors for other things than connections.
const OTHERS: u64 = 16;

/// The outcomes.
#[derive(Debug, Default)]
pub struct Tally {
    pub refused: usize,
    /// Why, and how often.
    pub refusals: BTreeMap<String, usize>,
    /// Ended unexpectedly.
    pub lost: usize,
    /// Close codes of all that ended, 0 for none.
    pub codes: BTreeMap<u16, usize>,
    pub upgrades: usize,
    /// Those of them whose TLS session was resumed.
    pub resumed: usize,
    pub pings: usize,
    /// Pings that clients sent, and those of them that were answered.
    pub own_pings: usize,
    pub own_pongs: usize,
    pub sent: usize,
    pub round_trips: Vec<Duration>,
    /// From falling silent until the relay disconnected.
    pub silences: Vec<Duration>,
}

impl Tally {
    fn refuse(&mut self, why: String) {
        self.refused += 1;
        *self.refusals.entry(why).or_default() += 1;
    }
}

pub struct Crowd {
    poll: Poll,
    events: Events,
    relay: SocketAddr,
    source: Option<IpAddr>,
    tls: Option<Tls>,
    name: String,
    clients: Vec<Client>,
    /// Clients that will dial.
    out: VecDeque<usize>,
    dialling: usize,
    open: usize,
    began: Instant,
    messages: Pace,
    churn: Pace,
    /// Of binaries and of phones.
    pings: [Pace; 2],
    binaries: usize,
    bytes: usize,
    shape: Shape,
    /// Phones send a frame for each that returns.
    is_closed_loop: bool,
    /// The phone whose turn is next, to send and to leave.
    next: [usize; 2],
    /// The binary and the phone whose turn is next to ping.
    next_ping: [usize; 2],
    pub tally: Tally,
}

/// A number of events per second, evenly spaced.
struct Pace {
    every: Option<Duration>,
    next: Instant,
}

impl Pace {
    fn new(per_second: usize) -> Self {
        Self::of(per_second, Duration::from_secs(1))
    }

    /// `count` in each `time`, evenly.
    fn of(count: usize, time: Duration) -> Self {
        let is_on = count > 0 && !time.is_zero();
        Self { every: is_on.then(|| time / count as u32), next: Instant::now() }
    }

    fn is_due(&mut self, now: Instant) -> bool {
        let Some(every) = self.every else { return false };
        let is_due = self.next <= now;
        if is_due {
            self.next += every;
        }
        is_due
    }

    fn wait(&self, now: Instant) -> Duration {
        self.every.map_or(Duration::from_millis(500), |_| self.next.saturating_duration_since(now))
    }
}

impl Crowd {
    pub fn new(options: &Options) -> Result<Self, Box<dyn Error>> {
        let all = options.binaries * (1 + options.phones);
        let maximum = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
        if let Some(maximum) = maximum
            && all as u64 + OTHERS > maximum
        {
            return Err(format!(
                "{all} connections, but this process may open {maximum} descriptors:\n\
                 raise the limit (ulimit -Hn) or start several swarms, each with a --name"
            )
            .into());
        }
        let clients = (0..options.binaries).map(|binary| Client::new(binary, false));
        // One phone of every binary, then the next of every binary.
        let phones = (0..options.binaries * options.phones)
            .map(|phone| Client::new(phone % options.binaries, true));
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            relay: options.relay,
            source: options.source,
            tls: options.tls.clone(),
            name: options.name.clone(),
            clients: clients.chain(phones).collect(),
            out: (0..all).collect(),
            dialling: 0,
            open: 0,
            began: Instant::now(),
            messages: Pace::new(0),
            churn: Pace::new(0),
            pings: [Pace::new(0), Pace::new(0)],
            binaries: options.binaries,
            bytes: options.bytes,
            shape: options.shape,
            is_closed_loop: false,
            next: [0; 2],
            next_ping: [0; 2],
            tally: Tally::default(),
        })
    }

    pub fn all(&self) -> usize {
        self.clients.len()
    }

    pub fn open(&self) -> usize {
        self.open
    }

    /// Clients that are neither connected nor refused yet.
    pub fn coming(&self) -> usize {
        self.out.len() + self.dialling
    }

    /// All clients are connected: starts the frames, the churn and the silence.
    pub fn begin(&mut self, options: &Options) {
        self.messages = Pace::new(options.messages);
        self.is_closed_loop = options.in_flight > 0;
        let now = Instant::now();
        for _ in 0..options.in_flight {
            for phone in self.binaries..self.clients.len() {
                self.send_frame(phone, now);
            }
        }
        self.churn = Pace::new(options.churn);
        if !options.client_pings.is_zero() {
            let phones = self.clients.len() - self.binaries;
            self.pings =
                [Pace::of(self.binaries, BINARY_PINGS), Pace::of(phones, options.client_pings)];
        }
        let silent = self.clients.len() - options.half_open;
        for client in &mut self.clients[silent..] {
            client.silent_since = Some(Instant::now());
        }
    }

    /// Stops messages and churn.
    pub fn rest(&mut self) {
        self.messages = Pace::new(0);
        self.is_closed_loop = false;
        self.churn = Pace::new(0);
    }

    /// Whether a client is connecting, or a frame is on its way back.
    pub fn is_busy(&self) -> bool {
        self.coming() > 0 || self.tally.round_trips.len() < self.tally.sent
    }

    /// Sleeps until an event is ready or due, and handles it.
    pub fn turn(&mut self) -> io::Result<()> {
        let resumes = self.tls.as_ref().is_some_and(|tls| tls.resumes);
        while self.dialling < if resumes { DIALLING_RESUMED } else { DIALLING }
            && let Some(index) = self.out.front().copied()
        {
            let client = &self.clients[index];
            // A phone waits for its binary.
            if client.is_phone && !self.clients[client.binary].is_open() && self.dialling > 0 {
                break;
            }
            self.out.pop_front();
            self.dial(index)?;
        }
        let now = Instant::now();
        let paces = [&self.messages, &self.churn, &self.pings[0], &self.pings[1]];
        let timeout = paces.map(|pace| pace.wait(now)).into_iter().min();
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        match self.poll.poll(&mut events, timeout) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        for event in &events {
            self.on_ready(event.token().0, event.is_read_closed());
        }
        self.events = events;
        let now = Instant::now();
        while self.messages.is_due(now) {
            if let Some(phone) = self.next_phone(0) {
                self.send_frame(phone, now);
            }
        }
        while self.churn.is_due(now) {
            self.hang_up();
        }
        for kind in [0, 1] {
            while self.pings[kind].is_due(now) {
                self.ping(kind);
            }
        }
        Ok(())
    }

    fn dial(&mut self, index: usize) -> io::Result<()> {
        let domain = Domain::for_address(self.relay);
        let socket = Socket::new(domain, Type::STREAM.nonblocking(), None)?;
        socket.set_tcp_nodelay(true)?;
        if let Some(source) = self.source {
            socket.bind(&SocketAddr::from((source, 0)).into())?;
        }
        match socket.connect(&self.relay.into()) {
            Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => {
                self.tally.refuse(error.to_string());
                return Ok(());
            }
            _ => {}
        }
        let mut stream = TcpStream::from_std(socket.into());
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(index), interest)?;
        self.clients[index].dialled(Stream::new(stream, self.tls.as_ref())?);
        self.dialling += 1;
        Ok(())
    }

    fn on_ready(&mut self, index: usize, has_hung_up: bool) {
        let client = &mut self.clients[index];
        if let Some(since) = client.silent_since {
            if has_hung_up && client.is_open() {
                self.tally.silences.push(since.elapsed());
                client.leave();
                self.open -= 1;
            }
            return;
        }
        let (name, is_phone, binary) = (&self.name, client.is_phone, client.binary);
        let (tally, began) = (&mut self.tally, self.began);
        let returned = tally.round_trips.len();
        let (open, dialling) = (&mut self.open, &mut self.dialling);
        client.on_ready(
            || head(name, is_phone, binary),
            |event| match event {
                Event::Open(is_resumed) => {
                    tally.resumed += usize::from(is_resumed);
                    *dialling -= 1;
                    *open += 1;
                    tally.upgrades += 1;
                }
                Event::Ping => tally.pings += 1,
                Event::Pong => tally.own_pongs += 1,
                Event::Returned(text) => {
                    let string = text.strip_prefix(OBJECT[0]).unwrap_or(&text);
                    let sent = string[1..].split('/').next().and_then(|micros| micros.parse().ok());
                    let sent = Duration::from_micros(sent.expect("the frame that was sent"));
                    tally.round_trips.push(began.elapsed() - sent);
                }
                Event::Ended(code) => {
                    *open -= 1;
                    tally.lost += 1;
                    *tally.codes.entry(code.unwrap_or(0)).or_default() += 1;
                }
                Event::Refused(why) => {
                    *dialling -= 1;
                    tally.refuse(why);
                }
            },
        );
        if self.is_closed_loop {
            let now = Instant::now();
            for _ in returned..self.tally.round_trips.len() {
                self.send_frame(index, now);
            }
        }
    }

    /// The next open phone, in turn; 0 is for sending, 1 for leaving.
    fn next_phone(&mut self, what: usize) -> Option<usize> {
        let all = self.clients.len();
        for _ in 0..all {
            let index = self.next[what] % all;
            self.next[what] = index + 1;
            let client = &self.clients[index];
            if client.is_phone && client.is_open() && client.silent_since.is_none() {
                return Some(index);
            }
        }
        None
    }

    /// The next binary (0) or phone (1) pings, if it is open.
    fn ping(&mut self, kind: usize) {
        let (first, count) = match kind {
            0 => (0, self.binaries),
            _ => (self.binaries, self.clients.len() - self.binaries),
        };
        let client = &mut self.clients[first + self.next_ping[kind] % count];
        self.next_ping[kind] += 1;
        if client.is_open() && client.silent_since.is_none() {
            client.ping();
            self.tally.own_pings += 1;
        }
    }

    /// A phone sends a frame with the time and padding, both in base64.
    fn send_frame(&mut self, phone: usize, now: Instant) {
        if self.clients[phone].is_open() {
            let micros = (now - self.began).as_micros();
            let [begin, end] = if self.shape == Shape::Object { OBJECT } else { [""; 2] };
            let left = self.bytes.saturating_sub(begin.len() + end.len() + 20);
            let text = format!("{begin}\"{micros}/{}\"{end}", "x".repeat(left));
            self.clients[phone].send(text);
            self.tally.sent += 1;
        }
    }

    /// A phone disconnects without a close frame and dials again.
    fn hang_up(&mut self) {
        if let Some(index) = self.next_phone(1) {
            self.clients[index].leave();
            self.open -= 1;
            self.out.push_back(index);
        }
    }
}

fn head(name: &str, is_phone: bool, binary: usize) -> String {
    let (path, header) = match is_phone {
        true => ("client", "x-pyrycode-token"),
        false => ("server", "x-pyrycode-version"),
    };
    format!(
        "GET /v1/{path} HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         User-Agent: swarm\r\nx-pyrycode-server: {name}-{binary}\r\n{header}: 1\r\n\r\n"
    )
}
