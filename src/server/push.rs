//! Push wakes carried out: one HTTPS call to FCM, and now and then one to Google's
//! token endpoint before it.
//!
//! Owns the threads that make these calls, one a wake, and the one that starts them.
//! Must not know a connection, nor which wakes are allowed: the core bounds how many
//! there are at a time, in the queue too.
//!
//! 1. The loop waits for nothing here: it puts a wake into a queue and hears of the
//!    outcome by mail. To start a thread takes many times as long. No lock in here is
//!    taken by the loop before it ends.
//! 2. Each wake is answered by one outcome and leaves one line in the log.
//! 3. Nothing of a device token, an access token, the credentials or a server's
//!    words is in a log line or an error, but FCM's two enum fields
//!    ([`fcm::FcmError`]) and its name for a message, all of a checked form.
//! 4. While FCM wants no calls there are none: wakes are dropped, and say so.
//! 5. A thread that is still calling does not keep the process from ending.

mod client;
mod credentials;
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
use crate::relay::stats::WakeOutcome;
use crate::relay::wake::Wake;
use crate::server::messages::{LoopHandle, LoopMessage};
use crate::server::os::clock::monotonic;

/// The longest that one call takes, looking the name up and reading the reply
/// included.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// The stack of a thread that makes a call, which uses 48 KiB of it: that is all that is
/// resident (`Rss` in smaps).
const STACK: usize = 512 * 1024;

/// Why push wake cannot be had as configured: lines for the operator that repeat
/// nothing of the credentials.
#[derive(Debug)]
pub struct Unusable(String);

impl Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unusable {}

/// Carries out wakes.
pub struct Push(Arc<Service>);

impl fmt::Debug for Push {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Push(..)")
    }
}

impl Push {
    /// Checks what can be checked without a call.
    ///
    /// # Errors
    /// If the private key is no RSA key or the file of authorities holds none.
    pub fn new(config: &PushWake) -> Result<Self, Unusable> {
        let credentials = Credentials::new(&config.account)
            .map_err(|why| Unusable(format!("PYRYCODE_RELAY_FCM_CREDENTIALS: {why}")))?;
        let client = Client::new(config.ca.as_deref())
            .map_err(|why| Unusable(format!("--fcm-ca: {why}")))?;
        let send_url = fcm::send_url(&config.endpoint, &config.account.project_id);
        let (tokens, pause) = (Tokens::default(), Pause::default());
        Ok(Self(Arc::new(Service { credentials, client, tokens, pause, send_url })))
    }

    /// Starts the thread that takes wakes; each outcome is posted. It sleeps while
    /// there are none, and ends with the [`Handle`].
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

    /// Carries a wake out on a thread of its own.
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
            let why = format_args!("cannot start a thread for the call: {error}");
            end_here(&WakeReport::dropped(why));
        }
    }
}

/// The loop's end of it. When it is dropped, wakes in flight are logged as cut short.
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
    /// Has a wake carried out; its outcome is posted.
    ///
    /// # Errors
    /// The wake, if there is nothing that takes it.
    pub(super) fn hand_over(&self, wake: Wake) -> Result<(), Wake> {
        self.queue.send(wake).map_err(|SendError(wake)| wake)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.in_flight.close(monotonic());
    }
}

/// Tells the log of a wake that could not be handed over, and gives its outcome.
pub(super) fn not_handed_over(wake: &Wake) -> WakeOutcome {
    let report = WakeReport::dropped("push wake is not running");
    report.log(wake, Duration::ZERO);
    report.outcome()
}
