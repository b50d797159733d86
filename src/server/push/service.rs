//! Service: sends one wake, with the state that all wakes share.
//!
//! Owns the order of the calls: an access token, the message, and once more with a fresh
//! token if FCM refuses the first. Must not know threads.

use std::sync::Arc;

use super::client::Client;
use super::credentials::Credentials;
use super::fcm;
use super::pause::Pause;
use super::report::{Failure, WakeReport};
use super::tokens::{self, AccessToken, Tokens};
use crate::relay::push_wake::Wake;
use crate::relay::stats::WakeOutcome;
use crate::server::os::clock::{monotonic, wall_time};

/// The state that all wakes share.
pub(super) struct Service {
    pub(super) credentials: Credentials,
    pub(super) client: Client,
    pub(super) tokens: Tokens,
    pub(super) pause: Pause,
    pub(super) send_url: String,
}

impl Service {
    /// The report of a dropped wake if FCM has asked for a pause; `None`: calls may be made.
    pub(super) fn paused(&self) -> Option<WakeReport> {
        self.pause.left(monotonic()).map(WakeReport::paused)
    }

    /// Sends a wake with the current token and, if FCM refuses that, once more with a fresh
    /// one.
    pub(super) fn send(&self, wake: &Wake) -> WakeReport {
        let body = fcm::message(wake.device.reveal());
        let mut is_fresh = false;
        loop {
            let token = match self.access_token() {
                Ok(token) => token,
                Err(failure) => return WakeReport::failed(WakeOutcome::TokenFetchFailed, failure),
            };
            // Another wake may have started a pause meanwhile.
            if let Some(paused) = self.paused() {
                return paused;
            }
            let bearer = Some(token.reveal());
            let reply = match self.client.post(&self.send_url, "application/json", bearer, &body) {
                Ok(reply) => reply,
                Err(cause) => {
                    let failure = Failure { status: None, cause };
                    return WakeReport::failed(WakeOutcome::SendFailed, failure);
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
                let name = fcm::message_name(&reply.read());
                // A name that contains a token is not logged.
                let secrets = [wake.device.reveal(), token.reveal()];
                let name = name.filter(|name| !secrets.iter().any(|it| name.contains(it)));
                return WakeReport::Sent(name);
            }
            let pause = fcm::pause(status, reply.retry_after());
            if let Some(pause) = pause {
                self.pause.extend(monotonic(), pause);
            }
            let error = fcm::parse_error(&reply.read());
            let outcome = fcm::outcome(&error);
            return WakeReport::refused(outcome, status, &error, pause);
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
