//! The listener for whoever operates the relay: `/metrics` and the status page.
//!
//! Owns a few threads that answer plain HTTP on loopback, one request a
//! connection. Must not touch the loop's state: it asks by [`Post`] and waits.
//!
//! 1. Nobody here can slow the loop: a question costs it a copy of a kilobyte.
//! 2. A loop that does not answer is itself news: 503 says so.
//! 3. A connection lasts [`PATIENCE`] at most, whatever its peer does; with
//!    [`THREADS`] of them at a time, the next waits in the kernel's queue.
//! 4. With nothing to answer the threads sleep in accept(2), each with the
//!    descriptor of its next connection in hand: when the relay has used up all
//!    others, this is still answered.
//! 5. Web pages elsewhere get nothing: no CORS, and a Host that is a name of
//!    theirs, which they could make to mean loopback, is refused.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use crate::config::HEAD_MAX;
use crate::protocol::request::{self, Head, Request};
use crate::protocol::response::Refusal;
use crate::server::admin::metrics::{self, Surroundings};
use crate::server::admin::process::Usage;
use crate::server::log::Sink;
use crate::server::mailbox::{Message, Post, Report};
use crate::server::net::listener::is_exhaustion;
use crate::server::os::clock::{monotonic, wall_time};
use crate::server::os::eintr::uninterrupted;

/// Connections answered at a time. A browser opens one or two more than it uses.
const THREADS: usize = 4;
/// The longest that a connection lasts.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait for the loop. Prometheus gives up after 10 s by default.
const LOOP_PATIENCE: Duration = Duration::from_secs(2);
/// How long to wait for a descriptor when there is none.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);

// Who asks a loop that is stuck is told so before it is cut off.
const _: () = assert!(LOOP_PATIENCE.as_secs() < PATIENCE.as_secs());

/// The status page; `{nonce}` stands where its script and its style are allowed.
const PAGE: &str = include_str!("http/status.html");

/// A bound listener.
#[derive(Debug)]
pub struct Operator {
    listener: Arc<TcpListener>,
}

impl Operator {
    /// Binds and listens.
    ///
    /// # Errors
    /// What the kernel says, with what to do about it.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).map_err(|error| {
            let advice = format!(
                "--metrics-listen {address}: {error}; choose another port, or none at all \
                 with --metrics-listen="
            );
            io::Error::new(error.kind(), advice)
        })?;
        Ok(Self { listener: Arc::new(listener) })
    }

    /// The address really bound.
    ///
    /// # Errors
    /// None that is known for a bound socket.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers from now until the process ends.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn serve(self, post: &Post, sink: &Sink) -> io::Result<()> {
        let started = wall_time();
        for _ in 0..THREADS {
            let clerk = Clerk {
                listener: Arc::clone(&self.listener),
                post: post.clone(),
                sink: sink.clone(),
                started,
                unanswered: None,
            };
            thread::Builder::new().name("operator".into()).spawn(|| clerk.run())?;
        }
        Ok(())
    }
}

/// One of the threads.
struct Clerk {
    listener: Arc<TcpListener>,
    post: Post,
    sink: Sink,
    /// When the process started, since 1970.
    started: Duration,
    /// What the loop was asked and has not answered in time.
    unanswered: Option<Receiver<Report>>,
}

impl Clerk {
    fn run(mut self) {
        loop {
            match self.listener.accept() {
                // What goes wrong with one connection concerns nobody else.
                Ok((stream, _)) => drop(self.serve(&stream)),
                Err(error) if is_exhaustion(&error) => {
                    #[expect(clippy::disallowed_methods, reason = "nobody waits for this thread")]
                    thread::sleep(ACCEPT_RETRY);
                }
                Err(_) => {}
            }
        }
    }

    fn serve(&mut self, stream: &TcpStream) -> io::Result<()> {
        let mut stream = Bounded { stream, until: monotonic() + PATIENCE };
        let mut head = Vec::new();
        let answer = loop {
            match request::parse(&head) {
                Ok(Head::Complete { request, .. }) => break self.answer(&request),
                Ok(Head::Partial) => {}
                Err(refusal) => break refusal.bytes().to_vec(),
            }
            let start = head.len();
            head.resize(start + HEAD_MAX, 0);
            let count = stream.read(&mut head[start..])?;
            head.truncate(start + count);
            if count == 0 {
                return Ok(());
            }
        };
        stream.write_all(&answer)?;
        // Unread input would make the kernel reset the connection, and the answer
        // might be lost with it.
        stream.stream.shutdown(Shutdown::Write)?;
        while stream.read(&mut [0; 4096])? > 0 {}
        Ok(())
    }

    fn answer(&mut self, request: &Request<'_>) -> Vec<u8> {
        if !request.host().is_some_and(is_loopback) {
            let body =
                "Ask for localhost, 127.0.0.1 or [::1]: this page answers to no other name.\n";
            return Answer::text("421 Misdirected Request", body).bytes(request);
        }
        let answer: fn(&mut Self) -> Answer = match request.path() {
            "/metrics" => Self::metrics,
            "/" => |_| page(),
            _ => return Refusal::NotFound.bytes().to_vec(),
        };
        match request.read_only() {
            Ok(()) => answer(self).bytes(request),
            Err(refusal) => refusal.bytes().to_vec(),
        }
    }

