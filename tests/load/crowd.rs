//! Crowd: thousands of clients in a separate process, on one poll.
//!
//! A crowd consists of pairs of a binary and its phone. Each client dials at once and dials
//! again whenever it is disconnected; a connected phone sends its number, its binary sends
//! it back, and the pair is done. The parent process writes commands to stdin: to reset and
//! dial again, and to report progress.

use std::collections::VecDeque;
use std::io::{self, BufRead, ErrorKind};
use std::net::SocketAddr;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

use crate::client::{Client, Out};
use crate::support::source;

/// The first argument of a crowd process, followed by the relay's address, the number of
/// the first pair and the number of pairs.
pub const WORD: &str = "crowd";
/// The command to reset all connections and dial again.
pub const REDIAL: &str = "redial";
/// The command to report progress, answered by a line of [`Tally`].
pub const TALLY: &str = "tally";

/// How long a client waits after it was refused.
const RETRY: Duration = Duration::from_millis(50);
const ORDERS: Token = Token(usize::MAX);

/// The outcomes of all clients since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Pairs that are done now.
    pub done: u64,
    /// Times that an upgrade was answered.
    pub answered: u64,
    /// Of these, 503: no room.
    pub full: u64,
    /// Upgrades that were closed 4404: no binary, or it has just come back.
    pub absent: u64,
}

impl Tally {
    /// As a line.
    fn line(self) -> String {
        format!("{} {} {} {}", self.done, self.answered, self.full, self.absent)
    }

    /// From a line.
    pub fn parse(line: &str) -> Self {
        let numbers: Vec<u64> = line.split_whitespace().map(|n| n.parse().unwrap()).collect();
        let [done, answered, full, absent] = numbers[..] else { panic!("{line}") };
        Self { done, answered, full, absent }
    }
}

/// The process.
pub fn run(arguments: &[String]) {
    let [relay, first, pairs] = arguments else { panic!("{arguments:?}") };
    // The soft limit of descriptors becomes the hard limit.
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    let [first, pairs] = [first, pairs].map(|word| word.parse::<usize>().unwrap());
    let poll = Poll::new().unwrap();
    let orders = listen(Waker::new(poll.registry(), ORDERS).unwrap());
    Crowd {
        poll,
        relay: relay.parse().unwrap(),
        clients: (0..2 * pairs).map(|n| Client::new(first + n / 2, n % 2 == 1)).collect(),
        out: VecDeque::new(),
        tally: Tally::default(),
    }
    .run(&orders);
}

/// Lines of stdin, each with a wake-up; the end of it ends the channel.
fn listen(waker: Waker) -> Receiver<String> {
    let (sender, orders) = mpsc::channel();
    thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            sender.send(line).unwrap();
            waker.wake().unwrap();
        }
        drop(sender);
        waker.wake().unwrap();
    });
    orders
}

struct Crowd {
    poll: Poll,
    relay: SocketAddr,
    clients: Vec<Client>,
    /// Clients that will dial again, and when.
    out: VecDeque<(Instant, usize)>,
    tally: Tally,
}

impl Crowd {
    fn run(mut self, orders: &Receiver<String>) {
        (0..self.clients.len()).for_each(|index| self.dial(index));
        let mut events = Events::with_capacity(1024);
        loop {
            let next = self.out.front().map(|(at, _)| *at);
            let sleep = next.map(|at| at.saturating_duration_since(Instant::now()));
            if let Err(error) = self.poll.poll(&mut events, sleep)
                && error.kind() != ErrorKind::Interrupted
            {
                panic!("{error}");
            }
            loop {
                match orders.try_recv().as_deref() {
                    Ok(REDIAL) => self.redial(),
                    Ok(TALLY) => println!("{}", self.tally.line()),
                    Ok(order) => panic!("{order}"),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            for event in events.iter().filter(|event| event.token() != ORDERS) {
                self.on_ready(event.token().0);
            }
            while self.out.front().is_some_and(|(at, _)| *at <= Instant::now()) {
                let (_, index) = self.out.pop_front().unwrap();
                self.dial(index);
            }
        }
    }

    fn redial(&mut self) {
        self.out.clear();
        self.tally.done = 0;
        self.clients.iter_mut().for_each(Client::reset);
        (0..self.clients.len()).for_each(|index| self.dial(index));
    }

    fn dial(&mut self, index: usize) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
        // An address has ports for some 28,000 connections, and other programs dial, too.
        socket.bind(&SocketAddr::from((source(index), 0)).into()).unwrap();
        // The first event tells the outcome.
        let _ = socket.connect(&self.relay.into());
        let mut stream = TcpStream::from_std(socket.into());
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(index), interest).unwrap();
        self.clients[index].stream = Some(stream);
    }

    fn on_ready(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let (was_in, was_done) = (client.is_in, client.is_done);
        let outcome = client.on_ready();
        let has_come_in = client.is_in && !was_in;
        self.tally.answered += u64::from(has_come_in || matches!(outcome, Err(Out::Full)));
        self.tally.done += u64::from(client.is_done && !was_done);
        let Err(out) = outcome else { return };
        self.tally.done -= u64::from(client.is_done);
        self.tally.full += u64::from(out == Out::Full);
        self.tally.absent += u64::from(out == Out::Absent);
        client.leave();
        if out == Out::Lost {
            self.dial(index);
        } else {
            self.out.push_back((Instant::now() + RETRY, index));
        }
    }
}
