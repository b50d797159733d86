//! Push wakes carried out: one HTTPS call to FCM, and now and then one to Google's
//! token endpoint before it.
//!
//! Owns the threads that make these calls, one a wake, the one that starts them, and
//! the line that tells of a failed wake. Must not know a connection, nor which wakes
//! are allowed: the core bounds how many there are at a time, in the queue too.
//!
//! 1. The loop waits for nothing here: it puts a wake into a queue and hears of the
//!    outcome by mail. To start a thread takes many times as long. No lock in here is
//!    ever taken by the loop.
//! 2. Each wake that was started is answered by one outcome.
//! 3. Nothing of a device token, an access token, the credentials or a server's
//!    words is in a log line or an error, but FCM's two enum fields
//!    ([`fcm::Complaint`]).
//! 4. A thread that is still calling does not keep the process from ending.

mod client;
mod credentials;
mod fcm;
mod tokens;

use std::fmt::{self, Display};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use ring::digest::{SHA256, digest};

use self::client::Client;
use self::credentials::Credentials;
use self::fcm::Complaint;
use self::tokens::{AccessToken, Tokens};
use crate::config::PushWake;
use crate::relay::stats::WakeOutcome;
use crate::relay::wake::{DeviceToken, Wake};
use crate::server::mailbox::{Message, Post};
use crate::server::os::clock::{monotonic, wall_time};

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
        Ok(Self(Arc::new(Service { credentials, client, tokens: Tokens::default(), send_url })))
    }

    /// Starts the thread that takes wakes; each outcome is posted. It sleeps while
    /// there are none, and ends with the sender.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub(super) fn start(self, post: Post) -> io::Result<Sender<Wake>> {
        let (queue, wakes) = mpsc::channel();
        thread::Builder::new().name("push".into()).spawn(move || {
            for wake in wakes {
                self.call(wake, &post);
            }
        })?;
        Ok(queue)
    }

    /// Carries a wake out on a thread of its own.
    fn call(&self, wake: Wake, post: &Post) {
        let (service, sender) = (Arc::clone(&self.0), post.clone());
        let started =
            thread::Builder::new().name("call".into()).stack_size(STACK).spawn(move || {
                let outcome = service.carry_out(&wake);
                sender.send(Message::WakeDone(outcome));
            });
        if let Err(error) = started {
            let outcome = WakeOutcome::Dropped;
            log::warn!(outcome = outcome.label(), err:% = error; "push_wake_failed");
            post.send(Message::WakeDone(outcome));
        }
    }
}

/// What the threads share.
struct Service {
    credentials: Credentials,
    client: Client,
    tokens: Tokens,
    send_url: String,
}

/// Why there is no outcome but a failure: none of it is a server's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failure {
    /// The HTTP status, if there was a reply.
    status: Option<u16>,
    cause: &'static str,
}

/// How a wake ended, as far as the log may know.
struct Report {
    outcome: WakeOutcome,
    status: Option<u16>,
    cause: Option<&'static str>,
    complaint: Complaint,
}

impl Report {
    fn failed(outcome: WakeOutcome, failure: Failure) -> Self {
        let Failure { status, cause } = failure;
        Self { outcome, status, cause: Some(cause), complaint: Complaint::default() }
    }
}

impl Service {
    fn carry_out(&self, wake: &Wake) -> WakeOutcome {
        let Report { outcome, status, cause, complaint } = self.send(wake);
        if outcome != WakeOutcome::Sent {
            log::warn!(
                outcome = outcome.label(), status, err = cause,
                fcm_status = complaint.status.as_deref(),
                fcm_error_code = complaint.error_code.as_deref(),
                token_fp = fingerprint(&wake.device).as_str(), binary_conn_id:% = wake.binary;
                "push_wake_failed"
            );
        }
        outcome
    }

    /// Sends with the token at hand; should FCM refuse that, once more with a fresh
    /// one.
    fn send(&self, wake: &Wake) -> Report {
        let body = fcm::message(wake.device.reveal());
        let mut is_fresh = false;
        loop {
            let token = match self.access_token() {
                Ok(token) => token,
                Err(failure) => return Report::failed(WakeOutcome::TokenFetchFailed, failure),
            };
            let bearer = Some(token.reveal());
            let reply = match self.client.post(&self.send_url, "application/json", bearer, &body) {
                Ok(reply) => reply,
                Err(cause) => {
                    let failure = Failure { status: None, cause };
                    return Report::failed(WakeOutcome::SendFailed, failure);
                }
            };
            let status = reply.status();
            if status == fcm::UNAUTHORIZED {
                self.tokens.reject(&token, is_fresh, monotonic());
                if !std::mem::replace(&mut is_fresh, true) {
                    continue;
                }
            } else {
                self.tokens.accept();
            }
            if fcm::is_taken(status) {
                // What else the reply says changes nothing.
                return Report {
                    outcome: WakeOutcome::Sent,
                    status: Some(status),
                    cause: None,
                    complaint: Complaint::default(),
                };
            }
            let complaint = fcm::complaint(&reply.read());
            let outcome = fcm::outcome(status, &complaint);
            return Report { outcome, status: Some(status), cause: None, complaint };
        }
    }

    fn access_token(&self) -> Result<Arc<AccessToken>, Failure> {
        self.tokens.obtain(&monotonic, || {
            let no_reply = |cause| Failure { status: None, cause };
            let form = self.credentials.token_request(wall_time()).map_err(no_reply)?;
            let content_type = "application/x-www-form-urlencoded";
            let url = self.credentials.token_uri();
            let reply = self.client.post(url, content_type, None, &form).map_err(no_reply)?;
            let status = reply.status();
            tokens::grant(status, &reply.read())
                .map_err(|cause| Failure { status: Some(status), cause })
        })
    }
}

/// The first 8 hex digits of the token's SHA-256: enough to tell whether two lines
/// are about one device.
fn fingerprint(device: &DeviceToken) -> String {
    let hash = digest(&SHA256, device.reveal().as_bytes());
    hash.as_ref()[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_named_by_its_hash() {
        // FIPS 180-2, appendix B.1.
        assert_eq!(fingerprint(&DeviceToken::new("abc")), "ba7816bf");
    }
}
