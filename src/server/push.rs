//! Push: sends wakes to FCM, each with one HTTPS call, preceded by one to Google's token
//! endpoint when a new access token is needed.
//!
//! Owns one thread per call and the thread that starts them. Must not know connections, nor
//! which wakes are allowed: the core limits how many are queued and in flight.
//!
//! 1. The event loop never waits here: it queues a wake, and the outcome arrives in its
//!    mailbox. It starts no thread, which takes many times as long as queueing, and takes no
//!    lock of this module before it ends.
//! 2. Each wake has exactly one outcome and one log line.
//! 3. Log lines and errors contain nothing of device tokens, access tokens, credentials or
//!    a server's reply, except FCM's two enum fields ([`fcm::FcmError`]) and its message
//!    name, all checked for their form.
//! 4. While FCM asks for a pause, no call is made: wakes are dropped with that reason.
//! 5. A call in progress does not keep the process from ending.

mod client;
mod credentials;
mod duration;
mod fcm;
mod in_flight;
mod pause;
mod report;
mod service;
mod tokens;

use std::fmt::{self, Display};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, SendError, Sender};
use std::thread;
use std::time::Duration;

use self::client::Client;
use self::credentials::Credentials;
use self::in_flight::InFlight;
use self::pause::Pause;
use self::report::WakeReport;
use self::service::Service;
use self::tokens::Tokens;
use crate::config::PushWake;
use crate::relay::push_wake::Wake;
use crate::relay::stats::WakeOutcome;
use crate::server::messages::{LoopHandle, LoopMessage};
use crate::server::os::clock::monotonic;

/// The time limit of one call, from the name lookup to the end of the reply.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// The stack size of a thread that makes a call. A call touches 48 KiB of it (`Rss` in
/// smaps); the rest is never resident.
const STACK: usize = 512 * 1024;

/// Why push wake cannot work as configured: lines for the operator that contain nothing of
/// the credentials.
#[derive(Debug)]
pub struct Unusable(String);

impl Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unusable {}

/// Sends wakes.
pub struct Push(Arc<Service>);

impl fmt::Debug for Push {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Push(..)")
    }
}

impl Push {
    /// Checks everything that can be checked without a call.
    ///
    /// # Errors
    /// If the private key is not an RSA key, or the file of certificate authorities cannot
    /// be used.
    pub fn new(config: &PushWake) -> Result<Self, Unusable> {
        let credentials = Credentials::new(&config.account)
            .map_err(|why| Unusable(format!("PYRYCODE_RELAY_FCM_CREDENTIALS: {why}")))?;
        let client = Client::new(config.ca.as_deref())
            .map_err(|why| Unusable(format!("--fcm-ca: {why}")))?;
        let send_url = fcm::send_url(&config.endpoint, &config.account.project_id);
        let (tokens, pause) = (Tokens::default(), Pause::default());
        Ok(Self(Arc::new(Service { credentials, client, tokens, pause, send_url })))
    }

    /// Starts the thread that takes wakes and sends each outcome to the event loop. It
    /// sleeps while there are no wakes, and ends when the [`Handle`] is dropped.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub(super) fn start(self, to_loop: LoopHandle) -> io::Result<Handle> {
        let (queue, wakes) = mpsc::channel();
        let in_flight = Arc::<InFlight>::default();
        let handle = Handle { queue, in_flight: Arc::clone(&in_flight) };
        thread::Builder::new().name("push".into()).spawn(move || {
            for wake in wakes {
                self.call(wake, &in_flight, &to_loop);
            }
        })?;
        Ok(handle)
    }

    /// Sends a wake on a thread of its own.
    fn call(&self, wake: Wake, in_flight: &Arc<InFlight>, to_loop: &LoopHandle) {
        let wake = Arc::new(wake);
        let Some(number) = in_flight.begin(&wake, monotonic()) else { return };
        let (flights, sender) = (Arc::clone(in_flight), to_loop.clone());
        let end = move |report: &WakeReport| {
            flights.end(number, report, monotonic());
            sender.send(LoopMessage::WakeDone(report.outcome()));
        };
        if let Some(report) = self.0.paused() {
            return end(&report);
        }
        let (service, end_here) = (Arc::clone(&self.0), end.clone());
        let started = thread::Builder::new()
            .name("call".into())
            .stack_size(STACK)
            .spawn(move || end(&service.send(&wake)));
        if let Err(error) = started {
            let why = format!("cannot start a thread for the call: {error}");
            end_here(&WakeReport::dropped(why));
        }
    }
}

/// The event loop's end of the queue. When it is dropped, wakes in flight are logged as
/// failed.
pub struct Handle {
    queue: Sender<Wake>,
    in_flight: Arc<InFlight>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handle(..)")
    }
}

impl Handle {
    /// Queues a wake; its outcome arrives in the mailbox.
    ///
    /// # Errors
    /// Returns the wake if the thread has ended.
    pub(super) fn enqueue(&self, wake: Wake) -> Result<(), Wake> {
        self.queue.send(wake).map_err(|SendError(wake)| wake)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.in_flight.close(monotonic());
    }
}

/// Logs a wake that could not be queued, and returns its outcome.
pub(super) fn not_queued(wake: &Wake) -> WakeOutcome {
    let report = WakeReport::dropped("push wake is not running");
    report.log(wake, Duration::ZERO);
    report.outcome()
}