    fn metrics(&mut self) -> Answer {
        let Some(report) = self.report() else {
            let body = format!("The event loop has not answered within {LOOP_PATIENCE:?}.\n");
            return Answer::text("503 Service Unavailable", body);
        };
        let around = Surroundings {
            started: self.started,
            usage: Usage::now(),
            log_lines_dropped: self.sink.lines_dropped(),
        };
        let body = metrics::text(&report, &around);
        Answer { media_type: metrics::MEDIA_TYPE, ..Answer::text("200 OK", body) }
    }

    /// Asks the loop, unless it still owes an answer: however long it is stuck, one
    /// question of each thread waits for it.
    fn report(&mut self) -> Option<Report> {
        // An answer that came late is old by now.
        let owed =
            self.unanswered.take().filter(|owed| owed.try_recv() == Err(TryRecvError::Empty));
        let reply = owed.unwrap_or_else(|| {
            let (reply, answer) = mpsc::sync_channel(1);
            self.post.send(Message::Report(reply));
            answer
        });
        match reply.recv_timeout(LOOP_PATIENCE) {
            Ok(report) => Some(report),
            Err(RecvTimeoutError::Timeout) => {
                self.unanswered = Some(reply);
                None
            }
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }
}

/// A host that can only mean this machine.
fn is_loopback(host: &str) -> bool {
    let literal = host.parse().map(|address: IpAddr| address.to_canonical());
    host.eq_ignore_ascii_case("localhost") || literal.is_ok_and(|address| address.is_loopback())
}

/// The status page. What runs in it is what stands in it: its script and its style
/// carry a number that nobody can know before.
fn page() -> Answer {
    let mut random = [0; 16];
    #[expect(clippy::disallowed_methods, reason = "a number that nobody can guess")]
    if getrandom::fill(&mut random).is_err() {
        return Answer::text("500 Internal Server Error", "The system gives no random numbers.\n");
    }
    let nonce = random.iter().fold(String::new(), |mut nonce, byte| {
        let _ = write!(nonce, "{byte:02x}");
        nonce
    });
    Answer {
        media_type: "text/html; charset=utf-8",
        policy: format!(
            "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; \
             connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
             frame-ancestors 'none'"
        ),
        ..Answer::text("200 OK", PAGE.replace("{nonce}", &nonce))
    }
}

struct Answer {
    status: &'static str,
    media_type: &'static str,
    /// Content-Security-Policy.
    policy: String,
    body: String,
}

impl Answer {
    fn text(status: &'static str, body: impl Into<String>) -> Self {
        let policy = "default-src 'none'; frame-ancestors 'none'".into();
        Self { status, media_type: "text/plain; charset=utf-8", policy, body: body.into() }
    }

    fn bytes(&self, request: &Request<'_>) -> Vec<u8> {
        let Self { status, media_type, policy, body } = self;
        let mut bytes = format!(
            "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: {media_type}\r\n\
             Content-Length: {}\r\nCache-Control: no-store\r\n\
             Content-Security-Policy: {policy}\r\nCross-Origin-Resource-Policy: same-origin\r\n\
             Referrer-Policy: no-referrer\r\nX-Content-Type-Options: nosniff\r\n\r\n",
            body.len()
        );
        if !request.is_head() {
            bytes.push_str(body);
        }
        bytes.into_bytes()
    }
}

/// A stream that is over at an instant, in whatever small steps its peer moves.
struct Bounded<'a> {
    stream: &'a TcpStream,
    until: Instant,
}

impl Bounded<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        match self.until.saturating_duration_since(monotonic()) {
            Duration::ZERO => Err(ErrorKind::TimedOut.into()),
            left => Ok(Some(left)),
        }
    }
}

impl Read for Bounded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        uninterrupted(|| {
            self.stream.set_read_timeout(self.left()?)?;
            self.stream.read(buffer)
        })
    }
}

impl Write for Bounded<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use mio::{Poll, Token};

    use super::*;
    use crate::config::LogFormat;
    use crate::server::mailbox::Mailbox;

    #[test]
    fn a_stuck_loop_is_asked_once_and_its_late_answer_is_not_news() {
        let poll = Poll::new().unwrap();
        let mut mailbox = Mailbox::new(poll.registry(), Token(0)).unwrap();
        let sink = Sink::start(LogFormat::Logfmt, ::log::LevelFilter::Off, io::sink()).unwrap();
        let mut clerk = Clerk {
            listener: Operator::bind("127.0.0.1:0".parse().unwrap()).unwrap().listener,
            post: mailbox.post(),
            sink,
            started: Duration::ZERO,
            unanswered: None,
        };
        assert_eq!(clerk.report(), None);
        let Some(Message::Report(reply)) = mailbox.take() else { panic!("it was not asked") };
        assert_eq!(clerk.report(), None);
        assert!(mailbox.take().is_none(), "it was asked again");

        let counting = |binaries| {
            let mut report = Report::default();
            report.relay.binaries = binaries;
            report
        };
        reply.send(counting(1)).unwrap();
        let clerk = thread::Builder::new().spawn(move || clerk.report()).unwrap();
        let until = monotonic() + PATIENCE;
        let reply = loop {
            match mailbox.take() {
                Some(Message::Report(reply)) => break reply,
                Some(other) => panic!("{other:?}"),
                None => thread::yield_now(),
            }
            assert!(monotonic() < until, "it was not asked anew");
        };
        reply.send(counting(2)).unwrap();
        assert_eq!(clerk.join().unwrap(), Some(counting(2)), "and not what was true before");
    }
}
